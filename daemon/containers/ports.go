package containers

import (
	"context"
	"io/fs"
	"net/netip"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/daemon/journal"
	"stated.dev/stated/network/sandbox"
)

// Layers keeps the containers' writable layers.
type Layers interface {
	DriverName() string
	CreateRW(ctx context.Context, id string, req LayerRequest) error
	MountRW(ctx context.Context, id, mountLabel string) (root string, err error)
	UnmountRW(ctx context.Context, id string) error
	// MountedRW returns the root of a layer that is mounted, perhaps since an earlier daemon; that mount counts as one.
	MountedRW(id string) (root string, mounted bool)
	// RemoveRW calls commit with the record's directories before anything is deleted.
	RemoveRW(ctx context.Context, id string, commit func(dirs []string) error) error
	// ParentRW returns the chain id of the layer that a writable one lies on, "" for none.
	ParentRW(id string) (digest.Digest, error)
	RWMetadata(id string) (map[string]string, error)
	RWSize(ctx context.Context, id string) (rw, total int64, err error)
	RWChanges(ctx context.Context, id string) ([]container.FilesystemChange, error)
}

// LayerRequest asks for a writable layer on an image's top layer.
type LayerRequest struct {
	// Bare is for a layer that shows the image and nothing else, without the files that every container has.
	Bare       bool
	Parent     digest.Digest
	StorageOpt map[string]string
	MountLabel string
	// Commit makes the layer's record files durable together with the container's documents.
	Commit func(files []File) error
}

// File is one record file.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// Images resolves what a container is made from.
type Images interface {
	Image(ctx context.Context, ref string) (Image, error)
}

// Image is what a container takes from its image.
type Image struct {
	ID      digest.Digest
	ChainID digest.Digest // "" for an image without layers
	OS      string
	Arch    string
	Variant string
	Config  *dockerspec.DockerOCIImageConfig
}

// Volumes hands out directories and counts who uses them.
type Volumes interface {
	// Create returns the existing volume of that name, or makes it; ref is added to its users in the same step. An
	// empty name asks for an anonymous volume.
	Create(ctx context.Context, req VolumeRequest) (Volume, error)
	// Get looks a volume up with its driver and adds ref to its users.
	Get(ctx context.Context, name, driver, ref string) (Volume, error)
	// Claim is Get for a volume whose path is not needed yet: it must not ask a slow driver.
	Claim(ctx context.Context, name, driver, ref string) error
	Mount(ctx context.Context, name, mountID string) (path string, err error)
	Unmount(ctx context.Context, name, mountID string) error
	// LiveRestore registers a mount that a container which kept running uses.
	LiveRestore(ctx context.Context, name, mountID string) error
	// CopyUp fills an empty volume from sourceDir. Layers are the directories that sourceDir shows merged, if it is
	// part of an overlay.
	CopyUp(ctx context.Context, name, sourceDir string, layers []string) error
	Release(ctx context.Context, name, ref string) error
	Remove(ctx context.Context, name string) error
}

// VolumeRequest asks for a volume.
type VolumeRequest struct {
	Name, Driver    string
	Options, Labels map[string]string
	Ref             string
}

// Volume is what a container needs to know of one.
type Volume struct {
	Name, Driver, Mountpoint string
}

// Pins hold what volumes and images have against being swapped while the runtime mounts it.
type Pins interface {
	// Below holds what sub names below the directory base ("." is base itself) and returns the path to mount it from.
	Below(base, sub string) (path string, release func() error, err error)
	// Clear takes away what a daemon before this one held.
	Clear() error
}

// Networks joins containers to networks.
type Networks interface {
	// Network resolves a name, id or prefix.
	Network(ctx context.Context, ref string) (Network, error)
	// CheckEndpoint says what is wrong with the addresses that a user wants on a network.
	CheckEndpoint(ref string, addrs ...netip.Addr) error
	Attach(ctx context.Context, req sandbox.Request, joins []sandbox.JoinRequest) (*sandbox.Sandbox, error)
	Join(ctx context.Context, join sandbox.JoinRequest) (*sandbox.Endpoint, error)
	Leave(ctx context.Context, sandboxID, network string) error
	Resolver(ctx context.Context, sandboxID string) (sandbox.Resolver, error)
	Release(ctx context.Context, sandboxID string) error
	// Restore takes up the sandboxes of running containers (sandbox id -> container id) and removes all others.
	Restore(ctx context.Context, active map[string]string, holder func(containerID string) sandbox.PortHolder) error
}

// Network is what a container needs to know of one.
type Network struct {
	ID, Name, Driver string
	// Default says that it is the default bridge: no names are resolved on it.
	Default bool
}

// Journal makes changes of record files durable.
type Journal interface {
	Commit(ctx context.Context, changes ...journal.Change) error
}

// Publisher tells the world what happened.
type Publisher interface {
	Publish(typ events.Type, action events.Action, id string, attrs map[string]string)
}
