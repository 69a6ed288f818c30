package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/filters"
)

// pruneGrace is how long an anonymous volume that nobody has held yet is spared: who asked for it may be about to.
const pruneGrace = time.Minute

// PruneRequest says which unused volumes to remove.
type PruneRequest struct {
	Filters filters.Args // label, label!, all
	// All takes named volumes as well, as every client of an API before 1.42 expects. The filter "all" does the same.
	All bool
}

// PruneReport is what a prune removed.
type PruneReport struct {
	Deleted   []string
	Reclaimed uint64 // bytes
}

// Prune removes local volumes without options that nobody holds: anonymous ones, or all. Only one prune runs at a
// time. When ctx is cancelled it returns what it has done.
func (s *Store) Prune(ctx context.Context, req PruneRequest) (PruneReport, error) {
	if !s.pruning.CompareAndSwap(false, true) {
		return PruneReport{}, errdefs.ErrConflict.WithMessage("a prune operation is already running")
	}
	defer s.pruning.Store(false)

	all, err := pruneAll(req)
	if err != nil {
		return PruneReport{}, err
	}
	if err := req.Filters.Validate("label", "label!", "all"); err != nil {
		return PruneReport{}, err
	}
	f := maps.Clone(req.Filters)
	if !all {
		if f == nil {
			f = filters.Args{}
		}
		f["label"] = append(slices.Clone(f["label"]), AnonymousLabel)
	}
	matches, err := s.selection(f)
	if err != nil {
		return PruneReport{}, err
	}
	entries := s.localEntries(func(e *entry) bool { return len(e.refs) == 0 && len(e.options) == 0 && matches(e) })
	report := PruneReport{Deleted: make([]string, 0, len(entries))}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			if errors.Is(err, context.Canceled) {
				err = nil
			}
			return report, err
		}
		if !all && s.fresh(ctx, e) {
			continue
		}
		size, err := s.pruneOne(ctx, e)
		if err != nil {
			slog.Warn("could not remove unused volume", "volume", e.name, "error", err)
			continue
		}
		report.Deleted = append(report.Deleted, e.name)
		report.Reclaimed += size
	}
	s.events.Publish(events.VolumeEventType, events.ActionPrune, "",
		map[string]string{"reclaimed": strconv.FormatUint(report.Reclaimed, 10)})
	return report, nil
}

func pruneAll(req PruneRequest) (bool, error) {
	values := req.Filters["all"]
	switch {
	case len(values) > 1:
		return false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter 'all=%s': only one value is expected", values))
	case len(values) == 1:
		all, err := strconv.ParseBool(values[0])
		if err != nil {
			return false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter 'all': %v", err))
		}
		return all || req.All, nil
	}
	return req.All, nil
}

// fresh reports whether e may be waiting for its first user.
func (s *Store) fresh(ctx context.Context, e *entry) bool {
	s.mu.RLock()
	referenced := e.referenced
	s.mu.RUnlock()
	if referenced {
		return false
	}
	s.learnTime(ctx, e)
	return s.now().Sub(e.volume().CreatedAt) < pruneGrace
}

// pruneOne removes e if it is still what was listed and still nobody's, and returns how much it held.
func (s *Store) pruneOne(ctx context.Context, e *entry) (uint64, error) {
	unlock, err := s.names.lock(ctx, e.name)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if s.entry(e.name) != e {
		return 0, &OpError{Op: "get", Name: e.name, Err: ErrNoSuchVolume}
	}
	if refs := s.Refs(e.name); len(refs) > 0 {
		return 0, &OpError{Op: "remove", Name: e.name, Err: ErrInUse, Refs: refs}
	}
	size, err := diskUsage(ctx, e.path())
	if err != nil {
		slog.Warn("could not determine size of volume", "volume", e.name, "error", err)
		size = 0
	}
	return uint64(size), s.removeUnused(ctx, e, RemoveRequest{})
}
