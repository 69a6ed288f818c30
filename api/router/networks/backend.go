// Package networks routes the network operations of the Docker Engine API.
package networks

import (
	"context"

	api "github.com/moby/moby/api/types/network"

	"stated.dev/stated/internal/filters"
)

// InspectRequest is the query of GET /networks/{id}. It is an alias so that a backend need not know this package.
type InspectRequest = struct {
	Verbose bool
	Scope   string
}

// Backend is what the routes need: of the network controller, and for connections of the container service. A ref
// is an id, a unique prefix of one, or a name.
type Backend interface {
	List(ctx context.Context, f filters.Args) ([]api.Inspect, error)
	Inspect(ctx context.Context, ref string, req InspectRequest) (api.Inspect, error)
	Create(ctx context.Context, req api.CreateRequest) (id, warning string, err error)
	Remove(ctx context.Context, ref string) error
	// Prune returns the names of the networks that it removed.
	Prune(ctx context.Context, f filters.Args) ([]string, error)

	// Connect and Disconnect change a container's record, and its sandbox while it runs.
	Connect(ctx context.Context, ref string, req api.ConnectRequest) error
	Disconnect(ctx context.Context, ref string, req api.DisconnectRequest) error
}
