package storetest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/libkv/store"
)

// limit is how long a test waits for what has to come.
const limit = 30 * time.Second

func runTree(t *testing.T, open func(t *testing.T) store.Store) {
	t.Run("Directories", func(t *testing.T) {
		kv := open(t)
		must(t, kv.Put("/a/b/c", []byte("1"), nil))
		must(t, kv.Put("a/d", []byte("2"), nil))
		must(t, kv.Put("a/empty", nil, &store.WriteOptions{IsDir: true}))
		must(t, kv.Put("a/empty", nil, &store.WriteOptions{IsDir: true}))
		pairs, err := kv.List("/a/")
		must(t, err)
		if got := keys(pairs); got != "a/b= a/d=2 a/empty=" {
			t.Errorf("List: %s", got)
		}
		for _, p := range pairs {
			same, err := kv.Get(p.Key)
			if err != nil || same.Key != p.Key || same.LastIndex != p.LastIndex || p.LastIndex == 0 {
				t.Errorf("Get gives %+v, %v, and List %+v", same, err, p)
			}
		}
		if ok, err := kv.Exists("a/b"); !ok || err != nil {
			t.Errorf("Exists of a directory: %t, %v", ok, err)
		}
		for _, dir := range []string{"a/empty", "none", "a/d"} {
			if _, err := kv.List(dir); !errors.Is(err, store.ErrKeyNotFound) {
				t.Errorf("List of %s: %v", dir, err)
			}
		}
		for what, err := range map[string]error{
			"Delete": kv.Delete("none"), "Delete of a directory": kv.Delete("a/b"), "DeleteTree": kv.DeleteTree("none"),
		} {
			if !errors.Is(err, store.ErrKeyNotFound) {
				t.Errorf("%s of what is no key: %v", what, err)
			}
		}
		if err := kv.Put("a/d/e", []byte("3"), nil); err == nil {
			t.Error("a key below a key is written")
		}
		if _, _, err := kv.AtomicPut("a/d", []byte("3"), &store.KVPair{Key: "a/d"}, nil); !errors.Is(err, store.ErrKeyModified) {
			t.Errorf("AtomicPut without an index: %v", err)
		}
		if _, err := kv.AtomicDelete("a/d", &store.KVPair{Key: "a/d"}); !errors.Is(err, store.ErrKeyModified) {
			t.Errorf("AtomicDelete without an index: %v", err)
		}
		must(t, kv.DeleteTree("/"))
		if _, err := kv.List(""); !errors.Is(err, store.ErrKeyNotFound) {
			t.Errorf("List of nothing: %v", err)
		}
	})
}

