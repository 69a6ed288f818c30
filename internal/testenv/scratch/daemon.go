package scratch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv"
)

// startLimit and endLimit bound a daemon's start and its end.
const (
	startLimit = 30 * time.Second
	endLimit   = 30 * time.Second
)

// Launch is how a stated is started.
type Launch struct {
	Roots  testenv.Roots
	Socket string
	Log    string   // the file to which it adds what it prints
	Flags  []string // beside those for the roots and the socket
	Env    []string // beside the test's own
}

// Daemon is a stated that serves, or has served.
type Daemon struct {
	Exited <-chan struct{} // closed at its end

	launch Launch
	cmd    *exec.Cmd
	err    error // how it ended; to be read after Exited
	ended  bool  // End was called
}

// Start starts the stated on PATH and waits until it serves. It ends with the test binary at the latest.
func (l Launch) Start() (*Daemon, error) {
	log, err := os.OpenFile(l.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command("stated", append([]string{"daemon", "--data-root", l.Roots.Data, "--exec-root", l.Roots.Exec, "-H", "unix://" + l.Socket}, l.Flags...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), l.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	exited, started := make(chan struct{}), make(chan error)
	d := &Daemon{Exited: exited, launch: l, cmd: cmd}
	go func() {
		runtime.LockOSThread() // the death that signals is this thread's: it stays as long as the daemon
		defer close(exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			d.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start stated, which make test builds: %w", err)
	}
	if err := d.waitServing(); err != nil {
		return nil, err
	}
	return d, nil
}

// waitServing waits until the daemon answers, and ends one that does not.
func (d *Daemon) waitServing() error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	for {
		if d.ping(ctx) == nil {
			return nil
		}
		select {
		case <-d.Exited:
			return fmt.Errorf("the daemon ended at its start: %v\n%s", d.err, Tail(d.launch.Log))
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the daemon does not serve:\n%s", Tail(d.launch.Log)), d.End(syscall.SIGTERM))
		case <-time.After(time.Millisecond): // starts are measured
		}
	}
}

func (d *Daemon) ping(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://stated/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := Client(d.launch.Socket).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// End sends the daemon a signal and waits for its end; a second call does nothing. A daemon that has ended by itself,
// does not end in time or ends with a failure when it is asked to end is an error.
func (d *Daemon) End(sig syscall.Signal) error {
	if d.ended {
		return nil
	}
	d.ended = true
	select {
	case <-d.Exited:
		return fmt.Errorf("the daemon ended by itself: %v\n%s", d.err, Tail(d.launch.Log))
	default:
	}
	_ = d.cmd.Process.Signal(sig) // it may end just now
	select {
	case <-d.Exited:
	case <-time.After(endLimit):
		_ = d.cmd.Process.Kill() // it must not outlive the test
		<-d.Exited
		return fmt.Errorf("the daemon did not end after %v:\n%s", sig, Tail(d.launch.Log))
	}
	if sig != syscall.SIGKILL && d.err != nil {
		return fmt.Errorf("the daemon ended after %v with %w:\n%s", sig, d.err, Tail(d.launch.Log))
	}
	return nil
}
