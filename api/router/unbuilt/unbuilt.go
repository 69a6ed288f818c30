// Package unbuilt routes the operations of the Docker Engine API that stated does not have yet: each answers 501 and
// says which it is, so that a client can tell a missing feature from a mistyped path. Single operations that are
// missing among built ones stand with these in their own routers.
package unbuilt

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"

	"stated.dev/stated/api/route"
)

// operations are the missing operations by method and path.
var operations = []struct{ method, path, name string }{
	{"GET", "/distribution/{name...}", "looking up an image in a registry"},
	{"POST", "/session", "the session of a BuildKit client"},
	{"POST", "/grpc", "the connection of a BuildKit client"},

	{"GET", "/plugins/privileges", "plugin privileges"},
	{"POST", "/plugins/pull", "plugin install"},
	{"POST", "/plugins/create", "plugin create"},
	{"DELETE", "/plugins/{name...}", "plugin removal"},
	{"POST", "/plugins/{name...}", "plugin management"}, // enable, disable, upgrade, push, set

	{"GET", "/nodes", "node list"},
	{"GET", "/nodes/{id}", "node inspect"},
	{"DELETE", "/nodes/{id}", "node removal"},
	{"POST", "/nodes/{id}/update", "node update"},

	{"GET", "/swarm", "swarm inspect"},
	{"POST", "/swarm/init", "swarm init"},
	{"POST", "/swarm/join", "swarm join"},
	{"POST", "/swarm/leave", "swarm leave"},
	{"POST", "/swarm/update", "swarm update"},
	{"GET", "/swarm/unlockkey", "swarm unlock key"},
	{"POST", "/swarm/unlock", "swarm unlock"},

	{"GET", "/services", "service list"},
	{"POST", "/services/create", "service create"},
	{"GET", "/services/{id}", "service inspect"},
	{"DELETE", "/services/{id}", "service removal"},
	{"POST", "/services/{id}/update", "service update"},
	{"GET", "/services/{id}/logs", "service logs"},

	{"GET", "/tasks", "task list"},
	{"GET", "/tasks/{id}", "task inspect"},
	{"GET", "/tasks/{id}/logs", "task logs"},

	{"GET", "/secrets", "secret list"},
	{"POST", "/secrets/create", "secret create"},
	{"GET", "/secrets/{id}", "secret inspect"},
	{"DELETE", "/secrets/{id}", "secret removal"},
	{"POST", "/secrets/{id}/update", "secret update"},

	{"GET", "/configs", "config list"},
	{"POST", "/configs/create", "config create"},
	{"GET", "/configs/{id}", "config inspect"},
	{"DELETE", "/configs/{id}", "config removal"},
	{"POST", "/configs/{id}/update", "config update"},
}

// Routes returns the routes of the missing operations, and those that look for plugins: there are none, and clients
// ask for them on the way to what they are after.
func Routes() []route.Route {
	routes := []route.Route{{
		Method: http.MethodGet, Path: "/plugins",
		Handler: func(w http.ResponseWriter, _ *http.Request) error { return route.WriteRawList(w, nil) },
	}, {
		Method: http.MethodGet, Path: "/plugins/{name...}",
		Handler: func(_ http.ResponseWriter, r *http.Request) error {
			return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("plugin %q not found", strings.TrimSuffix(r.PathValue("name"), "/json")))
		},
	}}
	for _, op := range operations {
		routes = append(routes, route.Route{Method: op.method, Path: op.path, Handler: route.NotBuilt(op.name)})
	}
	return routes
}
