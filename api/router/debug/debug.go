// Package debug routes profiles and variables of the running daemon, under the paths that dockerd has in debug mode.
// They show the daemon's memory, so they are served only when an operator has turned debugging on.
package debug

import (
	"expvar"
	"net/http"
	"net/http/pprof"

	"stated.dev/stated/api/route"
)

// Routes returns the routes.
func Routes() []route.Route {
	return []route.Route{
		{Method: http.MethodGet, Path: "/debug/vars", Handler: plain(expvar.Handler().ServeHTTP)},
		{Method: http.MethodGet, Path: "/debug/pprof/{profile...}", Handler: plain(pprof.Index)},
		{Method: http.MethodGet, Path: "/debug/pprof/cmdline", Handler: plain(pprof.Cmdline)},
		{Method: http.MethodGet, Path: "/debug/pprof/profile", Handler: plain(pprof.Profile)},
		{Method: http.MethodGet, Path: "/debug/pprof/symbol", Handler: plain(pprof.Symbol)},
		{Method: http.MethodGet, Path: "/debug/pprof/trace", Handler: plain(pprof.Trace)},
	}
}

// plain adapts a handler that answers its errors itself.
func plain(h http.HandlerFunc) route.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		h(w, r)
		return nil
	}
}
