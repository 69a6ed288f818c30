package containers

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/internal/fault"
)

// Restart delays, as users know them from dockerd: 100 ms doubling up to a minute, from the start again after a run
// of ten seconds.
const (
	firstDelay = 100 * time.Millisecond
	maxDelay   = time.Minute
	goodRun    = 10 * time.Second
)

// restartState is what the restart policy remembers between runs.
type restartState struct {
	delay  time.Duration
	cancel context.CancelFunc // ends a pending restart; nil when none is pending
}

// restartDecision is what the policy says to one exit.
type restartDecision struct {
	restart bool
	delay   time.Duration
}

// decide applies the restart policy to an exit. It is a pure function of the record and the run.
func decide(r *Record, exit runtime.Exit, stopped bool, delay time.Duration) restartDecision {
	if stopped || r.HasBeenManuallyStopped || r.State.Dead {
		return restartDecision{}
	}
	policy := r.HostConfig.RestartPolicy
	switch policy.Name {
	case container.RestartPolicyAlways, container.RestartPolicyUnlessStopped:
	case container.RestartPolicyOnFailure:
		if exit.Code == 0 || (policy.MaximumRetryCount > 0 && r.RestartCount >= policy.MaximumRetryCount) {
			return restartDecision{}
		}
	default:
		return restartDecision{}
	}
	next := firstDelay
	if exit.At.Sub(r.State.StartedAt) < goodRun && delay > 0 {
		next = min(2*delay, maxDelay)
	}
	return restartDecision{restart: true, delay: next}
}

// Delays between attempts to find a shim that stopped answering.
const (
	firstReconnect = time.Second
	maxReconnect   = time.Minute
)

