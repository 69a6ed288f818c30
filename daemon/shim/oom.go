package shim

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"sync"
)

// oomCounter tells whether the kernel killed for memory in the container's cgroup since it was made. The file is
// kept open, because systemd takes an empty cgroup away at once.
type oomCounter struct {
	mu   sync.Mutex // guards what is below
	f    *os.File
	base uint64
}

// watch starts to count for the cgroup of a process.
func (o *oomCounter) watch(pid int) {
	path := oomFile(pid)
	if path == "" {
		return
	}
	f, err := os.Open(path)
	if err != nil {
		return // no memory controller: nothing to count
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.f != nil {
		_ = o.f.Close() // only read
	}
	o.f = f
	o.base, _ = readOOMKills(f)
}

// killed reports whether there were kills, and stops counting.
func (o *oomCounter) killed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.f == nil {
		return false
	}
	n, err := readOOMKills(o.f)
	_ = o.f.Close() // only read
	o.f = nil
	return err == nil && n > o.base
}

// readOOMKills takes the line "oom_kill N", which memory.events and version 1's memory.oom_control both have.
func readOOMKills(f *os.File) (uint64, error) {
	if _, err := f.Seek(0, 0); err != nil {
		return 0, err
	}
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), "oom_kill "); ok {
			return strconv.ParseUint(v, 10, 64)
		}
	}
	return 0, sc.Err()
}

// oomFile returns the path of the file that counts kills in the cgroup of a process, or "".
func oomFile(pid int) string {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	unified := ""
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		names, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		if names == "" {
			unified = "/sys/fs/cgroup" + path + "/memory.events"
		}
		for name := range strings.SplitSeq(names, ",") {
			if name == "memory" {
				return "/sys/fs/cgroup/memory" + path + "/memory.oom_control"
			}
		}
	}
	return unified
}
