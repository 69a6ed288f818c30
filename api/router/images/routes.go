package images

import (
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"stated.dev/stated/api/route"
)

// handlers serves the image routes over b.
type handlers struct{ b Backend }

// Routes returns the routes of the image operations.
//
// An image's name may hold slashes, so the routes that carry one take the rest of the path and find the operation
// in its last part: /images/quay.io/a/b:c/json.
func Routes(b Backend) []route.Route {
	h := handlers{b}
	return []route.Route{
		{Method: http.MethodGet, Path: "/images/json", Handler: h.list},
		{Method: http.MethodGet, Path: "/images/get", Handler: h.saveNames},
		{Method: http.MethodGet, Path: "/images/search", Handler: route.NotBuilt("image search")},
		{Method: http.MethodGet, Path: "/images/{rest...}", Handler: byOperation(map[string]named{
			"json":    h.inspect,
			"history": h.history,
			"get":     h.saveName,
		})},
		{Method: http.MethodPost, Path: "/images/load", Handler: h.load},
		{Method: http.MethodPost, Path: "/images/create", Handler: h.create},
		{Method: http.MethodPost, Path: "/images/prune", Handler: h.prune},
		{Method: http.MethodPost, Path: "/images/{rest...}", Handler: byOperation(map[string]named{
			"tag": h.tag,
			"push": func(w http.ResponseWriter, r *http.Request, _ string) error {
				return route.NotBuilt("push")(w, r)
			},
		})},
		{Method: http.MethodDelete, Path: "/images/{rest...}", Handler: h.remove},
		{Method: http.MethodPost, Path: "/build", Handler: route.NotBuilt("build")},
		{Method: http.MethodPost, Path: "/build/prune", Handler: route.NotBuilt("build cache prune")},
		{Method: http.MethodPost, Path: "/build/cancel", Handler: route.NotBuilt("build cancel")},
		{Method: http.MethodPost, Path: "/commit", Handler: route.NotBuilt("commit")},
	}
}

// named answers a request about the image name.
type named func(w http.ResponseWriter, r *http.Request, name string) error

// byOperation splits the rest of the path into the image's name and the operation behind its last slash.
func byOperation(operations map[string]named) route.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		rest := r.PathValue("rest")
		cut := strings.LastIndexByte(rest, '/')
		if cut <= 0 {
			return errNoPage
		}
		operation, found := operations[rest[cut+1:]]
		if !found {
			return errNoPage
		}
		return operation(w, r, rest[:cut])
	}
}

var errNoPage = errdefs.ErrNotFound.WithMessage("page not found")
