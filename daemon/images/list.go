package images

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/internal/filters"
)

// List returns the images that pass the filters, the newest first. Untagged images that others were built on are
// left out unless req.All.
func (s *Service) List(ctx context.Context, req api.ListRequest) ([]image.Summary, error) {
	sel, err := s.selection(req.Filters)
	if err != nil {
		return nil, err
	}
	refs := s.snapshot()
	var picked []image.Summary
	var records []*record
	for _, r := range s.all() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		summary, ok, err := s.summarize(r, refs, sel, req.All)
		if err != nil {
			return nil, err
		}
		if ok {
			picked, records = append(picked, summary), append(records, r)
		}
	}
	if req.SharedSize {
		if err := s.shareSizes(picked, records); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(picked, func(a, b image.Summary) int { return int(min(max(b.Created-a.Created, -1), 1)) })
	return picked, nil
}

// selection is the filters parameter of a list, understood.
type selection struct {
	filters  filters.Args
	dangling *bool
	before   time.Time // zero: no bound
	since    time.Time // zero: no bound
}

func (s *Service) selection(f filters.Args) (selection, error) {
	sel := selection{filters: f}
	if err := f.Validate("dangling", "label", "before", "since", "reference", "until"); err != nil {
		return sel, err
	}
	if f.Has("dangling") {
		on, err := f.Bool("dangling", false)
		if err != nil {
			return sel, err
		}
		sel.dangling = &on
	}
	for _, ref := range f["before"] {
		created, err := s.createdOf(ref)
		if err != nil {
			return sel, err
		}
		sel.before = earlier(sel.before, created)
	}
	for _, ref := range f["since"] {
		created, err := s.createdOf(ref)
		if err != nil {
			return sel, err
		}
		if created.After(sel.since) {
			sel.since = created
		}
	}
	for _, text := range f["until"] {
		until, err := parseTime(text, time.Now())
		if err != nil {
			return sel, err
		}
		sel.before = earlier(sel.before, until)
	}
	return sel, nil
}

func (s *Service) createdOf(ref string) (time.Time, error) {
	r, err := s.resolve(ref)
	if err != nil {
		return time.Time{}, err
	}
	return r.created, nil
}

// earlier returns the earlier of two times, where zero means none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// admitsTime reports whether an image made at created is within the selection's bounds.
func (sel selection) admitsTime(created time.Time) bool {
	if !sel.before.IsZero() && (created.IsZero() || !created.Before(sel.before)) {
		return false
	}
	return sel.since.IsZero() || created.After(sel.since)
}

// admitsRef reports whether a reference matches one of the reference filter's patterns.
func (sel selection) admitsRef(ref reference.Named) (bool, error) {
	for _, pattern := range sel.filters["reference"] {
		found, err := reference.FamiliarMatch(pattern, ref)
		if err != nil {
			return false, errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
		if found {
			return true, nil
		}
	}
	return !sel.filters.Has("reference"), nil
}

// summarize describes r, or reports that the selection leaves it out.
func (s *Service) summarize(r *record, refs *refSet, sel selection, all bool) (image.Summary, bool, error) {
	if !sel.admitsTime(r.created) {
		return image.Summary{}, false, nil
	}
	doc, err := s.document(r)
	if err != nil {
		return image.Summary{}, false, fmt.Errorf("list images: %w", err)
	}
	if !sel.filters.MatchLabels("label", doc.config.Config.Labels) {
		return image.Summary{}, false, nil
	}
	summary := image.Summary{
		ID:         r.id.String(),
		ParentID:   s.parentOf(r).String(),
		Labels:     doc.config.Config.Labels,
		SharedSize: -1,
	}
	if !r.created.IsZero() {
		summary.Created = r.created.Unix()
	}
	for _, ref := range refs.byID[r.id] {
		ok, err := sel.admitsRef(ref)
		switch {
		case err != nil:
			return image.Summary{}, false, err
		case !ok:
		case isDigest(ref):
			summary.RepoDigests = append(summary.RepoDigests, reference.FamiliarString(ref))
		default:
			summary.RepoTags = append(summary.RepoTags, reference.FamiliarString(ref))
		}
	}
	named := len(summary.RepoTags) > 0 || len(summary.RepoDigests) > 0
	wantDangling := sel.dangling != nil && *sel.dangling
	parent := s.hasChildren(r)
	switch {
	case wantDangling && (parent || len(summary.RepoTags) > 0),
		!named && parent && !all,
		!named && sel.dangling != nil && !*sel.dangling,
		!named && sel.filters.Has("reference"):
		return image.Summary{}, false, nil
	}
	if summary.Size, err = s.size(r); err != nil {
		if errdefs.IsNotFound(err) {
			return image.Summary{}, false, nil // removed since the list began
		}
		return image.Summary{}, false, err
	}
	for _, use := range s.containers.UsingImage(r.id) {
		if !use.Mounted { // as dockerd counts
			summary.Containers++
		}
	}
	return summary, true, nil
}

// shareSizes computes for each picked image how many of its bytes other images have as well.
func (s *Service) shareSizes(picked []image.Summary, records []*record) error {
	users := map[digest.Digest]int{}
	for _, r := range s.all() {
		for _, chain := range chainIDs(r.diffIDs) {
			users[chain]++
		}
	}
	for i, r := range records {
		picked[i].SharedSize = 0
		for _, chain := range chainIDs(r.diffIDs) {
			if users[chain] < 2 {
				continue
			}
			layer, err := s.layers.Layer(chain)
			if err != nil {
				return fmt.Errorf("shared size of image %s: %w", r.id, err)
			}
			picked[i].SharedSize += layer.Size
		}
	}
	return nil
}
