package external_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/external"
	"stated.dev/stated/daemon/runtime/runtimetest"
	"stated.dev/stated/daemon/runtime/shimapi"
)

// world is one containerd, and the exec root of one daemon that uses it.
type world struct {
	dir     string // below /run, short enough for socket addresses
	address string
	cgroup  string
	rootfs  string
	shim    string
	runc    string
	tree    string // holds containerd
	command *exec.Cmd
}

// newWorld starts a containerd of its own. Without one the test fails.
func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "stated-test-")
	runtimetest.Must(t, err)
	w := &world{dir: dir, address: filepath.Join(dir, "containerd.sock"), cgroup: "/" + filepath.Base(dir)}
	t.Cleanup(func() {
		w.killAll()
		w.stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		w.removeCgroups()
	})
	tree, err := exec.Command("bash", "../../../contrib/env/dockerd.sh").Output()
	if err != nil {
		t.Fatalf("find a containerd: %v: %s", err, stderrOf(err))
	}
	w.tree = strings.TrimSpace(string(tree))
	w.runc = "../../../bin/runc"
	if _, err := os.Stat(w.runc); err != nil {
		w.runc = "runc"
	}
	programs := t.TempDir()
	w.rootfs = runtimetest.Rootfs(t, programs)
	w.shim = runtimetest.Build(t, programs, "stated.dev/stated/cmd/stated-shim")
	w.start(t)
	return w
}

func stderrOf(err error) string {
	if exit, ok := err.(*exec.ExitError); ok {
		return string(exit.Stderr)
	}
	return ""
}

