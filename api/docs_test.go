package api_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"stated.dev/stated/api/route"
	"stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/router/images"
	"stated.dev/stated/api/router/networks"
	"stated.dev/stated/api/router/system"
	"stated.dev/stated/api/router/unbuilt"
	"stated.dev/stated/api/router/volumes"
	"stated.dev/stated/api/server"
)

// allRoutes are the routes of the daemon without anything behind them: what is built panics, which the server turns
// into status 500, or refuses the empty request.
func allRoutes() [][]route.Route {
	return [][]route.Route{
		containers.Routes(nil), images.Routes(nil), volumes.Routes(nil), networks.Routes(nil),
		system.Routes(nil), unbuilt.Routes(),
	}
}

// The operations of API 1.51, and those of checkpoints.
const documented = 107 + 4

var (
	docsRow     = regexp.MustCompile("^\\| `([A-Z]+) (/[^`]*)` \\| (built|not yet) \\|")
	placeholder = regexp.MustCompile(`\{[^}]*\}`)
)

func TestDocsAgreeWithRoutes(t *testing.T) {
	s := server.New(server.Options{})
	for _, routes := range allRoutes() {
		s.Handle(routes)
	}
	page, err := os.ReadFile("../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for line := range strings.Lines(string(page)) {
		m := docsRow.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		method, path, state := m[1], m[2], m[3]
		operation := method + " " + path
		if slices.Contains(seen, operation) {
			t.Errorf("%s is there twice", operation)
		}
		seen = append(seen, operation)
		if _, query, found := strings.Cut(path, "?"); found && query == "checkpoint=" {
			continue // a parameter of a built operation, which its service refuses
		}
		for _, name := range []string{"x", "quay.io/a/b:c"} {
			if strings.Contains(name, "/") && !strings.HasPrefix(path, "/images/") && !strings.HasPrefix(path, "/distribution/") {
				continue
			}
			res := httptest.NewRecorder()
			s.ServeHTTP(res, httptest.NewRequest(method, "/v1.51"+placeholder.ReplaceAllString(path, name), http.NoBody))
			switch got := res.Code; {
			case got == 404 && strings.Contains(res.Body.String(), "page not found"), got == 404 && method == "HEAD":
				t.Errorf("%s is documented and has no route", operation)
			case (got == 501) != (state == "not yet"):
				t.Errorf("%s is documented as %s, and answers %d %s", operation, state, got, res.Body)
			}
		}
	}
	if len(seen) != documented {
		t.Errorf("%d operations are documented, want %d", len(seen), documented)
	}
}
