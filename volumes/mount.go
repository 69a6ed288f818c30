package volumes

import (
	"context"
	"errors"
	"log/slog"

	"github.com/containerd/errdefs"
)

// Mount makes the volume's data reachable for mountID, which names one mount of one container and stays the same over
// restarts of both. Mounting again under the same id changes nothing.
func (s *Store) Mount(ctx context.Context, name, mountID string) (string, error) {
	unlock, err := s.names.lock(ctx, name)
	if err != nil {
		return "", err
	}
	defer unlock()
	e, _, err := s.lookup(ctx, name, "")
	if err != nil {
		return "", &OpError{Op: "get", Name: name, Err: err}
	}
	d, err := s.driver(ctx, e.driver)
	if err != nil {
		return "", err
	}
	path, err := d.Mount(ctx, name, mountID)
	if err == nil && !s.owned(e.driver) {
		e.learn(Info{Mountpoint: path}, d) // many plug-ins have no path to tell before
	}
	return path, err
}

// Unmount takes mountID's use back. An id that is not mounted, or a volume that is gone, is no error.
func (s *Store) Unmount(ctx context.Context, name, mountID string) error {
	unlock, err := s.names.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	e := s.entry(name)
	if e == nil {
		return nil
	}
	d, err := s.driver(ctx, e.driver)
	if err != nil {
		return err
	}
	if err := d.Unmount(ctx, name, mountID); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// LiveRestore registers the mount of a container that kept running while no daemon did. A driver that has to be found
// is told in the background: the start does not wait for it, and its Unmount takes any id.
func (s *Store) LiveRestore(ctx context.Context, name, mountID string) error {
	if e := s.entry(name); e != nil && s.drivers[e.driver] == nil {
		s.tasks.Go(func() {
			if err := s.liveRestore(s.ctx, name, mountID); err != nil && s.ctx.Err() == nil {
				slog.Warn("a driver could not be told of a mount that is in use", "volume", name, "driver", e.driver, "err", err)
			}
		})
		return nil
	}
	return s.liveRestore(ctx, name, mountID)
}

func (s *Store) liveRestore(ctx context.Context, name, mountID string) error {
	unlock, err := s.names.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	e, _, err := s.lookup(ctx, name, "")
	if err != nil {
		return &OpError{Op: "get", Name: name, Err: err}
	}
	d, err := s.driver(ctx, e.driver)
	if err != nil {
		return err
	}
	return d.LiveRestore(ctx, name, mountID)
}

// Sweep releases what an earlier daemon left mounted and nobody uses. It is to be called once the mounts of all
// containers that kept running are registered.
func (s *Store) Sweep(ctx context.Context) error {
	var errs []error
	for _, d := range s.sortedDrivers() {
		if sweeper, ok := d.(Sweeper); ok {
			errs = append(errs, sweeper.Sweep(ctx))
		}
	}
	return errors.Join(errs...)
}
