package raft_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"stated.dev/stated/cluster/raft"
)

// BenchmarkPropose is one durable command of 128 bytes an operation. STATED_TEST_DISK says where, because a temporary
// directory may be in memory.
func BenchmarkPropose(b *testing.B) {
	for _, writers := range []int{1, 8, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			l, _ := open(b, disk(b), func(o *raft.Options) { o.Machines[0].Machine = &count{} })
			command := make([]byte, 128)
			before := l.Stats().Flushes
			next := make(chan struct{}, 1024)
			errs := make(chan error, writers)
			var wg sync.WaitGroup
			b.ResetTimer()
			for range writers {
				wg.Go(func() {
					for range next {
						if _, err := l.Propose(context.Background(), 1, command); err != nil {
							errs <- err
							return
						}
					}
				})
			}
			for range b.N {
				next <- struct{}{}
			}
			close(next)
			wg.Wait()
			b.StopTimer()
			close(errs)
			if err := <-errs; err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "applies/s")
			b.ReportMetric(float64(l.Stats().Flushes-before)/float64(b.N), "flushes/op")
		})
	}
}

// BenchmarkFlush is what the disk can do: 4 KiB over old ones and an fdatasync an operation.
func BenchmarkFlush(b *testing.B) {
	f, err := os.Create(filepath.Join(disk(b), "flush"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	for at := range int64(256) {
		_, werr := f.WriteAt(page, at*4096)
		err = errors.Join(err, werr)
	}
	if err := errors.Join(err, f.Sync()); err != nil {
		b.Fatal(err)
	}
	b.ResetTimer()
	for i := range b.N {
		if _, err := f.WriteAt(page, int64(i%256)*4096); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "flushes/s")
}

// BenchmarkOpen is a start until the host leads and the machines have seen all, of a new log and of ones with commands.
func BenchmarkOpen(b *testing.B) {
	for _, commands := range []int{-1, 0, 1000, 100_000} {
		b.Run(fmt.Sprintf("commands=%d", commands), func(b *testing.B) {
			dir := disk(b)
			if commands >= 0 {
				l, _ := open(b, dir, func(o *raft.Options) { o.Machines[0].Machine = &count{} })
				var wg sync.WaitGroup
				for w := range 64 {
					wg.Go(func() {
						for i := w; i < commands; i += 64 {
							if _, err := l.Propose(context.Background(), 1, make([]byte, 128)); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				closeLog(b, l)
			}
			b.ResetTimer()
			for i := range b.N {
				at := dir
				if commands < 0 {
					at = filepath.Join(dir, fmt.Sprint(i))
				}
				l, err := raft.Open(b.Context(), raft.Options{Dir: at, Machines: []raft.Slot{{ID: 1, Name: "tape", Machine: &count{}}}})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				closeLog(b, l)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkReadIndex is what a read that is not stale costs.
func BenchmarkReadIndex(b *testing.B) {
	l, _ := open(b, disk(b))
	propose(b, l, "a")
	for b.Loop() {
		if err := l.ReadIndex(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// disk is a directory on the disk to be measured.
func disk(b *testing.B) string {
	b.Helper()
	at := os.Getenv("STATED_TEST_DISK")
	if at == "" {
		return b.TempDir()
	}
	dir, err := os.MkdirTemp(at, "stated-test-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) }) // only litter
	return dir
}
