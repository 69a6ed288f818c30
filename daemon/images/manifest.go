package images

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Names of the documents of an image archive.
const (
	manifestName     = "manifest.json"
	repositoriesName = "repositories"
	indexName        = "index.json"
	layoutName       = "oci-layout"
)

// Media types of Docker's schema 2, beside those of OCI.
const (
	mediaDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	mediaDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// annotationName is where containerd and BuildKit, and Docker's own save, write an image's full name.
const annotationName = "io.containerd.image.name"

// annotationReferenceType marks manifests that say something about another one and are no image.
const annotationReferenceType = "vnd.docker.reference.type"

// Bounds of an OCI layout's index, which may nest.
const (
	maxIndexDepth  = 4
	maxDescriptors = 4096
)

// archivedImage is what an archive says of one image.
type archivedImage struct {
	newImage
	tags   []reference.NamedTagged
	blobs  []blob        // one for each diff id, the base first
	parent digest.Digest // as the archive has it; it may not be there
}

// blob is where an archive holds a layer.
type blob struct {
	path   string
	digest digest.Digest // of the bytes as they lie in the archive; empty: not said
	size   int64         // negative: not said
}

// manifestItem is one image in manifest.json.
type manifestItem struct {
	Config       string
	RepoTags     []string
	Layers       []string
	Parent       digest.Digest                        `json:",omitempty"`
	LayerSources map[digest.Digest]ocispec.Descriptor `json:",omitempty"`
}

// read returns the images of a, in the archive's order. With platform, only those that run there.
func readImages(a *archive, platform *ocispec.Platform) ([]archivedImage, error) {
	var images []archivedImage
	var err error
	switch {
	case a.has(manifestName):
		images, err = readManifest(a)
	case a.has(indexName):
		images, err = readLayout(a, platform)
	default:
		return nil, badArchive("neither %s nor %s found", manifestName, indexName)
	}
	if err != nil || platform == nil {
		return images, err
	}
	images = slices.DeleteFunc(images, func(img archivedImage) bool {
		return !runsOn(img.doc.config.platform(), *platform)
	})
	if len(images) == 0 {
		return nil, errNoPlatform(*platform)
	}
	return images, nil
}

func errNoPlatform(p ocispec.Platform) error {
	return errdefs.ErrNotFound.WithMessage("image archive holds no image for platform " + platforms.FormatAll(p))
}

// readManifest reads the form that docker save has written since Docker 1.10.
func readManifest(a *archive) ([]archivedImage, error) {
	data, err := a.read(manifestName)
	if err != nil {
		return nil, err
	}
	items, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	images := make([]archivedImage, 0, len(items))
	for _, item := range items {
		img, err := readItem(a, item)
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	return images, nil
}

// parseManifest reads manifest.json.
func parseManifest(data []byte) ([]manifestItem, error) {
	var items []manifestItem
	if err := json.Unmarshal(data, &items); err != nil {
		return nil, badArchive("%s: %v", manifestName, err)
	}
	if items == nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage("invalid manifest, manifest cannot be null (but can be [])")
	}
	if len(items) > maxDescriptors {
		return nil, badArchive("%s names more than %d images", manifestName, maxDescriptors)
	}
	return items, nil
}

func readItem(a *archive, item manifestItem) (archivedImage, error) {
	raw, err := a.read(item.Config)
	if err != nil {
		return archivedImage{}, err
	}
	if want, named := digestInName(item.Config); named {
		if actual := digest.FromBytes(raw); actual != want {
			return archivedImage{}, badArchive("configuration %s has digest %s", want, actual)
		}
	}
	img, err := newArchivedImage(raw, len(item.Layers))
	if err != nil {
		return archivedImage{}, err
	}
	img.parent = item.Parent
	for _, tag := range item.RepoTags {
		ref, err := parseTag(tag)
		if err != nil {
			return archivedImage{}, err
		}
		img.tags = append(img.tags, ref)
	}
	for _, name := range item.Layers {
		b := blob{path: name, size: -1}
		if strings.HasPrefix(path.Clean(name), ocispec.ImageBlobsDir+"/") {
			b.digest, _ = digestInName(name)
		}
		img.blobs = append(img.blobs, b)
	}
	return img, nil
}

// newArchivedImage checks a configuration and that it has as many layers as the manifest.
func newArchivedImage(raw []byte, layers int) (archivedImage, error) {
	img, err := newImageOf(raw)
	if err != nil {
		return archivedImage{}, err
	}
	if have := len(img.doc.config.RootFS.DiffIDs); layers != have {
		return archivedImage{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(
			"invalid manifest, layers length mismatch: expected %d, got %d", layers, have))
	}
	return archivedImage{newImage: img}, nil
}

// parseTag reads a name that an archive gives an image.
func parseTag(text string) (reference.NamedTagged, error) {
	named, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid tag %q: %v", text, err))
	}
	tagged, ok := named.(reference.NamedTagged)
	if !ok || isDigest(named) {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid tag %q", text))
	}
	return tagged, checkName(tagged)
}

// digestInName returns the digest that a file is named by: blobs/sha256/<hash>, <hash>.json or sha256:<hash>.
func digestInName(name string) (digest.Digest, bool) {
	hash := strings.TrimSuffix(path.Base(name), ".json")
	d := digest.NewDigestFromEncoded(digest.SHA256, strings.TrimPrefix(hash, "sha256:"))
	return d, d.Validate() == nil
}

