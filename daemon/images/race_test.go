package images_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	api "stated.dev/stated/api/router/images"
)

// TestManyAtOnce lets loads, tags, removals, lists and saves of the same images run into each other. In the end no
// layer may be held too often or too seldom.
func TestManyAtOnce(t *testing.T) {
	root := t.TempDir()
	h := open(t, root)
	a, b := makeImage(t, "ann", "one", "two"), makeImage(t, "bob", "one", "three")
	archives := [][]byte{legacyArchive(t, a, "app:v1"), legacyArchive(t, b, "app:v1", "app:v2"), legacyArchive(t, b)}
	refs := []string{"app:v1", "app:v2", "app:v3", a.id.String(), b.id.Encoded()[:12]}
	allowed := func(err error) bool { return err == nil || errdefs.IsNotFound(err) || errdefs.IsConflict(err) }
	steps := []func(i int) error{
		func(i int) error {
			return h.Load(t.Context(), bytes.NewReader(archives[i%len(archives)]), api.LoadRequest{}, func(message) error { return nil })
		},
		func(i int) error {
			_, err := h.Remove(t.Context(), refs[i%len(refs)], api.RemoveRequest{Force: i%2 == 0})
			return err
		},
		func(i int) error { return h.Tag(t.Context(), refs[i%len(refs)], tagged(t, "app:v3")) },
		func(i int) error { _, err := h.List(t.Context(), api.ListRequest{SharedSize: i%2 == 0}); return err },
		func(i int) error {
			_, err := h.Inspect(t.Context(), refs[i%len(refs)], nil)
			return err
		},
		func(i int) error {
			return h.Save(t.Context(), api.SaveRequest{Names: []string{refs[i%len(refs)]}}, io.Discard)
		},
		func(i int) error {
			_, err := h.Import(t.Context(), bytes.NewReader(a.layers[i%2]), api.ImportRequest{Target: tagged(t, "app:v2")})
			return err
		},
		func(int) error { _, err := h.Prune(t.Context(), nil); return err },
	}
	var wg sync.WaitGroup
	for n, step := range steps {
		wg.Go(func() {
			for i := range 30 {
				if err := step(i); !allowed(err) {
					t.Errorf("step %d: %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	again := open(t, root)
	if again.Count() != h.Count() || len(again.Problems()) != 0 {
		t.Errorf("%d images after a restart instead of %d: %v", again.Count(), h.Count(), again.Problems())
	}
	all, err := h.List(t.Context(), api.ListRequest{All: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range all {
		if _, err := h.Remove(t.Context(), img.ID, api.RemoveRequest{Force: true}); err != nil {
			t.Error(err)
		}
	}
	wantEmpty(t, h)
}

// BenchmarkOpen opens 1000 images with configurations of about 5 kB.
func BenchmarkOpen(b *testing.B) {
	root := b.TempDir()
	h := open(b, root)
	img := makeImage(b, "base", "one")
	mustLoad(b, h, legacyArchive(b, img))
	content := filepath.Join(root, "image/fake/imagedb/content/sha256")
	repos := map[string]map[string]string{}
	for i := range 1000 {
		filler := fmt.Sprintf(`"author":"base","filler%d":"%s"`, i, bytes.Repeat([]byte("x"), 4<<10))
		config := bytes.Replace(img.config, []byte(`"author":"base"`), []byte(filler), 1)
		id := digestOf(config)
		if err := os.WriteFile(filepath.Join(content, id.Encoded()), config, 0o600); err != nil {
			b.Fatal(err)
		}
		name := fmt.Sprintf("app%d", i)
		repos[name] = map[string]string{name + ":latest": id.String()}
	}
	data := toJSON(b, map[string]any{"Repositories": repos})
	if err := os.WriteFile(filepath.Join(root, "image/fake/repositories.json"), data, 0o600); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if n := open(b, root).Count(); n != 1001 {
			b.Fatalf("%d images", n)
		}
	}
}
