package dns

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// namespace opens sockets in a network namespace. The shim is to stay small: this is all it needs of namespaces.
type namespace struct {
	target, home *os.File
	mu           sync.Mutex // one thread at a time is away
}

func openNamespace(path string) (*namespace, error) {
	target, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		_ = target.Close() // read-only
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return &namespace{target: target, home: home}, nil
}

func (n *namespace) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	_ = n.target.Close() // read-only
	_ = n.home.Close()   // read-only
}

// do runs f in the namespace, on a thread of its own. F must not wait for anything.
func (n *namespace) do(f func() error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(n.target.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err := f()
		if unix.Setns(int(n.home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine, still locked, and nothing else runs on it
		done <- err
	}()
	return <-done
}
