// Package storetest is the conformance suite of network stores: what the controller relies on, whatever the
// backend. A backend's test is a constructor and one call of Run.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/docker/libkv/store"

	"stated.dev/stated/network/datastore"
)

// Run exercises a store that can do transactions. Each test has a fresh, empty store. Reopen closes a store and opens what
// it left behind.
func Run(t *testing.T, open func(t *testing.T) datastore.KV, reopen func(t *testing.T, kv datastore.KV) datastore.KV) {
	RunStore(t, func(t *testing.T) store.Store { return open(t) }, Features{})
	ctx := context.Background()
	t.Run("TransactAllOrNothing", func(t *testing.T) {
		kv := open(t)
		must(t, kv.Put("old/", []byte("x"), nil))
		_, _, err := kv.Transact(ctx, []datastore.Op{
			{Key: "new/", Value: []byte("y")},
			{Key: "old/", Value: []byte("z"), Check: datastore.Absent},
		})
		if !errors.Is(err, store.ErrKeyExists) {
			t.Fatalf("failing transaction: %v", err)
		}
		if ok, _ := kv.Exists("new/"); ok {
			t.Fatal("a failed transaction wrote a key")
		}
		indexes, newest, err := kv.Transact(ctx, []datastore.Op{{Key: "new/", Value: []byte("y")}, {Key: "old/"}})
		must(t, err)
		if ok, _ := kv.Exists("old/"); ok || indexes[0] != newest || indexes[1] != 0 {
			t.Fatalf("transaction: old exists %v, indexes %v, newest %d", ok, indexes, newest)
		}
	})
	t.Run("IndexSurvivesReopen", func(t *testing.T) {
		kv := open(t)
		var last *store.KVPair
		for i := range 5 {
			var err error
			_, last, err = kv.AtomicPut(fmt.Sprintf("k%d/", i), []byte("v"), nil, nil)
			must(t, err)
		}
		kv = reopen(t, kv)
		_, next, err := kv.AtomicPut("again/", []byte("v"), nil, nil)
		must(t, err)
		if next.LastIndex <= last.LastIndex {
			t.Fatalf("index %d after reopening, %d before", next.LastIndex, last.LastIndex)
		}
	})
}

// Features are what not every store has.
type Features struct {
	Tree    bool               // directories: List returns what is directly in one, and what is not there cannot be deleted
	Watches bool               // Watch, WatchTree
	Locks   bool               // NewLock
	Expire  func(t *testing.T) // lets everything become overdue that lives an hour or less; nil when nothing expires
}

