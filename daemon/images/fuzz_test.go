package images_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	api "stated.dev/stated/api/router/images"
)

// FuzzLoad feeds whole archives. Whatever they are, a load that fails leaves nothing, and one that succeeds leaves
// images that a restart finds. Archives are large inputs: -fuzzminimizetime 1x keeps the time for finding.
func FuzzLoad(f *testing.F) {
	img := makeImage(f, "ann", "one", "two")
	files, desc := ociImage(f, img)
	f.Add(legacyArchive(f, img, "app:v1"))
	f.Add(tarOf(f, append(files, file{name: "index.json", data: ociIndex(f, desc)})...))
	f.Add(gz(f, legacyArchive(f, img)))
	f.Fuzz(func(t *testing.T, archive []byte) { check(t, archive) })
}

// FuzzDocuments feeds manifest.json, index.json and a configuration of an otherwise sound archive.
func FuzzDocuments(f *testing.F) {
	img := makeImage(f, "ann", "one")
	files, desc := ociImage(f, img)
	manifest := toJSON(f, []any{map[string]any{"Config": "c", "RepoTags": []string{"a:1"}, "Layers": []string{"l"}}})
	f.Add(manifest, []byte(nil), img.config)
	f.Add([]byte(nil), ociIndex(f, desc), img.config)
	f.Fuzz(func(t *testing.T, manifest, index, config []byte) {
		all := append(slices.Clone(files), file{name: "l", data: img.layers[0]}, file{name: "c", data: config})
		if len(manifest) > 0 {
			all = append(all, file{name: "manifest.json", data: manifest})
		}
		if len(index) > 0 {
			all = append(all, file{name: "index.json", data: index}, blobFile(index))
		}
		check(t, tarOf(t, all...))
	})
}

func check(t *testing.T, archive []byte) {
	root := t.TempDir()
	h := open(t, root)
	err := h.Load(t.Context(), bytes.NewReader(archive), api.LoadRequest{}, (&transcript{}).emit)
	if err != nil {
		if errdefs.IsInternal(err) {
			t.Error(err)
		}
		wantEmpty(t, h)
		return
	}
	if again := open(t, root); again.Count() != h.Count() || len(again.Problems()) != 0 {
		t.Errorf("%d images after a restart instead of %d: %v", again.Count(), h.Count(), again.Problems())
	}
}
