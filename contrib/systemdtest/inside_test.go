package systemdtest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/scratch"
)

// waitLimit is generous: a virtual machine may be twenty times slower than its host.
const waitLimit = time.Minute

// TestInside runs on a host that systemd has booted, with stated installed and not started yet.
func TestInside(t *testing.T) {
	if os.Getenv("STATED_INSIDE") == "" {
		return // TestNspawn and the virtual machine run it
	}
	remount(t)
	want(t, "", "systemctl", "start", "stated.socket")
	begun := time.Now()
	want(t, "", "systemctl", "start", "stated.service")
	t.Logf("started in %v", time.Since(begun))
	// Type=notify: it serves as soon as the start has returned.
	want(t, "OK", "docker", "version", "-f", "OK")
	want(t, "ready", "systemctl", "show", "-P", "StatusText", "stated")
	run(t, "docker", "import", "-c", "ENV PATH=/bin", "/suite/busybox.tar", "busybox")
	id := run(t, "docker", "run", "-d", "--name", "kept", "--memory", "64m", "-p", "8080:80", "busybox", "sleep", "1000000")
	c := container{id: id, pid: run(t, "docker", "inspect", "-f", "{{.State.Pid}}", "kept")}

	t.Run("cgroups", c.cgroups)
	t.Run("status", status)
	t.Run("watchdog", c.watchdog)
	t.Run("socket activation", c.activation)
	t.Run("upgrade", c.upgrade)
	t.Run("enough", func(t *testing.T) {
		run(t, "docker", "rm", "-f", "kept")
		run(t, "systemctl", "stop", "stated.service", "stated.socket")
		scratch.Eventually(t, waitLimit, "the shims' scopes go", func() bool {
			return run(t, "systemctl", "list-units", "--plain", "--no-legend", "stated-shim-*") == ""
		})
	})
}

// remount makes cgroups of version 1 writable, which systemd-nspawn mounts read-only.
func remount(t *testing.T) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if f[2] == "cgroup" || strings.HasPrefix(f[1], "/sys/fs/cgroup") && strings.HasPrefix(f[3], "ro") {
			if err := unix.Mount("", f[1], "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
				t.Fatalf("remount %s: %v", f[1], err)
			}
		}
	}
	if err := unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil && err != unix.EINVAL {
		t.Fatal(err) // EINVAL: no mount of its own, so writable
	}
}

// container is one that must not notice anything.
type container struct{ id, pid string }

// check complains unless the container runs with its first process, as before.
func (c container) check(t *testing.T) {
	t.Helper()
	want(t, c.pid+" running", "docker", "inspect", "-f", "{{.State.Pid}} {{.State.Status}}", "kept")
	want(t, "works", "docker", "exec", "kept", "echo", "works")
}

// shim is the process beside the container.
func (c container) shim(t *testing.T) string {
	t.Helper()
	for line := range strings.Lines(read(t, "/proc/"+c.pid+"/status")) {
		if f := strings.Fields(line); f[0] == "PPid:" {
			return f[1]
		}
	}
	t.Fatal("the container has no parent")
	return ""
}

func (c container) cgroups(t *testing.T) {
	shim := read(t, "/proc/"+c.shim(t)+"/cgroup")
	if !strings.Contains(shim, "/stated-shims.slice/stated-shim-"+c.id[:12]) || strings.Contains(shim, "stated.service") {
		t.Errorf("the shim is in\n%s, want a scope in stated-shims.slice only", shim)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-1"), 0); err != nil {
		t.Logf("no process may lower its oom score here: %v", err)
	} else if score := strings.TrimSpace(read(t, "/proc/"+mainPID(t)+"/oom_score_adj")); score != "-999" {
		t.Errorf("the daemon's oom score is %s", score)
	}
	if score := strings.TrimSpace(read(t, "/proc/"+c.pid+"/oom_score_adj")); score != "0" {
		t.Errorf("the container's oom score is %s", score)
	}
	own := read(t, "/proc/"+c.pid+"/cgroup")
	if strings.Contains(own, "stated.service") {
		t.Errorf("the container is in the daemon's unit:\n%s", own)
	}
	if path, ok := strings.CutPrefix(strings.TrimSpace(own), "0::"); ok && !strings.Contains(own, "memory") {
		t.Logf("cgroup v2: %s", path)
		want(t, "systemd 2", "docker", "info", "-f", "{{.CgroupDriver}} {{.CgroupVersion}}")
		if path != "/system.slice/docker-"+c.id+".scope" {
			t.Errorf("the container is in %s, want a scope in system.slice", path)
		}
		want(t, "active", "systemctl", "is-active", "docker-"+c.id+".scope")
		if limit := strings.TrimSpace(read(t, "/sys/fs/cgroup"+path+"/memory.max")); limit != "67108864" {
			t.Errorf("memory.max is %s", limit)
		}
		run(t, "docker", "update", "--memory", "32m", "--memory-swap", "32m", "kept")
		if limit := strings.TrimSpace(read(t, "/sys/fs/cgroup"+path+"/memory.max")); limit != "33554432" {
			t.Errorf("memory.max is %s after docker update", limit)
		}
		return
	}
	for line := range strings.Lines(own) {
		if _, path, ok := strings.Cut(strings.TrimSpace(line), ":memory:"); ok {
			t.Logf("cgroup v1: %s", path)
			if limit := strings.TrimSpace(read(t, "/sys/fs/cgroup/memory"+path+"/memory.limit_in_bytes")); limit != "67108864" {
				t.Errorf("the memory limit is %s", limit)
			}
			return
		}
	}
	t.Errorf("the container is in no memory cgroup:\n%s", own)
}

