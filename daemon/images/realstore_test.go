package images_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/daemon/images"
	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/builtin"
	"stated.dev/stated/graphdriver/layer"
)

// realLayers makes the layer store what images want of it.
type realLayers struct{ *layer.Store }

func (r realLayers) Register(ctx context.Context, tar io.Reader, parent digest.Digest) (images.LayerInfo, error) {
	info, err := r.Store.Register(ctx, tar, parent)
	return images.LayerInfo(info), err
}

func (r realLayers) Stage(ctx context.Context, tar io.Reader) (images.StagedLayer, error) {
	return r.Store.Stage(ctx, tar)
}

func (r realLayers) Commit(ctx context.Context, parent digest.Digest, staged ...images.StagedLayer) ([]images.LayerInfo, error) {
	own := make([]*layer.Staged, len(staged))
	for i, st := range staged {
		own[i] = st.(*layer.Staged)
	}
	infos, err := r.Store.Commit(ctx, parent, own...)
	return convert(infos), err
}

func (r realLayers) Acquire(chain digest.Digest) (images.LayerInfo, error) {
	info, err := r.Store.Acquire(chain)
	return images.LayerInfo(info), err
}

func (r realLayers) Layer(chain digest.Digest) (images.LayerInfo, error) {
	info, err := r.Store.Layer(chain)
	return images.LayerInfo(info), err
}

func (r realLayers) Chain(chain digest.Digest) ([]images.LayerInfo, error) {
	infos, err := r.Store.Chain(chain)
	return convert(infos), err
}

func convert(infos []layer.Info) []images.LayerInfo {
	list := make([]images.LayerInfo, len(infos))
	for i, info := range infos {
		list[i] = images.LayerInfo(info)
	}
	return list
}

// openReal opens images over a layer store with a storage driver.
func openReal(t testing.TB, root, driver string) (*images.Service, *layer.Store) {
	t.Helper()
	d, err := builtin.Table()[driver](t.Context(), graphdriver.Config{Home: filepath.Join(root, driver)})
	if err != nil {
		t.Fatal(err)
	}
	store, err := layer.Open(t.Context(), filepath.Join(root, "image", driver), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := images.Open(t.Context(), images.Options{
		Dir: filepath.Join(root, "image", driver), TempDir: filepath.Join(root, "tmp"), Layers: realLayers{store},
		Containers: fakeContainers{}, Events: &recorder{}, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, store
}

func TestRealLayerStore(t *testing.T) {
	for _, driver := range []string{"vfs", "overlay2"} {
		t.Run(driver, func(t *testing.T) {
			root := t.TempDir()
			s, store := openReal(t, root, driver)
			img := makeImage(t, "ann", "one", "two", "three")
			emit := (&transcript{}).emit
			if err := s.Load(t.Context(), bytes.NewReader(gz(t, legacyArchive(t, img, "app:v1"))), api.LoadRequest{}, emit); err != nil {
				t.Fatal(err)
			}
			var saved bytes.Buffer
			if err := s.Save(t.Context(), api.SaveRequest{Names: []string{"app"}}, &saved); err != nil {
				t.Fatal(err)
			}
			bad := bytes.Replace(saved.Bytes(), []byte("one"), []byte("eno"), 2) // the file's name, and its text
			if err := s.Load(t.Context(), bytes.NewReader(bad), api.LoadRequest{}, emit); err != nil {
				t.Errorf("layers that are there already are not read again: %v", err)
			}
			again, _ := openReal(t, root, driver)
			if got, err := again.Get(t.Context(), "app:v1"); err != nil || got.ID != img.id || got.Size != 11 {
				t.Errorf("after a restart: %v of %d bytes, %v", got.ID, got.Size, err)
			}
			if _, err := s.Remove(t.Context(), "app:v1", api.RemoveRequest{}); err != nil {
				t.Fatal(err)
			}
			if left := store.Layers(); len(left) != 0 {
				t.Errorf("layers are left: %v", left)
			}
			if err := s.Load(t.Context(), bytes.NewReader(bad), api.LoadRequest{}, emit); err == nil {
				t.Error("a changed layer was loaded")
			}
			if left := store.Layers(); len(left) != 0 {
				t.Errorf("layers are left: %v", left)
			}
			if err := s.Load(t.Context(), bytes.NewReader(saved.Bytes()), api.LoadRequest{}, emit); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// bigLayer is a layer of files of 100 kB, half of it noise.
func bigLayer(b *testing.B, number, files int) []byte {
	b.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	noise := rand.NewChaCha8([32]byte{byte(number)})
	data := make([]byte, 100_000)
	for i := range files {
		if _, err := noise.Read(data[:50_000]); err != nil {
			b.Fatal(err)
		}
		h := &tar.Header{Name: fmt.Sprintf("dir%d/file%d", number, i), Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg, ModTime: time.Unix(int64(i), 0)}
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	return out.Bytes()
}

// BenchmarkLoad loads an image of 10 layers and 200 MB, and, for comparison, unpacks the same layers with tar.
func BenchmarkLoad(b *testing.B) {
	img := makeImage(b, "big")
	var diffIDs []digest.Digest
	for i := range 10 {
		l := bigLayer(b, i, 200)
		img.layers = append(img.layers, l)
		diffIDs = append(diffIDs, digest.FromBytes(l))
	}
	img.config = toJSON(b, map[string]any{"architecture": "amd64", "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}})
	img.id = digest.FromBytes(img.config)
	archive := legacyArchive(b, img, "big:1")
	b.Run("load", func(b *testing.B) {
		b.SetBytes(int64(len(archive)))
		for b.Loop() {
			b.StopTimer()
			s, _ := openReal(b, b.TempDir(), "overlay2")
			b.StartTimer()
			if err := s.Load(b.Context(), bytes.NewReader(archive), api.LoadRequest{Quiet: true}, (&transcript{}).emit); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("tar", func(b *testing.B) {
		dir := b.TempDir()
		for i, l := range img.layers {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.tar", i)), l, 0o600); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(int64(len(archive)))
		for b.Loop() {
			b.StopTimer()
			to := b.TempDir()
			b.StartTimer()
			for i := range img.layers {
				target := filepath.Join(to, fmt.Sprint(i))
				if err := os.Mkdir(target, 0o755); err != nil {
					b.Fatal(err)
				}
				if out, err := exec.CommandContext(b.Context(), "tar", "-x", "-C", target, "-f", filepath.Join(dir, fmt.Sprintf("%d.tar", i))).CombinedOutput(); err != nil {
					b.Fatalf("tar: %v: %s", err, out)
				}
			}
		}
	})
}
