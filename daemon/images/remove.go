package images

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/image"
	"github.com/opencontainers/go-digest"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
)

// Remove takes a name from an image, and deletes the image when that was its last one or when ref is an id.
//
// A running container and a child image always keep an image; a stopped container and further names keep it unless
// req.Force. After the image its untagged parents go too, as far as nothing keeps them, unless req.NoPrune.
func (s *Service) Remove(ctx context.Context, ref string, req api.RemoveRequest) ([]image.DeleteResponse, error) {
	if len(req.Platforms) > 1 {
		return nil, errdefs.ErrInvalidArgument.WithMessage("multiple platforms are not supported")
	}
	rm := &removal{s: s, req: req}
	err := rm.run(ctx, ref)
	// Layers go after the lock is open again, because their files may be many. They go even when a later step
	// failed: their images are no more.
	done := rm.releaseLayers(ctx)
	if err != nil {
		return nil, err
	}
	return done, nil
}

func isIDPrefix(id digest.Digest, prefix string) bool {
	return strings.HasPrefix(id.String(), prefix) || strings.HasPrefix(id.Encoded(), prefix)
}

// removal is one call of Remove. Its methods expect the caller to hold Service.writing, but for the first and last.
type removal struct {
	s     *Service
	req   api.RemoveRequest
	steps []removed
}

// removed is what one step took away, and the image whose layer reference is to be given back, if any.
type removed struct {
	what  image.DeleteResponse
	image *record
}

func (rm *removal) run(ctx context.Context, ref string) error {
	rm.s.writing.Lock()
	defer rm.s.writing.Unlock()
	r, err := rm.s.resolve(ref)
	if err != nil {
		return err
	}
	if len(rm.req.Platforms) == 1 {
		doc, err := rm.s.document(r)
		if err != nil {
			return err
		}
		if err := checkPlatform(ref, doc.config.platform(), &rm.req.Platforms[0]); err != nil {
			return err
		}
	}
	if isIDPrefix(r.id, ref) {
		return rm.byID(ctx, r)
	}
	return rm.byName(ctx, r, ref)
}

// releaseLayers gives the layer references of deleted images back and returns the whole answer.
func (rm *removal) releaseLayers(ctx context.Context) []image.DeleteResponse {
	done := make([]image.DeleteResponse, 0, len(rm.steps))
	for _, step := range rm.steps {
		done = append(done, step.what)
		if step.image == nil || step.image.chain == "" {
			continue
		}
		rm.s.releaseLayers(ctx, []digest.Digest{step.image.chain})
		for _, chain := range slices.Backward(chainIDs(step.image.diffIDs)) {
			if _, err := rm.s.layers.Layer(chain); !errdefs.IsNotFound(err) {
				break
			}
			done = append(done, image.DeleteResponse{Deleted: chain.String()})
		}
	}
	return done
}

// conflicts is a set of reasons against the deletion of an image.
type conflicts int

const (
	conflictChild conflicts = 1 << iota
	conflictRunning
	conflictReference
	conflictStopped

	conflictHard = conflictChild | conflictRunning
	conflictSoft = conflictReference | conflictStopped
)

