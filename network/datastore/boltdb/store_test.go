package boltdb_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/hostile"
	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/network/datastore"
	"stated.dev/stated/network/datastore/boltdb"
	"stated.dev/stated/network/datastore/storetest"
)

func open(t *testing.T, path string) *boltdb.Store {
	t.Helper()
	s, err := boltdb.Open(context.Background(), boltdb.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	paths := sync.Map{}
	fresh := func(t *testing.T, path string) datastore.KV {
		s := open(t, path)
		paths.Store(s, path)
		return s
	}
	storetest.Run(t, func(t *testing.T) datastore.KV {
		kv := fresh(t, filepath.Join(t.TempDir(), "local-kv.db"))
		t.Cleanup(kv.Close)
		return kv
	}, func(t *testing.T, kv datastore.KV) datastore.KV {
		path, _ := paths.Load(kv)
		kv.Close()
		again := fresh(t, path.(string))
		t.Cleanup(again.Close)
		return again
	})
}

func TestSecondOpenNamesHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "local-kv.db")
	first := open(t, path)
	defer first.Close()
	start := time.Now()
	_, err := boltdb.Open(context.Background(), boltdb.Options{Path: path, LockWait: 100 * time.Millisecond})
	want := "boltdb file " + path + " is already open"
	if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Fatalf("got %v, want %q and pid %d", err, want, os.Getpid())
	}
	if time.Since(start) > time.Second {
		t.Fatalf("took %v", time.Since(start))
	}
}

func TestVanishedFileIsWrittenAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "local-kv.db")
	s := open(t, path)
	if err := s.Put("a/", []byte("1"), nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("b/", []byte("2"), nil); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, path)
	defer s.Close()
	for _, k := range []string{"a/", "b/"} {
		if _, err := s.Get(k); err != nil {
			t.Errorf("%s after reopening: %v", k, err)
		}
	}
}

// A damaged file never stops the start, and what was there at the last clean start is there again.
func TestDamagedFile(t *testing.T) {
	seed := filepath.Join(t.TempDir(), "local-kv.db")
	s := open(t, seed)
	for i := range 2000 {
		if err := s.Put("k/"+strconv.Itoa(i)+"/", bytes.Repeat([]byte("v"), 200), nil); err != nil {
			t.Fatal(err)
		}
		if i == 20 { // not 2000 flushes
			var ops []datastore.Op
			for j := 21; j < 2000; j++ {
				ops = append(ops, datastore.Op{Key: "k/" + strconv.Itoa(j) + "/", Value: bytes.Repeat([]byte("v"), 200)})
			}
			if _, _, err := s.Transact(context.Background(), ops); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	s.Close()
	good, err := os.ReadFile(seed)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	rng := rand.New(rand.NewSource(1))
	damage := map[string]func(b []byte) []byte{
		"truncated":    func(b []byte) []byte { return b[:len(b)/2] },
		"cut to bytes": func(b []byte) []byte { return b[:100] },
		"zeroed metas": func(b []byte) []byte { clear(b[:2*page]); return b },
		"noise":        func(b []byte) []byte { rng.Read(b); return b },
		"zeroed pages": func(b []byte) []byte { clear(b[2*page:]); return b },
		"cyclic": func(b []byte) []byte { // every page claims to be the branch that leads to the others
			for p := 3; p < len(b)/page; p++ {
				copy(b[p*page+8:], b[2*page+8:3*page])
			}
			return b
		},
	}
	for name, harm := range damage {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "local-kv.db")
			for suffix, data := range map[string][]byte{"": harm(bytes.Clone(good)), ".good": good} {
				if err := os.WriteFile(path+suffix, data, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			s := open(t, path)
			defer s.Close()
			if time.Since(start) > 5*time.Second {
				t.Errorf("start took %v", time.Since(start))
			}
			if s.Repair() == "" {
				t.Fatal("damage went unnoticed")
			}
			pairs, err := s.List("k/")
			if err != nil || len(pairs) != 2000 {
				t.Fatalf("%d keys of 2000 are back, %v", len(pairs), err)
			}
			left, _ := filepath.Glob(path + ".damaged-*")
			if len(left) != 1 {
				t.Errorf("the damaged file is not kept: %v", left)
			}
		})
	}
}

func TestQuarantine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "local-kv.db")
	s := open(t, path)
	defer s.Close()
	if err := s.Put("bad/", []byte("{"), nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Quarantine(context.Background(), "bad/"); err != nil {
		t.Fatal(err)
	}
	if ok, _ := s.Exists("bad/"); ok {
		t.Fatal("still listed")
	}
}

// Any bytes must be refused or opened, within bounded time and memory, and never panic.
func FuzzOpen(f *testing.F) {
	path := filepath.Join(f.TempDir(), "seed.db")
	s, err := boltdb.Open(context.Background(), boltdb.Options{Path: path})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.Put("k/", []byte("value"), nil); err != nil {
		f.Fatal(err)
	}
	s.Close()
	seed, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed[:16*1024], uint32(100), byte(1))
	f.Fuzz(func(t *testing.T, data []byte, at uint32, xor byte) {
		if len(data) > 0 {
			data[int(at)%len(data)] ^= xor
		}
		path := filepath.Join(t.TempDir(), "kv.db")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := boltdb.Open(context.Background(), boltdb.Options{Path: path})
		if err != nil {
			return
		}
		_, _ = s.List("") // an error is fine
		s.Close()
	})
}

// On a full disk a write fails whole and says why, what was written before stays readable, and a later write goes on.
func TestFullDisk(t *testing.T) {
	dir := scratch.Dir(t)
	image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	scratch.Run(t, "truncate", "-s", "16M", image)
	scratch.Run(t, "mkfs.ext4", "-q", "-F", "-m", "0", image)
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	scratch.Run(t, "mount", "-o", "loop", image, disk)
	path := filepath.Join(disk, "local-kv.db")
	s := open(t, path)
	defer func() { s.Close() }()
	written := map[string]uint64{}
	put := func() error {
		key := strconv.Itoa(len(written))
		indexes, _, err := s.Transact(t.Context(), []datastore.Op{{Key: key, Value: make([]byte, 3000)}})
		if err == nil {
			written[key] = indexes[0]
		}
		return err
	}
	whole := func() {
		t.Helper()
		pairs, err := s.List("")
		if err != nil || len(pairs) != len(written) {
			t.Fatalf("%d keys, %v; written were %d", len(pairs), err, len(written))
		}
		for _, p := range pairs {
			if written[p.Key] != p.LastIndex || len(p.Value) != 3000 {
				t.Errorf("%s has index %d and %d bytes, want index %d", p.Key, p.LastIndex, len(p.Value), written[p.Key])
			}
		}
	}
	full := func() {
		t.Helper()
		for refused := 0; refused < 3; {
			if err := put(); errors.Is(err, unix.ENOSPC) {
				refused++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		whole()
	}
	if err := put(); err != nil {
		t.Fatal(err)
	}
	ballast := hostile.FillDisk(t, disk)
	full()
	s.Close()
	s = open(t, path)
	if s.Repair() != "" {
		t.Error(s.Repair())
	}
	full()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := put(); err != nil {
			t.Fatal(err)
		}
	}
	whole()
	s.Close()
	s = open(t, path)
	whole()
}
