package runtime_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/runtimetest"
	"stated.dev/stated/daemon/runtime/shimapi"
)

// programs are built once for all tests.
type programs struct{ shim, runc, rootfs string }

var built programs

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if helper := os.Getenv("RUNTIME_TEST_HELPER"); helper != "" {
		return runHelper(helper)
	}
	dir, err := os.MkdirTemp("", "stated-runtime")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	built = build(dir)
	return m.Run()
}

// build makes the programs under test.
func build(dir string) programs {
	p := programs{shim: filepath.Join(dir, "stated-shim"), rootfs: filepath.Join(dir, "rootfs")}
	for _, sub := range []string{"proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(p.rootfs, sub), 0o755); err != nil {
			panic(err)
		}
	}
	for out, pkg := range map[string]string{
		p.shim: "stated.dev/stated/cmd/stated-shim",
		filepath.Join(p.rootfs, runtimetest.Prog): "stated.dev/stated/daemon/runtime/runtimetest/testprog",
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			panic(string(text))
		}
	}
	p.runc = "../../bin/runc"
	if _, err := os.Stat(p.runc); err != nil {
		p.runc = "runc"
	}
	return p
}

// world is one exec root.
type world struct {
	execRoot string
	cgroup   string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	root, err := os.MkdirTemp("/run", "stated-test-")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{execRoot: root, cgroup: "/" + filepath.Base(root)}
	t.Cleanup(func() {
		w.killAll()
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
		w.removeCgroups()
	})
	return w
}

// killAll ends the shims and containers that a failed test left.
func (w *world) killAll() {
	dirs, _ := filepath.Glob(filepath.Join(w.execRoot, "containers", "*"))
	for _, dir := range dirs {
		if pid := shimPid(dir); pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	states, _ := filepath.Glob(filepath.Join(w.execRoot, "runc", "*"))
	for _, dir := range states {
		_ = exec.Command(built.runc, "--root", filepath.Dir(dir), "delete", "--force", filepath.Base(dir)).Run()
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

// shimPid returns the pid of a shim that lives.
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

func (w *world) open(t testing.TB) *runtime.Shims {
	t.Helper()
	r, err := runtime.New(runtime.Options{ExecRoot: w.execRoot, ShimPath: built.shim, RuncPath: built.runc})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func (w *world) spec(id string, args ...string) *specs.Spec {
	return runtimetest.Spec(built.rootfs, w.cgroup+"/"+id, args...)
}

// killShim ends a shim and returns when it is gone.
func (w *world) killShim(t testing.TB, id string) {
	t.Helper()
	pid := shimPid(filepath.Join(w.execRoot, "containers", id))
	if pid == 0 {
		t.Fatal("no shim to kill")
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000); err != unix.EINTR {
			return
		}
	}
}

func TestShims(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) *runtimetest.Harness {
		w := newWorld(t)
		return &runtimetest.Harness{
			Runtime:  w.open(t),
			Again:    func(t *testing.T) runtime.Runtime { return w.open(t) },
			KillShim: func(t *testing.T, id string) { w.killShim(t, id) },
			KillInit: func(t *testing.T, _ string, pid int) {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil {
					t.Fatalf("the container's process is gone: %v", err)
				}
			},
			Spec: w.spec,
		}
	})
}
