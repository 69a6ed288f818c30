package images

import (
	"context"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/internal/filters"
)

// Prune deletes the images that nobody uses and that have no tag, or, with dangling=false, all that nobody uses.
func (s *Service) Prune(ctx context.Context, f filters.Args) (image.PruneReport, error) {
	if !s.pruning.CompareAndSwap(false, true) {
		return image.PruneReport{}, errdefs.ErrConflict.WithMessage("a prune operation is already running")
	}
	defer s.pruning.Store(false)

	candidates, danglingOnly, err := s.pruneCandidates(f)
	if err != nil {
		return image.PruneReport{}, err
	}
	sizes := map[digest.Digest]int64{}
	report := image.PruneReport{}
	for _, r := range candidates {
		if ctx.Err() != nil {
			break // what was freed until now is reported all the same
		}
		s.noteSizes(r, sizes)
		for _, ref := range s.pruneRefs(r, danglingOnly) {
			deleted, err := s.Remove(ctx, ref, api.RemoveRequest{})
			switch {
			case err == nil:
				report.ImagesDeleted = append(report.ImagesDeleted, deleted...)
			case errdefs.IsConflict(err), errdefs.IsNotFound(err), ctx.Err() != nil:
			default:
				s.log.Warn("prune image", "image", r.id, "reference", ref, "error", err)
			}
		}
	}
	for _, d := range report.ImagesDeleted {
		report.SpaceReclaimed += uint64(sizes[digest.Digest(d.Deleted)])
	}
	s.events.Publish(events.ImageEventType, events.ActionPrune, "", map[string]string{
		"reclaimed": strconv.FormatUint(report.SpaceReclaimed, 10),
	})
	return report, nil
}

// pruneCandidates returns the images that pass the filters.
func (s *Service) pruneCandidates(f filters.Args) (candidates []*record, danglingOnly bool, err error) {
	if err := f.Validate("dangling", "label", "label!", "until"); err != nil {
		return nil, false, err
	}
	if danglingOnly, err = f.Bool("dangling", true); err != nil {
		return nil, false, err
	}
	if len(f["until"]) > 1 {
		return nil, false, errdefs.ErrInvalidArgument.WithMessage("more than one until filter specified")
	}
	var until time.Time
	for _, text := range f["until"] {
		if until, err = parseTime(text, time.Now()); err != nil {
			return nil, false, err
		}
	}
	refs := s.snapshot()
	for _, r := range s.all() {
		parent := s.hasChildren(r)
		switch {
		case parent && (danglingOnly || len(refs.byID[r.id]) == 0):
			continue
		case !until.IsZero() && (r.created.IsZero() || r.created.After(until)):
			continue
		}
		labels := s.labels(r)
		if !f.MatchLabels("label", labels) || (f.Has("label!") && f.MatchLabels("label!", labels)) {
			continue
		}
		candidates = append(candidates, r)
	}
	return candidates, danglingOnly, nil
}

// pruneRefs returns what to remove so that r goes: its references, or its id when it has none. Of a tagged image
// nothing goes while only dangling ones are wanted.
func (s *Service) pruneRefs(r *record, danglingOnly bool) []string {
	refs := s.snapshot().byID[r.id]
	if len(refs) == 0 {
		return []string{r.id.Encoded()}
	}
	var texts []string
	for _, ref := range refs {
		if danglingOnly && !isDigest(ref) {
			return nil
		}
		texts = append(texts, ref.String())
	}
	return texts
}

// noteSizes remembers the sizes of r's layers before they may go.
func (s *Service) noteSizes(r *record, sizes map[digest.Digest]int64) {
	if r.chain == "" {
		return
	}
	chain, err := s.layers.Chain(r.chain)
	if err != nil {
		return // gone already, and with it what could be reclaimed
	}
	for _, layer := range chain {
		sizes[layer.ChainID] = layer.Size
	}
}
