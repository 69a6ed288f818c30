package containers

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// waiter is one pending wait.
type waiter struct {
	condition container.WaitCondition
	ch        chan container.WaitResponse // holds one
}

// Wait registers a wait and returns; the channel yields once, or never when ctx ends first.
func (s *Service) Wait(ctx context.Context, ref string, condition container.WaitCondition) (<-chan container.WaitResponse, error) {
	switch condition {
	case "":
		condition = container.WaitConditionNotRunning
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
	default:
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid condition: %q", condition))
	}
	c, err := s.lookup(ref)
	if err != nil {
		return nil, err
	}
	w := &waiter{condition: condition, ch: make(chan container.WaitResponse, 1)}
	c.rec() // is there from now on, so that no file is read under the lock
	c.mu.Lock()
	defer c.mu.Unlock()
	state := c.rec().State
	switch {
	case c.gone, condition == container.WaitConditionNotRunning && !state.Running && !state.Restarting:
		w.ch <- container.WaitResponse{StatusCode: int64(state.ExitCode)}
		return w.ch, nil
	}
	c.waiters[w] = struct{}{}
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		delete(c.waiters, w)
		c.mu.Unlock()
	})
	return w.ch, nil
}

// wake answers the waits whose condition ok accepts.
func (c *Container) wake(code int, ok func(container.WaitCondition) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for w := range c.waiters {
		if ok(w.condition) {
			w.ch <- container.WaitResponse{StatusCode: int64(code)}
			delete(c.waiters, w)
		}
	}
}

// wakeExited answers those who wait for an end; with a restart to follow, only those who wait for the next one.
func (c *Container) wakeExited(code int, next restartDecision) {
	c.wake(code, func(w container.WaitCondition) bool {
		return w == container.WaitConditionNextExit || (w == container.WaitConditionNotRunning && !next.restart)
	})
}

// wakeRemoved answers everybody who waits, at the end of the container's life.
func (c *Container) wakeRemoved(code int) {
	c.wake(code, func(container.WaitCondition) bool { return true })
	close(c.removed)
}
