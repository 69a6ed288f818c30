package volumes_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/volume"

	"stated.dev/stated/api/route"
	router "stated.dev/stated/api/router/volumes"
	"stated.dev/stated/internal/filters"
)

// backend answers with what it was asked.
type backend struct {
	asked string
	list  []json.RawMessage
	warns []string
	err   error
}

func (b *backend) Create(_ context.Context, req volume.CreateRequest) (json.RawMessage, error) {
	asked, err := json.Marshal(req)
	b.asked = "create " + string(asked)
	return json.RawMessage(`{"Name":"x"}` + "\n"), errors.Join(err, b.err)
}

func (b *backend) Inspect(_ context.Context, name string) (json.RawMessage, error) {
	b.asked = "inspect " + name
	return json.RawMessage(`{"Name":"` + name + `"}` + "\n"), b.err
}

func (b *backend) List(_ context.Context, f filters.Args) ([]json.RawMessage, []string, error) {
	asked, err := json.Marshal(f)
	b.asked = "list " + string(asked)
	return b.list, b.warns, errors.Join(err, b.err)
}

func (b *backend) Remove(_ context.Context, name string, req router.RemoveRequest) error {
	b.asked = "remove " + name
	if req.Force {
		b.asked += " force"
	}
	return b.err
}

func (b *backend) Prune(_ context.Context, req router.PruneRequest) (volume.PruneReport, error) {
	b.asked = "prune"
	if req.All {
		b.asked += " all"
	}
	return volume.PruneReport{SpaceReclaimed: 7}, b.err
}

// call sends a request through net/http's mux, as the server does, for one version of the API.
func call(t *testing.T, b *backend, version, method, target, body string) (status int, answer string, err error) {
	t.Helper()
	mux := http.NewServeMux()
	for _, r := range router.Routes(b) {
		mux.HandleFunc(r.Method+" "+r.Path, func(w http.ResponseWriter, req *http.Request) { err = r.Handler(w, req) })
	}
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, req.WithContext(route.WithVersion(req.Context(), version)))
	return w.Code, w.Body.String(), err
}

func TestRoutes(t *testing.T) {
	for _, tt := range []struct {
		method, target, body string
		version              string
		asked                string
		status               int
		answer               string
	}{
		{"GET", "/volumes", "", "1.51", "list null", 200, `{"Volumes":[],"Warnings":null}` + "\n"},
		{"GET", "/volumes?filters=%7B%22name%22%3A%7B%22a%22%3Atrue%7D%7D", "", "1.51", `list {"name":["a"]}`, 200, `{"Volumes":[],"Warnings":null}` + "\n"},
		{"GET", "/volumes/abc", "", "1.51", "inspect abc", 200, `{"Name":"abc"}` + "\n"},
		{"GET", "/volumes/create", "", "1.51", "inspect create", 200, `{"Name":"create"}` + "\n"},
		{"GET", "/volumes/plugin/with/slash", "", "1.51", "inspect plugin/with/slash", 200, `{"Name":"plugin/with/slash"}` + "\n"},
		{"POST", "/volumes/create", `{"Name":"n","Labels":{"a":"b"},"DriverOpts":{"o":"x"},"Unknown":1}`, "1.51", `create {"DriverOpts":{"o":"x"},"Labels":{"a":"b"},"Name":"n"}`, 201, `{"Name":"x"}` + "\n"},
		{"POST", "/volumes/create", ``, "1.51", `create {}`, 201, `{"Name":"x"}` + "\n"},
		{"DELETE", "/volumes/abc", "", "1.51", "remove abc", 204, ""},
		{"DELETE", "/volumes/abc?force=1", "", "1.51", "remove abc force", 204, ""},
		{"DELETE", "/volumes/abc?force=no", "", "1.51", "remove abc", 204, ""},
		{"POST", "/volumes/prune", "", "1.51", "prune", 200, `{"VolumesDeleted":[],"SpaceReclaimed":7}` + "\n"},
		{"POST", "/volumes/prune", "", "1.41", "prune all", 200, `{"VolumesDeleted":[],"SpaceReclaimed":7}` + "\n"},
	} {
		b := &backend{}
		status, answer, err := call(t, b, tt.version, tt.method, tt.target, tt.body)
		if err != nil || b.asked != tt.asked || status != tt.status || answer != tt.answer {
			t.Errorf("%s %s: asked %q, %d %q, %v", tt.method, tt.target, b.asked, status, answer, err)
		}
	}
}

func TestListJoins(t *testing.T) {
	b := &backend{list: []json.RawMessage{[]byte("{\"Name\":\"a\"}\n"), []byte("{\"Name\":\"b\"}\n")}, warns: []string{"list x: <no>"}}
	_, answer, err := call(t, b, "1.51", "GET", "/volumes", "")
	if err != nil {
		t.Fatal(err)
	}
	var got volume.ListResponse
	if err := json.Unmarshal([]byte(answer), &got); err != nil {
		t.Fatal(err)
	}
	want := volume.ListResponse{Volumes: []volume.Volume{{Name: "a"}, {Name: "b"}}, Warnings: []string{"list x: <no>"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestErrors(t *testing.T) {
	unavailable := []string{
		`volume update only valid for cluster volumes, but swarm is unavailable`,
		`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`,
	}
	for _, tt := range []struct {
		method, target, body string
		class                func(error) bool
		text                 []string
	}{
		{"PUT", "/volumes/abc?version=1", `{}`, errdefs.IsUnavailable, unavailable},
		{"POST", "/volumes/create", `{"ClusterVolumeSpec":{}}`, errdefs.IsUnavailable, unavailable},
		{"POST", "/volumes/create", `{"Name":`, errdefs.IsInvalidArgument, []string{"invalid JSON: unexpected EOF"}},
		{"GET", "/volumes?filters=x", "", errdefs.IsInvalidArgument, []string{"error reading volume filters: invalid filter"}},
		{"POST", "/volumes/prune?filters=x", "", errdefs.IsInvalidArgument, []string{"invalid filter"}},
	} {
		_, _, err := call(t, &backend{}, "1.51", tt.method, tt.target, tt.body)
		if err == nil || !tt.class(err) || !slices.Contains(tt.text, err.Error()) {
			t.Errorf("%s %s: %v", tt.method, tt.target, err)
		}
	}
	want := errors.New("as it is")
	for _, target := range []string{"GET /volumes", "GET /volumes/a", "DELETE /volumes/a", "POST /volumes/create", "POST /volumes/prune"} {
		method, path, _ := strings.Cut(target, " ")
		if _, _, err := call(t, &backend{err: want}, "1.51", method, path, ""); !errors.Is(err, want) {
			t.Errorf("%s: %v", target, err)
		}
	}
}