// RunStore exercises libkv's interface. Each test has a fresh, empty store, which open closes at the end.
func RunStore(t *testing.T, open func(t *testing.T) store.Store, has Features) {
	t.Run("PutGetDelete", func(t *testing.T) {
		kv := open(t)
		if _, err := kv.Get("a/"); !errors.Is(err, store.ErrKeyNotFound) {
			t.Fatalf("Get of an absent key: %v", err)
		}
		must(t, kv.Put("a/", []byte("one"), nil))
		p, err := kv.Get("a/")
		must(t, err)
		if string(p.Value) != "one" || p.LastIndex == 0 {
			t.Fatalf("got %q at index %d", p.Value, p.LastIndex)
		}
		if ok, err := kv.Exists("a/"); !ok || err != nil {
			t.Fatalf("Exists: %v, %v", ok, err)
		}
		must(t, kv.Delete("a/"))
		if ok, err := kv.Exists("a/"); ok || err != nil {
			t.Fatalf("Exists after Delete: %v, %v", ok, err)
		}
	})
	t.Run("AtomicPut", func(t *testing.T) {
		kv := open(t)
		_, first, err := kv.AtomicPut("k/", []byte("1"), nil, nil)
		must(t, err)
		if _, _, err := kv.AtomicPut("k/", []byte("x"), nil, nil); !errors.Is(err, store.ErrKeyExists) {
			t.Fatalf("create over an existing key: %v", err)
		}
		_, second, err := kv.AtomicPut("k/", []byte("2"), first, nil)
		must(t, err)
		if second.LastIndex <= first.LastIndex {
			t.Fatalf("index went from %d to %d", first.LastIndex, second.LastIndex)
		}
		if _, _, err := kv.AtomicPut("k/", []byte("x"), first, nil); !errors.Is(err, store.ErrKeyModified) {
			t.Fatalf("stale update: %v", err)
		}
		if _, err := kv.AtomicDelete("k/", first); !errors.Is(err, store.ErrKeyModified) {
			t.Fatalf("stale delete: %v", err)
		}
		if _, err := kv.AtomicDelete("k/", nil); !errors.Is(err, store.ErrPreviousNotSpecified) {
			t.Fatalf("delete without previous: %v", err)
		}
		if _, _, err := kv.AtomicPut("none/", []byte("x"), second, nil); !errors.Is(err, store.ErrKeyNotFound) {
			t.Fatalf("update of an absent key: %v", err)
		}
		if p, err := kv.Get("k/"); err != nil || p.LastIndex != second.LastIndex {
			t.Fatalf("Get after AtomicPut: %v, %v, want index %d", p, err, second.LastIndex)
		}
		_, err = kv.AtomicDelete("k/", second)
		must(t, err)
		if _, err := kv.AtomicDelete("k/", second); !errors.Is(err, store.ErrKeyNotFound) {
			t.Fatalf("delete of an absent key: %v", err)
		}
	})
	t.Run("ListAndTree", func(t *testing.T) {
		kv := open(t)
		if _, err := kv.List("d/"); !errors.Is(err, store.ErrKeyNotFound) {
			t.Fatalf("List of nothing: %v", err)
		}
		for _, k := range []string{"d/1/", "d/2/", "e/1/"} {
			must(t, kv.Put(k, []byte(k), nil))
		}
		pairs, err := kv.List("d/")
		must(t, err)
		if len(pairs) != 2 || strings.Trim(pairs[0].Key, "/") != "d/1" || string(pairs[1].Value) != "d/2/" {
			t.Fatalf("List: %v", pairs)
		}
		must(t, kv.DeleteTree("d/"))
		if _, err := kv.List("d/"); !errors.Is(err, store.ErrKeyNotFound) {
			t.Fatalf("List after DeleteTree: %v", err)
		}
		if _, err := kv.Get("e/1/"); err != nil {
			t.Fatalf("DeleteTree took a neighbour: %v", err)
		}
	})
	t.Run("Concurrent", func(t *testing.T) {
		kv := open(t)
		must(t, kv.Put("counter/", []byte{0}, nil))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for added := 0; added < 10; {
					p, err := kv.Get("counter/")
					if err != nil {
						t.Error(err)
						return
					}
					_, _, err = kv.AtomicPut("counter/", []byte{p.Value[0] + 1}, p, nil)
					switch {
					case err == nil:
						added++
					case !errors.Is(err, store.ErrKeyModified):
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		p, err := kv.Get("counter/")
		must(t, err)
		if p.Value[0] != 80 {
			t.Fatalf("80 increments gave %d", p.Value[0])
		}
	})
	if has.Tree {
		runTree(t, open)
	}
	if has.Watches {
		runWatches(t, open)
	}
	if has.Locks {
		runLocks(t, open, has)
	} else {
		t.Run("NoLocks", func(t *testing.T) {
			if _, err := open(t).NewLock("l", nil); !errors.Is(err, store.ErrCallNotSupported) {
				t.Errorf("NewLock: %v", err)
			}
		})
	}
	if !has.Watches {
		t.Run("NoWatches", func(t *testing.T) {
			kv := open(t)
			if _, err := kv.Watch("k/", nil); !errors.Is(err, store.ErrCallNotSupported) {
				t.Errorf("Watch: %v", err)
			}
			if _, err := kv.WatchTree("k/", nil); !errors.Is(err, store.ErrCallNotSupported) {
				t.Errorf("WatchTree: %v", err)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
