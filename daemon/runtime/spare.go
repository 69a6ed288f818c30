package runtime

import (
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// A shim's process is begun before its container is known, and then told. So one can be made ready after a start for
// the next: most of what it costs to begin one is the same for every container. Each still serves one container only.

const (
	// spareDelay leaves the processors to a container that was just started.
	spareDelay = 10 * time.Millisecond
	// farewell bounds how long Close waits for a shim that was not needed to go.
	farewell = time.Second
)

// waiting is a shim that does not know its container yet. It goes when our end of its socket is closed.
type waiting struct {
	pid    int
	end    *os.File
	exited <-chan struct{}
}

// begin starts a shim's process.
func (r *Shims) begin() (*waiting, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, its := os.NewFile(uintptr(pair[0]), ""), os.NewFile(uintptr(pair[1]), "")
	defer its.Close() // the shim has its own
	pidfd := -1
	cmd := &exec.Cmd{
		Path: r.shimPath,
		// The shim puts its container's id in the place of the last.
		Args:       []string{"stated-shim", "serve", strings.Repeat("-", 64)},
		Dir:        "/",
		Env:        r.shimEnv(),
		ExtraFiles: []*os.File{its},
		SysProcAttr: &syscall.SysProcAttr{
			Setsid: true,
			PidFD:  &pidfd,
		},
	}
	defer r.place.prepare(cmd.SysProcAttr)()
	if err := cmd.Start(); err != nil {
		_ = ours.Close() // nobody has the other end
		return nil, err
	}
	w := &waiting{pid: cmd.Process.Pid, end: ours}
	_ = cmd.Process.Release() // reap waits for it
	w.exited = r.reap(pidfd)
	return w, nil
}

// assign gives the shim its container.
func (w *waiting) assign(a shimapi.Assignment) error {
	defer w.end.Close() // there is no second assignment
	return os.NewSyscallError("sendmsg", shimapi.Assign(int(w.end.Fd()), a))
}

// dismiss tells the shim that it is not needed, and waits until it has gone.
func (w *waiting) dismiss() {
	_ = w.end.Close() // a handle
	select {
	case <-w.exited:
	case <-time.After(farewell):
	}
}

// assign gives a container to the spare, or else to a new shim, and returns that.
func (r *Shims) assign(a shimapi.Assignment) (*waiting, error) {
	r.mu.Lock()
	w := r.spare
	r.spare = nil
	r.mu.Unlock()
	if w != nil && w.assign(a) == nil {
		return w, nil
	}
	w, err := r.begin() // there was no spare, or something has ended it
	if err != nil {
		return nil, err
	}
	return w, w.assign(a)
}

// prepareSpare begins the next container's shim soon, unless one waits already.
func (r *Shims) prepareSpare() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.spare != nil || r.preparing {
		return
	}
	r.preparing = true
	r.wg.Go(func() {
		time.Sleep(spareDelay)
		w, err := r.begin()
		r.mu.Lock()
		r.preparing = false
		closed := r.closed
		if err == nil && !closed {
			r.spare = w
		}
		r.mu.Unlock()
		switch {
		case err != nil:
			slog.Warn("cannot begin a shim ahead of its container", "error", err) // the next start will say why
		case closed:
			w.dismiss()
		}
	})
}
