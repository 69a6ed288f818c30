package images

import (
	"context"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/fault"
)

// Tag gives an image a further name. Another image that had it loses it.
func (s *Service) Tag(_ context.Context, ref string, target reference.NamedTagged) error {
	if err := checkName(target); err != nil {
		return err
	}
	r, err := s.tag(ref, target)
	if err != nil {
		return err
	}
	s.noteTagged(r.id)
	s.publishEvent(events.ActionTag, r.id, reference.FamiliarString(target), s.labels(r))
	return nil
}

func (s *Service) tag(ref string, target reference.NamedTagged) (*record, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	r, err := s.resolve(ref) // under writing, so that the image cannot go meanwhile
	if err != nil {
		return nil, err
	}
	if id, found := s.refs.get(target); found && id == r.id {
		return r, nil
	}
	if err := s.setRefsLocked([]refEdit{{target, r.id}}); err != nil {
		return nil, err
	}
	return r, fault.Point("images.tag.named")
}
