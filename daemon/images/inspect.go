package images

import (
	"context"
	"fmt"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	api "stated.dev/stated/api/router/images"
)

// Inspect returns what is known of an image.
func (s *Service) Inspect(_ context.Context, ref string, platform *ocispec.Platform) (api.Inspect, error) {
	r, err := s.resolve(ref)
	if err != nil {
		return api.Inspect{}, err
	}
	doc, err := s.document(r)
	if err != nil {
		return api.Inspect{}, err
	}
	c := doc.config
	if err := checkPlatform(ref, c.platform(), platform); err != nil {
		return api.Inspect{}, err
	}
	size, err := s.size(r)
	if err != nil {
		return api.Inspect{}, err
	}
	found := api.Inspect{
		ID:              r.id.String(),
		Parent:          s.parentOf(r).String(),
		Comment:         c.Comment,
		Created:         c.Created,
		Container:       c.Container,
		ContainerConfig: c.ContainerConfig,
		DockerVersion:   c.DockerVersion,
		Author:          c.Author,
		Config:          &c.Config,
		Architecture:    c.Architecture,
		Variant:         c.Variant,
		OS:              c.os(),
		OSVersion:       c.OSVersion,
		Size:            size,
		GraphDriver:     storage.DriverData{Name: s.layers.DriverName()},
		RootFS:          image.RootFS{Type: c.RootFS.Type},
		LastTagTime:     s.content.lastTagged(r.id),
	}
	found.RepoTags, found.RepoDigests = s.snapshot().names(r.id)
	if found.Comment == "" && len(c.History) > 0 {
		found.Comment = c.History[len(c.History)-1].Comment
	}
	for _, id := range r.diffIDs {
		found.RootFS.Layers = append(found.RootFS.Layers, id.String())
	}
	if r.chain != "" {
		if found.GraphDriver.Data, err = s.layers.LayerMetadata(r.chain); err != nil {
			return api.Inspect{}, fmt.Errorf("inspect image %s: %w", ref, err)
		}
	}
	return found, nil
}
