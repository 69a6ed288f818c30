package containers

import (
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
	"github.com/moby/moby/api/types/container"

	"stated.dev/stated/api/route"
)

func (h handlers) execCreate(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecCreateRequest
	if err := route.DecodeOptional(r, &req); err != nil {
		return err
	}
	if len(req.Cmd) == 0 {
		return errdefs.ErrInvalidArgument.WithMessage("No exec command specified")
	}
	if route.VersionBefore(r.Context(), "1.42") {
		req.ConsoleSize = nil
	}
	id, err := h.b.ExecCreate(r.Context(), ref(r), req)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusCreated, common.IDResponse{ID: id})
}

// execStart answers with a status while nothing has been tried: an exec that is unknown or has run, a container that
// is not running. A process that does not start is told in band, on its standard output, where clients show it.
func (h handlers) execStart(w http.ResponseWriter, r *http.Request) error {
	var req container.ExecStartRequest
	if err := route.DecodeOptional(r, &req); err != nil {
		return err
	}
	if route.VersionBefore(r.Context(), "1.42") || !req.Tty {
		req.ConsoleSize = nil
	}
	ctx, cancel := route.Streaming(r)
	defer cancel()
	stream, multiplexed, err := h.b.ExecStart(ctx, ref(r), req)
	switch {
	case req.Detach && err == nil:
		w.WriteHeader(http.StatusOK)
		return nil
	case req.Detach, errdefs.IsNotFound(err), errdefs.IsConflict(err), errdefs.IsFailedPrecondition(err), errdefs.IsAlreadyExists(err):
		return err
	case err != nil:
		return sayNotStarted(w, r, err, !req.Tty)
	}
	conn, err := route.Hijack(w, r, route.StreamType(ctx, multiplexed))
	if err != nil {
		_ = stream.Close() // the connection's error says more
		return err
	}
	conn.Join(ctx, stream, route.JoinOptions{Stdin: true, Multiplexed: multiplexed})
	return nil
}

func sayNotStarted(w http.ResponseWriter, r *http.Request, cause error, multiplexed bool) error {
	conn, err := route.Hijack(w, r, route.StreamType(r.Context(), multiplexed))
	if err != nil {
		return err
	}
	_ = conn.Print(cause.Error()+"\r\n", multiplexed) // the client may be gone
	return conn.Close()
}

func (h handlers) execResize(w http.ResponseWriter, r *http.Request) error {
	width, height, err := terminalSize(r)
	if err != nil {
		return err
	}
	return h.b.ExecResize(r.Context(), ref(r), width, height)
}

func (h handlers) execInspect(w http.ResponseWriter, r *http.Request) error {
	found, err := h.b.ExecInspect(r.Context(), ref(r))
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, found)
}
