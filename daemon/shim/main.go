package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"

	"github.com/containerd/containerd/v2/pkg/sys/reaper"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime/shimapi"
)

const (
	// A shim holds little and lives long: it collects early, and asks for memory back before it asks for more.
	gcPercent   = 40
	memoryLimit = 64 << 20
	// oomScore makes the kernel take a shim last, as it does the daemon.
	oomScore = "-999"
)

// Serve is the life of a shim that the daemon started: its working directory is the container's runtime directory,
// and it has inherited the sockets and the lock. It returns the process's exit code.
func Serve(version string, parts Parts) int {
	prepareProcess()
	if err := serve(version, parts); err != nil {
		slog.Error("shim ends", "error", err)
		return 1
	}
	return 0
}

func serve(version string, parts Parts) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(dir, shimapi.ConfigFile))
	if err != nil {
		return err
	}
	var cfg shimapi.Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		return fmt.Errorf("read %s: %w", shimapi.ConfigFile, err)
	}
	unix.CloseOnExec(shimapi.LockFD) // runc must not hold our lock
	tasks, err := inherited(shimapi.TaskFD)
	if err != nil {
		return err
	}
	attach, err := inherited(shimapi.AttachFD)
	if err != nil {
		return err
	}
	return Run(context.Background(), Options{
		Dir:        dir,
		Version:    version,
		Tasks:      tasks,
		Attach:     attach,
		Config:     cfg,
		Parts:      parts,
		Terminated: handleSignals(),
	})
}

// inherited takes over a listening socket.
func inherited(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "")
	defer f.Close() // the listener has its own copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over descriptor %d: %w", fd, err)
	}
	return l, nil
}

// prepareProcess makes the process what a shim has to be: the parent of orphans, hard to kill and small.
func prepareProcess() {
	debug.SetGCPercent(gcPercent)
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
