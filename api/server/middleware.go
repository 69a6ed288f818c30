package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/api/route"
)

// ServeHTTP takes every request through what all have in common and then to its route.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.active.enter()
	defer s.active.leave()

	res := &response{ResponseWriter: w}
	if s.log.Enabled(r.Context(), slog.LevelDebug) {
		// The request's own line: the path is cut below.
		defer func(began time.Time) {
			s.log.Debug("API request", "method", r.Method, "uri", r.RequestURI, "status", res.status, "took", time.Since(began))
		}(time.Now())
	}
	defer s.recover(res, r)

	if mounted := s.mounted(r.URL.Path); mounted != nil {
		if err := s.checkReady(r.URL.Path); err != nil {
			s.fail(res, r, err)
			return
		}
		mounted.ServeHTTP(res, r)
		return
	}
	h := w.Header()
	h["Api-Version"] = s.apiVersion
	h["Docker-Experimental"] = s.experimental
	h["Ostype"] = s.osType
	h["Server"] = s.serverName

	version, routable := trimURL(r)
	if err := s.checkReady(r.URL.Path); err != nil {
		s.fail(res, r, err)
		return
	}
	if version != "" {
		if err := checkVersion(version); err != nil {
			if route.CompareVersions(version, "1.24") < 0 {
				http.Error(res, err.Error(), statusOf(err)) // these clients print the body as it is
				return
			}
			s.fail(res, r, err)
			return
		}
		if version != route.DefaultVersion {
			r = r.WithContext(route.WithVersion(r.Context(), version))
		}
	}
	switch {
	case !routable:
		s.notFound(res, r)
	case r.Method == http.MethodOptions:
		res.WriteHeader(http.StatusOK)
	default:
		s.mux.ServeHTTP(res, r)
	}
}

// checkReady returns an error while the daemon starts. Routes below /stated/ show how the start goes.
func (s *Server) checkReady(path string) error {
	if s.ready == nil || strings.HasPrefix(path, "/stated/") {
		return nil
	}
	phase, ok := s.ready()
	if ok {
		return nil
	}
	return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("stated is starting: phase %q is not open yet", phase))
}

// handler adapts a route to net/http.
func (s *Server) handler(rt route.Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != rt.Method {
			s.notFound(w, r) // the mux lets GET patterns answer HEAD
			return
		}
		if err := rt.Handler(w, r); err != nil {
			s.fail(w.(*response), r, err)
		}
	})
}

var errNoPage = errdefs.ErrNotFound.WithMessage("page not found")

func (s *Server) notFound(w http.ResponseWriter, r *http.Request) {
	s.fail(w.(*response), r, errNoPage)
}

// fail answers with err. An error that comes after the answer has begun cuts the connection, so that the client does
// not take a part for the whole.
func (s *Server) fail(w *response, r *http.Request, err error) {
	status := statusOf(err)
	if status >= http.StatusInternalServerError && status != http.StatusNotImplemented && r.Context().Err() == nil {
		level := slog.LevelError
		if status == http.StatusServiceUnavailable {
			level = slog.LevelDebug
		}
		s.log.Log(context.WithoutCancel(r.Context()), level, "API request failed",
			"method", r.Method, "uri", r.RequestURI, "status", status, "error", err)
	}
	switch {
	case w.hijacked:
		return
	case w.status != 0:
		s.log.Debug("API answer broken off", "method", r.Method, "uri", r.RequestURI, "error", err)
		panic(http.ErrAbortHandler)
	}
	if writeErr := writeError(w, status, err); writeErr != nil {
		s.log.Debug("API error not sent", "method", r.Method, "uri", r.RequestURI, "error", writeErr)
	}
}

// recover turns a panic of a handler into an answer, and keeps the daemon alive.
func (s *Server) recover(w *response, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p) // net/http closes the connection and says nothing
	}
	s.log.Error("API handler panicked", "method", r.Method, "uri", r.RequestURI, "panic", p, "stack", string(debug.Stack()))
	if w.hijacked || w.status != 0 {
		panic(http.ErrAbortHandler)
	}
	_ = writeError(w, http.StatusInternalServerError, fmt.Errorf("panic while serving %s %s: %v", r.Method, r.RequestURI, p)) // the panic is logged
}
