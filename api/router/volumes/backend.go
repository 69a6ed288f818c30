// Package volumes routes the volume operations of the Docker Engine API.
package volumes

import (
	"context"
	"encoding/json"

	"github.com/moby/moby/api/types/volume"

	"stated.dev/stated/internal/filters"
)

// Backend is what the routes need of the volume store. A volume is the JSON of volume.Volume, because a store that
// answers from memory need not encode it for each request.
type Backend interface {
	Create(ctx context.Context, req volume.CreateRequest) (json.RawMessage, error)
	Inspect(ctx context.Context, name string) (json.RawMessage, error)
	List(ctx context.Context, f filters.Args) (list []json.RawMessage, warnings []string, err error)
	Remove(ctx context.Context, name string, req RemoveRequest) error
	Prune(ctx context.Context, req PruneRequest) (volume.PruneReport, error)
}

// RemoveRequest is the query of DELETE /volumes/{name}.
type RemoveRequest struct {
	Force bool
}

// PruneRequest is the query of POST /volumes/prune.
type PruneRequest struct {
	Filters filters.Args
	All     bool // the client's API is older than the filter "all": it means every unused volume
}
