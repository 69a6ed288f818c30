package volumes_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"stated.dev/stated/volumes"
)

// spread runs op b.N times by a number of writers.
func spread(b *testing.B, writers int, op func(i int64) error) {
	b.Helper()
	var next atomic.Int64
	done := make(chan error, writers)
	b.ResetTimer()
	for range writers {
		go func() {
			for {
				i := next.Add(1)
				if i > int64(b.N) {
					done <- nil
					return
				}
				if err := op(i); err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "op/s")
}

func BenchmarkCreate(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			h := newHost(b)
			s := h.open()
			spread(b, writers, func(i int64) error {
				_, err := s.Create(context.Background(), volumes.CreateRequest{Name: fmt.Sprintf("vol%d", i)})
				return err
			})
		})
	}
}

// BenchmarkBareCommit is the floor under BenchmarkCreate: the same record, one bbolt transaction each, and nothing else.
func BenchmarkBareCommit(b *testing.B) {
	db, err := bbolt.Open(filepath.Join(b.TempDir(), "db"), 0o600, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	for i := 0; b.Loop(); i++ {
		err := db.Update(func(tx *bbolt.Tx) error {
			bucket, err := tx.CreateBucketIfNotExists([]byte("volumes"))
			if err != nil {
				return err
			}
			name := fmt.Sprintf("vol%d", i)
			return bucket.Put([]byte(name), []byte(`{"Name":"`+name+`","Driver":"local","Labels":null,"Options":null}`))
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRemove(b *testing.B) {
	for _, writers := range []int{1, 8} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			h := newHost(b)
			s := h.open()
			for i := range b.N {
				h.create(volumes.CreateRequest{Name: fmt.Sprintf("vol%d", i+1)})
			}
			spread(b, writers, func(i int64) error {
				return s.Remove(context.Background(), fmt.Sprintf("vol%d", i), volumes.RemoveRequest{})
			})
		})
	}
}

func BenchmarkInspect(b *testing.B) {
	h := newHost(b)
	s := h.open()
	h.create(volumes.CreateRequest{Name: "vol"})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Inspect(context.Background(), "vol"); err != nil {
			b.Fatal(err)
		}
	}
}

// many is a data root with 10,000 volumes that dockerd made.
func many(b *testing.B) *host {
	b.Helper()
	h := newHost(b)
	records := map[string]string{}
	for i := range 10_000 {
		name := fmt.Sprintf("volume-%05d", i)
		records[name] = fmt.Sprintf(`{"Name":%q,"Driver":"local","Labels":{"a":"b"},"Options":null}`, name)
		if err := os.MkdirAll(filepath.Join(h.dir(), name, "_data"), 0o755); err != nil {
			b.Fatal(err)
		}
	}
	h.write(records)
	return h
}

func BenchmarkOpen10000(b *testing.B) {
	h := many(b)
	for b.Loop() {
		h.open()
	}
}

func BenchmarkList10000(b *testing.B) {
	h := many(b)
	s := h.open()
	list := func(b *testing.B) {
		list, _, err := s.ListEncoded(context.Background(), nil)
		if err != nil || len(list) != 10_000 {
			b.Fatal(len(list), err)
		}
	}
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			s = h.open()
			b.StartTimer()
			list(b)
		}
	})
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			list(b)
		}
	})
}

// BenchmarkCopyUp fills volumes from an overlay with 2,000 files of 100 MB. With TMPDIR on xfs or btrfs the blocks are
// shared.
func BenchmarkCopyUp(b *testing.B) {
	h := newHost(b)
	s := h.open()
	lower := filepath.Join(h.root, "lower")
	for i := range 2000 {
		size := 10 << 10
		if i%10 == 0 {
			size = 400 << 10
		}
		dir := filepath.Join(lower, "data", fmt.Sprint(i/100))
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), make([]byte, size), 0o644)); err != nil {
			b.Fatal(err)
		}
	}
	merged := mountOverlay(b, h.root, lower)
	unix.Sync()
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprint("volume", i)
		h.create(volumes.CreateRequest{Name: name})
		if err := s.CopyUp(b.Context(), name, filepath.Join(merged, "data"), []string{filepath.Join(lower, "data")}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Remove(b.Context(), name, volumes.RemoveRequest{}); err != nil {
			b.Fatal(err)
		}
		unix.Sync()
		b.StartTimer()
	}
}
