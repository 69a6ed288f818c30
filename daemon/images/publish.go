package images

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/fault"
)

// newImage is a configuration on its way to becoming an image. Whoever hands it over holds a reference on its top
// layer; publish takes that over for the images it adds.
type newImage struct {
	id     digest.Digest
	doc    *document
	parent digest.Digest // empty: none
}

func newImageOf(raw []byte) (newImage, error) {
	c, err := parseConfig(raw)
	if err != nil {
		return newImage{}, err
	}
	if err := c.checkNew(); err != nil {
		return newImage{}, err
	}
	return newImage{id: digest.FromBytes(raw), doc: &document{raw, c}}, nil
}

func (n newImage) record() *record {
	r := &record{
		id:       n.id,
		chain:    topChain(n.doc.config.RootFS.DiffIDs),
		diffIDs:  n.doc.config.RootFS.DiffIDs,
		parent:   n.parent,
		children: map[digest.Digest]struct{}{},
	}
	if n.doc.config.Created != nil {
		r.created = *n.doc.config.Created
	}
	r.parsed.Store(n.doc)
	return r
}

// publish adds images and sets references to them, durably and as one change. It returns the ids of those that were
// not there before: their layer references now belong to the service. After an error nothing has changed.
func (s *Service) publish(images []newImage, edits []refEdit) (added map[digest.Digest]bool, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()

	added = map[digest.Digest]bool{}
	var fresh []newImage
	for _, img := range images {
		if s.usable(img.id) || added[img.id] {
			continue
		}
		added[img.id] = true
		fresh = append(fresh, img)
	}
	next := s.refs.with(edits)
	defer func() {
		if err != nil {
			for _, img := range fresh {
				_ = s.content.dropStaged(img.id) // the start sweeps it otherwise
			}
		}
	}()
	if err := s.stage(fresh, next); err != nil {
		return nil, err
	}
	if err := fault.Point("images.publish.staged"); err != nil {
		return nil, err
	}
	if len(edits) > 0 {
		if err := next.write(s.refsPath, s.lastRefs); err != nil {
			return nil, err
		}
	}
	if err := fault.Point("images.publish.named"); err != nil {
		return nil, s.unname(err)
	}
	for _, img := range fresh {
		if len(next.byID[img.id]) == 0 {
			continue // has its name already
		}
		if err := s.content.publish(img.id); err != nil {
			return nil, s.unname(fmt.Errorf("publish image %s: %w", img.id, err))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refs = next
	for _, img := range fresh {
		s.addLocked(img.record())
	}
	return added, nil
}

// stage writes the configurations of fresh beside the others. Those that no reference of next leads to get their
// place at once, because no later write decides about them.
func (s *Service) stage(fresh []newImage, next *refSet) error {
	if len(fresh) == 0 {
		return nil
	}
	for _, img := range fresh {
		if img.parent != "" {
			if err := s.content.setMeta(img.id, metaParent, []byte(img.parent), atomicfile.Write); err != nil {
				return err
			}
		}
		if err := s.content.stage(img.id, img.doc.raw); err != nil {
			return err
		}
	}
	if err := fault.Point("images.publish.written"); err != nil {
		return err
	}
	for _, img := range fresh {
		if len(next.byID[img.id]) > 0 {
			continue
		}
		if err := s.content.publish(img.id); err != nil {
			return fmt.Errorf("publish image %s: %w", img.id, err)
		}
	}
	return s.content.sync()
}

// unname writes the references as they were before a change that failed after it had replaced them.
func (s *Service) unname(cause error) error {
	if err := s.refs.write(s.refsPath, ""); err != nil {
		return fmt.Errorf("%w; and undo of the names failed: %w", cause, err)
	}
	return cause
}

// usable reports whether there is an image id.
func (s *Service) usable(id digest.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.images[id] != nil
}

// setRefs changes references durably.
func (s *Service) setRefs(edits []refEdit) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.setRefsLocked(edits)
}

// setRefsLocked is setRefs for a caller that holds writing.
func (s *Service) setRefsLocked(edits []refEdit) error {
	next := s.refs.with(edits)
	if err := next.write(s.refsPath, s.lastRefs); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refs = next
	return nil
}

// noteTagged records that an image was tagged now. The time is for the user's eyes: it is not waited for, and a
// failure to write it fails nothing.
func (s *Service) noteTagged(id digest.Digest) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if !s.usable(id) {
		return // removed since
	}
	now := time.Now().Format(time.RFC3339Nano)
	if err := s.content.setMeta(id, metaLastUpdated, []byte(now), atomicfile.WriteNoSync); err != nil {
		s.log.Warn("note time of tag", "image", id, "error", err)
	}
}

// CreateRequest describes an image that the daemon made itself, as a commit does.
type CreateRequest struct {
	Config []byte                // the configuration; its digest is the image's id
	Parent digest.Digest         // image it was made from; empty: none
	Target reference.NamedTagged // nil: untagged
}

// Create adds an image whose layers are in the layer store. The caller holds a reference on the top layer and keeps
// it: the image takes its own.
func (s *Service) Create(ctx context.Context, req CreateRequest) (Image, error) {
	img, err := newImageOf(req.Config)
	if err != nil {
		return Image{}, err
	}
	if req.Parent != "" && !s.usable(req.Parent) {
		return Image{}, errdefs.ErrNotFound.WithMessage("unknown parent image ID " + req.Parent.String())
	}
	img.parent = req.Parent
	chain := topChain(img.doc.config.RootFS.DiffIDs)
	if chain != "" {
		if _, err := s.layers.Acquire(chain); err != nil {
			return Image{}, fmt.Errorf("failed to get layer %s: %w", chain, err)
		}
	}
	added, err := s.publishTagged(img, req.Target)
	if chain != "" && !added {
		s.releaseLayers(ctx, []digest.Digest{chain})
	}
	if err != nil {
		return Image{}, err
	}
	return s.Get(ctx, img.id.String())
}

// publishTagged publishes one image under target, or under nothing, and reports whether it was new.
func (s *Service) publishTagged(img newImage, target reference.NamedTagged) (bool, error) {
	var edits []refEdit
	if target != nil {
		if err := checkName(target); err != nil {
			return false, err
		}
		edits = append(edits, refEdit{target, img.id})
	}
	added, err := s.publish([]newImage{img}, edits)
	if err != nil {
		return false, err
	}
	if target != nil {
		s.noteTagged(img.id)
	}
	return added[img.id], nil
}
