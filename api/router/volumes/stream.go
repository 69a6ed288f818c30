package volumes

import (
	"context"
	"encoding/json"
	"io"
	"net/http"

	"stated.dev/stated/api/route"
	"stated.dev/stated/api/types"
)

// ExportTrailer is the HTTP trailer that says, in JSON of types.VolumeExport, how an export went. A client that does not
// get it has a part of the stream.
const ExportTrailer = "Stated-Export"

// Streamer brings volumes out and in, as one stream each.
type Streamer interface {
	// Export prepares an export. The caller closes what it returns.
	Export(ctx context.Context, name string, req ExportRequest) (Export, error)
	Import(ctx context.Context, req ImportRequest, in io.Reader) (types.VolumeImport, error)
}

// Export is a volume that is ready to be written.
type Export interface {
	Write(ctx context.Context, out io.Writer) (types.VolumeExport, error)
	Close() error
}

// ExportRequest is the query of GET /stated/volumes/{name}/export.
type ExportRequest struct {
	Pause bool // hold the containers still for as long as the volume is read, where there is no snapshot
}

// ImportRequest is the query of POST /stated/volumes/import.
type ImportRequest struct {
	Name     string // empty: the one in the stream
	DataOnly bool   // an ordinary local volume, whatever the stream's was
}

// Adopter gives volumes without a record one.
type Adopter interface {
	AdoptVolumes(ctx context.Context, req AdoptRequest) (types.VolumeAdoption, error)
}

// AdoptRequest is the query of POST /stated/volumes/adopt.
type AdoptRequest struct {
	Names  []string // empty: all without a record, and all that containers need
	DryRun bool
}

// StreamRoutes returns stated's own routes for volumes as streams.
func StreamRoutes(s Streamer) []route.Route {
	return []route.Route{
		{Method: http.MethodGet, Path: "/stated/volumes/{name}/export", Handler: func(w http.ResponseWriter, r *http.Request) error {
			return export(s, w, r)
		}},
		{Method: http.MethodPost, Path: "/stated/volumes/import", Handler: func(w http.ResponseWriter, r *http.Request) error {
			ctx, cancel := route.Streaming(r)
			defer cancel()
			done, err := s.Import(ctx, ImportRequest{Name: r.URL.Query().Get("name"), DataOnly: route.Bool(r, "data-only")}, r.Body)
			if err != nil {
				return err
			}
			return route.WriteJSON(w, http.StatusCreated, done)
		}},
	}
}

// export answers with the stream. An error that comes when a part of it is sent cuts the connection.
func export(s Streamer, w http.ResponseWriter, r *http.Request) (err error) {
	ctx, cancel := route.Streaming(r)
	defer cancel()
	e, err := s.Export(ctx, r.PathValue("name"), ExportRequest{Pause: route.Bool(r, "pause")})
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := e.Close(); err == nil {
			err = closeErr
		}
	}()
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Trailer", ExportTrailer)
	done, err := e.Write(ctx, w)
	if err != nil {
		return err
	}
	report, err := json.Marshal(done)
	if err != nil {
		return err
	}
	w.Header().Set(ExportTrailer, string(report))
	return nil
}

// AdoptRoutes returns the route of POST /stated/volumes/adopt.
func AdoptRoutes(a Adopter) []route.Route {
	return []route.Route{{
		Method: http.MethodPost, Path: "/stated/volumes/adopt",
		Handler: func(w http.ResponseWriter, r *http.Request) error {
			done, err := a.AdoptVolumes(r.Context(), AdoptRequest{Names: r.URL.Query()["name"], DryRun: route.Bool(r, "dry-run")})
			if err != nil {
				return err
			}
			return route.WriteJSON(w, http.StatusOK, done)
		},
	}}
}
