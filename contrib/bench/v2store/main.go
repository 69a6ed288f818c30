// Command v2store measures a key tree in memory: stated's, or the one of etcd 3.5, package v2store, with the same keys,
// values and readers. It is a module of its own, so that what etcd needs shifts no version of stated's.
//
// It reads the names of measurements, one a line, and answers each with a line of JSON. Each tree has a process of its own
// which holds nothing else, so that neither pays for the other's memory; the benchmark above runs two of them in turn.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
)

// tree is what is measured of both.
type tree interface {
	set(path, value string) error
	compareAndSwap(path, before, value string) error
	get(path string) error
	// watch begins a watch of one path for many events, and returns what waits for the next.
	watch(path string) (next func(), err error)
	save(w io.Writer) error        // in the form that the tree's own server writes to disk
	saveDocument() ([]byte, error) // as etcd's JSON document
	clone() any
}

// side makes trees of one kind.
type side struct {
	empty           func() tree
	recover         func(r io.Reader) (tree, error)
	recoverDocument func(saved []byte) (tree, error)
}

// result is what one measurement gave.
type result struct {
	Value  float64 // nanoseconds for one operation, or bytes for one key
	Allocs float64 // for one operation
}

func main() {
	name := flag.String("side", "stated", "the tree to measure: stated or v2store")
	file := flag.String("file", "", "file to save a tree to")
	flag.Parse()
	if err := run(*name, *file); err != nil {
		fmt.Fprintln(os.Stderr, "v2store:", err)
		os.Exit(1)
	}
}

func run(name, file string) error {
	sides := map[string]side{"stated": ours, "v2store": theirs}
	s, known := sides[name]
	if !known {
		return fmt.Errorf("there is no side %q", name)
	}
	b := &bench{side: s, file: file}
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		r, err := b.measure(lines.Text())
		if err != nil {
			return fmt.Errorf("%s: %s: %w", name, lines.Text(), err)
		}
		if err := out.Encode(r); err != nil {
			return err
		}
	}
	return lines.Err()
}

// The shapes of the trees.
const (
	few, fewDirs   = 100_000, 1000
	many, manyDirs = 1_000_000, 1000
	watchers       = 10_000
	idleWatchers   = 100_000
)

type bench struct {
	side side
	file string

	small, watched, lone, idle, big tree // made when they are first needed
	keys                            []string
	seen                            []func()
	saved, document                 []byte
}

func (b *bench) measure(what string) (result, error) {
	if err := b.prepare(what); err != nil {
		return result{}, err
	}
	runtime.GC() // what is left of the preparation is not to be paid for here
	value, other := strings.Repeat("v", 128), strings.Repeat("w", 128)
	switch what {
	case "set":
		return timed(200_000, func(i int) error { return b.small.set(b.keys[i%few], other) })
	case "cas":
		// All keys have one value: it was set by the preparation, and is swapped for itself.
		return timed(200_000, func(i int) error { return b.small.compareAndSwap(b.keys[i%few], value, value) })
	case "get":
		return timed(400_000, func(i int) error { return b.small.get(b.keys[i%few]) })
	case "parallel get":
		return b.parallel(2, 400_000)
	case "set watched":
		return timed(200, func(int) error {
			if err := b.watched.set("/1/a/b", value); err != nil {
				return err
			}
			for _, next := range b.seen {
				next()
			}
			return nil
		})
	case "set unwatched":
		return timed(200_000, func(i int) error { return b.lone.set("/1/a/b", value) })
	case "set beside idle":
		return timed(200_000, func(i int) error { return b.idle.set("/1/a/b", value) })
	case "heap":
		return b.heap()
	case "save":
		return timed(1, b.saveFile)
	case "recover":
		return timed(1, b.recoverFile)
	case "save document":
		return timed(1, func(int) (err error) { b.document, err = b.big.saveDocument(); return err })
	case "recover document":
		return timed(1, func(int) error { _, err := b.side.recoverDocument(b.document); return err })
	case "clone":
		return timed(1, func(int) error { runtime.KeepAlive(b.big.clone()); return nil })
	}
	return result{}, errors.New("there is no such measurement")
}