// readLayout reads an OCI image layout: index.json and what it leads to.
func readLayout(a *archive, platform *ocispec.Platform) ([]archivedImage, error) {
	data, err := a.read(indexName)
	if err != nil {
		return nil, err
	}
	index, err := parseIndex(data)
	if err != nil {
		return nil, err
	}
	l := &layout{archive: a, want: platforms.Default()}
	if platform != nil {
		l.want = platforms.Only(*platform)
	}
	var images []archivedImage
	for _, desc := range l.admitted(index.Manifests) {
		img, err := l.image(desc, 0)
		if err != nil {
			return nil, err
		}
		if img == nil {
			continue
		}
		if name := nameOf(desc); name != "" {
			ref, err := parseTag(name)
			if err != nil {
				return nil, err
			}
			img.tags = append(img.tags, ref)
		}
		images = append(images, *img)
	}
	if len(images) == 0 {
		if platform != nil {
			return nil, errNoPlatform(*platform)
		}
		return nil, errNoPlatform(platforms.DefaultSpec())
	}
	return images, nil
}

// parseIndex reads an OCI index or a Docker manifest list.
func parseIndex(data []byte) (ocispec.Index, error) {
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return index, badArchive("index: %v", err)
	}
	if len(index.Manifests) > maxDescriptors {
		return index, badArchive("index names more than %d manifests", maxDescriptors)
	}
	return index, nil
}

// parseOCIManifest reads the manifest of one image.
func parseOCIManifest(data []byte) (ocispec.Manifest, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return m, badArchive("manifest: %v", err)
	}
	if len(m.Layers) > maxLayers {
		return m, errdefs.ErrInvalidArgument.WithMessage("max depth exceeded")
	}
	return m, nil
}

// nameOf returns the full name that a descriptor gives its image, or nothing. A bare tag names no repository.
func nameOf(desc ocispec.Descriptor) string {
	if name := desc.Annotations[annotationName]; name != "" {
		return name
	}
	if name := desc.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(name, ":/") {
		return name
	}
	return ""
}

// layout walks an OCI image layout.
type layout struct {
	archive *archive
	want    platforms.MatchComparer
	seen    int // descriptors followed
}

// admitted leaves out the descriptors that are no image or say that they are for another platform.
func (l *layout) admitted(all []ocispec.Descriptor) []ocispec.Descriptor {
	var admitted []ocispec.Descriptor
	for _, desc := range all {
		if desc.Annotations[annotationReferenceType] != "" {
			continue
		}
		if desc.Platform == nil || l.want.Match(*desc.Platform) {
			admitted = append(admitted, desc)
		}
	}
	return admitted
}

// image follows a descriptor to the image that suits the wanted platform best, or to nil.
func (l *layout) image(desc ocispec.Descriptor, depth int) (*archivedImage, error) {
	l.seen++
	if l.seen > maxDescriptors || depth > maxIndexDepth {
		return nil, badArchive("index is nested too deeply or too wide")
	}
	data, err := l.blob(desc)
	if err != nil {
		return nil, err
	}
	switch desc.MediaType {
	case ocispec.MediaTypeImageManifest, mediaDockerManifest:
		return l.manifest(data)
	case ocispec.MediaTypeImageIndex, mediaDockerList:
	default:
		return nil, badArchive("%s has media type %q, which is no image", desc.Digest, desc.MediaType)
	}
	index, err := parseIndex(data)
	if err != nil {
		return nil, err
	}
	candidates := l.admitted(index.Manifests)
	slices.SortStableFunc(candidates, func(a, b ocispec.Descriptor) int {
		switch {
		case a.Platform == nil || b.Platform == nil:
			return 0
		case l.want.Less(*a.Platform, *b.Platform):
			return -1
		case l.want.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	for _, candidate := range candidates {
		img, err := l.image(candidate, depth+1)
		if img != nil || err != nil {
			return img, err
		}
	}
	return nil, nil
}

func (l *layout) manifest(data []byte) (*archivedImage, error) {
	m, err := parseOCIManifest(data)
	if err != nil {
		return nil, err
	}
	raw, err := l.blob(m.Config)
	if err != nil {
		return nil, err
	}
	img, err := newArchivedImage(raw, len(m.Layers))
	if err != nil {
		return nil, err
	}
	for _, layer := range m.Layers {
		name, err := blobPath(layer.Digest)
		if err != nil {
			return nil, err
		}
		img.blobs = append(img.blobs, blob{path: name, digest: layer.Digest, size: layer.Size})
	}
	return &img, nil
}

// blob reads the document that a descriptor names and checks it against the digest.
func (l *layout) blob(desc ocispec.Descriptor) ([]byte, error) {
	name, err := blobPath(desc.Digest)
	if err != nil {
		return nil, err
	}
	data, err := l.archive.read(name)
	if err != nil {
		return nil, err
	}
	if actual := desc.Digest.Algorithm().FromBytes(data); actual != desc.Digest {
		return nil, badArchive("blob %s has digest %s", desc.Digest, actual)
	}
	return data, nil
}

// blobPath returns where a layout holds a blob.
func blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", badArchive("digest %q: %v", d, err)
	}
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded()), nil
}
