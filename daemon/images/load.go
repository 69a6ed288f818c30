package images

import (
	"context"
	"fmt"
	"io"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/internal/fault"
)

// Load adds the images of an archive as docker save writes it, or of an OCI image layout in a tar. All of them are
// added, or none.
func (s *Service) Load(ctx context.Context, r io.Reader, req api.LoadRequest, emit api.Emit) error {
	a, err := spool(ctx, r, s.tempDir)
	if err != nil {
		return err
	}
	defer a.Close()
	images, err := readImages(a, req.Platform)
	if err != nil {
		return err
	}
	l := &loading{s: s, archive: a, emit: emit, quiet: req.Quiet}
	defer l.release(ctx)
	if err := l.layers(ctx, images); err != nil {
		return err
	}
	if err := fault.Point("images.load.layers"); err != nil {
		return err
	}
	before := s.snapshot()
	if err := l.publish(images); err != nil {
		return err
	}
	return l.report(images, before)
}

// publish makes the images visible. The references on their top layers go over to those that are new.
func (l *loading) publish(images []archivedImage) error {
	list := make([]newImage, 0, len(images))
	present := map[digest.Digest]bool{}
	for _, img := range images {
		present[img.id] = true
	}
	var edits []refEdit
	for _, img := range images {
		n := img.newImage
		if img.parent != n.id && present[img.parent] {
			n.parent = img.parent
		}
		list = append(list, n)
		for _, tag := range img.tags {
			edits = append(edits, refEdit{tag, img.id})
		}
	}
	// Each new image needs a reference of its own, also where two share their top layer.
	var extra []digest.Digest
	for _, n := range list {
		chain := topChain(n.doc.config.RootFS.DiffIDs)
		if chain == "" {
			continue
		}
		if _, err := l.s.layers.Acquire(chain); err != nil {
			l.held = append(l.held, extra...)
			return fmt.Errorf("hold layer %s: %w", chain, err)
		}
		extra = append(extra, chain)
	}
	added, err := l.s.publish(list, edits)
	for _, n := range list {
		chain := topChain(n.doc.config.RootFS.DiffIDs)
		if chain == "" {
			continue
		}
		if err == nil && added[n.id] {
			delete(added, n.id) // an archive may name an image twice
			continue
		}
		l.held = append(l.held, chain)
	}
	return err
}

// report tells the client and the listeners what was loaded.
func (l *loading) report(images []archivedImage, before *refSet) error {
	tagged := false
	for _, img := range images {
		for _, tag := range img.tags {
			tagged = true
			if old, found := before.get(tag); found && old != img.id {
				if err := l.line("The image %s already exists, renaming the old one with ID %s to empty string\n", reference.FamiliarString(tag), old); err != nil {
					return err
				}
			}
			if err := l.line("Loaded image: %s\n", reference.FamiliarString(tag)); err != nil {
				return err
			}
		}
		l.s.publishEvent(events.ActionLoad, img.id, img.id.String(), img.doc.config.Config.Labels)
	}
	if tagged {
		return nil
	}
	for _, img := range images {
		if err := l.line("Loaded image ID: %s\n", img.id); err != nil {
			return err
		}
	}
	return nil
}

func (l *loading) line(format string, args ...any) error {
	return l.tell(jsonstream.Message{Stream: fmt.Sprintf(format, args...)})
}
