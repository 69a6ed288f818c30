package containers

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/filters"
	"stated.dev/stated/internal/ids"
)

type removeOptions struct {
	volumes bool // anonymous ones too
}

// Remove deletes a container; a running one only by force.
func (s *Service) Remove(ctx context.Context, ref string, req api.RemoveRequest) error {
	c, err := s.lookup(ref)
	if err != nil {
		return err
	}
	if req.Link {
		return errLinks
	}
	rec := c.rec()
	if reason := c.broken.Load(); reason != nil && !req.Force {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("cannot remove container %q: %s: force remove to delete what there is of it", strings.TrimPrefix(ref, "/"), *reason))
	}
	if state := rec.State; state.Running && !req.Force {
		what := "running"
		if state.Paused {
			what = "paused"
		} else if state.Restarting {
			what = "restarting"
		}
		text := fmt.Sprintf("cannot remove container %q: container is %s", strings.TrimPrefix(ref, "/"), what)
		if state.Paused {
			return errdefs.ErrConflict.WithMessage(text + " and must be unpaused first")
		}
		return errdefs.ErrConflict.WithMessage(text + ": stop the container before removing or force remove")
	}
	s.stopRestarting(c)
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	ctx = context.WithoutCancel(ctx)
	if r := c.live(); r != nil {
		if !req.Force {
			return errdefs.ErrConflict.WithMessage(fmt.Sprintf("cannot remove container %q: container is running: stop the container before removing or force remove", ref))
		}
		r.stopped.Store(true)
		r.restarting.Store(true) // --rm would remove it a second time
		if err := s.killRun(ctx, c, r); err != nil {
			r.restarting.Store(false)
			return fmt.Errorf("cannot remove container %q: could not kill: %w", ref, err)
		}
	} else if rec := c.rec(); rec.State.Running && runsElsewhere(rec) {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("cannot remove container %q: it runs out of this daemon's reach as process %d", strings.TrimPrefix(ref, "/"), rec.State.Pid))
	}
	return s.remove(ctx, c, removeOptions{volumes: req.Volumes})
}

// removeAuto is the removal of a container that was run with --rm, after its last run; nil stands for one that was not
// this daemon's. Somebody may have removed it meanwhile, or started it again.
func (s *Service) removeAuto(ctx context.Context, c *Container, last *run) error {
	err := c.lock(ctx)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.unlock()
	if c.currentRun() != last {
		return nil
	}
	return s.remove(ctx, c, removeOptions{volumes: true})
}

// remove deletes a container that does not run; the caller holds the verb lock. One journal entry un-records it, then
// its data is deleted.
func (s *Service) remove(ctx context.Context, c *Container, opts removeOptions) error {
	if r := c.currentRun(); r != nil {
		<-r.cleaned
	}
	c.cancelRestart() // of a run that ended by itself before it was killed
	if err := s.dropTask(ctx, c); err != nil {
		return err
	}
	rec := c.rec()
	if err := fault.Point("containers.remove.begun"); err != nil {
		return err
	}
	unrecord := func(dirs []string) error {
		c.commitMu.Lock()
		defer c.commitMu.Unlock()
		if err := s.journal.Commit(ctx, removed(append(dirs, c.dir))...); err != nil {
			return err
		}
		c.mu.Lock()
		c.gone = true
		c.mu.Unlock()
		return fault.Point("containers.remove.unrecorded")
	}
	err := s.unmountLeftImages(ctx, rec)
	if err == nil {
		err = s.removeLayers(ctx, rec.layers(), unrecord)
	}
	switch {
	case err != nil && c.isGone():
		// There is no record of it any more; the next start sweeps the rest.
		s.log.Warn("cannot delete all that a removed container left", "container", c.id, "err", err)
	case err != nil:
		s.setDead(c, err)
		return fmt.Errorf("cannot remove container %q: %w", rec.name(), err)
	}
	s.unregister(c) // first, because the volumes ask who uses them
	volumeErr := s.releaseVolumes(ctx, rec, opts)
	s.publish(c, events.ActionDestroy, nil)
	c.failPending(errdefs.ErrNotFound.WithMessage("No such container: " + c.id))
	c.wakeRemoved(rec.State.ExitCode)
	return volumeErr
}

// dropTask deletes what the runtime still has of a container that does not run.
func (s *Service) dropTask(ctx context.Context, c *Container) error {
	task, err := s.runtime.Reconnect(ctx, c.id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end what runs of container %s: %w", ids.Short(c.id), err)
	}
	return endTask(ctx, task)
}

func (s *Service) setDead(c *Container, cause error) {
	s.observe(c, func(r *Record) {
		r.State.Dead = true
		r.State.Error = cause.Error()
	})
}

// releaseVolumes gives up the container's claims, and removes its anonymous volumes when asked to.
func (s *Service) releaseVolumes(ctx context.Context, r *Record, opts removeOptions) error {
	var errs []error
	for _, m := range r.MountPoints {
		if !m.IsVolume() {
			continue
		}
		if err := s.volumes.Release(ctx, m.Name, r.ID); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
			continue
		}
		if !opts.volumes || m.Spec.Source != "" {
			continue
		}
		err := s.volumes.Remove(ctx, m.Name)
		if err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("Error removing volumes: %w", errors.Join(errs...)) //nolint:staticcheck // Docker's text
	}
	return nil
}

// Prune removes all stopped containers that match the filters until, label and label!.
func (s *Service) Prune(ctx context.Context, f filters.Args) (container.PruneReport, error) {
	var report container.PruneReport
	if err := f.Validate("label", "label!", "until"); err != nil {
		return report, err
	}
	until, err := untilFilter(f)
	if err != nil {
		return report, err
	}
	if !s.pruning.TryLock() {
		return report, errdefs.ErrConflict.WithMessage("a prune operation is already running")
	}
	defer s.pruning.Unlock()
	for _, c := range s.all() {
		if ctx.Err() != nil {
			break // what was done so far is the answer
		}
		rec := c.rec()
		if c.isBroken() || rec.State.Running || (!until.IsZero() && rec.Created.After(until)) || !f.MatchLabels("label", rec.Config.Labels) ||
			(f.Has("label!") && f.MatchLabels("label!", rec.Config.Labels)) {
			continue
		}
		size, _, err := s.layers.RWSize(ctx, c.id)
		if err != nil {
			size = 0 // a container whose layer is broken may be pruned all the same
		}
		if err := s.Remove(ctx, c.id, api.RemoveRequest{}); err != nil {
			s.log.Warn("cannot prune container", "container", c.id, "err", err)
			continue
		}
		report.ContainersDeleted = append(report.ContainersDeleted, c.id)
		report.SpaceReclaimed += uint64(max(size, 0))
	}
	s.events.Publish(events.ContainerEventType, events.ActionPrune, "", map[string]string{"reclaimed": fmt.Sprint(report.SpaceReclaimed)})
	return report, nil
}
