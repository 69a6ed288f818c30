// Probe is the program that the tests run in containers. It tells as JSON what it finds around itself.
package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Report must match the type of that name in the tests.
type Report struct {
	Args, Env []string
	Cwd       string
	UID, GID  int
	Groups    []int
	Hostname  string
	Domain    string
	Umask     int
	OOMScore  string
	Status    map[string]string // fields of /proc/self/status
	Limits    map[string][2]uint64
	Mounts    map[string]string // mount point -> "fstype options superoptions"
	Devices   []string
	Cgroups   string
	Sysctls   map[string]string
	Tries     map[string]string // path -> "" or why it cannot be written
	Reads     map[string]int    // path -> bytes read, -1 when it cannot be
	Links     map[string]string // namespace -> id
	Files     map[string]string
}

func main() {
	r := Report{
		Args: os.Args, Env: os.Environ(), UID: os.Getuid(), GID: os.Getgid(),
		Status: map[string]string{}, Limits: map[string][2]uint64{}, Mounts: map[string]string{},
		Sysctls: map[string]string{}, Tries: map[string]string{}, Reads: map[string]int{}, Links: map[string]string{}, Files: map[string]string{},
	}
	r.Umask = syscall.Umask(0)
	r.Cwd, _ = os.Getwd()
	r.Groups, _ = os.Getgroups()
	r.Hostname, _ = os.Hostname()
	r.Domain = read("/proc/sys/kernel/domainname")
	r.OOMScore = read("/proc/self/oom_score_adj")
	r.Cgroups = read("/proc/self/cgroup")
	for line := range strings.SplitSeq(read("/proc/self/status"), "\n") {
		key, value, _ := strings.Cut(line, ":")
		r.Status[key] = strings.TrimSpace(value)
	}
	for line := range strings.SplitSeq(read("/proc/self/mountinfo"), "\n") {
		left, right, ok := strings.Cut(line, " - ")
		l, rr := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 6 || len(rr) < 3 {
			continue
		}
		r.Mounts[l[4]] = rr[0] + " " + l[5] + " " + rr[2]
	}
	for name, number := range map[string]int{"nofile": 7, "core": 4, "nproc": 6} {
		var limit syscall.Rlimit
		if syscall.Getrlimit(number, &limit) == nil {
			r.Limits[name] = [2]uint64{limit.Cur, limit.Max}
		}
	}
	for _, name := range []string{"mnt", "net", "pid", "ipc", "uts", "user", "cgroup"} {
		r.Links[name], _ = os.Readlink("/proc/self/ns/" + name)
	}
	filepath.WalkDir("/dev", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeDevice != 0 {
			r.Devices = append(r.Devices, path)
		}
		return nil
	})
	for _, arg := range os.Args[1:] {
		what, path, _ := strings.Cut(arg, "=")
		switch what {
		case "write":
			r.Tries[path] = write(path)
		case "read":
			data, err := os.ReadFile(path)
			r.Reads[path] = len(data)
			if err != nil {
				r.Reads[path] = -1
			}
		case "open":
			f, err := os.Open(path)
			if err == nil {
				f.Close()
				r.Tries[path] = ""
			} else {
				r.Tries[path] = err.Error()
			}
		case "sysctl":
			r.Sysctls[path] = read("/proc/sys/" + strings.ReplaceAll(path, ".", "/"))
		case "file":
			r.Files[path] = read(path)
		}
	}
	json.NewEncoder(os.Stdout).Encode(r)
}

func read(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return "error: " + err.Error()
	}
	return strings.TrimSpace(string(data))
}

// write makes and takes away a file in a directory, or opens a file for writing.
func write(path string) string {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		path = filepath.Join(path, "probe-file")
		err := os.WriteFile(path, []byte("x"), 0o644)
		if err != nil {
			return err.Error()
		}
		os.Remove(path)
		return ""
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err.Error()
	}
	f.Close()
	return ""
}
