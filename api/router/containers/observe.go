package containers

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"stated.dev/stated/api/route"
)

func (h handlers) top(w http.ResponseWriter, r *http.Request) error {
	table, err := h.b.Top(r.Context(), ref(r), r.URL.Query().Get("ps_args"))
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, table)
}

// stats sends one JSON object a line, each as soon as it is there.
func (h handlers) stats(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := route.Streaming(r)
	defer cancel()
	req := StatsRequest{
		Stream:  route.BoolOr(r, "stream", true),
		OneShot: route.Bool(r, "one-shot") && !route.VersionBefore(ctx, "1.41"),
	}
	w.Header().Set("Content-Type", "application/json")
	flush := http.NewResponseController(w).Flush
	err := h.b.Stats(ctx, ref(r), req, func(sample json.RawMessage) error {
		if _, err := w.Write(append(sample[:len(sample):len(sample)], '\n')); err != nil {
			return err
		}
		return flush()
	})
	if err != nil && ctx.Err() != nil {
		return nil // the client or the daemon goes, and nobody waits for more
	}
	return err
}

func (h handlers) changes(w http.ResponseWriter, r *http.Request) error {
	changes, err := h.b.Changes(r.Context(), ref(r))
	if err != nil {
		return err
	}
	if len(changes) == 0 {
		changes = nil // clients of Docker get null when nothing changed
	}
	return route.WriteJSON(w, http.StatusOK, changes)
}

func (h handlers) export(w http.ResponseWriter, r *http.Request) (err error) {
	tar, err := h.b.Export(r.Context(), ref(r))
	if err != nil {
		return err
	}
	defer func() {
		// An error here is the archive's: it may be short.
		if closeErr := tar.Close(); closeErr != nil && err == nil {
			err = fmt.Errorf("export container %s: %w", ref(r), closeErr)
		}
	}()
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := io.Copy(w, tar); err != nil {
		return fmt.Errorf("export container %s: %w", ref(r), err)
	}
	return nil
}
