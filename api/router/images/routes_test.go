package images_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"stated.dev/stated/api/route"
	"stated.dev/stated/api/router/images"
	"stated.dev/stated/internal/filters"
)

// backend notes what it was asked and answers what a test wrote into it.
type backend struct {
	asked   []string
	list    []image.Summary
	inspect images.Inspect
	load    func(emit images.Emit) error
	save    func(w io.Writer) error
	err     error
}

func (b *backend) note(parts ...string) { b.asked = append(b.asked, strings.Join(parts, " ")) }

func (b *backend) List(_ context.Context, req images.ListRequest) ([]image.Summary, error) {
	data, _ := json.Marshal(req)
	b.note("list", string(data))
	return b.list, b.err
}

func (b *backend) Inspect(_ context.Context, ref string, _ *ocispec.Platform) (images.Inspect, error) {
	b.note("inspect", ref)
	return b.inspect, b.err
}

func (b *backend) History(_ context.Context, ref string, _ *ocispec.Platform) ([]image.HistoryResponseItem, error) {
	b.note("history", ref)
	return []image.HistoryResponseItem{}, b.err
}

func (b *backend) Tag(_ context.Context, ref string, target reference.NamedTagged) error {
	b.note("tag", ref, target.String())
	return b.err
}

func (b *backend) Remove(_ context.Context, ref string, req images.RemoveRequest) ([]image.DeleteResponse, error) {
	data, _ := json.Marshal(req)
	b.note("remove", ref, string(data))
	return []image.DeleteResponse{{Untagged: "x:1"}}, b.err
}

func (b *backend) Prune(context.Context, filters.Args) (image.PruneReport, error) {
	b.note("prune")
	return image.PruneReport{}, b.err
}

func (b *backend) Load(_ context.Context, archive io.Reader, req images.LoadRequest, emit images.Emit) error {
	data, _ := json.Marshal(req)
	body, _ := io.ReadAll(archive)
	b.note("load", string(data), string(body))
	return b.load(emit)
}

func (b *backend) Import(_ context.Context, _ io.Reader, req images.ImportRequest) (string, error) {
	name := ""
	if req.Target != nil {
		name = req.Target.String()
	}
	b.note("import", name, req.Message, strings.Join(req.Changes, ";"))
	return "sha256:id", b.err
}

func (b *backend) Save(_ context.Context, req images.SaveRequest, w io.Writer) error {
	b.note("save", strings.Join(req.Names, ","))
	return b.save(w)
}

