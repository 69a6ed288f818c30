package volumes

import (
	"context"
	"encoding/json"

	"github.com/moby/moby/api/types/volume"

	router "stated.dev/stated/api/router/volumes"
	"stated.dev/stated/internal/filters"
)

// API serves the store in the Engine API's terms.
type API struct {
	Store *Store
}

var _ router.Backend = API{}

// Create implements the router's Backend.
func (a API) Create(ctx context.Context, req volume.CreateRequest) (json.RawMessage, error) {
	e, err := a.Store.create(ctx, CreateRequest{
		Name: req.Name, Driver: req.Driver, Options: req.DriverOpts, Labels: req.Labels,
	})
	if err != nil {
		return nil, err
	}
	return a.Store.encode(e, nil), nil
}

// Inspect implements the router's Backend.
func (a API) Inspect(ctx context.Context, name string) (json.RawMessage, error) {
	return a.Store.Inspect(ctx, name)
}

// List implements the router's Backend.
func (a API) List(ctx context.Context, f filters.Args) ([]json.RawMessage, []string, error) {
	return a.Store.ListEncoded(ctx, f)
}

// Remove implements the router's Backend.
func (a API) Remove(ctx context.Context, name string, req router.RemoveRequest) error {
	return a.Store.Remove(ctx, name, RemoveRequest{Force: req.Force})
}

// Prune implements the router's Backend.
func (a API) Prune(ctx context.Context, req router.PruneRequest) (volume.PruneReport, error) {
	report, err := a.Store.Prune(ctx, PruneRequest{Filters: req.Filters, All: req.All})
	return volume.PruneReport{VolumesDeleted: report.Deleted, SpaceReclaimed: report.Reclaimed}, err
}
