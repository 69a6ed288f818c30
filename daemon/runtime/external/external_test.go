package external_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/external"
	"stated.dev/stated/daemon/runtime/runtimetest"
	"stated.dev/stated/daemon/runtime/shimapi"
)

// programs is the directory of what all tests run, which the first of them makes and fills.
var (
	programs string
	build    sync.Once
)

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	defer func() { _ = os.RemoveAll(programs) }() // nothing, where no test ran
	return m.Run()
}

// world is one containerd, and the exec root of one daemon that uses it.
type world struct {
	dir     string // below /run, short enough for socket addresses
	address string
	cgroup  string
	rootfs  string
	shim    string
	runc    string
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
	w.runc = "../../../bin/runc"
	if _, err := os.Stat(w.runc); err != nil {
		w.runc = "runc"
	}
	build.Do(func() {
		programs, err = os.MkdirTemp("", "stated-external")
		runtimetest.Must(t, err)
		runtimetest.Rootfs(t, programs)
		runtimetest.Build(t, programs, "stated.dev/stated/cmd/stated-shim")
	})
	w.rootfs, w.shim = filepath.Join(programs, "rootfs"), filepath.Join(programs, "stated-shim")
	w.start(t)
	return w
}

// start starts containerd. New waits until it answers.
func (w *world) start(t *testing.T) {
	t.Helper()
	w.command = exec.Command("../../../contrib/env/containerd.sh", w.dir)
	w.command.Stderr = os.Stderr
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
	return runtimetest.Spec(w.rootfs, w.cgroup+"/"+id, args...)
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

// bundles lists the directories that containerd has for containers.
func (w *world) bundles(name string) []string {
	list, _ := filepath.Glob(filepath.Join(w.dir, "state", "io.containerd.runtime.v2.task", external.Namespace, name)) // sound
	return list
}

// wantEmpty looks for what containerd still keeps.
func (w *world) wantEmpty(t *testing.T) {
	t.Helper()
	if left := w.bundles("*"); len(left) > 0 {
		t.Errorf("containerd keeps %v", left)
	}
	containers, _ := w.dial(t)
	list, err := containers.List(namespaces.WithNamespace(t.Context(), external.Namespace), &containersapi.ListContainersRequest{})
	if err != nil || len(list.Containers) > 0 {
		t.Errorf("containerd's records have %v, %v", list, err)
	}
}
