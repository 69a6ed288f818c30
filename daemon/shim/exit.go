package shim

import (
	"context"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// publisher takes the task service's events: exits and out-of-memory notices are the shim's own business.
type publisher struct{ s *Shim }

// Publish never waits for an exit to be recorded, so that one process's leftover output delays nobody else.
func (p publisher) Publish(_ context.Context, _ string, event events.Event) error {
	switch e := event.(type) {
	case *eventsapi.TaskOOM:
		p.s.oomSeen.Store(true)
	case *eventsapi.TaskExit:
		id := e.ID
		if id == e.ContainerID {
			id = ""
		}
		if proc := p.s.process(id); proc != nil && proc.beginEnd() {
			p.s.ends.Go(func() { p.s.finish(proc, int(e.ExitStatus), e.ExitedAt.AsTime(), int(e.Pid)) })
		}
	}
	return nil
}

// Close is called when the task service shuts down.
func (p publisher) Close() error { return nil }

// finish records the end of a process: first its last output, then the exit, then who waits is woken.
func (s *Shim) finish(p *process, code int, at time.Time, pid int) {
	p.stdio.drain(drainLimit)
	exit := shimapi.Exit{Code: code, Time: at, Pid: pid, StartedAt: p.snapshot().StartedAt}
	if p == s.init {
		s.sink.close()
		exit.OOMKilled = s.oom.killed() || s.oomSeen.Load()
		s.recordExit(exit)
	}
	p.end(exit)
	s.settleSoon()
}
