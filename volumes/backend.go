package volumes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/moby/moby/api/types/volume"

	router "stated.dev/stated/api/router/volumes"
	"stated.dev/stated/api/types"
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

var _ router.Streamer = API{}

// Export implements the router's Streamer.
func (a API) Export(ctx context.Context, name string, req router.ExportRequest) (router.Export, error) {
	e, err := a.Store.Export(ctx, name, ExportRequest{Pause: req.Pause})
	if err != nil {
		return nil, err
	}
	return apiExport{e}, nil
}

type apiExport struct{ *Export }

// Write implements the router's Export. The report is a line of a header, so lists and texts are cut short.
func (e apiExport) Write(ctx context.Context, out io.Writer) (types.VolumeExport, error) {
	r, err := e.Export.Write(ctx, out)
	return types.VolumeExport{
		Entries: r.Entries, Bytes: r.Bytes, LeftOut: short(r.LeftOut), Consistency: string(r.Consistency),
		Reason: cut(r.Reason), Paused: short(r.Paused), PausedSeconds: r.PausedFor.Seconds(),
	}, err
}

func short(list []string) []string {
	const most = 5
	out := []string{}
	for i, s := range list {
		if i == most {
			return append(out, fmt.Sprintf("and %d more", len(list)-most))
		}
		out = append(out, cut(s))
	}
	return out
}

// cut shortens a text by what it takes up in JSON, where some bytes become six. Clients take no more than 4 KiB.
func cut(s string) string {
	const most = 200
	if encodedLen(s) <= most {
		return s
	}
	for s = s[:min(most, len(s))]; encodedLen(s) > most; {
		s = s[:len(s)*3/4]
	}
	return strings.ToValidUTF8(s, "") + "…"
}

func encodedLen(s string) int {
	data, _ := json.Marshal(s) // a string can be encoded
	return len(data)
}

// Import implements the router's Streamer.
func (a API) Import(ctx context.Context, req router.ImportRequest, in io.Reader) (types.VolumeImport, error) {
	v, tail, err := a.Store.Import(ctx, ImportRequest{Name: req.Name, DataOnly: req.DataOnly}, in)
	if err != nil {
		return types.VolumeImport{}, err
	}
	return types.VolumeImport{Volume: v.encode(), Entries: tail.Entries, Bytes: tail.Bytes, LeftOut: tail.LeftOut}, nil
}
