// Package keys serves the key tree as a whole: its export and its import. The keys themselves are served by
// kvstore/http. It knows neither the tree nor the document.
package keys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"github.com/containerd/errdefs"

	"stated.dev/stated/api/route"
	"stated.dev/stated/api/types"
)

// MaxDocument is the longest document that is taken, in bytes.
const MaxDocument = 1 << 30

// Backend is what the routes need of the key tree.
type Backend interface {
	// ExportKeys returns the tree as a JSON document.
	ExportKeys(ctx context.Context) ([]byte, error)
	// ImportKeys replaces the tree, all or nothing. Its error is a conflict when there are keys and replacing them was not
	// asked for, and an invalid argument when the document cannot be taken.
	ImportKeys(ctx context.Context, req ImportRequest) (types.KeyImport, error)
}

// ImportRequest is the body and the query of POST /stated/kv/import.
type ImportRequest struct {
	Document []byte
	Replace  bool
}

// Routes returns the routes of exports and imports.
func Routes(b Backend) []route.Route {
	return []route.Route{
		{Method: http.MethodGet, Path: "/stated/kv/export", Handler: func(w http.ResponseWriter, r *http.Request) error {
			document, err := b.ExportKeys(r.Context())
			if err != nil {
				return err
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Content-Length", strconv.Itoa(len(document)))
			_, err = w.Write(document)
			return err
		}},
		{Method: http.MethodPost, Path: "/stated/kv/import", Handler: func(w http.ResponseWriter, r *http.Request) error {
			document, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxDocument))
			if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
				return fmt.Errorf("import keys: the document is larger than %d bytes: %w", MaxDocument, errdefs.ErrInvalidArgument)
			}
			if err != nil {
				return fmt.Errorf("import keys: read the document: %w: %w", errdefs.ErrInvalidArgument, err)
			}
			done, err := b.ImportKeys(r.Context(), ImportRequest{Document: document, Replace: route.Bool(r, "replace")})
			if err != nil {
				return err
			}
			return route.WriteJSON(w, http.StatusOK, done)
		}},
	}
}
