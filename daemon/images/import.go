package images

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/internal/fault"
)

// Import makes an image of one layer.
func (s *Service) Import(ctx context.Context, r io.Reader, req api.ImportRequest) (string, error) {
	platform := platforms.DefaultSpec()
	if req.Platform != nil {
		platform = *req.Platform
	}
	now := time.Now().UTC()
	c := config{
		Architecture:  platform.Architecture,
		Variant:       platform.Variant,
		OS:            platform.OS,
		Created:       &now,
		DockerVersion: s.version,
		Comment:       req.Message,
		History:       []ocispec.History{{Created: &now, Comment: req.Message}},
		RootFS:        &rootFS{Type: "layers", DiffIDs: []digest.Digest{""}},
	}
	if err := c.checkNew(); err != nil {
		return "", err
	}
	if err := applyChanges(&c.Config, req.Changes); err != nil {
		return "", err
	}
	plain, err := decompress(contextReader{ctx, r})
	if err != nil {
		return "", invalidArchive(ctx, err)
	}
	defer plain.Close()
	info, err := s.layers.Register(ctx, plain, "")
	if err != nil {
		return "", fmt.Errorf("import layer: %w", err)
	}
	kept := false // the image takes over the reference if it is new
	defer func() {
		if !kept {
			s.releaseLayers(ctx, []digest.Digest{info.ChainID})
		}
	}()
	c.RootFS.DiffIDs[0] = info.DiffID
	raw, err := encodeConfig(c)
	if err != nil {
		return "", err
	}
	img, err := newImageOf(raw)
	if err != nil {
		return "", err
	}
	if err := fault.Point("images.import.layer"); err != nil {
		return "", err
	}
	if kept, err = s.publishTagged(img, req.Target); err != nil {
		return "", err
	}
	labels := c.Config.Labels
	if req.Target != nil {
		s.publishEvent(events.ActionTag, img.id, reference.FamiliarString(req.Target), labels)
	}
	s.publishEvent(events.ActionImport, img.id, img.id.String(), labels)
	return img.id.String(), nil
}

// encodeConfig writes a configuration with its keys in order, as Docker does.
func encodeConfig(c config) ([]byte, error) {
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode image configuration: %w", err)
	}
	var sorted map[string]json.RawMessage
	if err := json.Unmarshal(data, &sorted); err != nil {
		return nil, fmt.Errorf("encode image configuration: %w", err)
	}
	if data, err = json.Marshal(sorted); err != nil {
		return nil, fmt.Errorf("encode image configuration: %w", err)
	}
	return data, nil
}
