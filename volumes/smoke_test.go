package volumes_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/local"
)

func openStore(t testing.TB, root string) *volumes.Store {
	t.Helper()
	dir := filepath.Join(root, "volumes")
	s, err := volumes.Open(t.Context(), volumes.Options{
		Dir:     dir,
		Drivers: map[string]volumes.Driver{"local": local.New(local.Options{Dir: dir})},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestSmoke(t *testing.T) {
	s := openStore(t, t.TempDir())
	v, err := s.Create(t.Context(), volumes.CreateRequest{Name: "hello", Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", v)
	raw, err := s.Inspect(t.Context(), "hello")
	t.Logf("%s %v", raw, err)
	l, w, err := s.ListEncoded(t.Context(), nil)
	t.Logf("%s %v %v", l, w, err)
	if err := s.Remove(t.Context(), "hello", volumes.RemoveRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkCreate(b *testing.B) {
	for _, writers := range []int{1, 8} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			s := openStore(b, b.TempDir())
			var n atomic.Int64
			b.SetParallelism((writers + 1) / 2)
			if writers == 1 {
				for b.Loop() {
					if _, err := s.Create(context.Background(), volumes.CreateRequest{Name: fmt.Sprintf("vol%d", n.Add(1))}); err != nil {
						b.Fatal(err)
					}
				}
				return
			}
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := s.Create(context.Background(), volumes.CreateRequest{Name: fmt.Sprintf("vol%d", n.Add(1))}); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
