package containers

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/types"
)

// killGrace is how long a process may take to vanish after SIGKILL before a verb gives up waiting for it.
const killGrace = 30 * time.Second

// Stop asks the container to end, and kills it when it does not in time.
func (s *Service) Stop(ctx context.Context, ref string, req api.StopRequest) error {
	c, err := s.lookup(ref)
	if err != nil {
		return err
	}
	if req.Signal != "" {
		if _, err := parseSignal(req.Signal); err != nil {
			return err
		}
	}
	if s.stopRestarting(c) {
		return nil
	}
	if c.live() == nil {
		// A start may be under way, a user's or the restart policy's; what that comes to is to be stopped.
		if err := c.lock(ctx); err != nil {
			return err
		}
		c.unlock()
		if s.stopRestarting(c) {
			return nil
		}
	}
	if c.live() == nil {
		return s.notRunning(c, types.ErrNotModified)
	}
	return s.stop(ctx, c, req)
}

// notRunning is the answer to who wants to end a container without a live run: otherwise, unless the container runs out
// of this daemon's reach.
func (s *Service) notRunning(c *Container, otherwise error) error {
	if state := c.rec().State; state.Running && !state.Restarting {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s cannot be ended by this daemon: %s", c.id, state.Error))
	}
	return otherwise
}

// stopRestarting ends a pending restart, and reports whether there was one.
func (s *Service) stopRestarting(c *Container) bool {
	if !c.cancelRestart() {
		return false
	}
	rec := s.observe(c, func(r *Record) {
		r.State.Running, r.State.Restarting = false, false
		r.HasBeenManuallyStopped = true
	})
	c.wakeExited(rec.State.ExitCode, restartDecision{})
	s.publish(c, events.ActionStop, nil)
	return true
}

// stop signals the present run and returns when everything it held is released.
func (s *Service) stop(ctx context.Context, c *Container, req api.StopRequest) error {
	r := c.live()
	if r == nil {
		return nil
	}
	r.stopped.Store(true)
	if err := s.end(ctx, c, r, req); err != nil {
		return err
	}
	if s.stopRestarting(c) { // it ended by itself before it was told to
		return nil
	}
	s.publish(c, events.ActionStop, nil)
	return nil
}

// end signals a run, waits, kills it when it must, and returns when everything it held is released.
func (s *Service) end(ctx context.Context, c *Container, r *run, req api.StopRequest) error {
	ctx = context.WithoutCancel(ctx) // who goes away has asked for the stop, not for less time to it
	rec := c.rec()
	sig, err := parseSignal(cmp.Or(req.Signal, rec.Config.StopSignal, "SIGTERM"))
	if err != nil {
		return err
	}
	timeout := s.cfg.StopTimeout
	if rec.Config.StopTimeout != nil {
		timeout = time.Duration(*rec.Config.StopTimeout) * time.Second
	}
	if req.Timeout != nil {
		timeout = time.Duration(*req.Timeout) * time.Second
	}
	if err := s.signal(ctx, c, r, sig); err != nil {
		s.log.Warn("cannot send the stop signal", "container", c.id, "err", err)
	}
	if timeout != 0 {
		if rec.State.Paused {
			_ = r.resume(ctx) // a frozen process cannot act on the signal; when this fails the kill below does it
		}
		waitFor(ctx, r.exited, max(timeout, 0)) // a negative one means as long as it takes
	}
	if err := s.killRun(ctx, c, r); err != nil {
		return err
	}
	<-r.cleaned
	return nil
}

// killRun makes sure that a run has ended.
func (s *Service) killRun(ctx context.Context, c *Container, r *run) error {
	select {
	case <-r.exited:
		return nil
	default:
	}
	ctx = context.WithoutCancel(ctx)
	err := s.signal(ctx, c, r, unix.SIGKILL)
	if c.rec().State.Paused {
		_ = r.resume(ctx) // cgroup v1's freezer keeps a killed process until it thaws
	}
	if waitFor(ctx, r.exited, killGrace) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("its process is still there %s after SIGKILL", killGrace)
	}
	return err
}

// waitFor reports whether ch was closed within d; d of zero waits until ctx ends.
func waitFor(ctx context.Context, ch <-chan struct{}, d time.Duration) bool {
	var expired <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-ch:
		return true
	case <-expired:
	case <-ctx.Done():
	}
	return false
}

