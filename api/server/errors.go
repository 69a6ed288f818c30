package server

import (
	"errors"
	"net/http"

	"github.com/containerd/errdefs"

	"stated.dev/stated/api/route"
	"stated.dev/stated/api/types"
)

// statusOf maps the class of an error to an HTTP status. It is the only place that does.
func statusOf(err error) int {
	if errors.Is(err, types.ErrNotModified) {
		return http.StatusNotModified
	}
	switch errdefs.Resolve(err) {
	case errdefs.ErrInvalidArgument, errdefs.ErrOutOfRange:
		return http.StatusBadRequest
	case errdefs.ErrUnauthenticated:
		return http.StatusUnauthorized
	case errdefs.ErrPermissionDenied:
		return http.StatusForbidden
	case errdefs.ErrNotFound:
		return http.StatusNotFound
	case errdefs.ErrConflict, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition:
		return http.StatusConflict
	case errdefs.ErrNotImplemented:
		return http.StatusNotImplemented
	case errdefs.ErrUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}

// writeError answers with status and the text of err, or without a body where the status has none.
func writeError(w http.ResponseWriter, status int, err error) error {
	h := w.Header()
	h.Del("Content-Length") // of the answer that the handler had in mind
	if status == http.StatusNotModified {
		w.WriteHeader(status)
		return nil
	}
	return route.WriteJSON(w, status, types.ErrorResponse{Message: err.Error()})
}