// byName removes one name; the image goes with the last.
func (rm *removal) byName(ctx context.Context, r *record, ref string) error {
	refs := rm.s.refs.byID[r.id]
	if !rm.req.Force && isSingleReference(refs) {
		if uses := rm.s.containers.UsingImage(r.id); len(uses) > 0 {
			return errdefs.ErrConflict.WithMessage(fmt.Sprintf(
				"conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
				ref, ids.Short(uses[0].ID), ids.Short(r.id.Encoded())))
		}
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	named = stored(named)
	gone := withDigestsOf(refs, named)
	left := without(refs, gone)
	if len(left) > 0 {
		return rm.untag(r, gone)
	}
	// The names go together with the image, unless a container or a child keeps it. That is no error: the names
	// are what was asked for.
	if rm.conflict(r, rm.mask()&^conflictReference) != nil {
		return rm.untag(r, gone)
	}
	return rm.delete(ctx, r, gone)
}

// byID removes an image and, when they are all of one repository, its names.
func (rm *removal) byID(ctx context.Context, r *record) error {
	refs := rm.s.refs.byID[r.id]
	mask := rm.mask()
	if isSingleReference(refs) {
		mask &^= conflictReference
	}
	if conflict := rm.conflict(r, mask); conflict != nil {
		return conflict.err(r.id)
	}
	return rm.delete(ctx, r, refs)
}

func (rm *removal) mask() conflicts {
	if rm.req.Force {
		return conflictHard
	}
	return conflictHard | conflictSoft
}

// isSingleReference reports whether all references are of one repository and at most one is a tag. It is false
// for none.
func isSingleReference(refs []reference.Named) bool {
	tags := 0
	for _, ref := range refs {
		if !isDigest(ref) {
			tags++
		}
		if ref.Name() != refs[0].Name() {
			return false
		}
	}
	return len(refs) > 0 && tags <= 1
}

// withDigestsOf returns the references that go with named: itself, and, when it is the repository's last tag, the
// repository's digests.
func withDigestsOf(refs []reference.Named, named reference.Named) []reference.Named {
	gone := []reference.Named{named}
	if isDigest(named) {
		return gone
	}
	var digests []reference.Named
	for _, ref := range refs {
		switch {
		case ref.Name() != named.Name() || ref.String() == named.String():
		case isDigest(ref):
			digests = append(digests, ref)
		default:
			return gone
		}
	}
	return append(gone, digests...)
}

func without(refs, gone []reference.Named) []reference.Named {
	var left []reference.Named
	for _, ref := range refs {
		kept := true
		for _, g := range gone {
			kept = kept && g.String() != ref.String()
		}
		if kept {
			left = append(left, ref)
		}
	}
	return left
}

// untag removes references from an image that stays.
func (rm *removal) untag(r *record, refs []reference.Named) error {
	if err := rm.s.setRefsLocked(removals(refs)); err != nil {
		return err
	}
	rm.reportUntagged(r, refs, rm.s.labels(r))
	return nil
}

func removals(refs []reference.Named) []refEdit {
	edits := make([]refEdit, 0, len(refs))
	for _, ref := range refs {
		edits = append(edits, refEdit{ref: ref})
	}
	return edits
}

func (rm *removal) reportUntagged(r *record, refs []reference.Named, labels map[string]string) {
	for _, ref := range refs {
		rm.steps = append(rm.steps, removed{what: image.DeleteResponse{Untagged: reference.FamiliarString(ref)}})
		rm.s.publishEvent(events.ActionUnTag, r.id, r.id.String(), labels)
	}
}

// delete removes an image together with refs, which are all it has, and then its parents.
func (rm *removal) delete(ctx context.Context, r *record, refs []reference.Named) error {
	s := rm.s
	labels := s.labels(r) // before the configuration goes
	parent := r.parent
	if err := s.unpublish(r, refs); err != nil {
		return err
	}
	rm.reportUntagged(r, refs, labels)
	rm.steps = append(rm.steps, removed{image.DeleteResponse{Deleted: r.id.String()}, r})
	s.publishEvent(events.ActionDelete, r.id, r.id.String(), nil)
	if rm.req.NoPrune || parent == "" {
		return nil
	}
	up := s.images[parent]
	if up == nil || rm.conflict(up, conflictHard|conflictSoft) != nil {
		return nil
	}
	return rm.delete(ctx, up, nil)
}

// unpublish is the reverse of publish for one image: it is gone, durably and with its names, or nothing changed.
// The caller holds writing, and gives the layer reference back afterwards.
func (s *Service) unpublish(r *record, refs []reference.Named) error {
	for id := range r.children {
		if err := s.content.dropMeta(id, metaParent); err != nil {
			return err
		}
	}
	if err := s.content.withdraw(r.id); err != nil {
		return fmt.Errorf("remove image %s: %w", r.id, err)
	}
	if err := s.content.sync(); err != nil {
		return s.restage(r.id, err)
	}
	if err := fault.Point("images.remove.withdrawn"); err != nil {
		return s.restage(r.id, err)
	}
	next := s.refs
	if len(refs) > 0 {
		next = s.refs.with(removals(refs))
		if err := next.write(s.refsPath, s.lastRefs); err != nil {
			return s.restage(r.id, err)
		}
	}
	s.mu.Lock()
	s.refs = next
	s.removeLocked(r)
	s.mu.Unlock()
	// The image is gone. What is left on disk is litter that the next start sweeps as well.
	if err := fault.Point("images.remove.unnamed"); err != nil {
		return err
	}
	if err := s.content.dropStaged(r.id); err != nil {
		s.log.Warn("delete configuration of removed image", "image", r.id, "error", err)
	}
	return nil
}

// restage undoes a withdrawal after cause.
func (s *Service) restage(id digest.Digest, cause error) error {
	if err := s.content.publish(id); err != nil {
		return fmt.Errorf("remove image %s: %w; and undo failed: %w", id, cause, err)
	}
	return fmt.Errorf("remove image %s: %w", id, cause)
}

// conflict is a reason against the deletion of an image.
type conflict struct {
	hard bool
	text string
}

func (c *conflict) err(id digest.Digest) error {
	force := "must be forced"
	if c.hard {
		force = "cannot be forced"
	}
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf("conflict: unable to delete %s (%s) - %s", ids.Short(id.Encoded()), force, c.text))
}

// conflict returns the first reason among mask against the deletion of r, or nil.
func (rm *removal) conflict(r *record, mask conflicts) *conflict {
	if mask&conflictChild != 0 && rm.s.hasChildren(r) {
		return &conflict{hard: true, text: "image has dependent child images"}
	}
	// One that only mounts the image has a layer that holds all it needs. As in Docker, that keeps names and no more.
	uses := rm.s.containers.UsingImage(r.id)
	if mask&conflictRunning != 0 {
		for _, use := range uses {
			if use.Running && !use.Mounted {
				return &conflict{hard: true, text: "image is being used by running container " + ids.Short(use.ID)}
			}
		}
	}
	if mask&conflictReference != 0 && len(rm.s.refs.byID[r.id]) > 0 {
		return &conflict{text: "image is referenced in multiple repositories"}
	}
	if mask&conflictStopped != 0 {
		for _, use := range uses {
			if !use.Running && !use.Mounted {
				return &conflict{text: "image is being used by stopped container " + ids.Short(use.ID)}
			}
		}
	}
	return nil
}
