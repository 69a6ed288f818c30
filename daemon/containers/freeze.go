package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sync/errgroup"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/internal/fault"
)

// Frozen are running containers that are held still for somebody who reads what they write. They count as paused.
type Frozen struct {
	Names []string // sorted

	service *Service
	held    []*held
	since   time.Time // before the first was held
}

// held is a container of Frozen.
type held struct {
	c    *Container
	r    *run
	hold *hold
}

// hold is what lets a run go on that Freeze holds still, or has recorded as paused and is about to.
type hold struct {
	mu      sync.Mutex // guards what is below; held over the letting go
	letGo   func(ctx context.Context) error
	isLoose bool
}

// release lets the run go on. Only the first that succeeds does anything, so that a later pause is left alone.
func (h *hold) release(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isLoose {
		return nil
	}
	err := h.letGo(ctx)
	h.isLoose = err == nil
	return err
}

// keep holds the run still, unless it has been released.
func (h *hold) keep(ctx context.Context, act func(context.Context) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.isLoose {
		return nil
	}
	return act(ctx)
}

// Freeze holds the running containers that use a volume still, all at once, until Thaw. Those that are paused already, or
// end meanwhile, are let be. On failure nobody stays held. Should the daemon be killed before Thaw, its next start lets
// them go on.
//
// They are recorded as paused first, so that they are still only from the one write to the kernel's freezer to the other.
func (s *Service) Freeze(ctx context.Context, volume string) (_ *Frozen, err error) {
	f := &Frozen{service: s}
	defer func() {
		if err != nil {
			_, thawErr := f.Thaw()
			err = errors.Join(err, thawErr)
		}
	}()
	var users []*Container
	for _, c := range s.all() {
		uses := slices.ContainsFunc(c.brief.Load().Volumes, func(v volumeClaim) bool { return v.Name == volume })
		if uses && c.live() != nil && !c.rec().State.Paused {
			users = append(users, c)
		}
	}
	acts := make([]func(context.Context) error, len(users))
	found := make([]*held, len(users))
	var g errgroup.Group
	for i, c := range users {
		g.Go(func() (err error) {
			found[i], acts[i], err = s.prepareFreeze(ctx, c)
			return err
		})
	}
	err = g.Wait()
	for _, h := range found {
		if h != nil {
			f.held = append(f.held, h)
			f.Names = append(f.Names, h.c.brief.Load().Name)
		}
	}
	slices.Sort(f.Names)
	if err == nil {
		err = fault.Point("containers.freezing")
	}
	if err != nil {
		return nil, err
	}
	f.since = time.Now()
	for i, h := range found {
		if h != nil {
			g.Go(func() error { return h.hold.keep(ctx, acts[i]) })
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := fault.Point("containers.frozen"); err != nil {
		return nil, err
	}
	return f, nil
}

// prepareFreeze records a container as paused and returns what makes it so, or nil when it is to be let be. A note of it
// comes first, for the start that follows a kill.
func (s *Service) prepareFreeze(ctx context.Context, c *Container) (_ *held, act func(context.Context) error, err error) {
	if err := c.lock(ctx); err != nil {
		return nil, nil, ignoreEnded(err)
	}
	defer c.unlock()
	r, state := c.live(), c.rec().State
	if r == nil || state.Paused || state.Restarting {
		return nil, nil, nil
	}
	h := &hold{}
	switch freezer, err := r.task().Freezer(ctx); {
	case err == nil:
		if frozen, err := freezer.Frozen(); err != nil || frozen { // somebody has done it behind the daemon's back
			return nil, nil, err
		}
		act, h.letGo = freezer.Freeze, func(context.Context) error { return freezer.Thaw() }
	case errdefs.IsNotImplemented(err):
		act, h.letGo = pauseTask(r)
	default:
		return nil, nil, ignoreEnded(err)
	}
	note := s.frozenNote(c.id)
	if err := os.MkdirAll(filepath.Dir(note), 0o700); err != nil {
		return nil, nil, fmt.Errorf("note that container %s is paused: %w", c.id, err)
	}
	if err := os.WriteFile(note, nil, 0o600); err != nil {
		return nil, nil, fmt.Errorf("note that container %s is paused: %w", c.id, err)
	}
	r.hold.Store(h)
	if _, err := s.commit(ctx, c, func(rec *Record) { rec.State.Paused = rec.State.Running }); err != nil {
		r.hold.Store(nil)
		return nil, nil, errors.Join(err, s.dropFrozenNote(c.id))
	}
	s.publish(c, events.ActionPause, nil)
	return &held{c, r, h}, act, nil
}

// ignoreEnded drops the errors of a container that has ended.
func ignoreEnded(err error) error {
	if errdefs.IsNotFound(err) || errdefs.IsConflict(err) || errdefs.IsFailedPrecondition(err) {
		return nil
	}
	return err
}

// pauseTask holds a run still by way of its shim, where the kernel's freezer is out of reach.
func pauseTask(r *run) (act, letGo func(context.Context) error) {
	paused := false // only told under the hold's lock
	act = func(ctx context.Context) error {
		err := r.task().Pause(context.WithoutCancel(ctx)) // what is done is known
		paused = err == nil
		return ignoreEnded(err)
	}
	letGo = func(ctx context.Context) error {
		if !paused {
			return nil
		}
		return ignoreEnded(r.task().Resume(ctx))
	}
	return act, letGo
}

// Thaw lets the containers go on, and says for how long they were held: from before the first was until after the last
// went on. One that somebody else let go on, or that has ended, is no error.
func (f *Frozen) Thaw() (time.Duration, error) {
	ctx := context.Background()
	var g errgroup.Group
	for _, h := range f.held {
		g.Go(func() error { return h.hold.release(ctx) })
	}
	err := g.Wait()
	var took time.Duration
	if !f.since.IsZero() {
		took = time.Since(f.since)
	}
	for _, h := range f.held {
		g.Go(func() error { return f.service.unfreeze(ctx, h) })
	}
	return took, errors.Join(err, g.Wait())
}

// unfreeze records that a container goes on that was let go, unless somebody else has. It does not return before the
// container has been released: one that was not is released now, or stays recorded and noted as it is.
func (s *Service) unfreeze(ctx context.Context, h *held) error {
	if err := h.c.lock(ctx); err != nil {
		return ignoreEnded(err)
	}
	defer h.c.unlock()
	if err := h.hold.release(ctx); err != nil {
		return fmt.Errorf("let container %s go on: %w", h.c.id, err)
	}
	if h.r.hold.CompareAndSwap(h.hold, nil) && h.c.currentRun() == h.r && h.c.rec().State.Paused {
		s.observe(h.c, func(rec *Record) { rec.State.Paused = false })
		s.publish(h.c, events.ActionUnPause, nil)
	}
	return s.dropFrozenNote(h.c.id)
}

// resume lets a paused run go on, whatever holds it.
func (r *run) resume(ctx context.Context) error {
	if h := r.hold.Load(); h != nil {
		return h.release(ctx)
	}
	return r.task().Resume(ctx)
}

// frozenNote is a file that is there while Freeze has a container paused. It is among the run-time state: no pause outlives
// that.
func (s *Service) frozenNote(id string) string { return filepath.Join(s.cfg.ExecRoot, "frozen", id) }

func (s *Service) isNotedFrozen(id string) bool {
	_, err := os.Stat(s.frozenNote(id))
	return err == nil // what cannot be seen is not known
}

func (s *Service) dropFrozenNote(id string) error {
	if err := os.Remove(s.frozenNote(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// dropFrozenNotes removes the notes of containers that do not run: who pauses them later shall find them paused.
func (s *Service) dropFrozenNotes(found []*restored) {
	entries, err := os.ReadDir(filepath.Dir(s.frozenNote("x")))
	if err != nil {
		return // there has never been one
	}
	for _, f := range found {
		running := f.fate == alive || f.fate == setAside
		if !running && slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == f.c.id }) {
			_ = s.dropFrozenNote(f.c.id) // the next start finds it again
		}
	}
}

// thawLeft lets a container go on that the last daemon had frozen, by whichever way, when it was killed. One that cannot
// go on counts as paused, so that a user can try again.
func (s *Service) thawLeft(ctx context.Context, c *Container, r *run) error {
	h := &hold{letGo: func(ctx context.Context) error {
		st, err := r.task().State(ctx)
		if err != nil {
			return err
		}
		if st.Status == runtime.StatusPaused {
			return r.task().Resume(ctx)
		}
		freezer, err := r.task().Freezer(ctx)
		if err != nil {
			if errdefs.IsNotImplemented(err) {
				return nil // it could not be frozen so
			}
			return ignoreEnded(err)
		}
		return freezer.Thaw()
	}}
	r.hold.Store(h)
	return s.unfreeze(ctx, &held{c, r, h})
}
