package images_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/daemon/images"
)

// untar returns the files of an archive.
func untar(t testing.TB, data []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := files[h.Name]; twice {
			t.Errorf("%s is in the archive twice", h.Name)
		}
		files[h.Name], err = io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSaveWritesWhatLoadReads(t *testing.T) {
	h := open(t, t.TempDir())
	a, b := makeImage(t, "ann", "one", "two", "two"), makeImage(t, "bob", "one", "three")
	mustLoad(t, h, legacyArchive(t, a, "app:v1", "app:v2", "else:1"))
	mustLoad(t, h, legacyArchive(t, b))
	var out bytes.Buffer
	if err := h.Save(t.Context(), api.SaveRequest{Names: []string{"app", b.id.Encoded()[:12], "app:v1"}}, &out); err != nil {
		t.Fatal(err)
	}
	files := untar(t, out.Bytes())
	for name, data := range files {
		if hash, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && hash != "" && digest.FromBytes(data).Encoded() != hash {
			t.Errorf("%s holds something else", name)
		}
	}
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
		LayerSources     map[string]descriptor
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 2 || !slices.Equal(manifest[0].RepoTags, []string{"app:v1", "app:v2"}) || manifest[1].RepoTags != nil ||
		manifest[0].Config != "blobs/sha256/"+a.id.Encoded() || len(manifest[0].Layers) != 3 || len(manifest[0].LayerSources) != 2 {
		t.Errorf("manifest.json: %s", files["manifest.json"])
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 3 || index.Manifests[0].Annotations["io.containerd.image.name"] != "docker.io/library/app:v1" ||
		index.Manifests[1].Annotations["org.opencontainers.image.ref.name"] != "v2" || index.Manifests[2].Annotations != nil {
		t.Errorf("index.json: %s", files["index.json"])
	}
	top := digest.FromBytes(a.layers[2]).Encoded()
	if got, want := string(files["repositories"]), `{"app":{"v1":"`+top+`","v2":"`+top+`"}}`+"\n"; got != want {
		t.Errorf("repositories: %s, want %s", got, want)
	}
	if got := string(files["oci-layout"]); got != `{"imageLayoutVersion": "1.0.0"}` {
		t.Errorf("oci-layout: %s", got)
	}

	delete(files, "")
	for _, form := range []string{"docker", "oci"} {
		archive := out.Bytes()
		if form == "oci" {
			var only []file
			for name, data := range files {
				if name != "manifest.json" && !strings.HasSuffix(name, "/") {
					only = append(only, file{name: name, data: data})
				}
			}
			archive = tarOf(t, only...)
		}
		other := open(t, t.TempDir())
		mustLoad(t, other, archive)
		got, err := other.Get(t.Context(), "app:v2")
		if err != nil || got.ID != a.id || !slices.Equal(got.RepoTags, []string{"app:v1", "app:v2"}) {
			t.Errorf("%s: app:v2 is %v %v, %v", form, got.ID, got.RepoTags, err)
		}
		if _, err := other.Get(t.Context(), b.id.String()); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
}

func TestSaveKeepsParents(t *testing.T) {
	h := open(t, t.TempDir())
	base, child := makeImage(t, "base", "one"), makeImage(t, "child", "one")
	mustLoad(t, h, legacyArchive(t, base, "base:1"))
	if _, err := h.Create(t.Context(), images.CreateRequest{Config: child.config, Parent: base.id, Target: tagged(t, "child:1")}); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := h.Save(t.Context(), api.SaveRequest{Names: []string{"child:1", "base:1"}}, &out); err != nil {
		t.Fatal(err)
	}
	other := open(t, t.TempDir())
	mustLoad(t, other, out.Bytes())
	if seen, err := other.Inspect(t.Context(), "child:1", nil); err != nil || seen.Parent != base.id.String() {
		t.Errorf("parent is %q, %v", seen.Parent, err)
	}
}

func TestSaveErrorsComeBeforeBytes(t *testing.T) {
	h := open(t, t.TempDir())
	img := makeImage(t, "ann", "one")
	mustLoad(t, h, legacyArchive(t, img, "app:v1"))
	for name, want := range map[string]string{
		"nosuch":    "No such image: nosuch",
		"app:other": "reference does not exist",
	} {
		var out bytes.Buffer
		err := h.Save(t.Context(), api.SaveRequest{Names: []string{"app:v1", name}}, &out)
		if err == nil || err.Error() != want || !errdefs.IsNotFound(err) || out.Len() > 0 {
			t.Errorf("%s: %v after %d bytes", name, err, out.Len())
		}
	}
	if err := h.Save(t.Context(), api.SaveRequest{}, io.Discard); !errdefs.IsInvalidArgument(err) {
		t.Errorf("nothing named: %v", err)
	}
	h.layers.corrupt = true
	if err := h.Save(t.Context(), api.SaveRequest{Names: []string{"app:v1"}}, io.Discard); err == nil || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("rotten layer: %v", err)
	}
	if n := h.layers.refs[digestOfTop(t, h, img)]; n != 1 {
		t.Errorf("the image holds its layer %d times after saves", n)
	}
}
