package netns_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"

	"stated.dev/stated/network/netns"
	"stated.dev/stated/network/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func names(t *testing.T) map[string]bool {
	t.Helper()
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, i := range list {
		out[i.Name] = i.Flags&net.FlagUp != 0
	}
	return out
}

func TestCreateDoRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	if err := netns.Create(path, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Remove(path) })
	if !netns.Exists(path) {
		t.Fatal("no namespace at the path")
	}
	if err := netns.Create(path, nil); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("second create: %v", err)
	}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	err = netns.Do(path, func() error {
		if here, _ := os.Readlink("/proc/thread-self/ns/net"); here == home {
			t.Error("Do stayed at home")
		}
		if up, ok := names(t)["lo"]; !ok || !up {
			t.Error("the loopback interface is not up")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := netns.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if netns.Exists(path) {
		t.Fatal("still there")
	}
}

func TestFailedSetupLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	failure := errors.New("no")
	if err := netns.Create(filepath.Join(dir, "ns"), func() error { return failure }); !errors.Is(err, failure) {
		t.Fatalf("got %v", err)
	}
	if left, _ := netns.List(dir); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
}

// No thread may stay in a namespace that it entered.
func TestThreadsComeHome(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			path := filepath.Join(dir, string(rune('a'+i)))
			for range 5 {
				if err := netns.Create(path, nil); err != nil {
					t.Error(err)
					return
				}
				if err := netns.Do(path, func() error { return nil }); err != nil {
					t.Error(err)
				}
				if err := netns.Remove(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	home, _ := os.Readlink("/proc/self/ns/net")
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	for _, task := range tasks {
		if there, err := os.Readlink(task); err == nil && there != home {
			t.Errorf("%s is in %s", task, there)
		}
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	path := filepath.Join(b.TempDir(), "ns")
	for b.Loop() {
		if err := netns.Create(path, nil); err != nil {
			b.Fatal(err)
		}
		if err := netns.Remove(path); err != nil {
			b.Fatal(err)
		}
	}
}

// The namespace of a process gets a name, and its loopback interface works.
func TestTake(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	path := filepath.Join(t.TempDir(), "ns")
	if err := netns.Take(path, filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "comm")); err == nil || netns.Exists(path) {
		t.Fatalf("a file was taken for a namespace: %v", err)
	}
	from := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "ns/net")
	if err := netns.Take(path, from); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Remove(path) })
	if err := netns.Take(path, from); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second take: %v", err)
	}
	want, err := os.Readlink(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Do(path, func() error {
		if here, _ := os.Readlink("/proc/thread-self/ns/net"); here != want {
			t.Errorf("the name leads to %s, want %s", here, want)
		}
		if !names(t)["lo"] {
			t.Error("the loopback interface is not up")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
