package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peer is one of the two daemons that are compared.
type peer struct {
	name   string
	dir    string // holds the data root, the socket and the log
	socket string
	args   func(p *peer) *exec.Cmd
	api    *client
	cmd    *exec.Cmd
	shim   string // name of the process that each container has beside it
}

func newStated(dir, binary string) *peer {
	p := &peer{name: "stated", dir: dir, socket: filepath.Join(dir, "d.sock"), shim: "stated-shim"}
	p.args = func(p *peer) *exec.Cmd {
		return exec.Command(binary, "daemon", "--data-root", filepath.Join(p.dir, "data"), "--exec-root", filepath.Join(p.dir, "exec"),
			"-H", "unix://"+p.socket, "--bridge", "bench0", "--bip", "10.201.0.1/16", "--default-address-pool", "base=10.202.0.0/16,size=24")
	}
	return p
}

// newDockerd prepares the chroot's mounts, in our own mount namespace.
func newDockerd(dir, tree string) (*peer, error) {
	p := &peer{name: "dockerd", dir: dir, socket: filepath.Join(dir, "run", "d.sock"), shim: "containerd-shim"}
	for _, d := range []string{filepath.Join(dir, "run"), filepath.Join(dir, "data"), filepath.Join(tree, "var/lib/docker")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, err
		}
	}
	mounts := []struct {
		source, target, fs string
		flags              uintptr
	}{
		{tree, tree, "", unix.MS_BIND},
		{"proc", tree + "/proc", "proc", 0},
		{"/sys", tree + "/sys", "", unix.MS_BIND | unix.MS_REC},
		{"/dev", tree + "/dev", "", unix.MS_BIND | unix.MS_REC},
		{filepath.Join(dir, "run"), tree + "/run", "", unix.MS_BIND},
		{"tmpfs", tree + "/tmp", "tmpfs", 0},
		{filepath.Join(dir, "data"), tree + "/var/lib/docker", "", unix.MS_BIND},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.fs, m.flags, ""); err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := errors.Join(os.RemoveAll(tree+"/var/run"), os.Symlink("../run", tree+"/var/run")); err != nil {
		return nil, err
	}
	p.args = func(*peer) *exec.Cmd {
		return exec.Command("chroot", tree, "/usr/sbin/dockerd", "-H", "unix:///run/d.sock", "--live-restore",
			"--bip", "10.203.0.1/16", "--default-address-pool", "base=10.204.0.0/16,size=24")
	}
	return p, nil
}

// spawn starts the process.
func (p *peer) spawn() error {
	logFile, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := p.args(p)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	if err := cmd.Start(); err != nil {
		return err
	}
	p.cmd = cmd
	return nil
}

// up starts the daemon and returns how long it took to answer a ping.
func (p *peer) up() (time.Duration, error) {
	p.api = newClient(p.socket)
	started := time.Now()
	if err := p.spawn(); err != nil {
		return 0, err
	}
	if err := p.api.ready(time.Minute); err != nil {
		return 0, fmt.Errorf("%s: %w", p.name, err)
	}
	return time.Since(started), nil
}

// down ends the daemon with a signal and waits for it.
func (p *peer) down(sig syscall.Signal) error {
	if p.cmd == nil {
		return nil
	}
	if p.api != nil {
		p.api.http.CloseIdleConnections()
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		return err
	}
	_ = p.cmd.Wait() // it was told to end
	p.cmd = nil
	return nil
}

// daemonPSS is the proportional set size in bytes of the daemon and of the containerd it started.
func (p *peer) daemonPSS() (int64, error) {
	pids := []int{p.cmd.Process.Pid}
	children, err := descendants(p.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	for pid, name := range children {
		if name == "containerd" {
			pids = append(pids, pid)
		}
	}
	var sum int64
	for _, pid := range pids {
		n, err := pss(pid)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// shimPSS is the proportional set size of all processes that containers have beside them, and their number.
func (p *peer) shimPSS() (sum int64, count int, err error) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return 0, 0, err
	}
	for _, e := range procs {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil || !strings.HasPrefix(filepath.Base(exe), p.shim) || !sameNetwork(e.Name()) {
			continue
		}
		n, err := pss(pid)
		if err != nil {
			continue // it ended just now
		}
		sum += n
		count++
	}
	return sum, count, nil
}

// sameNetwork reports whether a process is in our network namespace: others may run containers on this machine.
func sameNetwork(pid string) bool {
	mine, err := os.Readlink("/proc/self/ns/net")
	theirs, err2 := os.Readlink(filepath.Join("/proc", pid, "ns/net"))
	return err == nil && err2 == nil && mine == theirs
}

func pss(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n * 1024, err
		}
	}
	return 0, fmt.Errorf("no Pss for process %d", pid)
}

// descendants lists the processes below pid with their names.
func descendants(pid int) (map[int]string, error) {
	parent, name := map[int]int{}, map[int]string{}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	for _, e := range procs {
		id, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
		f := strings.Fields(string(stat[end+1:]))
		name[id] = string(stat[open+1 : end])
		parent[id], _ = strconv.Atoi(f[1])
	}
	below := map[int]string{}
	for id := range parent {
		for at := id; at > 1; at = parent[at] {
			if parent[at] == pid {
				below[id] = name[id]
				break
			}
		}
	}
	return below, nil
}

// flushCalls are the system calls that wait for the disk.
var flushCalls = []string{"fsync", "fdatasync", "syncfs", "sync", "msync", "sync_file_range"}

// flushes counts the flushes that the daemon and its children make while f runs, by strace.
func (p *peer) flushes(f func() error) (int, error) {
	out, err := os.CreateTemp(p.dir, "strace")
	if err != nil {
		return 0, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	args := []string{"-f", "-qq", "-e", "trace=" + strings.Join(flushCalls, ","), "-e", "signal=none", "-o", out.Name(), "-p", strconv.Itoa(p.cmd.Process.Pid)}
	children, err := descendants(p.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	for pid, name := range children {
		if name == "containerd" {
			args = append(args, "-p", strconv.Itoa(pid))
		}
	}
	cmd := exec.Command("strace", args...)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	// strace is attached when every thread names it as its tracer.
	for !traced(p.cmd.Process.Pid) {
		time.Sleep(time.Millisecond)
	}
	ferr := f()
	_ = cmd.Process.Signal(os.Interrupt) // detaches
	_ = cmd.Wait()                       // ends by that signal
	count := 0
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		// "PID name(args) = 0"; an old strace also prints calls that it has no name for.
		if f := strings.Fields(lines.Text()); len(f) > 1 && slices.Contains(flushCalls, strings.SplitN(f[1], "(", 2)[0]) {
			count++
		}
	}
	return count, errors.Join(ferr, lines.Err())
}

func traced(pid int) bool {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return true
	}
	for _, t := range tasks {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/status", pid, t.Name()))
		if err == nil && strings.Contains(string(status), "TracerPid:\t0") {
			return false
		}
	}
	return true
}
