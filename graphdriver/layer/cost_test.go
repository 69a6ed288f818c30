package layer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"stated.dev/stated/graphdriver/layer"
)

// What waits for the disk is counted, as it decides the speed on most disks.
func TestFlushes(t *testing.T) {
	r := openRoot(t, t.TempDir(), "overlay2")
	count := func(what string, want int64, op func() error) {
		t.Helper()
		before := r.Flushes()
		if err := op(); err != nil {
			t.Fatal(err)
		}
		if got := r.Flushes() - before; got != want {
			t.Errorf("%s: %d flushes, want %d", what, got, want)
		}
	}
	var image layer.Info
	count("register", 2, func() error { image = r.register(t, base(t), ""); return nil })
	count("register what is there", 0, func() error { r.register(t, base(t), ""); return nil })
	journal := func(files []layer.File) error { return os.MkdirAll(filepath.Dir(files[0].Path), 0o755) }
	count("create, journalled", 0, func() error {
		return r.CreateRW(t.Context(), "a", layer.RWRequest{Parent: image.ChainID, Commit: journal})
	})
	count("remove, journalled", 0, func() error {
		return r.RemoveRW(t.Context(), "a", func(dirs []string) error { return os.RemoveAll(dirs[0]) })
	})
	count("create", 2, func() error { return r.CreateRW(t.Context(), "b", layer.RWRequest{Parent: image.ChainID}) })
	count("remove", 1, func() error { return r.RemoveRW(t.Context(), "b", nil) })
	mustRelease(t, r, image.ChainID)
	count("release the last reference", 1, func() error { return r.Release(t.Context(), image.ChainID) })
	r.nothingLeft(t)
}

// Opening a store looks at no writable layer: what is wrong with one is found when it is asked for.
func TestOpenIsLazy(t *testing.T) {
	r := openRoot(t, t.TempDir(), "overlay2")
	image := r.register(t, base(t), "")
	const count = 50
	for i := range count {
		if err := r.CreateRW(t.Context(), fmt.Sprint("c", i), layer.RWRequest{Parent: image.ChainID, Commit: func(files []layer.File) error {
			for _, f := range files {
				if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(f.Path, f.Data, f.Mode); err != nil {
					return err
				}
			}
			return nil
		}}); err != nil {
			t.Fatal(err)
		}
	}
	r.close(t)
	r = openRoot(t, r.path, "overlay2")
	writeFile(t, "nonsense", r.path, "image/overlay2/layerdb/mounts/c7/mount-id")
	if err := os.Remove(filepath.Join(r.path, "image/overlay2/layerdb/mounts/c8/mount-id")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.RW("c7"); err == nil {
		t.Error("a damaged record is used")
	}
	if got := r.Problems(); len(got) != 2 || got[0].RW != "c7" || got[1].RW != "c8" {
		t.Errorf("problems: %v", got)
	}
	if err := r.CreateRW(t.Context(), "c8", layer.RWRequest{Parent: image.ChainID}); err != nil {
		t.Errorf("a name whose record is gone: %v", err)
	}
	r.mount(t, "c8")
	r.mount(t, "c9")
}