// status starts a second daemon on roots of its own and listens to what it tells its service manager.
func status(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cmd := exec.Command("stated", "daemon", "--data-root", dir+"/data", "--exec-root", dir+"/exec", "-H", "unix://"+dir+"/s", "--bridge", "none")
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var got []string
	hear := func(until string) {
		t.Helper()
		buf := make([]byte, 4096)
		for {
			if err := conn.SetReadDeadline(time.Now().Add(waitLimit)); err != nil {
				t.Fatal(err)
			}
			n, err := conn.Read(buf)
			if err != nil {
				_ = cmd.Process.Kill() // it does not say what it should
				_ = cmd.Wait()         // likewise
				t.Fatalf("heard %q, then %v\n%s", got, err, log.String())
			}
			got = append(got, string(buf[:n]))
			if strings.HasPrefix(string(buf[:n]), until) {
				return
			}
		}
	}
	hear("READY=1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hear("STOPPING=1")
	if err := cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v\n%s", err, log.String())
	}
	wanted := []string{"STATUS=opening graph driver", "STATUS=opening volumes", "STATUS=opening network datastores", "STATUS=opening cluster store",
		"STATUS=opening restore", "STATUS=opening serve", "READY=1\nSTATUS=ready", "STOPPING=1"}
	if fmt.Sprint(got) != fmt.Sprint(wanted) {
		t.Errorf("the daemon told %q, want %q", got, wanted)
	}
}

// watchdog hangs the daemon: systemd must start it again, and the container must not notice.
func (c container) watchdog(t *testing.T) {
	dropIn := "/run/systemd/system/stated.service.d/watchdog.conf"
	if err := os.MkdirAll(filepath.Dir(dropIn), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dropIn, []byte("[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "daemon-reload")
	run(t, "systemctl", "restart", "stated")
	c.check(t)
	old := mainPID(t)
	time.Sleep(4 * time.Second) // a fed watchdog leaves it alone
	if now := mainPID(t); now != old {
		t.Fatalf("the daemon is process %s, not %s: its watchdog was not fed", now, old)
	}
	pid, err := strconv.Atoi(old)
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	scratch.Eventually(t, waitLimit, "systemd starts the hung daemon again", func() bool {
		now := mainPID(t)
		return now != "0" && now != old && run(t, "systemctl", "show", "-P", "ActiveState", "stated") == "active"
	})
	t.Logf("the hung daemon was replaced after %v", time.Since(begun))
	c.check(t)
	if err := os.Remove(dropIn); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "daemon-reload")
}

// activation stops the daemon and lets a client start it.
func (c container) activation(t *testing.T) {
	run(t, "systemctl", "stop", "stated.service")
	want(t, "inactive", "systemctl", "show", "-P", "ActiveState", "stated")
	if _, err := os.Stat("/proc/" + c.pid); err != nil {
		t.Fatalf("the container ended with the daemon: %v", err)
	}
	c.check(t) // its client starts the daemon
	want(t, "active", "systemctl", "show", "-P", "ActiveState", "stated")
}

// upgrade replaces the daemon's binary as packages do.
func (c container) upgrade(t *testing.T) {
	shim := c.shim(t)
	old := read(t, "/usr/bin/stated")
	if err := os.WriteFile("/usr/bin/stated.new", []byte(old+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename("/usr/bin/stated.new", "/usr/bin/stated"); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "restart", "stated")
	info, err := os.Stat("/proc/" + mainPID(t) + "/exe")
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != int64(len(old)+1) {
		t.Errorf("the daemon still runs the old binary")
	}
	if now := c.shim(t); now != shim {
		t.Errorf("the container's shim is process %s, was %s", now, shim)
	}
	c.check(t)
	run(t, "docker", "run", "--rm", "busybox", "true")
}

func mainPID(t *testing.T) string {
	t.Helper()
	return run(t, "systemctl", "show", "-P", "MainPID", "stated")
}

// run runs a command, which must succeed, and returns its output without spaces around it.
func run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix:///run/stated/stated.sock")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		journal, _ := exec.Command("journalctl", "-u", "stated", "-n", "30", "--no-pager").Output() // for the message only
		t.Fatalf("%q: %v: %s%s\n%s", args, err, out, stderr.String(), journal)
	}
	return strings.TrimSpace(string(out))
}

func want(t *testing.T, out string, args ...string) {
	t.Helper()
	if got := run(t, args...); got != out {
		t.Errorf("%q printed %q, want %q", args, got, out)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
