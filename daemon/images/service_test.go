package images_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/daemon/images"
	"stated.dev/stated/internal/filters"
)

type message = jsonstream.Message

func digestOf(data []byte) digest.Digest { return digest.FromBytes(data) }

func digestOfTop(t testing.TB, h *house, img madeImage) digest.Digest {
	t.Helper()
	got, err := h.Get(t.Context(), img.id.String())
	if err != nil {
		t.Fatal(err)
	}
	return got.ChainID
}

func tagged(t testing.TB, s string) reference.NamedTagged {
	t.Helper()
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		t.Fatal(err)
	}
	return reference.TagNameOnly(ref).(reference.NamedTagged)
}

func tag(t testing.TB, h *house, ref, name string) {
	t.Helper()
	if err := h.Tag(t.Context(), ref, tagged(t, name)); err != nil {
		t.Fatal(err)
	}
}

func TestReopenFindsEverything(t *testing.T) {
	root := t.TempDir()
	h := open(t, root)
	img := makeImage(t, "ann", "one", "two")
	mustLoad(t, h, legacyArchive(t, img, "app:v1"))
	tag(t, h, "app:v1", "other")
	again := open(t, root)
	got, err := again.Get(t.Context(), "other:latest")
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != img.id || !slices.Equal(got.RepoTags, []string{"app:v1", "other:latest"}) {
		t.Errorf("got %v %v", got.ID, got.RepoTags)
	}
	if n := again.layers.refs[got.ChainID]; n != 1 {
		t.Errorf("the restored image holds its layer %d times", n)
	}
	seen, err := again.Inspect(t.Context(), "other", nil)
	if err != nil {
		t.Fatal(err)
	}
	if seen.LastTagTime.IsZero() || seen.GraphDriver.Name != "fake" || len(seen.RootFS.Layers) != 2 || seen.Author != "ann" {
		t.Errorf("inspect: %+v", seen)
	}
	if p := again.Problems(); len(p) != 0 {
		t.Errorf("problems: %v", p)
	}
}

func TestMissingLayerHidesImage(t *testing.T) {
	root := t.TempDir()
	h := open(t, root)
	img, fine := makeImage(t, "ann", "one", "two"), makeImage(t, "bob", "three")
	mustLoad(t, h, legacyArchive(t, img, "app:v1"))
	mustLoad(t, h, legacyArchive(t, fine, "fine:v1"))
	chain := digestOfTop(t, h, img)
	if err := os.Remove(h.layers.path(chain, ".json")); err != nil {
		t.Fatal(err)
	}
	again := open(t, root)
	if _, err := again.Get(t.Context(), "app:v1"); err == nil || err.Error() != "No such image: app:v1" {
		t.Errorf("hidden image: %v", err)
	}
	problems := again.Problems()
	if len(problems) != 1 || problems[0].Image != img.id || problems[0].Layer != chain {
		t.Errorf("problems: %+v", problems)
	}
	if _, err := again.Get(t.Context(), "fine:v1"); err != nil {
		t.Error(err)
	}
	// A load heals it, and the name leads to it again.
	mustLoad(t, again, legacyArchive(t, img))
	if _, err := again.Get(t.Context(), "app:v1"); err != nil {
		t.Error(err)
	}
	if p := again.Problems(); len(p) != 0 {
		t.Errorf("problems after the load: %v", p)
	}
}

