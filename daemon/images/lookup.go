package images

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is what the rest of the daemon sees of an image. It is a value: later changes do not show in it.
type Image struct {
	ID           digest.Digest
	ChainID      digest.Digest // top layer; empty for an image without layers
	DiffIDs      []digest.Digest
	Config       dockerspec.DockerOCIImageConfig // shared with other callers: read only
	OS           string
	OSVersion    string
	Architecture string
	Variant      string
	Created      time.Time // zero: not known
	RepoTags     []string
	RepoDigests  []string
	Size         int64
	Raw          []byte // the configuration as stored: read only
}

// Get returns the image that ref names: an id with or without its algorithm, a unique prefix of one, or a name with
// an optional tag or digest.
func (s *Service) Get(_ context.Context, ref string) (Image, error) {
	r, err := s.resolve(ref)
	if err != nil {
		return Image{}, err
	}
	return s.image(r)
}

// GetForPlatform is Get, but refuses an image that does not run on p.
func (s *Service) GetForPlatform(ctx context.Context, ref string, p ocispec.Platform) (Image, error) {
	img, err := s.Get(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	have := ocispec.Platform{OS: img.OS, Architecture: img.Architecture, Variant: img.Variant}
	return img, checkPlatform(ref, have, &p)
}

func (s *Service) image(r *record) (Image, error) {
	doc, err := s.document(r)
	if err != nil {
		return Image{}, err
	}
	size, err := s.size(r)
	if err != nil {
		return Image{}, err
	}
	tags, digests := s.snapshot().names(r.id)
	return Image{
		ID:           r.id,
		ChainID:      r.chain,
		DiffIDs:      r.diffIDs,
		Config:       doc.config.Config,
		OS:           doc.config.os(),
		OSVersion:    doc.config.OSVersion,
		Architecture: doc.config.Architecture,
		Variant:      doc.config.Variant,
		Created:      r.created,
		RepoTags:     tags,
		RepoDigests:  digests,
		Size:         size,
		Raw:          doc.raw,
	}, nil
}

// size returns the bytes of all the image's layers.
func (s *Service) size(r *record) (int64, error) {
	if r.chain == "" {
		return 0, nil
	}
	chain, err := s.layers.Chain(r.chain)
	if err != nil {
		return 0, fmt.Errorf("size of image %s: %w", r.id, err)
	}
	var size int64
	for _, layer := range chain {
		size += layer.Size
	}
	return size, nil
}

// resolve finds the image that ref names.
func (s *Service) resolve(ref string) (*record, error) {
	parsed, err := reference.ParseAnyReference(ref)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if named, ok := parsed.(reference.Named); ok {
		if id, found := s.refs.get(named); found && s.images[id] != nil {
			return s.images[id], nil
		}
		if r := s.byPrefixLocked(ref); r != nil {
			return r, nil
		}
		return nil, errNoImage(reference.FamiliarString(reference.TagNameOnly(named)))
	}
	if digested, ok := parsed.(reference.Digested); ok {
		if r := s.images[digested.Digest()]; r != nil {
			return r, nil
		}
	}
	return nil, errNoImage(reference.FamiliarString(parsed))
}

func errNoImage(name string) error {
	return errdefs.ErrNotFound.WithMessage("No such image: " + name)
}

// byPrefixLocked returns the only image whose id begins with prefix, or nil. The caller holds mu.
func (s *Service) byPrefixLocked(prefix string) *record {
	hash := strings.TrimPrefix(prefix, "sha256:")
	if hash == "" || len(hash) > 64 || strings.Trim(hash, "0123456789abcdef") != "" {
		return nil
	}
	start := digest.Digest("sha256:" + hash)
	at, _ := slices.BinarySearch(s.ids, start)
	if at == len(s.ids) || !strings.HasPrefix(s.ids[at].String(), start.String()) {
		return nil
	}
	if at+1 < len(s.ids) && strings.HasPrefix(s.ids[at+1].String(), start.String()) {
		return nil // ambiguous: as good as none
	}
	return s.images[s.ids[at]]
}

// checkPlatform refuses an image of platform have when another is wanted.
func checkPlatform(ref string, have ocispec.Platform, want *ocispec.Platform) error {
	if want == nil || runsOn(have, *want) {
		return nil
	}
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(
		"image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
		ref, platforms.FormatAll(have), platforms.FormatAll(*want)))
}

// runsOn reports whether an image of platform have runs where want is asked for. An image that names no variant
// matches every variant of its architecture, because configurations often leave it out.
func runsOn(have, want ocispec.Platform) bool {
	if platforms.Only(want).Match(have) {
		return true
	}
	if have.Variant != "" {
		return false
	}
	h, w := platforms.Normalize(have), platforms.Normalize(want)
	return h.OS == w.OS && h.Architecture == w.Architecture
}