// monitor waits for the end of a run and deals with it.
func (s *Service) monitor(c *Container, r *run) {
	exit, err := r.task().Wait(s.ctx)
	reported := false
	for delay := firstReconnect; err != nil; delay = min(2*delay, maxReconnect) {
		// The shim went away under us. What it left says how the container ended. While nothing says so the container
		// may well be running: it is left alone, and asked for again.
		task, rerr := s.runtime.Reconnect(s.ctx, c.id)
		switch {
		case s.ctx.Err() != nil:
			return // the daemon goes, the container stays
		case rerr == nil:
			r.handle.Store(&task)
			if exit, err = task.Wait(s.ctx); err == nil {
				continue
			}
		case errdefs.IsNotFound(rerr) && !runsElsewhere(c.rec()):
			exit, err = runtime.Exit{Code: unknownExit, At: time.Now()}, nil
			continue
		}
		if cause := errors.Join(err, rerr); !reported && s.ctx.Err() == nil {
			reported = true
			s.log.Error("container set aside: its shim does not answer", "container", c.id, "err", cause)
			s.problems.add(c.id, cause)
			s.setError(c, "its shim does not answer: "+cause.Error())
		}
		timer := time.NewTimer(delay)
		select {
		case <-s.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
	if reported {
		s.setError(c, "")
	}
	s.ended(c, r, exit)
}

// ended records the end of a run, wakes who waits for it, releases what the run held, and restarts or removes the
// container as its policy says.
func (s *Service) ended(c *Container, r *run, exit runtime.Exit) {
	ctx := context.WithoutCancel(s.ctx)
	old := c.rec()
	c.mu.Lock()
	delay := c.restart.delay
	c.mu.Unlock()
	decision := decide(old, exit, r.stopped.Load() || s.closing.Load(), delay)

	s.stopHealth(c)
	mounted := mountedVolumes(old)
	sandboxID := old.NetworkSettings.SandboxID
	if old.HostConfig.NetworkMode.IsContainer() {
		sandboxID = "" // it belongs to the other container
	}
	s.observe(c, func(next *Record) {
		next.setStopped(exit)
		next.State.Restarting = decision.restart
		if decision.restart {
			next.State.Running = true // as dockerd shows a container between two runs
			next.RestartCount++
		}
		if r.stopped.Load() {
			next.HasBeenManuallyStopped = true
		}
		if next.State.Health != nil {
			next.State.Health.Status = container.Unhealthy // nobody looks any more
		}
		next.clearRuntime()
	})
	_ = fault.Point("containers.exit.recorded") // an injected error changes nothing here
	r.exit = exit
	if decision.restart {
		s.restartLater(c, decision.delay) // before exited is closed: who sees that may then cancel it
	}
	close(r.exited)
	c.wakeExited(exit.Code, decision)
	if exit.OOMKilled {
		s.publish(c, events.ActionOOM, nil)
	}
	s.publish(c, events.ActionDie, map[string]string{
		"exitCode":     strconv.Itoa(exit.Code),
		"execDuration": strconv.Itoa(int(exit.At.Sub(old.State.StartedAt).Seconds())),
	})

	s.cleanUp(ctx, c, r.task(), sandboxID, mounted)
	close(r.cleaned)
	if !decision.restart && old.HostConfig.AutoRemove && !r.restarting.Load() {
		if err := s.removeAuto(ctx, c, r); err != nil {
			s.log.Error("cannot remove a container that asked for it", "container", c.id, "err", err)
		}
	}
}

// cleanUp releases everything a run held. It goes on after a failure and logs it: nothing here may keep the rest. The
// task goes last: as long as the runtime has something of a container, the next start of the daemon cleans up after it.
func (s *Service) cleanUp(ctx context.Context, c *Container, task runtime.Task, sandboxID string, mounted []volumeMount) {
	s.execsEnded(c)
	failed := func(what string, err error) {
		if err != nil {
			s.log.Error("cannot "+what, "container", c.id, "err", err)
		}
	}
	if sandboxID != "" {
		err := s.networks.Release(ctx, sandboxID)
		if !errdefs.IsNotFound(err) {
			failed("release the network sandbox", err)
		}
	}
	s.unmountVolumes(ctx, c, mounted)
	failed("unmount its images", s.unmountImages(ctx, c.rec()))
	failed("unmount /dev/shm", s.unmountShm(c.rec()))
	failed("unmount the root file system", s.layers.UnmountRW(ctx, c.id))
	if task != nil {
		failed("delete the task", task.Delete(ctx))
	}
}

// restartLater starts the container again after delay, unless somebody cancels that first.
func (s *Service) restartLater(c *Container, delay time.Duration) {
	ctx, cancel := context.WithCancel(s.ctx)
	c.mu.Lock()
	c.restart.delay = delay
	c.restart.cancel = cancel
	c.mu.Unlock()
	s.tasks.Go(func() {
		defer cancel()
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if err := c.lock(ctx); err != nil {
			return
		}
		defer c.unlock()
		c.mu.Lock()
		cancelled := ctx.Err() != nil
		if !cancelled {
			c.restart.cancel = nil
		}
		c.mu.Unlock()
		if cancelled {
			return
		}
		if err := s.start(ctx, c); err != nil {
			s.log.Error("restart failed", "container", c.id, "err", err)
			s.restartFailed(c, err)
		}
	})
}

// restartFailed deals with a start by policy that did not succeed: the policy goes on with it as with an exit.
func (s *Service) restartFailed(c *Container, cause error) {
	rec := c.rec()
	c.mu.Lock()
	delay := c.restart.delay
	c.mu.Unlock()
	code := rec.State.ExitCode
	if code == 0 {
		code = 128
	}
	decision := decide(rec, runtime.Exit{Code: code, At: time.Now()}, false, delay)
	decision.delay = min(max(2*delay, firstDelay), maxDelay) // a start that fails never counts as a good run
	s.observe(c, func(next *Record) {
		next.State.Restarting, next.State.Running = decision.restart, decision.restart
		next.State.ExitCode, next.State.Error = code, cause.Error()
		if decision.restart {
			next.RestartCount++
		}
	})
	if decision.restart {
		s.restartLater(c, decision.delay)
		return
	}
	c.wakeExited(code, decision)
}

// cancelRestart ends a pending restart and reports whether there was one.
func (c *Container) cancelRestart() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.restart.cancel == nil {
		return false
	}
	c.restart.cancel()
	c.restart.cancel = nil
	return true
}

// setError writes a reason into the record's State.Error.
func (s *Service) setError(c *Container, reason string) {
	s.observe(c, func(r *Record) { r.State.Error = reason })
}
