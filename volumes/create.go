package volumes

import (
	"context"
	"fmt"
	"maps"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
)

// CreateRequest describes a volume to create.
type CreateRequest struct {
	Name            string // empty: an anonymous volume, which gets a random name and AnonymousLabel
	Driver          string // empty: the driver that has the name already, else DefaultDriver
	Options, Labels map[string]string
	// Ref, when set, is the id of a container that holds the volume from the start, so that no prune can take it before
	// the container's record exists.
	Ref string
}

// Create returns the volume with the name asked for, and makes it if need be. Options and labels of one that exists
// are neither compared nor changed.
func (s *Store) Create(ctx context.Context, req CreateRequest) (Volume, error) {
	e, err := s.create(ctx, req)
	if err != nil {
		return Volume{}, err
	}
	return e.volume(), nil
}

func (s *Store) create(ctx context.Context, req CreateRequest) (*entry, error) {
	if req.Name == "" {
		req.Name = ids.New()
		req.Labels = maps.Clone(req.Labels)
		if req.Labels == nil {
			req.Labels = map[string]string{}
		}
		req.Labels[AnonymousLabel] = ""
		if req.Driver == "" {
			req.Driver = DefaultDriver
		}
	}
	unlock, err := s.names.lock(ctx, req.Name)
	if err != nil {
		return nil, &OpError{Op: "create", Name: req.Name, Err: err}
	}
	defer unlock()
	e, err := s.existing(ctx, req)
	if err == nil && e == nil {
		if e, err = s.createNew(ctx, req); err == nil {
			s.hold(e, req.Ref)
			s.setEntry(e)
			s.events.Publish(events.VolumeEventType, events.ActionCreate, e.name, map[string]string{"driver": e.driver})
			return e, nil
		}
	}
	if err != nil {
		return nil, &OpError{Op: "create", Name: req.Name, Err: err}
	}
	s.hold(e, req.Ref)
	return e, nil
}

// existing returns the volume that has the name already, or nil. A volume that has vanished from its driver and that
// nobody holds makes way.
func (s *Store) existing(ctx context.Context, req CreateRequest) (*entry, error) {
	e := s.entry(req.Name)
	if e == nil {
		if req.Driver != "" {
			return nil, nil
		}
		e, _, err := s.probe(ctx, req.Name, "")
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		return e, err
	}
	if req.Driver != "" && req.Driver != e.driver {
		if _, err := s.driver(ctx, req.Driver); err != nil {
			return nil, err
		}
	}
	info, err := s.ask(ctx, e)
	switch {
	case err != nil:
		return nil, fmt.Errorf("found reference to volume '%s' in driver '%s', but got an error while checking the driver: %v: %w",
			e.name, e.driver, err, ErrNameConflict)
	case info == nil && len(s.Refs(e.name)) > 0:
		return nil, fmt.Errorf("found references to volume '%s' in driver '%s' but the volume was not found in the driver -- "+
			"you may need to remove containers referencing this volume or force remove the volume to re-create it: %w",
			e.name, e.driver, ErrNameConflict)
	case info == nil:
		return nil, s.forget(ctx, e)
	case req.Driver != "" && req.Driver != e.driver:
		return nil, fmt.Errorf("driver '%s' already has volume '%s': %w", e.driver, e.name, ErrNameConflict)
	}
	if !e.recorded {
		return s.recordExisting(ctx, req, e)
	}
	return e, nil
}

// recordExisting records a volume that only its driver knew. It takes labels and options from a request that names
// the driver, as dockerd does.
func (s *Store) recordExisting(ctx context.Context, req CreateRequest, e *entry) (*entry, error) {
	r := record{Name: e.name, Driver: e.driver}
	if req.Driver != "" {
		r.Labels, r.Options = req.Labels, req.Options
	}
	d, err := s.driver(ctx, e.driver)
	if err != nil {
		return nil, err
	}
	recorded, err := s.takeInAs(r, d, Info{Mountpoint: e.path(), CreatedAt: e.volume().CreatedAt})
	if err != nil {
		return nil, err
	}
	s.replaceEntry(e, recorded)
	return recorded, nil
}

// createNew stages, records and publishes. From the commit on the operation is carried through whatever becomes of the
// caller.
func (s *Store) createNew(ctx context.Context, req CreateRequest) (*entry, error) {
	d, err := s.driver(ctx, req.Driver)
	if err != nil {
		return nil, err
	}
	r := record{Name: req.Name, Driver: d.Name(), Labels: req.Labels, Options: req.Options}
	switch info, err := d.Get(ctx, req.Name); {
	case err == nil:
		return s.takeInAs(r, d, info)
	case !errdefs.IsNotFound(err):
		return nil, fmt.Errorf("error while checking if volume %q exists in driver %q: %w", req.Name, d.Name(), err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)

	info, err := s.stageRecordPublish(ctx, d, r)
	if err != nil {
		return nil, err
	}
	s.meta.settle(r.Name)
	s.dropTombstone(r.Name)
	s.stock(d)
	return newRecorded(r, d, info), nil
}

// stock lets a driver that is short of preparations make more, in the background.
func (s *Store) stock(d Driver) {
	stocker, ok := d.(Stocker)
	if !ok || !stocker.Low() || !s.stocking.CompareAndSwap(false, true) {
		return
	}
	s.tasks.Go(func() {
		defer s.stocking.Store(false)
		stocker.Stock(s.ctx)
	})
}

func (s *Store) stageRecordPublish(ctx context.Context, d Driver, r record) (Info, error) {
	staged, err := d.Stage(ctx, r.Name, r.Options)
	if err == nil {
		err = fault.Point("volumes.create.staged")
	}
	if err != nil {
		return Info{}, undone(ctx, staged, err)
	}
	return s.recordPublish(ctx, staged, &change{name: r.Name, record: &r, mark: &mark{Op: markCreate}})
}

// recordPublish commits c, which records the staged volume, and publishes that. A failure leaves nothing of it.
func (s *Store) recordPublish(ctx context.Context, staged Staged, c *change) (Info, error) {
	if err := s.meta.commit(c); err != nil {
		return Info{}, undone(ctx, staged, fmt.Errorf("error setting volume metadata: %w", err))
	}
	var info Info
	err := fault.Point("volumes.create.recorded")
	if err == nil {
		info, err = staged.Publish(ctx)
	}
	if err != nil {
		if unrecordErr := s.meta.commit(&change{name: c.name}); unrecordErr != nil {
			err = fmt.Errorf("%w (and the record stays: %v)", err, unrecordErr)
		}
		return Info{}, undone(ctx, staged, err)
	}
	return info, fault.Point("volumes.create.published")
}

// undone discards what was staged and returns err.
func undone(ctx context.Context, staged Staged, err error) error {
	if staged == nil {
		return err
	}
	if discardErr := staged.Discard(ctx); discardErr != nil {
		return fmt.Errorf("%w (and discard: %v)", err, discardErr)
	}
	return err
}

// takeInAs records a volume that the driver has and the store did not know, with the labels and options asked for.
func (s *Store) takeInAs(r record, d Driver, info Info) (*entry, error) {
	if err := s.meta.commit(&change{name: r.Name, record: &r}); err != nil {
		return nil, fmt.Errorf("error setting volume metadata: %w", err)
	}
	s.dropTombstone(r.Name)
	return newRecorded(r, d, info), nil
}
