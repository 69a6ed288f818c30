package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/ulikunitz/xz"

	api "stated.dev/stated/api/router/images"
)

func load(t testing.TB, h *house, archive []byte) (*transcript, error) {
	t.Helper()
	tr := &transcript{}
	return tr, h.Load(t.Context(), bytes.NewReader(archive), api.LoadRequest{}, tr.emit)
}

func mustLoad(t testing.TB, h *house, archive []byte) *transcript {
	t.Helper()
	tr, err := load(t, h, archive)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// wantEmpty checks that nothing of a failed operation is left.
func wantEmpty(t *testing.T, h *house) {
	t.Helper()
	if n := h.Count(); n != 0 {
		t.Errorf("%d images are left", n)
	}
	if n := h.layers.count(); n != 0 {
		t.Errorf("%d layers are left", n)
	}
	if n := h.layers.open.Load(); n != 0 {
		t.Errorf("%d layers are staged", n)
	}
	for _, dir := range []string{"image/fake/imagedb/content/sha256", "image/fake/imagedb/metadata/sha256", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(h.root, dir))
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != 0 {
			t.Errorf("%s holds %v", dir, entries)
		}
	}
	repos, err := os.ReadFile(filepath.Join(h.root, "image/fake/repositories.json"))
	if err != nil || string(repos) != `{"Repositories":{}}` {
		t.Errorf("repositories.json is %s, %v", repos, err)
	}
}

func TestLoadLegacyArchive(t *testing.T) {
	h := open(t, t.TempDir())
	img := makeImage(t, "ann", "one", "two")
	tr := mustLoad(t, h, gz(t, legacyArchive(t, img, "app:v1", "quay.io/a/b:c")))
	if want := "Loaded image: app:v1\nLoaded image: quay.io/a/b:c\n"; tr.text() != want {
		t.Errorf("stream is %q, want %q", tr.text(), want)
	}
	if !slices.ContainsFunc(tr.lines, func(m message) bool {
		return m.Status == "Loading layer" && m.Progress.Current == int64(len(img.layers[0]))
	}) {
		t.Error("no progress of layers")
	}
	for _, ref := range []string{
		"app:v1", "docker.io/library/app:v1", "quay.io/a/b:c", img.id.String(), img.id.Encoded(), img.id.Encoded()[:12], img.id.String()[:20],
	} {
		got, err := h.Get(t.Context(), ref)
		if err != nil {
			t.Errorf("Get(%q): %v", ref, err)
			continue
		}
		if got.ID != img.id || !bytes.Equal(got.Raw, img.config) || got.Config.Cmd[0] != "sh" || got.Size != 6 {
			t.Errorf("Get(%q) = %+v", ref, got)
		}
	}
	if got := h.events.all; len(got) != 1 || !strings.HasPrefix(got[0], "load "+img.id.String()[:19]) {
		t.Errorf("events: %q", got)
	}
	if n := h.layers.refs[digestOfTop(t, h, img)]; n != 1 {
		t.Errorf("the image holds its top layer %d times", n)
	}
}

func TestLoadAgainKeepsOneReference(t *testing.T) {
	h := open(t, t.TempDir())
	img := makeImage(t, "ann", "one")
	archive := legacyArchive(t, img)
	for range 3 {
		if tr := mustLoad(t, h, archive); tr.text() != "Loaded image ID: "+img.id.String()+"\n" {
			t.Errorf("stream is %q", tr.text())
		}
	}
	if n := h.layers.refs[digestOfTop(t, h, img)]; n != 1 {
		t.Errorf("the image holds its top layer %d times", n)
	}
}

func TestLoadFollowsLinks(t *testing.T) {
	img := makeImage(t, "ann", "one", "one", "one")
	h := open(t, t.TempDir())
	mustLoad(t, h, tarOf(t,
		file{name: "a/layer.tar", data: img.layers[0]},
		file{name: "b/layer.tar", link: "../a/layer.tar"},
		file{name: "c/layer.tar", hard: "a/layer.tar"},
		file{name: "./conf.json", data: img.config},
		file{name: "manifest.json", data: toJSON(t, []any{map[string]any{
			"Config": "conf.json", "RepoTags": nil, "Layers": []string{"a/layer.tar", "b/layer.tar", "./c/layer.tar"}}})},
	))
	if _, err := h.Get(t.Context(), img.id.String()); err != nil {
		t.Fatal(err)
	}
}

