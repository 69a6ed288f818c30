// Package images routes the image operations of the Docker Engine API.
// It reads and writes the wire; it holds no image and no lock.
package images

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"stated.dev/stated/internal/filters"
)

// Backend is what the routes need of the image service. Every ref is an id, a unique prefix of one, or a name
// with an optional tag or digest. No answer depends on the API version: the handlers adapt it.
type Backend interface {
	// List returns the images newest first. Containers and SharedSize are -1 where they were not computed.
	List(ctx context.Context, req ListRequest) ([]image.Summary, error)
	Inspect(ctx context.Context, ref string, platform *ocispec.Platform) (Inspect, error)
	// History returns the newest step first.
	History(ctx context.Context, ref string, platform *ocispec.Platform) ([]image.HistoryResponseItem, error)

	Tag(ctx context.Context, ref string, target reference.NamedTagged) error
	Remove(ctx context.Context, ref string, req RemoveRequest) ([]image.DeleteResponse, error)
	Prune(ctx context.Context, f filters.Args) (image.PruneReport, error)

	// Load reads an image archive, compressed or not. It calls emit only once the archive is known to be well formed.
	Load(ctx context.Context, archive io.Reader, req LoadRequest, emit Emit) error
	// Import makes an image of one layer from a tar, compressed or not, and returns its id.
	Import(ctx context.Context, layer io.Reader, req ImportRequest) (id string, err error)
	// Save writes an archive that Load reads. It writes nothing before the names are known to exist.
	Save(ctx context.Context, req SaveRequest, w io.Writer) error
}

// Emit sends one message of a progress stream to the client.
type Emit func(jsonstream.Message) error

type ListRequest struct {
	All        bool
	SharedSize bool
	Filters    filters.Args
}

type RemoveRequest struct {
	Force     bool
	NoPrune   bool // keep untagged parents
	Platforms []ocispec.Platform
}

type LoadRequest struct {
	Quiet    bool // no progress of layers, only what was loaded
	Platform *ocispec.Platform
}

type ImportRequest struct {
	Target   reference.NamedTagged // nil: untagged
	Message  string
	Changes  []string // Dockerfile instructions
	Platform *ocispec.Platform
}

type SaveRequest struct {
	Names    []string
	Platform *ocispec.Platform
}

// Inspect is what GET /images/{name}/json answers, before it is shaped for the request's API version.
type Inspect struct {
	ID              string
	RepoTags        []string
	RepoDigests     []string
	Parent          string
	Comment         string
	Created         *time.Time
	Container       string
	ContainerConfig json.RawMessage
	DockerVersion   string
	Author          string
	Config          *dockerspec.DockerOCIImageConfig
	Architecture    string
	Variant         string
	OS              string
	OSVersion       string
	Size            int64
	GraphDriver     storage.DriverData
	RootFS          image.RootFS
	LastTagTime     time.Time
}
