package volumes

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/fault"
)

// RemoveRequest narrows Remove.
type RemoveRequest struct {
	// Force makes an unknown volume no error, and forgets a volume whose driver fails. It never takes a volume from a
	// container.
	Force bool
}

// Remove deletes a volume that nobody holds.
func (s *Store) Remove(ctx context.Context, name string, req RemoveRequest) error {
	s.confirmRefs(ctx, name)
	unlock, err := s.names.lock(ctx, name)
	if err != nil {
		return &OpError{Op: "remove", Name: name, Err: err}
	}
	defer unlock()
	e, _, err := s.lookup(ctx, name, "")
	switch {
	case err == nil:
	case req.Force && errors.Is(err, ErrNoSuchVolume):
		return nil
	case req.Force && s.entry(name) != nil: // its driver cannot be asked
		e = s.entry(name)
		if refs := s.Refs(e.name); len(refs) > 0 {
			return &OpError{Op: "remove", Name: name, Err: ErrInUse, Refs: refs}
		}
		return s.forget(ctx, e)
	default:
		return &OpError{Op: "get", Name: name, Err: err}
	}
	return s.removeUnused(ctx, e, req)
}

// removeUnused removes e if nobody holds it. The caller holds the name's lock.
func (s *Store) removeUnused(ctx context.Context, e *entry, req RemoveRequest) error {
	if refs := s.Refs(e.name); len(refs) > 0 {
		return &OpError{Op: "remove", Name: e.name, Err: ErrInUse, Refs: refs}
	}
	if s.exporting(e.name) {
		return &OpError{Op: "remove", Name: e.name, Err: fmt.Errorf("%w: it is being exported", ErrInUse)}
	}
	d, err := s.driver(ctx, e.driver)
	if err != nil {
		return &OpError{Op: "remove", Name: e.driver, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return &OpError{Op: "remove", Name: e.name, Err: err}
	}
	remove := s.removeForeign
	if d.Traits().Owned {
		remove = s.removeOwned
	}
	if err := remove(context.WithoutCancel(ctx), e, d, req); err != nil {
		return &OpError{Op: "remove", Name: e.name, Err: err}
	}
	s.events.Publish(events.VolumeEventType, events.ActionDestroy, e.name, map[string]string{"driver": e.driver})
	return nil
}

// removeOwned takes the record away and then deletes. A deletion that fails brings the record back, unless forced.
func (s *Store) removeOwned(ctx context.Context, e *entry, d Driver, req RemoveRequest) error {
	token, err := d.PrepareRemove(ctx, e.name)
	if err == nil {
		err = fault.Point("volumes.remove.prepared")
	}
	if err != nil {
		if req.Force && !errdefs.IsNotFound(err) {
			err = errors.Join(err, s.unrecord(ctx, e))
		}
		return err
	}
	if err := s.meta.commit(&change{name: e.name, mark: &mark{Op: markRemove, Token: token}}); err != nil {
		return fmt.Errorf("error removing volume metadata: %w", err)
	}
	s.dropEntry(e)
	if err := fault.Point("volumes.remove.unrecorded"); err != nil {
		return err
	}
	if err := d.Remove(ctx, e.name, token); err != nil {
		return errors.Join(err, s.keep(e, d, req))
	}
	s.meta.settle(e.name)
	return fault.Point("volumes.remove.deleted")
}

// keep brings e back after its deletion failed: with its record, or forced without it, as a volume that only the
// driver knows.
func (s *Store) keep(e *entry, d Driver, req RemoveRequest) error {
	r := e.record()
	if req.Force {
		r = nil
	}
	if err := s.meta.commit(&change{name: e.name, record: r}); err != nil {
		return fmt.Errorf("error setting volume metadata: %w", err)
	}
	if req.Force {
		e = newEntry(record{Name: e.name, Driver: e.driver}, d, Info{Mountpoint: e.path()})
	}
	s.setEntry(e)
	return nil
}

// unrecord forgets labels and options of a volume that the driver keeps.
func (s *Store) unrecord(ctx context.Context, e *entry) error {
	d, err := s.driver(ctx, e.driver)
	if err != nil {
		return err
	}
	return s.keep(e, d, RemoveRequest{Force: true})
}

// removeForeign removes in the driver first: its "no" must leave the record, and a crash after its "yes" leaves a
// record of a vanished volume, which the next use drops.
func (s *Store) removeForeign(ctx context.Context, e *entry, d Driver, req RemoveRequest) error {
	err := d.Remove(ctx, e.name, "")
	if err != nil && !req.Force {
		return err
	}
	if metaErr := s.meta.commit(&change{name: e.name}); metaErr != nil {
		return errors.Join(err, fmt.Errorf("error removing volume metadata: %w", metaErr))
	}
	s.dropEntry(e)
	return err
}