func TestLoadMovesTag(t *testing.T) {
	h := open(t, t.TempDir())
	first, second := makeImage(t, "ann", "one"), makeImage(t, "bob", "one", "two")
	mustLoad(t, h, legacyArchive(t, first, "app:v1"))
	tr := mustLoad(t, h, legacyArchive(t, second, "app:v1"))
	if want := "The image app:v1 already exists, renaming the old one with ID " + first.id.String() + " to empty string\n"; !strings.Contains(tr.text(), want) {
		t.Errorf("stream is %q", tr.text())
	}
	got, err := h.Get(t.Context(), "app:v1")
	if err != nil || got.ID != second.id {
		t.Errorf("app:v1 is %v, %v", got.ID, err)
	}
	if got, err := h.Get(t.Context(), first.id.String()); err != nil || len(got.RepoTags) != 0 {
		t.Errorf("first image: %v, %v", got.RepoTags, err)
	}
}

func TestLoadOCILayout(t *testing.T) {
	amd, arm := makeImage(t, "amd", "one", "two"), makeImage(t, "arm", "three")
	amdFiles, amdDesc := ociImage(t, amd)
	armFiles, armDesc := ociImage(t, arm)
	amdDesc.Platform = map[string]string{"os": "linux", "architecture": "amd64"}
	armDesc.Platform = map[string]string{"os": "linux", "architecture": "arm64"}
	statement := descriptor{
		MediaType: amdDesc.MediaType, Digest: armDesc.Digest, Size: armDesc.Size,
		Platform:    map[string]string{"os": "unknown", "architecture": "unknown"},
		Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest"},
	}
	nested := ociIndex(t, statement, armDesc, amdDesc)
	top := describe("application/vnd.oci.image.index.v1+json", nested)
	top.Annotations = map[string]string{"io.containerd.image.name": "docker.io/library/multi:1", "org.opencontainers.image.ref.name": "1"}
	files := slices.Concat([]file{{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {name: "index.json", data: ociIndex(t, top)}},
		amdFiles, armFiles, []file{blobFile(nested)})
	h := open(t, t.TempDir())
	if tr := mustLoad(t, h, tarOf(t, files...)); tr.text() != "Loaded image: multi:1\n" {
		t.Errorf("stream is %q", tr.text())
	}
	if got, err := h.Get(t.Context(), "multi:1"); err != nil || got.ID != amd.id {
		t.Errorf("multi:1 is %v, %v; want %v", got.ID, err, amd.id)
	}
	if _, err := h.Get(t.Context(), arm.id.String()); !errdefs.IsNotFound(err) {
		t.Errorf("the other platform's image: %v", err)
	}
	riscv := &ocispec.Platform{OS: "linux", Architecture: "riscv64"}
	err := h.Load(t.Context(), bytes.NewReader(tarOf(t, files...)), api.LoadRequest{Platform: riscv}, (&transcript{}).emit)
	if !errdefs.IsNotFound(err) {
		t.Errorf("load for riscv64: %v", err)
	}
}

func TestLoadRefusesHostileArchives(t *testing.T) {
	img := makeImage(t, "ann", "one", "two")
	good := func(config, layers any, more ...file) []file {
		return append(more, file{name: "manifest.json", data: toJSON(t, []any{map[string]any{"Config": config, "RepoTags": []string{"x:1"}, "Layers": layers}})})
	}
	names := []string{"l0", "l1"}
	layer0, layer1 := file{name: "l0", data: img.layers[0]}, file{name: "l1", data: img.layers[1]}
	conf := file{name: "c.json", data: img.config}
	ociFiles, ociDesc := ociImage(t, img)
	lying := ociDesc
	lying.Digest = makeImage(t, "bob", "x").id
	renamed := slices.Clone(ociFiles)
	renamed[0].data = gz(t, img.layers[1])
	other := makeImage(t, "windows", "one")
	windows := bytes.ReplaceAll(other.config, []byte(`"os":"linux"`), []byte(`"os":"windows"`))
	deep := strings.Repeat(`{"a":`, 20000)
	cases := map[string]struct {
		archive []byte
		text    string
	}{
		"no documents":       {tarOf(t, layer0), "neither manifest.json nor index.json"},
		"not a tar":          {[]byte(strings.Repeat("no tar at all ", 100)), "invalid image archive"},
		"empty body":         {nil, "neither"},
		"truncated":          {legacyArchive(t, img, "x:1")[:1500], "invalid image archive"},
		"broken gzip":        {gz(t, legacyArchive(t, img, "x:1"))[:200], "invalid image archive"},
		"absolute entry":     {tarOf(t, file{name: "/etc/passwd", data: []byte("x")}), "leads out"},
		"dot dot entry":      {tarOf(t, file{name: "a/../../x", data: []byte("x")}), "leads out"},
		"link out":           {tarOf(t, file{name: "a", link: "../../etc/passwd"}), "leads out"},
		"absolute link":      {tarOf(t, file{name: "a", link: "/etc/passwd"}), "leads out"},
		"hard link out":      {tarOf(t, file{name: "a", hard: "../x"}), "leads out"},
		"device":             {tarOf(t, file{name: "a", kind: tar.TypeChar}), "not accepted"},
		"config outside":     {tarOf(t, good("../../etc/passwd", names)...), "leads out"},
		"link circle":        {tarOf(t, good("c.json", names, file{name: "c.json", link: "d"}, file{name: "d", link: "c.json"})...), "too many links"},
		"missing config":     {tarOf(t, good("c.json", names)...), "c.json is missing"},
		"missing layer":      {tarOf(t, good("c.json", names, conf, layer0)...), "l1 is missing"},
		"layers swapped":     {tarOf(t, good("c.json", []string{"l1", "l0"}, conf, layer0, layer1)...), "diff id"},
		"too few layers":     {tarOf(t, good("c.json", []string{"l0"}, conf, layer0)...), "layers length mismatch: expected 1, got 2"},
		"config digest":      {tarOf(t, good(img.id.Encoded()+".json", names, file{name: img.id.Encoded() + ".json", data: append(slices.Clone(img.config), ' ')}, layer0, layer1)...), "configuration " + img.id.String() + " has digest sha256:"},
		"null manifest":      {tarOf(t, file{name: "manifest.json", data: []byte("null")}), "manifest cannot be null"},
		"deep manifest":      {tarOf(t, file{name: "manifest.json", data: []byte(deep)}), "manifest.json"},
		"huge manifest":      {tarOf(t, file{name: "manifest.json", data: bytes.Repeat([]byte(" "), 9<<20)}), "more than"},
		"bad tag":            {tarOf(t, file{name: "manifest.json", data: toJSON(t, []any{map[string]any{"Config": "c.json", "RepoTags": []string{"UPPER:x"}, "Layers": names}})}, conf, layer0, layer1), "invalid tag"},
		"id as name":         {tarOf(t, file{name: "manifest.json", data: toJSON(t, []any{map[string]any{"Config": "c.json", "RepoTags": []string{"sha256:x"}, "Layers": names}})}, conf, layer0, layer1), "ambiguous tag"},
		"no rootfs":          {tarOf(t, good("c.json", nil, file{name: "c.json", data: []byte(`{}`)})...), "no RootFS key"},
		"other system":       {tarOf(t, good("c.json", []string{"l0"}, file{name: "c.json", data: windows}, layer0)...), "cannot load windows image on linux"},
		"layer is no tar":    {tarOf(t, good("c.json", names, conf, file{name: "l0", data: bytes.Repeat([]byte("x"), 2000)}, layer1)...), "layer 0"},
		"oci wrong digest":   {tarOf(t, append(ociFiles, file{name: "index.json", data: ociIndex(t, lying)})...), "is missing"},
		"oci wrong blob":     {tarOf(t, append(renamed, file{name: "index.json", data: ociIndex(t, ociDesc)})...), "layer 0"},
		"oci evil digest":    {tarOf(t, file{name: "index.json", data: []byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../x","size":1}]}`)}), "digest"},
		"oci unknown object": {tarOf(t, file{name: "index.json", data: []byte(`{"manifests":[{"mediaType":"a/b","digest":"` + img.id.String() + `","size":1}]}`)}, blobFile(img.config)), "no image"},
	}
	for name, c := range cases {
		for _, ordered := range []bool{false, true} {
			h := open(t, t.TempDir())
			h.layers.ordered = ordered
			_, err := load(t, h, c.archive)
			if err == nil || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%s: error is %v, want one with %q", name, err, c.text)
			}
			if !errdefs.IsInvalidArgument(err) && name != "layer is no tar" {
				t.Errorf("%s: error %v is not of class InvalidArgument", name, err)
			}
			wantEmpty(t, h)
		}
	}
}

func TestLoadIsAllOrNothing(t *testing.T) {
	good, bad := makeImage(t, "ann", "one"), makeImage(t, "bob", "two")
	archive := tarOf(t,
		file{name: "g.json", data: good.config}, file{name: "g.tar", data: good.layers[0]},
		file{name: "b.json", data: bad.config}, file{name: "b.tar", data: good.layers[0]},
		file{name: "manifest.json", data: toJSON(t, []any{
			map[string]any{"Config": "g.json", "RepoTags": []string{"g:1"}, "Layers": []string{"g.tar"}},
			map[string]any{"Config": "b.json", "RepoTags": []string{"b:1"}, "Layers": []string{"b.tar"}},
		})})
	h := open(t, t.TempDir())
	if _, err := load(t, h, archive); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error is %v", err)
	}
	wantEmpty(t, h)
}

func TestLoadSharesLayers(t *testing.T) {
	for _, ordered := range []bool{false, true} {
		a, b := makeImage(t, "ann", "one", "two", "three"), makeImage(t, "bob", "one", "two", "four")
		c := makeImage(t, "cyd", "one", "two")
		files := []file{{name: "a.json", data: a.config}, {name: "b.json", data: b.config}, {name: "c.json", data: c.config},
			{name: "1", data: a.layers[0]}, {name: "2", data: a.layers[1]}, {name: "3", data: a.layers[2]}, {name: "4", data: b.layers[2]}}
		files = append(files, file{name: "manifest.json", data: toJSON(t, []any{
			map[string]any{"Config": "a.json", "Layers": []string{"1", "2", "3"}},
			map[string]any{"Config": "b.json", "Layers": []string{"1", "2", "4"}},
			map[string]any{"Config": "a.json", "Layers": []string{"1", "2", "3"}},
			map[string]any{"Config": "c.json", "Layers": []string{"1", "2"}},
		})})
		h := open(t, t.TempDir())
		h.layers.ordered = ordered
		mustLoad(t, h, tarOf(t, files...))
		if n := h.layers.count(); n != 4 || h.Count() != 3 {
			t.Errorf("%d layers and %d images", n, h.Count())
		}
		for _, img := range []madeImage{a, b, c} {
			if n := h.layers.refs[digestOfTop(t, h, img)]; n != 1 {
				t.Errorf("an image holds its top layer %d times", n)
			}
			if _, err := h.Remove(t.Context(), img.id.String(), api.RemoveRequest{}); err != nil {
				t.Fatal(err)
			}
		}
		wantEmpty(t, h)
	}
}

func TestLoadTooManyEntries(t *testing.T) {
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tw := tar.NewWriter(w)
		for {
			if tw.WriteHeader(&tar.Header{Name: "x", Typeflag: tar.TypeReg}) != nil {
				return
			}
		}
	}()
	h := open(t, t.TempDir())
	err := h.Load(t.Context(), r, api.LoadRequest{}, (&transcript{}).emit)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("error is %v", err)
	}
	r.Close()
	<-done
}

