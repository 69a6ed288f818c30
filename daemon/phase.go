package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"stated.dev/stated/api/types"
)

// A Phase opens one subsystem. Open returns what closes it again, or nil.
type Phase struct {
	Name string
	Open func(ctx context.Context) (io.Closer, error)
}

// closerFunc makes a function an io.Closer.
type closerFunc func() error

func (f closerFunc) Close() error { return f() }

// Stack opens phases in order and closes them in reverse.
type Stack struct {
	log    *slog.Logger
	notify func(status string) // tells the service manager; never nil

	mu     sync.Mutex // guards states and open; not held while a phase opens or closes
	phases []Phase
	states []types.Phase
	open   []io.Closer // by phase; nil where there is nothing to close
}

// NewStack returns a stack of phases, none of them open.
func NewStack(log *slog.Logger, notify func(string), phases ...Phase) *Stack {
	s := &Stack{log: log, notify: notify, phases: phases, open: make([]io.Closer, len(phases))}
	for _, p := range phases {
		s.states = append(s.states, types.Phase{Name: p.Name, State: types.PhaseWaiting})
	}
	return s
}

// Open opens every phase. When one fails, those before it are closed again, in reverse, and the error names it.
func (s *Stack) Open(ctx context.Context) error {
	for i, p := range s.phases {
		s.notify("opening " + p.Name)
		started := time.Now()
		s.set(i, func(st *types.Phase) { st.State, st.Started = types.PhaseOpening, started })
		closer, err := p.Open(ctx)
		took := time.Since(started)
		if err != nil {
			s.set(i, func(st *types.Phase) {
				st.State, st.Took, st.Error = types.PhaseFailed, took.Seconds(), err.Error()
			})
			s.log.Error("phase failed", "phase", p.Name, "took", took, "err", err)
			return errors.Join(fmt.Errorf("phase %s: %w", p.Name, err), s.Close())
		}
		s.mu.Lock()
		s.open[i] = closer
		s.mu.Unlock()
		s.set(i, func(st *types.Phase) { st.State, st.Took = types.PhaseOpen, took.Seconds() })
		s.log.Info("phase open", "phase", p.Name, "took", took)
	}
	return nil
}

// Close closes what is open, last first. It goes on after a failure.
func (s *Stack) Close() error {
	var errs []error
	for i, p := range slices.Backward(s.phases) {
		s.mu.Lock()
		closer := s.open[i]
		s.open[i] = nil
		wasOpen := s.states[i].State == types.PhaseOpen
		s.mu.Unlock()
		if !wasOpen {
			continue
		}
		s.notify("closing " + p.Name)
		if closer != nil {
			if err := closer.Close(); err != nil {
				errs = append(errs, fmt.Errorf("close phase %s: %w", p.Name, err))
				s.log.Error("phase not closed cleanly", "phase", p.Name, "err", err)
			}
		}
		s.set(i, func(st *types.Phase) { st.State = types.PhaseClosed })
	}
	return errors.Join(errs...)
}

func (s *Stack) set(i int, change func(*types.Phase)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.states[i])
}

// Phases reports how far every phase has come.
func (s *Stack) Phases(context.Context) []types.Phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.Clone(s.states)
	for i := range list {
		if list[i].State == types.PhaseOpening {
			list[i].Took = time.Since(list[i].Started).Seconds()
		}
	}
	return list
}

// Ready returns the phase that is being opened, and whether all are open.
func (s *Stack) Ready() (phase string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.states {
		if st.State != types.PhaseOpen {
			return st.Name, false
		}
	}
	return "", true
}