func TestDamagedFilesStopNothing(t *testing.T) {
	damage := map[string]func(path string) error{
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"truncated": func(path string) error { return os.Truncate(path, 40) },
		"garbage":   func(path string) error { return os.WriteFile(path, []byte("\x00\xffnoise"), 0o600) },
	}
	for kind, spoil := range damage {
		t.Run(kind, func(t *testing.T) {
			root := t.TempDir()
			h := open(t, root)
			img, fine := makeImage(t, "ann", "one"), makeImage(t, "bob", "two")
			mustLoad(t, h, legacyArchive(t, img, "app:v1"))
			mustLoad(t, h, legacyArchive(t, fine, "fine:v1"))
			content := filepath.Join(root, "image/fake/imagedb/content/sha256", img.id.Encoded())
			if err := spoil(content); err != nil {
				t.Fatal(err)
			}
			again := open(t, root)
			if p := again.Problems(); len(p) != 1 || p[0].Image != img.id {
				t.Errorf("problems: %v", p)
			}
			if _, err := again.Get(t.Context(), "fine:v1"); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(content); err != nil {
				t.Errorf("the damaged file is gone: %v", err)
			}
			repos := filepath.Join(root, "image/fake/repositories.json")
			if err := spoil(repos); err != nil {
				t.Fatal(err)
			}
			again = open(t, root)
			if _, err := again.Get(t.Context(), fine.id.String()); err != nil {
				t.Error(err)
			}
			if p := again.Problems(); len(p) != 2 || !strings.Contains(p[0].Err.Error(), "repositories.json is damaged") {
				t.Errorf("problems: %v", p)
			}
			// The generation before the last change knew the image that was loaded first.
			if data, err := os.ReadFile(repos); err != nil || !strings.Contains(string(data), img.id.String()) {
				t.Errorf("repositories.json is now %s, %v", data, err)
			}
			if _, err := os.Stat(filepath.Join(root, ".stated/last/repositories.json.damaged")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLookupErrors(t *testing.T) {
	h := open(t, t.TempDir())
	img := makeImage(t, "ann", "one")
	mustLoad(t, h, legacyArchive(t, img, "app:v1"))
	for ref, want := range map[string]string{
		"nosuch":                "No such image: nosuch:latest",
		"quay.io/x/y:z":         "No such image: quay.io/x/y:z",
		"app":                   "No such image: app:latest",
		"docker.io/library/no":  "No such image: no:latest",
		strings.Repeat("0", 64): "No such image: sha256:" + strings.Repeat("0", 64),
		"BAD":                   "invalid reference format: repository name (library/BAD) must be lowercase",
	} {
		if _, err := h.Get(t.Context(), ref); err == nil || err.Error() != want {
			t.Errorf("Get(%q): %v, want %q", ref, err, want)
		}
	}
}

func TestRemoveRules(t *testing.T) {
	ctr := strings.Repeat("c", 64)
	img := makeImage(t, "ann", "one", "two")
	short := img.id.Encoded()[:12]
	chains := func(h *house) []string {
		got, _ := h.Get(t.Context(), img.id.String())
		infos, _ := h.layers.Chain(got.ChainID)
		return []string{infos[1].ChainID.String(), infos[0].ChainID.String()}
	}
	untag := func(name string) string { return "-" + name }
	cases := []struct {
		name    string
		tags    []string
		use     []images.ContainerUse
		ref     string
		force   bool
		want    []string // untagged with a dash; "image", "layers" for what is deleted
		failure string
	}{
		{name: "last name", tags: []string{"a:1"}, ref: "a:1", want: []string{untag("a:1"), "image", "layers"}},
		{name: "one of two names", tags: []string{"a:1", "b:1"}, ref: "b:1", want: []string{untag("b:1")}},
		{name: "id with one name", tags: []string{"a:1"}, ref: short, want: []string{untag("a:1"), "image", "layers"}},
		{name: "id with two names", tags: []string{"a:1", "b:1"}, ref: short,
			failure: "conflict: unable to delete " + short + " (must be forced) - image is referenced in multiple repositories"},
		{name: "id with two names, forced", tags: []string{"a:1", "b:1"}, ref: short, force: true,
			want: []string{untag("a:1"), untag("b:1"), "image", "layers"}},
		{name: "untagged", ref: img.id.String(), want: []string{"image", "layers"}},
		{name: "name, stopped container", tags: []string{"a:1"}, use: []images.ContainerUse{{ID: ctr}}, ref: "a:1",
			failure: `conflict: unable to remove repository reference "a:1" (must force) - container cccccccccccc is using its referenced image ` + short},
		{name: "name, stopped container, forced", tags: []string{"a:1"}, use: []images.ContainerUse{{ID: ctr}}, ref: "a:1", force: true,
			want: []string{untag("a:1"), "image", "layers"}},
		{name: "name, running container, forced", tags: []string{"a:1"}, use: []images.ContainerUse{{ID: ctr, Running: true}}, ref: "a:1", force: true,
			want: []string{untag("a:1")}},
		{name: "id, stopped container", tags: []string{"a:1"}, use: []images.ContainerUse{{ID: ctr}}, ref: short,
			failure: "conflict: unable to delete " + short + " (must be forced) - image is being used by stopped container cccccccccccc"},
		{name: "id, running container, forced", tags: []string{"a:1"}, use: []images.ContainerUse{{ID: ctr, Running: true}}, ref: short, force: true,
			failure: "conflict: unable to delete " + short + " (cannot be forced) - image is being used by running container cccccccccccc"},
		{name: "name, mounted", tags: []string{"a:1"}, use: []images.ContainerUse{{ID: ctr, Running: true, Mounted: true}}, ref: "a:1",
			failure: `conflict: unable to remove repository reference "a:1" (must force) - container cccccccccccc is using its referenced image ` + short},
		{name: "name, mounted, forced", tags: []string{"a:1"}, use: []images.ContainerUse{{ID: ctr, Running: true, Mounted: true}}, ref: "a:1", force: true,
			want: []string{untag("a:1"), "image", "layers"}},
		{name: "id, mounted", tags: []string{"a:1"}, use: []images.ContainerUse{{ID: ctr, Mounted: true}}, ref: short, want: []string{untag("a:1"), "image", "layers"}},
		{name: "one of two names, running container", tags: []string{"a:1", "b:1"}, use: []images.ContainerUse{{ID: ctr, Running: true}}, ref: "a:1",
			want: []string{untag("a:1")}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			h := open(t, root)
			mustLoad(t, h, legacyArchive(t, img, c.tags...))
			h.containers[img.id] = c.use
			layers := chains(h)
			done, err := h.Remove(t.Context(), c.ref, api.RemoveRequest{Force: c.force})
			if c.failure != "" {
				if err == nil || err.Error() != c.failure || !errdefs.IsConflict(err) {
					t.Errorf("error is %v\nwant %s", err, c.failure)
				}
				if got, _ := h.Get(t.Context(), img.id.String()); !slices.Equal(got.RepoTags, c.tags) {
					t.Errorf("tags are now %q", got.RepoTags)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got, want []string
			for _, d := range done {
				got = append(got, "-"+d.Untagged+d.Deleted)
			}
			for _, w := range c.want {
				switch w {
				case "image":
					want = append(want, "-"+img.id.String())
				case "layers":
					want = append(want, "-"+layers[0], "-"+layers[1])
				default:
					want = append(want, w)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("removed %q\nwant %q", got, want)
			}
			if slices.Contains(c.want, "image") {
				wantEmpty(t, h)
				wantEmpty(t, open(t, root))
			}
		})
	}
}

func TestRemoveTakesUntaggedParents(t *testing.T) {
	for _, noPrune := range []bool{false, true} {
		h := open(t, t.TempDir())
		base, child := makeImage(t, "base", "one"), makeImage(t, "child", "one", "two")
		mustLoad(t, h, legacyArchive(t, base))
		mustLoad(t, h, legacyArchive(t, child)) // for its layers
		if _, err := h.Remove(t.Context(), child.id.String(), api.RemoveRequest{}); err != nil {
			t.Fatal(err)
		}
		parent := digestOfTop(t, h, base)
		info, err := h.layers.Register(t.Context(), bytes.NewReader(child.layers[1]), parent)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Create(t.Context(), images.CreateRequest{Config: child.config, Parent: base.id, Target: tagged(t, "child:1")}); err != nil {
			t.Fatal(err)
		}
		if err := h.layers.Release(t.Context(), info.ChainID); err != nil {
			t.Fatal(err)
		}
		if _, err := h.Remove(t.Context(), base.id.String(), api.RemoveRequest{Force: true}); err == nil || !strings.Contains(err.Error(), "(cannot be forced) - image has dependent child images") {
			t.Errorf("remove of a parent: %v", err)
		}
		steps, err := h.History(t.Context(), "child:1", nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(steps) != 3 || steps[0].ID != child.id.String() || steps[0].Tags[0] != "child:1" || steps[1].ID != base.id.String() || steps[2].ID != "<missing>" || steps[1].Size != 3 {
			t.Errorf("history: %+v", steps)
		}
		h = open(t, h.root)
		if _, err := h.Remove(t.Context(), "child:1", api.RemoveRequest{NoPrune: noPrune}); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{true: 1, false: 0}[noPrune]; h.Count() != want {
			t.Errorf("noprune %v: %d images are left, want %d", noPrune, h.Count(), want)
		}
	}
}

func TestListFilters(t *testing.T) {
	h := open(t, t.TempDir())
	a, b, c := makeImage(t, "ann", "one"), makeImage(t, "bob", "two"), makeImage(t, "cyd", "one", "three")
	mustLoad(t, h, legacyArchive(t, a, "app:v1", "quay.io/x/app:v2"))
	mustLoad(t, h, legacyArchive(t, b))
	mustLoad(t, h, legacyArchive(t, c, "other:v1"))
	h.containers[c.id] = []images.ContainerUse{{ID: "x"}, {ID: "y"}}
	for query, want := range map[string][]madeImage{
		`{}`:                            {a, b, c},
		`{"dangling":["true"]}`:         {b},
		`{"dangling":["false"]}`:        {a, c},
		`{"label":["who=ann"]}`:         {a},
		`{"label":["who"]}`:             {a, b, c},
		`{"label":["no"]}`:              {},
		`{"reference":["app"]}`:         {a},
		`{"reference":["app:*"]}`:       {a},
		`{"reference":["quay.io/*/*"]}`: {a},
		`{"before":["other:v1"]}`:       {},
		`{"since":["other:v1"]}`:        {},
		`{"until":["2020-01-01"]}`:      {},
		`{"until":["1h"]}`:              {a, b, c},
		`{"until":["1704164646"]}`:      {a, b, c},
		`{"reference":{"other:v1":true},"label":{"who=cyd":true}}`: {c},
	} {
		f, err := filters.Parse(query)
		if err != nil {
			t.Fatal(err)
		}
		got, err := h.List(t.Context(), api.ListRequest{Filters: f, SharedSize: true})
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		var ids, wantIDs []string
		for _, s := range got {
			ids = append(ids, s.ID)
			if s.ID == c.id.String() && (s.Containers != 2 || s.SharedSize != 3 || s.Size != 8) {
				t.Errorf("%s: %+v", query, s)
			}
		}
		for _, w := range want {
			wantIDs = append(wantIDs, w.id.String())
		}
		slices.Sort(ids)
		slices.Sort(wantIDs)
		if !slices.Equal(ids, wantIDs) {
			t.Errorf("%s: got %q, want %q", query, ids, wantIDs)
		}
	}
	for query, text := range map[string]string{
		`{"foo":["x"]}`:      "invalid filter 'foo'",
		`{"dangling":["x"]}`: "invalid filter 'dangling=[x]'",
		`{"before":["no"]}`:  "No such image: no:latest",
		`{"until":["soon"]}`: `failed to parse value as time or duration: "soon"`,
	} {
		f, _ := filters.Parse(query)
		if _, err := h.List(t.Context(), api.ListRequest{Filters: f}); err == nil || err.Error() != text {
			t.Errorf("%s: %v, want %q", query, err, text)
		}
	}
}

func TestPrune(t *testing.T) {
	h := open(t, t.TempDir())
	a, b, c := makeImage(t, "ann", "one"), makeImage(t, "bob", "two"), makeImage(t, "cyd", "three")
	mustLoad(t, h, legacyArchive(t, a, "app:v1"))
	mustLoad(t, h, legacyArchive(t, b))
	mustLoad(t, h, legacyArchive(t, c, "used:v1"))
	h.containers[c.id] = []images.ContainerUse{{ID: "x"}}
	prune := func(query string) (deleted int, reclaimed uint64) {
		t.Helper()
		f, err := filters.Parse(query)
		if err != nil {
			t.Fatal(err)
		}
		report, err := h.Prune(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		return len(report.ImagesDeleted), report.SpaceReclaimed
	}
	if n, size := prune(`{"label":["who=ann"]}`); n != 0 || size != 0 {
		t.Errorf("with a label nobody dangling has: %d, %d", n, size)
	}
	if n, size := prune(`{"label!":["who=bob"]}`); n != 0 || size != 0 {
		t.Errorf("without a label: %d, %d", n, size)
	}
	if n, size := prune(``); n != 2 || size != 3 {
		t.Errorf("dangling: %d, %d", n, size)
	}
	if n, size := prune(`{"dangling":["false"],"until":["2020-01-01"]}`); n != 0 || size != 0 {
		t.Errorf("all before 2020: %d, %d", n, size)
	}
	if n, size := prune(`{"dangling":["false"]}`); n != 3 || size != 3 {
		t.Errorf("all: %d, %d", n, size)
	}
	if h.Count() != 1 {
		t.Errorf("%d images are left", h.Count())
	}
	if last := h.events.all[len(h.events.all)-1]; !strings.HasPrefix(last, "prune") {
		t.Errorf("last event: %s", last)
	}
}

func TestTagEvents(t *testing.T) {
	h := open(t, t.TempDir())
	img := makeImage(t, "ann", "one")
	mustLoad(t, h, legacyArchive(t, img, "a:1"))
	tag(t, h, "a:1", "b")
	if err := h.Tag(t.Context(), "a:1", tagged(t, "sha256:abc")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("tag with an id for a name: %v", err)
	}
	if err := h.Tag(t.Context(), "nosuch", tagged(t, "c:1")); !errdefs.IsNotFound(err) {
		t.Errorf("tag of nothing: %v", err)
	}
	if _, err := h.Remove(t.Context(), img.id.String(), api.RemoveRequest{Force: true}); err != nil {
		t.Fatal(err)
	}
	id := img.id.String()[:19]
	want := []string{
		"load " + id + " name=" + id, "tag " + id + " name=b:latest",
		"untag " + id + " name=" + id, "untag " + id + " name=" + id, "delete " + id + " name=" + id,
	}
	if !slices.Equal(h.events.all, want) {
		t.Errorf("events %q\nwant %q", h.events.all, want)
	}
}

func TestImport(t *testing.T) {
	h := open(t, t.TempDir())
	layer := layerTar(t, "one")
	id, err := h.Import(t.Context(), bytes.NewReader(gz(t, layer)), api.ImportRequest{
		Target: tagged(t, "imp:1"), Message: "from far", Changes: []string{"ENV A=1", "CMD [\"run\"]"},
	})
	if err != nil {
		t.Fatal(err)
	}
	img, err := h.Get(t.Context(), "imp:1")
	if err != nil {
		t.Fatal(err)
	}
	if img.ID.String() != id || img.DiffIDs[0] != digest.FromBytes(layer) || img.Config.Env[0] != "A=1" || img.Config.Cmd[0] != "run" {
		t.Errorf("imported %+v", img)
	}
	seen, err := h.Inspect(t.Context(), id, nil)
	if err != nil || seen.Comment != "from far" || seen.DockerVersion != "28.5.2" || seen.LastTagTime.IsZero() {
		t.Errorf("inspect: %+v, %v", seen, err)
	}
	if n := h.layers.refs[img.ChainID]; n != 1 {
		t.Errorf("the image holds its layer %d times", n)
	}
	for name, req := range map[string]api.ImportRequest{
		"bad change":    {Changes: []string{"RUN x"}},
		"id for a name": {Target: tagged(t, "sha256:1")},
	} {
		if _, err := h.Import(t.Context(), bytes.NewReader(layerTar(t, "other")), req); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := h.layers.count(); n != 1 {
		t.Errorf("%d layers after failed imports", n)
	}
}
