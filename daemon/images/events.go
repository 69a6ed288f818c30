package images

import (
	"maps"

	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
)

// publish tells the world about an image. Labels are the image's, nil when it is gone.
func (s *Service) publishEvent(action events.Action, id digest.Digest, name string, labels map[string]string) {
	attrs := make(map[string]string, len(labels)+1)
	maps.Copy(attrs, labels)
	attrs["name"] = name
	s.events.Publish(events.ImageEventType, action, id.String(), attrs)
}

// labels returns the labels of r, or none if its configuration cannot be read now.
func (s *Service) labels(r *record) map[string]string {
	doc, err := s.document(r)
	if err != nil {
		return nil
	}
	return doc.config.Config.Labels
}