// signal sends sig to the container's init and tells the world.
func (s *Service) signal(ctx context.Context, c *Container, r *run, sig unix.Signal) error {
	err := r.task().Kill(ctx, int(sig), false)
	if err == nil {
		s.publish(c, events.ActionKill, map[string]string{"signal": fmt.Sprint(int(sig))})
	}
	return err
}

func parseSignal(text string) (unix.Signal, error) {
	sig, err := signal.ParseSignal(text)
	if err != nil {
		return 0, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid signal: %s", text))
	}
	return sig, nil
}

// Kill sends a signal, SIGKILL by default.
func (s *Service) Kill(ctx context.Context, ref, text string) error {
	sig, err := parseSignal(cmp.Or(text, "SIGKILL"))
	if err != nil {
		return err
	}
	c, err := s.lookup(ref)
	if err != nil {
		return err
	}
	r := c.live()
	if r == nil {
		if err := c.lock(ctx); err != nil { // a start may be under way
			return err
		}
		c.unlock()
		if s.stopRestarting(c) {
			return nil
		}
		if r = c.live(); r == nil {
			return s.notRunning(c, errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is not running", c.id)))
		}
	}
	rec := c.rec()
	if rec.State.Paused && sig != unix.SIGKILL {
		// It is delivered when the container goes on; Docker does the same.
		s.log.Debug("signal to a paused container waits", "container", c.id, "signal", sig)
	}
	stop, _ := parseSignal(cmp.Or(rec.Config.StopSignal, "SIGTERM"))
	if sig == unix.SIGKILL || sig == stop {
		r.stopped.Store(true)
	}
	if sig == unix.SIGKILL {
		if err := s.killRun(ctx, c, r); err != nil {
			return err
		}
		if c.rec().State.Restarting { // it ended by itself before it was told to
			<-r.cleaned
			s.stopRestarting(c)
		}
		return nil
	}
	return s.signal(ctx, c, r, sig)
}

// Restart stops the container when it runs, and starts it.
func (s *Service) Restart(ctx context.Context, ref string, req api.StopRequest) error {
	c, err := s.lookup(ref)
	if err != nil {
		return err
	}
	s.stopRestarting(c)
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	// A container that removes itself at its end stays over a restart.
	if c.live() != nil {
		r := c.currentRun()
		r.restarting.Store(true)
		if err := s.stop(ctx, c, req); err != nil {
			r.restarting.Store(false)
			return fmt.Errorf("Cannot restart container %s: %w", ref, err) //nolint:staticcheck // Docker's text
		}
	}
	if err := s.start(ctx, c); err != nil {
		return fmt.Errorf("Cannot restart container %s: %w", ref, err) //nolint:staticcheck // Docker's text
	}
	s.publish(c, events.ActionRestart, nil)
	return nil
}

// Pause freezes the container's processes.
func (s *Service) Pause(ctx context.Context, ref string) error {
	return s.freeze(ctx, ref, func(c *Container, st State) error {
		switch {
		case st.Paused:
			return errdefs.ErrConflict.WithMessage(fmt.Sprintf("Container %s is already paused", c.id))
		case st.Restarting:
			return errdefs.ErrConflict.WithMessage(fmt.Sprintf("Container %s is restarting, wait until the container is running", c.id))
		}
		return nil
	}, func(r *run, ctx context.Context) error { return r.task().Pause(ctx) }, true, events.ActionPause)
}

// Unpause lets them go on.
func (s *Service) Unpause(ctx context.Context, ref string) error {
	return s.freeze(ctx, ref, func(c *Container, st State) error {
		if !st.Paused {
			return errdefs.ErrConflict.WithMessage(fmt.Sprintf("Container %s is not paused", c.id))
		}
		return nil
	}, (*run).resume, false, events.ActionUnPause)
}

func (s *Service) freeze(ctx context.Context, ref string, check func(*Container, State) error,
	act func(*run, context.Context) error, paused bool, action events.Action) error {
	c, err := s.lookup(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	r := c.live()
	if r == nil && paused {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is not running", c.id))
	}
	if err := check(c, c.rec().State); err != nil {
		return err
	}
	if r == nil {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("Container %s is not paused", c.id))
	}
	ctx = context.WithoutCancel(ctx) // what is done is recorded
	if err := act(r, ctx); err != nil {
		return fmt.Errorf("cannot %s container %s: %w", action, ref, err)
	}
	if _, err := s.commit(ctx, c, func(rec *Record) {
		rec.State.Paused = paused && rec.State.Running // it may have ended meanwhile
	}); err != nil {
		return err
	}
	r.hold.Store(nil) // whatever Freeze did is undone
	s.publish(c, action, nil)
	return nil
}
