package kvstore_test

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"

	"stated.dev/stated/kvstore"
)

// The shape of the benchmarks: 1000 directories of 100 keys, values of 128 bytes.
func benchKeys() []string {
	keys := make([]string, 0, 100_000)
	for d := range 1000 {
		for k := range 100 {
			keys = append(keys, fmt.Sprintf("/1/dir%04d/key%04d", d, k))
		}
	}
	return keys
}

func fill(b testing.TB, keys []string, size int) *kvstore.Store {
	b.Helper()
	s := kvstore.New(kvstore.Options{Namespaces: []string{"/0", "/1"}})
	value := strings.Repeat("v", size)
	for _, k := range keys {
		if _, err := s.Do(kvstore.Command{Op: kvstore.OpSet, Path: k, Value: value}); err != nil {
			b.Fatal(err)
		}
	}
	return s
}

// scattered visits all keys in an order that has nothing to do with their own.
func scattered(i int) int { return i * 7919 % 100_000 }

func BenchmarkSet(b *testing.B) {
	keys := benchKeys()
	s := fill(b, keys, 128)
	value := strings.Repeat("w", 128)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := s.Do(kvstore.Command{Op: kvstore.OpSet, Path: keys[scattered(i)], Value: value}); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkCompareAndSwap(b *testing.B) {
	keys := benchKeys()
	s := fill(b, keys, 128)
	value := strings.Repeat("v", 128)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := s.Do(kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: keys[scattered(i)], PrevValue: value, Value: value}); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkSetInOneDirectory(b *testing.B) {
	for _, n := range []int{1000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			keys := make([]string, n)
			for i := range keys {
				keys[i] = fmt.Sprintf("/1/key%07d", i*7919%n)
			}
			s := fill(b, keys, 16)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, err := s.Do(kvstore.Command{Op: kvstore.OpSet, Path: keys[i%n], Value: "0123456789abcdef"}); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	keys := benchKeys()
	s := fill(b, keys, 128)
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if _, err := s.Get(keys[scattered(i)], kvstore.GetRequest{}); err != nil {
				b.Fatal(err)
			}
			i++
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				if _, err := s.Get(keys[scattered(i)], kvstore.GetRequest{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	b.Run("directory of 100, sorted", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Get("/1/dir0500", kvstore.GetRequest{Sorted: true}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkWatchers(b *testing.B) {
	for _, idle := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("Set with %d idle", idle), func(b *testing.B) {
			s := fill(b, []string{"/1/a/b"}, 128)
			for i := range idle {
				if _, err := s.Watch(fmt.Sprintf("/1/idle/%d", i), kvstore.WatchRequest{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Do(kvstore.Command{Op: kvstore.OpSet, Path: "/1/a/b", Value: "v"}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("Set to 10000", func(b *testing.B) {
		s := fill(b, []string{"/1/a/b"}, 128)
		watchers := make([]*kvstore.Watcher, 10_000)
		for i := range watchers {
			w, err := s.Watch("/1/a/b", kvstore.WatchRequest{Stream: true})
			if err != nil {
				b.Fatal(err)
			}
			watchers[i] = w
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.Do(kvstore.Command{Op: kvstore.OpSet, Path: "/1/a/b", Value: "v"}); err != nil {
				b.Fatal(err)
			}
			for _, w := range watchers {
				if _, err := w.Next(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

// BenchmarkWaitingWatchers is a change that wakes 10,000 goroutines.
func BenchmarkWaitingWatchers(b *testing.B) {
	s := fill(b, []string{"/1/a/b"}, 128)
	var readers, seen sync.WaitGroup
	watchers := make([]*kvstore.Watcher, 10_000)
	for i := range watchers {
		w, err := s.Watch("/1/a/b", kvstore.WatchRequest{Stream: true})
		if err != nil {
			b.Fatal(err)
		}
		watchers[i] = w
		readers.Go(func() {
			for {
				if _, err := w.Next(b.Context()); err != nil {
					return
				}
				seen.Done()
			}
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		seen.Add(len(watchers))
		if _, err := s.Do(kvstore.Command{Op: kvstore.OpSet, Path: "/1/a/b", Value: "v"}); err != nil {
			b.Fatal(err)
		}
		seen.Wait()
	}
	for _, w := range watchers {
		w.Close()
	}
	readers.Wait()
}

// BenchmarkMillion reports what a million keys with values of 100 bytes take, and what it costs to move them.
func BenchmarkMillion(b *testing.B) {
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for _, shape := range []struct {
		name      string
		dirs, per int
		pad       int
	}{{"1000x1000", 1000, 1000, 0}, {"1x1000000", 1, 1_000_000, 0}, {"100000x10", 100_000, 10, 0}, {"1000x1000 with paths of 100 bytes", 1000, 1000, 75}} {
		build := func(b *testing.B, stride int) (*kvstore.Store, float64) {
			before := heap()
			s := kvstore.New(kvstore.Options{Namespaces: []string{"/0", "/1"}})
			pad := strings.Repeat("p", shape.pad)
			n := shape.dirs * shape.per
			for i := range n {
				k := i * stride % n
				_, err := s.Do(kvstore.Command{Op: kvstore.OpSet, Path: fmt.Sprintf("/1/%sd%06d/k%07d", pad, k/shape.per, k%shape.per), Value: fmt.Sprintf("%0100d", k)})
				if err != nil {
					b.Fatal(err)
				}
			}
			return s, float64(heap()-before) / float64(n)
		}
		b.Run("heap, keys in order, "+shape.name, func(b *testing.B) {
			for b.Loop() {
				s, size := build(b, 1)
				b.ReportMetric(size, "heapB/key")
				runtime.KeepAlive(s)
			}
		})
		b.Run("heap, keys scattered, "+shape.name, func(b *testing.B) {
			for b.Loop() {
				s, size := build(b, 7919)
				b.ReportMetric(size, "heapB/key")
				runtime.KeepAlive(s)
			}
		})
	}
	keys := make([]string, 0, 1_000_000)
	for d := range 1000 {
		for k := range 1000 {
			keys = append(keys, fmt.Sprintf("/1/d%06d/k%07d", d, k))
		}
	}
	s := fill(b, keys, 100)
	var stream bytes.Buffer
	b.Run("WriteTo", func(b *testing.B) {
		for b.Loop() {
			n, err := s.Snapshot().WriteTo(io.Discard)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(n)
		}
	})
	if _, err := s.Snapshot().WriteTo(&stream); err != nil {
		b.Fatal(err)
	}
	b.Run("Restore", func(b *testing.B) {
		for b.Loop() {
			if err := kvstore.New(kvstore.Options{}).Restore(bytes.NewReader(stream.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
	var document []byte
	b.Run("Save", func(b *testing.B) {
		for b.Loop() {
			var err error
			if document, err = s.Save(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Recovery", func(b *testing.B) {
		for b.Loop() {
			if err := kvstore.New(kvstore.Options{}).Recovery(document); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Snapshot", func(b *testing.B) {
		for b.Loop() {
			s.Snapshot().Release()
		}
	})
	b.Run("Clone", func(b *testing.B) {
		for b.Loop() {
			s.Clone()
		}
	})
}
