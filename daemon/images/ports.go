package images

import (
	"context"
	"io"

	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
)

// LayerInfo describes one read-only layer.
type LayerInfo struct {
	ChainID digest.Digest // identifies the layer together with all below it
	DiffID  digest.Digest // digest of the layer's uncompressed tar
	Parent  digest.Digest // chain id of the layer below, empty for a base
	CacheID string
	Size    int64 // bytes of the layer's files, without those below
}

// Layers is what images need of the layer store. Errors for a chain that is not there are of class NotFound.
type Layers interface {
	// Register stores an uncompressed tar on top of parent (empty: none), reads it to its end, and takes one
	// reference on the result. The layer is durable when Register returns. A chain that exists already is reused.
	Register(ctx context.Context, tar io.Reader, parent digest.Digest) (LayerInfo, error)
	// Stage unpacks an uncompressed tar before it is known what the layer lies on. A store that cannot do so
	// returns an error of class NotImplemented before it has read anything; Register serves then.
	Stage(ctx context.Context, tar io.Reader) (StagedLayer, error)
	// Commit puts layers of Stage on top of parent, the lowest first, durably and as one change, and takes one
	// reference on the uppermost. When it fails none of them is there.
	Commit(ctx context.Context, parent digest.Digest, staged ...StagedLayer) ([]LayerInfo, error)
	// Acquire takes one reference on a chain.
	Acquire(chain digest.Digest) (LayerInfo, error)
	// Release gives one reference back. With the last one the layer goes, and its parents that nobody else holds.
	Release(ctx context.Context, chain digest.Digest) error
	Layer(chain digest.Digest) (LayerInfo, error)
	// Chain returns the layer and those below it, the base first.
	Chain(chain digest.Digest) ([]LayerInfo, error)
	// TarStream yields the bytes that Register read.
	TarStream(ctx context.Context, chain digest.Digest) (io.ReadCloser, error)
	// LayerMetadata returns the graph driver's pairs for image inspect.
	LayerMetadata(chain digest.Digest) (map[string]string, error)
	DriverName() string
}

// StagedLayer is a layer that has no place yet.
type StagedLayer interface {
	DiffID() digest.Digest
	// Discard drops the layer. After Commit it does nothing.
	Discard(ctx context.Context) error
}

// ContainerUse is one container's use of an image.
type ContainerUse struct {
	ID      string
	Name    string
	Running bool
	// Mounted says that the container mounts the image; otherwise it is made from it.
	Mounted bool
}

// Containers says who uses an image, as its root file system or as a mount.
type Containers interface {
	UsingImage(id digest.Digest) []ContainerUse
}

// Publisher takes events. It must not block and must not call back.
type Publisher interface {
	Publish(typ events.Type, action events.Action, id string, attrs map[string]string)
}
