package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"unsafe"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime/shimapi"
)

const (
	// A shim holds little and lives long: once it has started its container it collects early, and it asks for memory
	// back before it asks for more.
	gcPercent   = 40
	memoryLimit = 64 << 20
	// oomScore makes the kernel take a shim last, as it does the daemon.
	oomScore = "-999"
)

// Serve is the life of a shim that the daemon started. It waits until it is told its container, and goes when there is
// none for it. It returns the process's exit code.
func Serve(version string, parts Parts) int {
	prepareProcess()
	if err := serve(version, parts); err != nil {
		slog.Error("shim ends", "error", err)
		return 1
	}
	return 0
}

func serve(version string, parts Parts) error {
	terminated := handleSignals()
	s, err := New(context.Background(), version, parts)
	if err != nil {
		return err
	}
	a, err := shimapi.Await(shimapi.AwaitFD)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	defer a.Lock.Close() // not before the end
	c, err := accept(a)
	if err != nil {
		return err
	}
	c.Terminated = terminated
	return s.Run(context.Background(), c)
}

// accept makes the process the shim of one container, with the container's runtime directory to work in.
func accept(a shimapi.Assignment) (c Container, err error) {
	if err := unix.Dup3(int(a.Log.Fd()), unix.Stderr, 0); err != nil {
		return c, fmt.Errorf("open the log: %w", err)
	}
	_ = unix.Close(shimapi.AwaitFD) // nothing more comes from there
	_ = a.Log.Close()               // it has another number now
	if err := os.Chdir(a.Dir); err != nil {
		return c, err
	}
	c.Dir = a.Dir
	data, err := os.ReadFile(shimapi.ConfigFile)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(data, &c.Config); err != nil {
		return c, fmt.Errorf("read %s: %w", shimapi.ConfigFile, err)
	}
	showID(c.Config.ID)
	if c.Tasks, err = listener(a.Tasks); err != nil {
		return c, err
	}
	c.Attach, err = listener(a.Attach)
	return c, err
}

// showID puts the container's id where ps shows it: the kernel reads a process's arguments where the process has them,
// and the last of ours is there to be written over.
func showID(id string) {
	if place := os.Args[len(os.Args)-1]; len(os.Args) > 2 && len(id) <= len(place) {
		copy(unsafe.Slice(unsafe.StringData(place), len(place)), id)
	}
}

// listener takes over a listening socket.
func listener(f *os.File) (net.Listener, error) {
	defer f.Close() // the listener has its own copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over a socket: %w", err)
	}
	return l, nil
}

// prepareProcess makes the process what a shim has to be: the parent of orphans, hard to kill and small.
func prepareProcess() {
	debug.SetMemoryLimit(memoryLimit)
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	logrus.SetLevel(logrus.WarnLevel) // the task service's
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		slog.Error("become the reaper of orphans", "error", err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0); err != nil {
		slog.Warn("set the OOM score", "error", err) // without privilege, in tests
	}
}

// handleSignals reaps children and answers the channel that is closed at the first request to go. Its goroutine
// lives as long as the process.
func handleSignals() <-chan struct{} {
	// A buffer of one suffices for SIGCHLD: each reap takes all that have ended.
	children, requests := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	signal.Notify(requests, unix.SIGTERM, unix.SIGINT)
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP)
	terminated := make(chan struct{})
	go func() {
		for {
			select {
			case <-children:
				if err := reaper.Reap(); err != nil {
					slog.Error("reap", "error", err)
				}
			case <-requests:
				signal.Ignore(unix.SIGTERM, unix.SIGINT)
				close(terminated)
				requests = nil
			}
		}
	}()
	return terminated
}
