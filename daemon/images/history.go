package images

import (
	"context"
	"errors"
	"slices"

	"github.com/moby/moby/api/types/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/opencontainers/go-digest"
)

// History returns the steps that made an image, the newest first. Only steps that are images on this host have
// an id.
func (s *Service) History(_ context.Context, ref string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	r, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	doc, err := s.document(r)
	if err != nil {
		return nil, err
	}
	if err := checkPlatform(ref, doc.config.platform(), platform); err != nil {
		return nil, err
	}
	var chain []LayerInfo
	if r.chain != "" {
		if chain, err = s.layers.Chain(r.chain); err != nil {
			return nil, err
		}
	}
	steps := make([]image.HistoryResponseItem, 0, len(doc.config.History))
	for _, h := range doc.config.History {
		step := image.HistoryResponseItem{ID: "<missing>", CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			step.Created = h.Created.Unix()
		}
		if !h.EmptyLayer {
			if len(chain) == 0 {
				return nil, errors.New("too many non-empty layers in History section")
			}
			step.Size, chain = chain[0].Size, chain[1:]
		}
		steps = append(steps, step)
	}
	slices.Reverse(steps)
	s.nameSteps(steps, r.id)
	return steps, nil
}

// nameSteps writes the ids and tags of an image and its parents into the steps, from the newest on.
func (s *Service) nameSteps(steps []image.HistoryResponseItem, id digest.Digest) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := range steps {
		r := s.images[id]
		if r == nil {
			return
		}
		steps[i].ID = id.String()
		steps[i].Tags, _ = s.refs.names(id)
		id = r.parent
	}
}
