package images

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
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
	l := &loading{s: s, archive: a, emit: emit, quiet: req.Quiet, held: map[digest.Digest]bool{}}
	defer func() { s.releaseLayers(ctx, l.order) }()
	for _, img := range images {
		if err := l.layers(ctx, img); err != nil {
			return err
		}
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

// loading is one call of Load.
type loading struct {
	s       *Service
	archive *archive
	emit    api.Emit
	quiet   bool
	held    map[digest.Digest]bool // chains this load has a reference on
	order   []digest.Digest        // the same, in the order they were taken
}

// layers brings the layers of an image into the layer store and holds them.
func (l *loading) layers(ctx context.Context, img archivedImage) error {
	diffIDs := img.doc.config.RootFS.DiffIDs
	var parent digest.Digest
	for i, chain := range chainIDs(diffIDs) {
		if err := l.layer(ctx, img.blobs[i], chain, parent, diffIDs[i]); err != nil {
			return fmt.Errorf("load image %s: layer %d: %w", ids.Short(img.id.Encoded()), i, err)
		}
		parent = chain
	}
	return nil
}

func (l *loading) hold(chain digest.Digest) {
	l.held[chain] = true
	l.order = append(l.order, chain)
}

func (l *loading) layer(ctx context.Context, b blob, chain, parent, diffID digest.Digest) error {
	if l.held[chain] {
		return nil
	}
	if _, err := l.s.layers.Acquire(chain); err == nil {
		l.hold(chain)
		return nil
	} else if !errdefs.IsNotFound(err) {
		return err
	}
	section, err := l.archive.open(b.path)
	if err != nil {
		return err
	}
	if b.size >= 0 && b.size != section.Size() {
		return badArchive("blob %s has %d bytes instead of %d", b.digest, section.Size(), b.size)
	}
	var source io.Reader = contextReader{ctx, section}
	if !l.quiet {
		source = &progressReader{r: source, id: ids.Short(diffID.Encoded()), total: section.Size(), emit: l.emit}
	}
	// The layer store digests the plain bytes. Bytes that are compressed here need a digest of their own, which is
	// left out where the two are the same.
	var verify digest.Verifier
	if b.digest != "" && b.digest != diffID {
		verify = b.digest.Verifier()
		source = io.TeeReader(source, verify)
	}
	plain, err := decompress(source)
	if err != nil {
		return invalidArchive(ctx, err)
	}
	defer plain.Close()
	info, err := l.s.layers.Register(ctx, plain, parent)
	if err != nil {
		return err
	}
	l.hold(info.ChainID)
	if info.DiffID != diffID {
		return badArchive("diff id of the layer is %s, the configuration says %s", info.DiffID, diffID)
	}
	if verify == nil {
		return nil
	}
	if _, err := io.Copy(io.Discard, source); err != nil {
		return invalidArchive(ctx, err)
	}
	if !verify.Verified() {
		return badArchive("blob %s does not have that digest", b.digest)
	}
	return nil
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
			l.order = append(l.order, extra...)
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
		l.order = append(l.order, chain)
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
	return l.emit(jsonstream.Message{Stream: fmt.Sprintf(format, args...)})
}

// progressStep is how many bytes lie between two progress messages at least.
const progressStep = 4 << 20

// progressReader tells the client how far the reading of a layer has come.
type progressReader struct {
	r          io.Reader
	id         string
	done, told int64
	total      int64
	emit       api.Emit
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	p.done += int64(n)
	if p.done-p.told >= progressStep || (p.done == p.total && p.told < p.done) {
		p.told = p.done
		emitErr := p.emit(jsonstream.Message{
			Status:   "Loading layer",
			ID:       p.id,
			Progress: &jsonstream.Progress{Current: p.done, Total: p.total},
		})
		if emitErr != nil {
			return n, fmt.Errorf("report progress: %w", emitErr)
		}
	}
	return n, err
}