// keys is a list on one line.
func keys(pairs []*store.KVPair) string {
	var list []string
	for _, p := range pairs {
		list = append(list, p.Key+"="+string(p.Value))
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// next waits for what a channel brings.
func next[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v, open := <-c:
		if !open {
			t.Fatal("the channel is closed")
		}
		return v
	case <-time.After(limit):
		t.Fatal("nothing comes")
		panic("not reached")
	}
}

// ended waits for the end of a channel, over what is still in it.
func ended[T any](t *testing.T, c <-chan T) {
	t.Helper()
	for deadline := time.After(limit); ; {
		select {
		case _, open := <-c:
			if !open {
				return
			}
		case <-deadline:
			t.Fatal("the channel is not closed")
		}
	}
}

func runWatches(t *testing.T, open func(t *testing.T) store.Store) {
	t.Run("Watch", func(t *testing.T) {
		kv := open(t)
		if _, err := kv.Watch("k", nil); !errors.Is(err, store.ErrKeyNotFound) {
			t.Errorf("Watch of an absent key: %v", err)
		}
		must(t, kv.Put("k", []byte("1"), nil))
		stop := make(chan struct{})
		c, err := kv.Watch("/k/", stop)
		must(t, err)
		_, second, err := kv.AtomicPut("k", []byte("2"), mustGet(t, kv, "k"), nil)
		must(t, err)
		must(t, kv.Put("other", []byte("x"), nil))
		must(t, kv.Delete("k"))
		must(t, kv.Put("k", []byte{}, nil))
		for i, want := range []string{"1", "2", "", ""} {
			p := next(t, c)
			if p.Key != "k" || string(p.Value) != want || (p.Value == nil) != (i == 2) || i == 1 && p.LastIndex != second.LastIndex {
				t.Errorf("event %d is %+v, want %q", i, p, want)
			}
		}
		close(stop)
		ended(t, c)
	})
	t.Run("WatchKeepsEveryChange", func(t *testing.T) {
		kv := open(t)
		must(t, kv.Put("k", []byte{0}, nil))
		c, err := kv.Watch("k", nil)
		must(t, err)
		// More than wait for a reader anywhere: this one reads nothing before the last.
		for i := range 250 {
			must(t, kv.Put("k", []byte{byte(i + 1)}, nil))
		}
		for i := range 251 {
			if p := next(t, c); p.Value[0] != byte(i) {
				t.Fatalf("event %d has the value %d", i, p.Value[0])
			}
		}
	})
	t.Run("WatchTree", func(t *testing.T) {
		kv := open(t)
		if _, err := kv.WatchTree("d", nil); !errors.Is(err, store.ErrKeyNotFound) {
			t.Errorf("WatchTree of an absent directory: %v", err)
		}
		must(t, kv.Put("d", nil, &store.WriteOptions{IsDir: true}))
		stop := make(chan struct{})
		c, err := kv.WatchTree("d", stop)
		must(t, err)
		list := func(want string) {
			t.Helper()
			// A list may come once more than needed, but never an old one after a new one.
			for before := ""; ; {
				got := keys(next(t, c))
				if got == want {
					return
				}
				if before != "" && got != before {
					t.Fatalf("the list is %q, want %q", got, want)
				}
				before = got
			}
		}
		list("")
		must(t, kv.Put("d/1", []byte("a"), nil))
		list("d/1=a")
		must(t, kv.Put("d/2", []byte("b"), nil))
		list("d/1=a d/2=b")
		must(t, kv.Delete("d/1"))
		list("d/2=b")
		must(t, kv.DeleteTree("d"))
		list("")
		must(t, kv.Put("d/3", []byte("c"), nil))
		list("d/3=c")
		close(stop)
		ended(t, c)
	})
	t.Run("CloseEndsWatches", func(t *testing.T) {
		kv := open(t)
		must(t, kv.Put("d/k", []byte("1"), nil))
		one, err := kv.Watch("d/k", nil)
		must(t, err)
		tree, err := kv.WatchTree("d", nil)
		must(t, err)
		next(t, one)
		kv.Close()
		ended(t, one)
		ended(t, tree)
		if _, err := kv.Watch("d/k", nil); !errors.Is(err, store.ErrNotReachable) {
			t.Errorf("Watch after Close: %v", err)
		}
		if err := kv.Put("d/k", nil, nil); !errors.Is(err, store.ErrNotReachable) {
			t.Errorf("Put after Close: %v", err)
		}
	})
}

func mustGet(t *testing.T, kv store.Store, key string) *store.KVPair {
	t.Helper()
	p, err := kv.Get(key)
	must(t, err)
	return p
}

func runLocks(t *testing.T, open func(t *testing.T) store.Store, has Features) {
	lock := func(t *testing.T, kv store.Store, value string) store.Locker {
		t.Helper()
		l, err := kv.NewLock("locks/l", &store.LockOptions{Value: []byte(value), TTL: time.Hour})
		must(t, err)
		return l
	}
	t.Run("Lock", func(t *testing.T) {
		kv := open(t)
		first, second := lock(t, kv, "first"), lock(t, kv, "second")
		if err := first.Unlock(); err == nil {
			t.Error("a lock is released that is not held")
		}
		lost, err := first.Lock(nil)
		must(t, err)
		if p := mustGet(t, kv, "locks/l"); string(p.Value) != "first" {
			t.Errorf("the lock's key has the value %q", p.Value)
		}
		if _, err := first.Lock(nil); !errors.Is(err, store.ErrCannotLock) {
			t.Errorf("a lock that is held is taken again: %v", err)
		}
		stop := make(chan struct{})
		close(stop)
		if _, err := second.Lock(stop); !errors.Is(err, store.ErrCannotLock) || !strings.HasPrefix(err.Error(), "lock operation aborted") {
			t.Errorf("a wait that was told to stop: %v", err)
		}
		got := make(chan error, 1)
		go func() {
			_, err := second.Lock(nil)
			got <- err
		}()
		must(t, first.Unlock())
		ended(t, lost)
		must(t, next(t, got))
		if p := mustGet(t, kv, "locks/l"); string(p.Value) != "second" {
			t.Errorf("the lock's key has the value %q", p.Value)
		}
		must(t, second.Unlock())
		if ok, err := kv.Exists("locks/l"); ok || err != nil {
			t.Errorf("the key of a lock that nobody holds: %t, %v", ok, err)
		}
	})
	t.Run("LockExcludes", func(t *testing.T) {
		kv := open(t)
		must(t, kv.Put("counter", []byte{0}, nil))
		done := make(chan error)
		for range 4 {
			go func() {
				l, err := kv.NewLock("l", nil)
				for range 5 {
					if err == nil {
						_, err = l.Lock(nil)
					}
					var p *store.KVPair
					if err == nil {
						p, err = kv.Get("counter")
					}
					if err == nil {
						err = kv.Put("counter", []byte{p.Value[0] + 1}, nil)
					}
					if err == nil {
						err = l.Unlock()
					}
				}
				done <- err
			}()
		}
		for range 4 {
			must(t, next(t, done))
		}
		if p := mustGet(t, kv, "counter"); p.Value[0] != 20 {
			t.Errorf("20 increments gave %d", p.Value[0])
		}
	})
	if has.Expire != nil {
		t.Run("LockOfTheDead", func(t *testing.T) {
			kv := open(t)
			renew := make(chan struct{})
			dead, err := kv.NewLock("locks/l", &store.LockOptions{TTL: time.Hour, RenewLock: renew})
			must(t, err)
			lost, err := dead.Lock(nil)
			must(t, err)
			close(renew)
			ended(t, lost)
			got := make(chan error, 1)
			next2 := lock(t, kv, "next")
			go func() {
				_, err := next2.Lock(nil)
				got <- err
			}()
			has.Expire(t)
			must(t, next(t, got))
			if err := dead.Unlock(); err == nil {
				t.Error("who has lost a lock takes it from another")
			}
			must(t, next2.Unlock())
		})
		t.Run("Expire", func(t *testing.T) {
			kv := open(t)
			must(t, kv.Put("k", []byte("1"), &store.WriteOptions{TTL: time.Minute}))
			c, err := kv.Watch("k", nil)
			must(t, err)
			next(t, c)
			has.Expire(t)
			if p := next(t, c); p.Value != nil {
				t.Errorf("a key that expires is told as %+v", p)
			}
		})
	}
}
