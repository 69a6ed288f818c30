package system

import (
	"net/http"

	"stated.dev/stated/api/route"
)

// handlers serves the system routes over b.
type handlers struct{ b Backend }

// Routes returns the routes of the system operations.
func Routes(b Backend) []route.Route {
	h := handlers{b}
	return []route.Route{
		{Method: http.MethodGet, Path: "/_ping", Handler: h.ping},
		{Method: http.MethodHead, Path: "/_ping", Handler: h.ping},
		{Method: http.MethodGet, Path: "/version", Handler: h.version},
		{Method: http.MethodGet, Path: "/info", Handler: h.info},
		{Method: http.MethodGet, Path: "/events", Handler: h.events},
		{Method: http.MethodGet, Path: "/system/df", Handler: h.diskUsage},
		{Method: http.MethodPost, Path: "/auth", Handler: h.auth},
	}
}

// PhaseRoutes returns the route of GET /stated/phases. It is of most use while the daemon starts, and so apart from
// the rest: the server answers requests below /stated/ before it is ready.
func PhaseRoutes(p PhaseLister) []route.Route {
	return []route.Route{{
		Method: http.MethodGet, Path: "/stated/phases",
		Handler: func(w http.ResponseWriter, r *http.Request) error {
			return route.WriteJSON(w, http.StatusOK, p.Phases(r.Context()))
		},
	}}
}

// DoctorRoutes returns the route of GET /stated/doctor.
func DoctorRoutes(d Doctor) []route.Route {
	return []route.Route{{
		Method: http.MethodGet, Path: "/stated/doctor",
		Handler: func(w http.ResponseWriter, r *http.Request) error {
			return route.WriteJSON(w, http.StatusOK, d.Doctor(r.Context()))
		},
	}}
}
