package system

import (
	"context"
	"encoding/json"

	"github.com/moby/moby/api/types/registry"

	apisystem "stated.dev/stated/api/router/system"
)

// Containers knows the containers of this host.
type Containers interface {
	Counts(ctx context.Context) (Counts, error)
	// Usage returns one container.Summary with sizes as JSON for every container.
	Usage(ctx context.Context) ([]json.RawMessage, error)
}

// Counts is the number of containers in each state. Those that are neither running nor paused count as stopped.
type Counts struct{ Running, Paused, Stopped int }

// Images knows the images of this host.
type Images interface {
	Count(ctx context.Context) (int, error)
	// Usage returns one image.Summary with its shared size as JSON for every image, and the bytes of all layers.
	Usage(ctx context.Context) (items []json.RawMessage, layersSize int64, err error)
}

// Volumes knows the volumes of this host.
type Volumes interface {
	Drivers(ctx context.Context) ([]string, error)
	// Usage returns one volume.Volume with its usage as JSON for every volume.
	Usage(ctx context.Context) ([]json.RawMessage, error)
}

// Networks knows what networks can be made of.
type Networks interface {
	Drivers(ctx context.Context) ([]string, error)
	// FirewallBackend names what packets are filtered with, "" for nothing.
	FirewallBackend() string
}

// Graph is the storage driver.
type Graph interface {
	Name() string
	// Status returns what the driver has to say of itself, as label and value.
	Status(ctx context.Context) ([][2]string, error)
}

// Events hands out the daemon's events.
type Events interface {
	Subscribers() int
	Events(ctx context.Context, req apisystem.EventsRequest) (apisystem.EventStream, error)
}

// Registry checks credentials.
type Registry interface {
	Login(ctx context.Context, auth registry.AuthConfig) (identityToken string, err error)
}
