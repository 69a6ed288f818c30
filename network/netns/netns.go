// Package netns makes, enters and removes network namespaces that have a name in the file system.
//
// A namespace is entered on a locked thread. A thread that cannot be brought back to where it came from is never
// given back to the Go scheduler: it ends with its goroutine. The package holds no state and no locks.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// current names the namespace of the calling thread.
const current = "/proc/thread-self/ns/net"

// Create makes a namespace, brings its loopback interface up, runs setup inside of it (unless nil), and binds it to
// path. A file that is in the way is an error that satisfies errors.Is(err, fs.ErrExist).
func Create(path string, setup func() error) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	_ = f.Close() // only the name is needed
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		if setup != nil {
			if err := setup(); err != nil {
				return err
			}
		}
		return unix.Mount(current, path, "bind", unix.MS_BIND, "")
	})
	if err != nil {
		_ = os.Remove(path) // nothing is mounted on it
		return fmt.Errorf("create network namespace %s: %w", path, err)
	}
	return nil
}

// Take gives the namespace at from, such as /proc/PID/ns/net, a name at path, and brings its loopback interface up. A
// file that is in the way is an error that satisfies errors.Is(err, fs.ErrExist).
func Take(path, from string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("take network namespace: %w", err)
	}
	_ = f.Close() // only the name is needed
	if err = unix.Mount(from, path, "bind", unix.MS_BIND, ""); err == nil && !Exists(path) {
		err = errors.New("it is not a namespace")
	}
	if err == nil {
		err = Do(path, loopbackUp)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("take network namespace %s: %w", from, err), Remove(path))
	}
	return nil
}

// Bind gives the namespace of the calling process a name at path, unless it has it already.
func Bind(path string) error {
	if Exists(path) {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return fmt.Errorf("bind network namespace: %w", err)
	}
	_ = f.Close() // only the name is needed
	if err := unix.Mount("/proc/self/ns/net", path, "bind", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind network namespace %s: %w", path, err)
	}
	return nil
}

// Exists reports whether a namespace is bound at path.
func Exists(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// Remove takes the name away; the namespace ends with its last process. A path that is not there is no error.
func Remove(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// Do runs f on a thread that is in the namespace bound at path.
func Do(path string, f func() error) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	defer ns.Close()
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return f()
	})
}

// List returns the paths of the namespaces and leftover files in dir.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var paths []string
	for _, e := range entries {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	return paths, nil
}

// onThread runs f on a thread of its own and brings the thread back to its namespace afterwards.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open(current)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the thread dies with this goroutine, still locked
		done <- err
	}()
	return <-done
}

func loopbackUp() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	lo := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}} // the loopback interface is always the first
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback up: %w", err)
	}
	return nil
}