// prepare makes the trees that a measurement needs, and forgets those of others: they would be work for the collector.
func (b *bench) prepare(what string) error {
	switch what {
	case "set", "cas", "get", "parallel get":
		b.watched, b.seen, b.lone, b.idle, b.big = nil, nil, nil, nil, nil
		if b.small == nil {
			b.keys = nil
			for i := range few {
				// In no order, and in memory in the order in which they are used: the list is no part of what is measured.
				k := i * 7919 % few
				b.keys = append(b.keys, fmt.Sprintf("/1/dir%04d/key%04d", k*fewDirs/few, k%(few/fewDirs)))
			}
			b.small = b.side.empty()
		} else if what != "cas" {
			return nil
		}
		value := strings.Repeat("v", 128)
		for _, k := range b.keys {
			if err := b.small.set(k, value); err != nil {
				return err
			}
		}
	case "set watched":
		b.small, b.lone, b.idle, b.big = nil, nil, nil, nil
		if b.watched != nil {
			return nil
		}
		b.watched = b.side.empty()
		if err := b.watched.set("/1/a/b", "v"); err != nil {
			return err
		}
		for range watchers {
			next, err := b.watched.watch("/1/a/b")
			if err != nil {
				return err
			}
			b.seen = append(b.seen, next)
		}
	case "set unwatched", "set beside idle":
		// Both trees are there for both measurements, so that the collector has the same work.
		b.small, b.watched, b.seen, b.big = nil, nil, nil, nil
		if b.idle != nil {
			return nil
		}
		b.lone, b.idle = b.side.empty(), b.side.empty()
		for i := range idleWatchers {
			if _, err := b.idle.watch(fmt.Sprintf("/1/idle/%d", i)); err != nil {
				return err
			}
		}
	case "save", "recover", "save document", "recover document", "clone":
		b.small, b.watched, b.seen, b.lone, b.idle = nil, nil, nil, nil, nil
		if b.big == nil {
			if err := b.fill(); err != nil {
				return err
			}
		}
	}
	return nil
}

// fill makes the big tree. Each key has a value of its own of 100 bytes.
func (b *bench) fill() error {
	b.big = b.side.empty()
	for i := range many {
		k := i * 7919 % many // in no order
		if err := b.big.set(fmt.Sprintf("/1/d%06d/k%07d", k*manyDirs/many, k%(many/manyDirs)), fmt.Sprintf("%0100d", k)); err != nil {
			return err
		}
	}
	return nil
}

// saveFile writes the big tree to a file, which is not flushed.
func (b *bench) saveFile(int) error {
	f, err := os.Create(b.file)
	if err != nil {
		return err
	}
	return errors.Join(b.big.save(f), f.Close())
}

func (b *bench) recoverFile(int) error {
	f, err := os.Open(b.file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = b.side.recover(f)
	return err
}

// heap is what a key of the big tree takes.
func (b *bench) heap() (result, error) {
	*b = bench{side: b.side, file: b.file}
	before := heapInUse()
	err := b.fill()
	return result{Value: float64(heapInUse()-before) / many}, err
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// parallel reads n keys from some goroutines.
func (b *bench) parallel(workers, n int) (result, error) {
	r, err := timed(1, func(int) error {
		errs := make([]error, workers)
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := w; i < n && errs[w] == nil; i += workers {
					errs[w] = b.small.get(b.keys[i%few])
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	})
	return result{Value: r.Value / float64(n), Allocs: math.Round(r.Allocs/float64(n)*100) / 100}, err
}

// timed does an operation n times.
func timed(n int, f func(i int) error) (result, error) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	started := time.Now()
	for i := range n {
		if err := f(i); err != nil {
			return result{}, err
		}
	}
	took := time.Since(started)
	runtime.ReadMemStats(&after)
	return result{Value: float64(took) / float64(n), Allocs: math.Round(float64(after.Mallocs-before.Mallocs)/float64(n)*100) / 100}, nil
}