// serve answers one request as the server does: version in the context, errors by class.
func serve(t *testing.T, b *backend, version, method, target string) *httptest.ResponseRecorder {
	t.Helper()
	mux := http.NewServeMux()
	for _, r := range images.Routes(b) {
		mux.HandleFunc(r.Method+" "+r.Path, func(w http.ResponseWriter, req *http.Request) {
			if err := r.Handler(w, req); err != nil {
				status := http.StatusInternalServerError
				switch {
				case errdefs.IsInvalidArgument(err):
					status = http.StatusBadRequest
				case errdefs.IsNotFound(err):
					status = http.StatusNotFound
				case errdefs.IsNotImplemented(err):
					status = http.StatusNotImplemented
				}
				if err := route.WriteJSON(w, status, map[string]string{"message": err.Error()}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	req := httptest.NewRequestWithContext(route.WithVersion(t.Context(), version), method, target, strings.NewReader("body"))
	rec := httptest.NewRecorder()
	mux.ServeHTTP(rec, req)
	return rec
}

func TestRoutesReachTheBackend(t *testing.T) {
	ok := func(images.Emit) error { return nil }
	for request, want := range map[string]struct {
		status int
		asked  string
	}{
		"GET /images/json":                                         {200, `list {"All":false,"SharedSize":false,"Filters":null}`},
		"GET /images/json?all=1&shared-size=true":                  {200, `list {"All":true,"SharedSize":true,"Filters":null}`},
		"GET /images/quay.io/a/b:c/json":                           {200, "inspect quay.io/a/b:c"},
		"GET /images/sha256:abc/json":                              {200, "inspect sha256:abc"},
		"GET /images/a%2Fb/json":                                   {200, "inspect a/b"},
		"GET /images/json/json":                                    {200, "inspect json"},
		"GET /images/a/history":                                    {200, "history a"},
		"GET /images/a/b@sha256:1/get":                             {200, "save a/b@sha256:1"},
		"GET /images/get?names=a&names=b:1":                        {200, "save a,b:1"},
		"POST /images/a/b/tag?repo=c&tag=2":                        {201, "tag a/b docker.io/library/c:2"},
		"POST /images/a/tag?repo=q.io/c":                           {201, "tag a q.io/c:latest"},
		"POST /images/a/tag":                                       {400, ""},
		"POST /images/a/tag?repo=sha256":                           {400, ""},
		"POST /images/a/tag?repo=A":                                {400, ""},
		"POST /images/a/push":                                      {501, ""},
		"POST /images/a/nothing":                                   {404, ""},
		"POST /images/nothing":                                     {404, ""},
		"GET /images/a/nothing":                                    {404, ""},
		"GET /images/search?term=x":                                {501, ""},
		"POST /build":                                              {501, ""},
		"POST /commit":                                             {501, ""},
		"POST /images/create?fromImage=a":                          {501, ""},
		"POST /images/create?fromSrc=http://x":                     {501, ""},
		"POST /images/create":                                      {400, ""},
		"POST /images/create?fromSrc=-&repo=a&changes=X&changes=Y": {200, "import docker.io/library/a:latest Imported from - X;Y"},
		"POST /images/create?fromSrc=-&message=hi":                 {200, "import  hi "},
		"POST /images/load":                                        {200, `load {"Quiet":true,"Platform":null} body`},
		"POST /images/load?quiet=0":                                {200, `load {"Quiet":false,"Platform":null} body`},
		`POST /images/load?platform={"os":"linux"}`:                {400, ""},
		"POST /images/prune":                                       {200, "prune"},
		"DELETE /images/a/b?force=1":                               {200, `remove a/b {"Force":true,"NoPrune":false,"Platforms":null}`},
		"DELETE /images/a?noprune=1":                               {200, `remove a {"Force":false,"NoPrune":true,"Platforms":null}`},
		"DELETE /images/":                                          {400, ""},
	} {
		b := &backend{load: ok, save: func(io.Writer) error { return nil }}
		method, target, _ := strings.Cut(request, " ")
		target = strings.NewReplacer("{", "%7B", "}", "%7D", `"`, "%22").Replace(target)
		rec := serve(t, b, "1.51", method, target)
		if rec.Code != want.status || strings.Join(b.asked, "|") != want.asked {
			t.Errorf("%s: %d %q, want %d %q (%s)", request, rec.Code, b.asked, want.status, want.asked, rec.Body)
		}
	}
}

func TestListByVersion(t *testing.T) {
	b := &backend{list: []image.Summary{{ID: "i", Size: 7, Containers: 2}}}
	for version, want := range map[string]string{
		"1.51": `[{"Containers":2,"Created":0,"Id":"i","Labels":null,"ParentId":"","RepoDigests":[],"RepoTags":[],"SharedSize":0,"Size":7}]`,
		"1.43": `[{"Containers":-1,"Created":0,"Id":"i","Labels":null,"ParentId":"","RepoDigests":[],"RepoTags":[],"SharedSize":0,"Size":7,"VirtualSize":7}]`,
		"1.42": `[{"Containers":-1,"Created":0,"Id":"i","Labels":null,"ParentId":"","RepoDigests":["<none>@<none>"],"RepoTags":["<none>:<none>"],"SharedSize":0,"Size":7,"VirtualSize":7}]`,
	} {
		if got := strings.TrimSpace(serve(t, b, version, "GET", "/images/json").Body.String()); got != want {
			t.Errorf("%s:\n got %s\nwant %s", version, got, want)
		}
	}
	if got := serve(t, &backend{}, "1.51", "GET", "/images/json").Body.String(); got != "[]\n" {
		t.Errorf("no images: %q", got)
	}
	old := &backend{}
	serve(t, old, "1.40", "GET", "/images/json?filter=app")
	if want := `list {"All":false,"SharedSize":false,"Filters":{"reference":["app"]}}`; !slices.Equal(old.asked, []string{want}) {
		t.Errorf("asked %q", old.asked)
	}
}

func TestInspectByVersion(t *testing.T) {
	created := time.Date(2024, 1, 2, 3, 4, 5, 6, time.UTC)
	b := &backend{inspect: images.Inspect{
		ID: "i", Created: &created, Size: 9, OS: "linux", Container: "c", Config: &dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{Cmd: []string{"x"}}},
	}}
	fields := func(version string) (map[string]any, map[string]any) {
		var got map[string]any
		if err := json.Unmarshal(serve(t, b, version, "GET", "/images/i/json").Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		return got, got["Config"].(map[string]any)
	}
	got, config := fields("1.51")
	if got["Created"] != "2024-01-02T03:04:05.000000006Z" || got["VirtualSize"] != nil || got["Container"] != nil || got["Parent"] != "" {
		t.Errorf("1.51: %v", got)
	}
	if _, found := config["Entrypoint"]; !found || config["WorkingDir"] != "" || config["Hostname"] != nil {
		t.Errorf("1.51 config: %v", config)
	}
	if tags, ok := got["RepoTags"].([]any); !ok || len(tags) != 0 {
		t.Errorf("1.51 tags: %v", got["RepoTags"])
	}
	got, config = fields("1.43")
	if got["VirtualSize"] != 9.0 || got["Container"] != "c" || config["Hostname"] != "" {
		t.Errorf("1.43: %v", got)
	}
}

func TestLoadErrors(t *testing.T) {
	before := &backend{load: func(images.Emit) error { return errdefs.ErrInvalidArgument.WithMessage("no archive") }}
	rec := serve(t, before, "1.51", "POST", "/images/load")
	if rec.Code != 400 || rec.Body.String() != `{"message":"no archive"}`+"\n" {
		t.Errorf("before the first byte: %d %s", rec.Code, rec.Body)
	}
	after := &backend{load: func(emit images.Emit) error {
		if err := emit(jsonstream.Message{Stream: "one\n"}); err != nil {
			return err
		}
		return errors.New("broke")
	}}
	rec = serve(t, after, "1.51", "POST", "/images/load")
	want := `{"stream":"one\n"}` + "\r\n" + `{"errorDetail":{"message":"broke"},"error":"broke"}` + "\r\n"
	if rec.Code != 200 || rec.Body.String() != want || rec.Header().Get("Content-Type") != "application/json" || !rec.Flushed {
		t.Errorf("after the first byte: %d %q", rec.Code, rec.Body)
	}
}

func TestSaveErrors(t *testing.T) {
	rec := serve(t, &backend{save: func(io.Writer) error { return errdefs.ErrNotFound.WithMessage("No such image: x") }}, "1.51", "GET", "/images/x/get")
	if rec.Code != 404 || rec.Header().Get("Content-Type") != "application/json" {
		t.Errorf("before the first byte: %d %s", rec.Code, rec.Header())
	}
	defer func() {
		if recover() != http.ErrAbortHandler {
			t.Error("the connection was not broken after the first byte")
		}
	}()
	serve(t, &backend{save: func(w io.Writer) error {
		if _, err := w.Write([]byte("x")); err != nil {
			return err
		}
		return errors.New("rot")
	}}, "1.51", "GET", "/images/x/get")
}
