package containers

import (
	"net/http"

	"stated.dev/stated/api/route"
)

// handlers serves the container and exec routes over b.
type handlers struct{ b Backend }

// Routes returns the routes of the container and exec operations.
func Routes(b Backend) []route.Route {
	h := handlers{b}
	return []route.Route{
		{Method: http.MethodGet, Path: "/containers/json", Handler: h.list},
		{Method: http.MethodPost, Path: "/containers/create", Handler: h.create},
		{Method: http.MethodPost, Path: "/containers/prune", Handler: h.prune},
		{Method: http.MethodGet, Path: "/containers/{id}/json", Handler: h.inspect},
		{Method: http.MethodPost, Path: "/containers/{id}/start", Handler: h.start},
		{Method: http.MethodPost, Path: "/containers/{id}/stop", Handler: h.stop},
		{Method: http.MethodPost, Path: "/containers/{id}/restart", Handler: h.restart},
		{Method: http.MethodPost, Path: "/containers/{id}/kill", Handler: h.kill},
		{Method: http.MethodPost, Path: "/containers/{id}/pause", Handler: h.pause},
		{Method: http.MethodPost, Path: "/containers/{id}/unpause", Handler: h.unpause},
		{Method: http.MethodPost, Path: "/containers/{id}/rename", Handler: h.rename},
		{Method: http.MethodPost, Path: "/containers/{id}/update", Handler: h.update},
		{Method: http.MethodPost, Path: "/containers/{id}/wait", Handler: h.wait},
		{Method: http.MethodPost, Path: "/containers/{id}/resize", Handler: h.resize},
		{Method: http.MethodDelete, Path: "/containers/{id}", Handler: h.remove},

		{Method: http.MethodGet, Path: "/containers/{id}/top", Handler: h.top},
		{Method: http.MethodGet, Path: "/containers/{id}/logs", Handler: h.logs},
		{Method: http.MethodGet, Path: "/containers/{id}/stats", Handler: h.stats},
		{Method: http.MethodGet, Path: "/containers/{id}/changes", Handler: h.changes},
		{Method: http.MethodGet, Path: "/containers/{id}/export", Handler: h.export},
		{Method: http.MethodPost, Path: "/containers/{id}/attach", Handler: h.attach},
		{Method: http.MethodGet, Path: "/containers/{id}/attach/ws", Handler: h.attachWebsocket},

		{Method: http.MethodPost, Path: "/containers/{id}/exec", Handler: h.execCreate},
		{Method: http.MethodPost, Path: "/exec/{id}/start", Handler: h.execStart},
		{Method: http.MethodPost, Path: "/exec/{id}/resize", Handler: h.execResize},
		{Method: http.MethodGet, Path: "/exec/{id}/json", Handler: h.execInspect},

		{Method: http.MethodHead, Path: "/containers/{id}/archive", Handler: route.NotBuilt("copying files from a container")},
		{Method: http.MethodGet, Path: "/containers/{id}/archive", Handler: route.NotBuilt("copying files from a container")},
		{Method: http.MethodPut, Path: "/containers/{id}/archive", Handler: route.NotBuilt("copying files into a container")},
		{Method: http.MethodGet, Path: "/containers/{id}/checkpoints", Handler: route.NotBuilt("checkpoint list")},
		{Method: http.MethodPost, Path: "/containers/{id}/checkpoints", Handler: route.NotBuilt("checkpoint create")},
		{Method: http.MethodDelete, Path: "/containers/{id}/checkpoints/{checkpoint}", Handler: route.NotBuilt("checkpoint removal")},
	}
}

// ref returns the container or exec that a request is about.
func ref(r *http.Request) string { return r.PathValue("id") }

// done answers an operation that succeeded and has nothing to say.
func done(w http.ResponseWriter, err error) error {
	if err == nil {
		w.WriteHeader(http.StatusNoContent)
	}
	return err
}
