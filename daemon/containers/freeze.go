package containers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"stated.dev/stated/internal/fault"
)

// Frozen are running containers that were paused for somebody who reads what they write.
type Frozen struct {
	Names []string // sorted

	service *Service
	ids     []string
}

// Freeze pauses the running containers that use a volume, all at once, until Thaw. Those that are paused already, or end
// meanwhile, are let be. On failure nothing stays paused. Should the daemon be killed before Thaw, its next start lets
// them go on.
func (s *Service) Freeze(ctx context.Context, volume string) (*Frozen, error) {
	f := &Frozen{service: s}
	var users []*Container
	for _, c := range s.all() {
		uses := slices.ContainsFunc(c.brief.Load().Volumes, func(v volumeClaim) bool { return v.Name == volume })
		if uses && c.live() != nil && !c.rec().State.Paused {
			users = append(users, c)
		}
	}
	paused := make([]bool, len(users))
	var g errgroup.Group
	for i, c := range users {
		g.Go(func() (err error) {
			paused[i], err = s.freezeOne(ctx, c)
			return err
		})
	}
	err := g.Wait()
	for i, c := range users {
		if paused[i] {
			f.ids = append(f.ids, c.id)
			f.Names = append(f.Names, c.brief.Load().Name)
		}
	}
	slices.Sort(f.Names)
	if err == nil {
		err = fault.Point("containers.frozen")
	}
	if err != nil {
		return nil, errors.Join(err, f.Thaw())
	}
	return f, nil
}

// freezeOne reports whether it has paused c. The note of it comes before, for the start that follows a kill.
func (s *Service) freezeOne(ctx context.Context, c *Container) (bool, error) {
	note := s.frozenNote(c.id)
	if err := os.MkdirAll(filepath.Dir(note), 0o700); err != nil {
		return false, fmt.Errorf("note that container %s is paused: %w", c.id, err)
	}
	if err := os.WriteFile(note, nil, 0o600); err != nil {
		return false, fmt.Errorf("note that container %s is paused: %w", c.id, err)
	}
	err := s.Pause(ctx, c.id)
	if err == nil {
		return true, nil
	}
	if c.rec().State.Paused { // a failure after the pause: Thaw takes it back
		return true, err
	}
	_ = os.Remove(note) // it says nothing about a container that is not paused
	if errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
		err = nil // it has ended, or somebody else has paused it
	}
	return false, err
}

// Thaw lets the containers go on. One that somebody else let go on, or that has ended, is no error.
func (f *Frozen) Thaw() error {
	var g errgroup.Group
	for _, id := range f.ids {
		g.Go(func() error {
			err := f.service.Unpause(context.Background(), id)
			if errdefs.IsConflict(err) || errdefs.IsNotFound(err) {
				err = nil
			}
			if err != nil {
				return err
			}
			return f.service.dropFrozenNote(id)
		})
	}
	return g.Wait()
}

// frozenNote is a file that is there while Freeze has a container paused. It is among the run-time state: no pause outlives
// that.
func (s *Service) frozenNote(id string) string { return filepath.Join(s.cfg.ExecRoot, "frozen", id) }

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

// thawLeft lets a container go on that the last daemon had frozen when it was killed.
func (s *Service) thawLeft(ctx context.Context, c *Container) error {
	if _, err := os.Stat(s.frozenNote(c.id)); err != nil {
		return nil // it was not, or nothing is known
	}
	if c.rec().State.Paused {
		if err := s.Unpause(ctx, c.id); err != nil {
			return err
		}
	}
	return s.dropFrozenNote(c.id)
}