func TestLoadEndsWithItsClient(t *testing.T) {
	h := open(t, t.TempDir())
	img := makeImage(t, "ann", "one")
	err := h.Load(t.Context(), bytes.NewReader(legacyArchive(t, img, "a:1")), api.LoadRequest{}, func(message) error { return io.ErrClosedPipe })
	if err == nil {
		t.Error("the load went on without its client")
	}
	wantEmpty(t, h)
}

func TestLoadCompressed(t *testing.T) {
	img := makeImage(t, "ann", "one")
	pack := map[string]func(w io.Writer) (io.WriteCloser, error){
		"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
		"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
		"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
	}
	for name, compressor := range pack {
		squeeze := func(data []byte) []byte {
			var b bytes.Buffer
			w, err := compressor(&b)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(data); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			return b.Bytes()
		}
		inside := img
		inside.layers = [][]byte{squeeze(img.layers[0])}
		h := open(t, t.TempDir())
		mustLoad(t, h, squeeze(legacyArchive(t, inside, "app:v1")))
		if got, err := h.Get(t.Context(), "app:v1"); err != nil || got.ID != img.id {
			t.Errorf("%s: %v, %v", name, got.ID, err)
		}
	}
	// The standard library only reads bzip2. These are 10240 zero bytes, an empty tar.
	empty, err := base64.StdEncoding.DecodeString("QlpoOTFBWSZTWVl7uOQAABRQAMAABAAACCAAMMwFKaYTYieLuSKcKEgsvdxyAA==")
	if err != nil {
		t.Fatal(err)
	}
	h := open(t, t.TempDir())
	if _, err := load(t, h, empty); err == nil || !strings.Contains(err.Error(), "neither manifest.json nor index.json") {
		t.Errorf("an archive of nothing: %v", err)
	}
}
