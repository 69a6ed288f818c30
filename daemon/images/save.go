package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	api "stated.dev/stated/api/router/images"
)

// savedImage is an image to be written into an archive, with the names it gets there.
type savedImage struct {
	record *record
	doc    *document
	tags   []reference.NamedTagged
}

// Save writes images as docker save of Docker 25 and later does: an OCI image layout with manifest.json and
// repositories beside it. A name without a tag stands for all tags of its repository.
func (s *Service) Save(ctx context.Context, req api.SaveRequest, w io.Writer) error {
	if len(req.Names) == 0 {
		return errdefs.ErrInvalidArgument.WithMessage("no images named")
	}
	images, held, err := s.choose(req)
	defer func() { s.releaseLayers(ctx, held) }()
	if err != nil {
		return err
	}
	a := &archiveWriter{s: s, tar: tar.NewWriter(w), written: map[digest.Digest]ocispec.Descriptor{}, legacy: map[string]map[string]string{}}
	for _, img := range images {
		if err := a.image(ctx, img); err != nil {
			return fmt.Errorf("save image %s: %w", img.record.id, err)
		}
		s.publishEvent(events.ActionSave, img.record.id, img.record.id.String(), img.doc.config.Config.Labels)
	}
	return a.finish(images)
}

// choose finds the images that the request names, each once, and holds their layers. What it holds is to be
// released also when it fails.
func (s *Service) choose(req api.SaveRequest) (images []*savedImage, held []digest.Digest, err error) {
	chosen := map[digest.Digest]*savedImage{}
	add := func(id digest.Digest, ref reference.Named) error {
		img := chosen[id]
		if img == nil {
			if img, err = s.hold(id, req.Platform); err != nil {
				return err
			}
			if img.record.chain != "" {
				held = append(held, img.record.chain)
			}
			chosen[id] = img
			images = append(images, img)
		}
		tagged, ok := ref.(reference.NamedTagged)
		if !ok || isDigest(ref) {
			return nil
		}
		for _, have := range img.tags {
			if have.String() == tagged.String() {
				return nil
			}
		}
		img.tags = append(img.tags, tagged)
		return nil
	}
	for _, name := range req.Names {
		named, err := s.named(name)
		if err != nil {
			return images, held, err
		}
		for _, n := range named {
			if err := add(n.id, n.ref); err != nil {
				return images, held, err
			}
		}
	}
	return images, held, nil
}

// named returns the images that a name of a save request stands for, and the references it means.
func (s *Service) named(name string) ([]refEdit, error) {
	parsed, err := reference.ParseAnyReference(name)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	ref, ok := parsed.(reference.Named)
	if !ok || reference.FamiliarName(ref) == string(digest.Canonical) {
		r, err := s.resolve(name)
		if err != nil {
			return nil, err
		}
		return []refEdit{{id: r.id}}, nil
	}
	refs := s.snapshot()
	if !reference.IsNameOnly(ref) {
		id, found := refs.get(ref)
		if !found {
			return nil, errdefs.ErrNotFound.WithMessage("reference does not exist")
		}
		return []refEdit{{ref, id}}, nil
	}
	if all := refs.byName(ref); len(all) > 0 {
		return all, nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if r := s.byPrefixLocked(name); r != nil {
		return []refEdit{{id: r.id}}, nil
	}
	return nil, errNoImage(name)
}

// hold takes a reference on the layers of an image that is to be saved.
func (s *Service) hold(id digest.Digest, platform *ocispec.Platform) (*savedImage, error) {
	s.mu.RLock()
	r := s.images[id]
	s.mu.RUnlock()
	if r == nil {
		return nil, errNoImage(id.String())
	}
	doc, err := s.document(r)
	if err != nil {
		return nil, err
	}
	if platform != nil && !runsOn(doc.config.platform(), *platform) {
		return nil, errdefs.ErrNotFound.WithMessage("no suitable export target found for platform " + platforms.FormatAll(*platform))
	}
	if r.chain != "" {
		if _, err := s.layers.Acquire(r.chain); err != nil {
			return nil, fmt.Errorf("hold layers of image %s: %w", id, err)
		}
	}
	return &savedImage{record: r, doc: doc}, nil
}

// archiveWriter writes one archive: blobs as they come, then the documents that name them.
type archiveWriter struct {
	s        *Service
	tar      *tar.Writer
	dirs     bool                                 // the blob directories are written
	written  map[digest.Digest]ocispec.Descriptor // blobs, by digest
	manifest []manifestItem
	index    []ocispec.Descriptor
	legacy   map[string]map[string]string // repositories: name -> tag -> top layer
}

func (a *archiveWriter) image(ctx context.Context, img *savedImage) error {
	made := time.Unix(0, 0)
	if !img.record.created.IsZero() {
		made = img.record.created
	}
	if err := a.blobDirs(made); err != nil {
		return err
	}
	item := manifestItem{Config: blobName(img.record.id), LayerSources: map[digest.Digest]ocispec.Descriptor{}}
	layers := make([]ocispec.Descriptor, 0, len(img.record.diffIDs))
	chains := chainIDs(img.record.diffIDs)
	for i, diffID := range img.record.diffIDs {
		desc, err := a.layer(ctx, chains[i], diffID, made)
		if err != nil {
			return err
		}
		layers = append(layers, desc)
		item.Layers = append(item.Layers, blobName(diffID))
		item.LayerSources[diffID] = desc
	}
	config := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageConfig, Digest: img.record.id, Size: int64(len(img.doc.raw)),
	}
	if err := a.blob(config, img.doc.raw, made); err != nil {
		return err
	}
	data, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    config,
		Layers:    layers,
	})
	if err != nil {
		return fmt.Errorf("encode manifest: %w", err)
	}
	desc := ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(data), Size: int64(len(data)),
	}
	if err := a.blob(desc, data, time.Unix(0, 0)); err != nil {
		return err
	}
	a.name(img, desc, &item)
	a.manifest = append(a.manifest, item)
	return nil
}

