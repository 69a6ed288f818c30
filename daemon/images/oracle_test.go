package images_test

import (
	"bytes"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	ctrimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	api "stated.dev/stated/api/router/images"
)

// TestContainerdReadsWhatSaveWrites lets containerd's own importer follow every descriptor of a saved archive, and
// loads what its exporter makes of that.
func TestContainerdReadsWhatSaveWrites(t *testing.T) {
	h := open(t, t.TempDir())
	img := makeImage(t, "ann", "one", "two")
	mustLoad(t, h, legacyArchive(t, img, "app:v1"))
	var saved bytes.Buffer
	if err := h.Save(t.Context(), api.SaveRequest{Names: []string{"app:v1"}}, &saved); err != nil {
		t.Fatal(err)
	}
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	top, err := archive.ImportIndex(t.Context(), store, &saved)
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	data, err := content.ReadBlob(t.Context(), store, top)
	if err != nil {
		t.Fatal(err)
	}
	decode(t, data, &index)
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations[ctrimages.AnnotationImageName] != "docker.io/library/app:v1" {
		t.Fatalf("index: %s", data)
	}
	desc := index.Manifests[0]
	manifest, err := ctrimages.Manifest(t.Context(), store, desc, nil)
	if err != nil {
		t.Fatal(err)
	}
	if manifest.Config.Digest != img.id || len(manifest.Layers) != 2 {
		t.Errorf("manifest: %+v", manifest)
	}
	for i, layer := range manifest.Layers {
		got, err := content.ReadBlob(t.Context(), store, layer)
		if err != nil || !bytes.Equal(got, img.layers[i]) {
			t.Errorf("layer %d: %d bytes, %v", i, len(got), err)
		}
	}
	var exported bytes.Buffer
	if err := archive.Export(t.Context(), store, &exported, archive.WithManifest(desc, "docker.io/library/again:v1")); err != nil {
		t.Fatal(err)
	}
	other := open(t, t.TempDir())
	mustLoad(t, other, exported.Bytes())
	if got, err := other.Get(t.Context(), "again:v1"); err != nil || got.ID != img.id {
		t.Errorf("again:v1 is %v, %v", got.ID, err)
	}
}