// start starts containerd. It is linked against its tree's libraries, so it is started by their loader.
func (w *world) start(t *testing.T) {
	t.Helper()
	config := filepath.Join(w.dir, "containerd.toml")
	text := fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
[grpc]
address = %q
`, filepath.Join(w.dir, "containerd"), filepath.Join(w.dir, "state"), w.address)
	runtimetest.Must(t, os.WriteFile(config, []byte(text), 0o600))
	log, err := os.OpenFile(filepath.Join(w.dir, "containerd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	runtimetest.Must(t, err)
	defer log.Close() // containerd has its own
	w.command = exec.Command(filepath.Join(w.tree, "lib64/ld-linux-x86-64.so.2"),
		"--library-path", filepath.Join(w.tree, "usr/lib/x86_64-linux-gnu"),
		filepath.Join(w.tree, "usr/bin/containerd"), "--config", config)
	w.command.Stdout, w.command.Stderr = log, log
	runtimetest.Must(t, w.command.Start())
}

// stop ends containerd as a crash would.
func (w *world) stop() {
	if w.command != nil {
		_ = w.command.Process.Kill()
		_ = w.command.Wait()
		w.command = nil
	}
}

func (w *world) log() string {
	data, _ := os.ReadFile(filepath.Join(w.dir, "containerd.log"))
	return string(data)
}

func (w *world) options(execRoot string) external.Options {
	return external.Options{Address: "unix://" + w.address, Shims: runtime.Options{
		ExecRoot: execRoot, ShimPath: w.shim, RuncPath: w.runc}}
}

func (w *world) open(t *testing.T, execRoot string) *external.Runtime {
	t.Helper()
	r, err := external.New(t.Context(), w.options(execRoot))
	if err != nil {
		t.Fatalf("%v\n%s", err, w.log())
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func (w *world) spec(id string, args ...string) *specs.Spec {
	return runtimetest.Spec(w.rootfs, w.cgroup+"/"+id[:12], args...)
}

// shimPid returns the pid of a shim that lives, or 0.
func shimPid(dir string) int {
	data, err := os.ReadFile(filepath.Join(dir, shimapi.InfoFile))
	if err != nil {
		return 0
	}
	var info shimapi.Info
	if json.Unmarshal(data, &info) != nil {
		return 0
	}
	if start, err := shimapi.StartTime(info.Pid); err != nil || start != info.StartTime {
		return 0
	}
	return info.Pid
}

// killShim ends a shim and returns when it is gone.
func killShim(t *testing.T, dir string) {
	t.Helper()
	pid := shimPid(dir)
	if pid == 0 {
		t.Fatal("no shim to kill")
	}
	fd := runtimetest.Value(t, runtimetest.Of(unix.PidfdOpen(pid, 0)))
	defer unix.Close(fd)
	runtimetest.Must(t, unix.Kill(pid, unix.SIGKILL))
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); err != unix.EINTR {
			return
		}
	}
}

// killAll ends the shims and containers that a failed test left.
func (w *world) killAll() {
	dirs, _ := filepath.Glob(filepath.Join(w.dir, "*", "containers", "*"))
	for _, dir := range dirs {
		if pid := shimPid(dir); pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	states, _ := filepath.Glob(filepath.Join(w.dir, "*", "runc", "*"))
	for _, dir := range states {
		_ = exec.Command(w.runc, "--root", filepath.Dir(dir), "delete", "--force", filepath.Base(dir)).Run()
	}
}

func (w *world) removeCgroups() {
	for _, pattern := range []string{"/sys/fs/cgroup" + w.cgroup, "/sys/fs/cgroup/*" + w.cgroup} {
		tops, _ := filepath.Glob(pattern)
		for _, top := range tops {
			subs, _ := filepath.Glob(filepath.Join(top, "*"))
			for _, sub := range subs {
				_ = unix.Rmdir(sub)
			}
			_ = unix.Rmdir(top)
		}
	}
}

func TestExternal(t *testing.T) {
	w := newWorld(t)
	runtimetest.Run(t, func(t *testing.T) *runtimetest.Harness {
		execRoot := filepath.Join(w.dir, runtimetest.Value(t, runtimetest.Of(randomName())))
		t.Cleanup(func() { w.remove(t, execRoot) })
		return &runtimetest.Harness{
			Runtime:  w.open(t, execRoot),
			Again:    func(t *testing.T) runtime.Runtime { return w.open(t, execRoot) },
			KillShim: func(t *testing.T, id string) { killShim(t, filepath.Join(execRoot, "containers", id)) },
			KillInit: func(t *testing.T, _ string, pid int) {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatalf("the container's process is gone: %v", err)
				}
			},
			Spec: w.spec,
		}
	})
	w.wantEmpty(t)
	if t.Failed() {
		t.Log(w.log())
	}
}

// remove takes away the containers that a part left.
func (w *world) remove(t *testing.T, execRoot string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r, err := external.New(ctx, w.options(execRoot))
	if err != nil {
		t.Error(err)
		return
	}
	defer r.Close() // nothing hangs on it
	list, err := r.List(ctx)
	if err != nil {
		t.Error(err)
	}
	for _, id := range list {
		task, err := r.Reconnect(ctx, id)
		if err != nil {
			t.Error(err)
			continue
		}
		_ = task.Kill(ctx, int(unix.SIGKILL), false) // it may have ended
		if st, err := task.State(ctx); err == nil && st.Status == runtime.StatusRunning {
			_, _ = task.Wait(ctx) // Delete tells
		}
		if err := task.Delete(ctx); err != nil {
			t.Error(err)
		}
	}
}

func randomName() (string, error) {
	dir, err := os.MkdirTemp("/run", "stated-test-")
	if err != nil {
		return "", err
	}
	return filepath.Base(dir), os.Remove(dir)
}

// wantEmpty looks for what containerd still keeps.
func (w *world) wantEmpty(t *testing.T) {
	t.Helper()
	left, _ := filepath.Glob(filepath.Join(w.dir, "state", "io.containerd.runtime.v2.task", external.Namespace, "*"))
	if len(left) > 0 {
		t.Errorf("containerd keeps %v", left)
	}
}