// name notes the image in the documents that will name it.
func (a *archiveWriter) name(img *savedImage, desc ocispec.Descriptor, item *manifestItem) {
	for _, tag := range img.tags {
		name := reference.FamiliarName(tag)
		item.RepoTags = append(item.RepoTags, reference.FamiliarString(tag))
		if n := len(img.record.diffIDs); n > 0 {
			if a.legacy[name] == nil {
				a.legacy[name] = map[string]string{}
			}
			a.legacy[name][tag.Tag()] = img.record.diffIDs[n-1].Encoded()
		}
		tagged := desc
		tagged.Annotations = map[string]string{annotationName: tag.String(), ocispec.AnnotationRefName: tag.Tag()}
		a.index = append(a.index, tagged)
	}
	if len(img.tags) == 0 {
		a.index = append(a.index, desc)
	}
}

// layer writes a layer's tar. Its size must be known before its first byte goes out, so it takes the way over a
// temporary file.
func (a *archiveWriter) layer(ctx context.Context, chain, diffID digest.Digest, made time.Time) (ocispec.Descriptor, error) {
	if desc, found := a.written[diffID]; found {
		return desc, nil
	}
	stream, err := a.s.layers.TarStream(ctx, chain)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("read layer %s: %w", chain, err)
	}
	defer stream.Close()
	file, err := tempFile(a.s.tempDir)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("spool layer %s: %w", chain, err)
	}
	defer file.Close()
	digester := digest.SHA256.Digester()
	source := io.TeeReader(contextReader{ctx, stream}, digester.Hash())
	buf := make([]byte, copySize)
	size, err := copyFile(file, source, buf)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("spool layer %s: %w", chain, err)
	}
	if actual := digester.Digest(); actual != diffID {
		return ocispec.Descriptor{}, fmt.Errorf("layer %s is damaged: its digest is %s instead of %s: %w", chain, actual, diffID, errdefs.ErrDataLoss)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: size}
	if err := a.header(blobName(diffID), size, made); err != nil {
		return ocispec.Descriptor{}, err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{a.tar}, io.NewSectionReader(contextFile{ctx, file}, 0, size), buf); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write layer %s: %w", chain, err)
	}
	a.written[diffID] = desc
	return desc, nil
}

// contextFile ends reading when its context ends.
type contextFile struct {
	ctx  context.Context
	file *os.File
}

func (c contextFile) ReadAt(p []byte, off int64) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.file.ReadAt(p, off)
}

// blob writes a small blob unless it is there.
func (a *archiveWriter) blob(desc ocispec.Descriptor, data []byte, made time.Time) error {
	if _, found := a.written[desc.Digest]; found {
		return nil
	}
	a.written[desc.Digest] = desc
	return a.document(blobName(desc.Digest), data, made)
}

func (a *archiveWriter) document(name string, data []byte, made time.Time) error {
	if err := a.header(name, int64(len(data)), made); err != nil {
		return err
	}
	_, err := a.tar.Write(data)
	return err
}

func (a *archiveWriter) header(name string, size int64, made time.Time) error {
	return a.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: made.Truncate(time.Second),
	})
}

func (a *archiveWriter) blobDirs(made time.Time) error {
	if a.dirs {
		return nil
	}
	a.dirs = true
	for _, name := range []string{ocispec.ImageBlobsDir + "/", ocispec.ImageBlobsDir + "/sha256/"} {
		err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: made.Truncate(time.Second)})
		if err != nil {
			return err
		}
	}
	return nil
}

func blobName(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// finish writes the documents that name the blobs.
func (a *archiveWriter) finish(images []*savedImage) error {
	a.linkParents(images)
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: a.index,
	})
	if err != nil {
		return fmt.Errorf("encode index: %w", err)
	}
	manifest, err := encodeLine(a.manifest)
	if err != nil {
		return err
	}
	documents := []struct {
		name string
		data []byte
	}{
		{indexName, index},
		{manifestName, manifest},
		{layoutName, []byte(`{"imageLayoutVersion": "` + ocispec.ImageLayoutVersion + `"}`)},
	}
	if len(a.legacy) > 0 {
		legacy, err := encodeLine(a.legacy)
		if err != nil {
			return err
		}
		documents = append(documents, struct {
			name string
			data []byte
		}{repositoriesName, legacy})
	}
	for _, d := range documents {
		if err := a.document(d.name, d.data, time.Unix(0, 0)); err != nil {
			return fmt.Errorf("write %s: %w", d.name, err)
		}
	}
	return a.tar.Close()
}

// linkParents names the parents that are in the archive as well.
func (a *archiveWriter) linkParents(images []*savedImage) {
	saved := map[digest.Digest]bool{}
	for _, img := range images {
		saved[img.record.id] = true
	}
	for i, img := range images {
		if parent := a.s.parentOf(img.record); saved[parent] {
			a.manifest[i].Parent = parent
		}
	}
}

func encodeLine(v any) ([]byte, error) {
	var b strings.Builder
	if err := json.NewEncoder(&b).Encode(v); err != nil {
		return nil, fmt.Errorf("encode archive: %w", err)
	}
	return []byte(b.String()), nil
}
