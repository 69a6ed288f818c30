package embedded_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/docker/libkv/store"

	"stated.dev/stated/kvstore"
	"stated.dev/stated/network/datastore/embedded"
	"stated.dev/stated/network/datastore/storetest"
)

// direct is a log that applies at once, unless it is told to fail.
type direct struct {
	replica *kvstore.Replica

	mu   sync.Mutex // guards what follows, and orders commands
	fail bool       // proposals have no answer, but are applied
}

var errAmbiguous = errors.New("leadership was lost")

func (d *direct) Propose(_ context.Context, command []byte) (any, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	result := d.replica.Apply(command)
	if d.fail {
		return nil, errAmbiguous
	}
	return result, nil
}

func (d *direct) Leading() (bool, <-chan struct{})    { return true, nil }
func (d *direct) ReadIndex(ctx context.Context) error { return ctx.Err() }

func (d *direct) setFail(fail bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = fail
}

func newTree(t *testing.T) (*kvstore.Replica, *direct) {
	r := kvstore.NewReplica(kvstore.New(kvstore.Options{Namespaces: []string{"/0", "/1"}}), kvstore.ReplicaOptions{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	d := &direct{replica: r}
	r.Attach(d)
	return r, d
}

func TestConformance(t *testing.T) {
	trees := sync.Map{}
	storetest.RunStore(t, func(t *testing.T) store.Store {
		r, _ := newTree(t)
		trees.Store(t.Name(), r)
		s := embedded.New(r, embedded.Options{})
		t.Cleanup(s.Close)
		return s
	}, storetest.Features{Tree: true, Watches: true, Locks: true, Expire: func(t *testing.T) {
		r, _ := trees.Load(t.Name())
		r.(*kvstore.Replica).Apply(kvstore.Command{Op: kvstore.OpExpire, Path: "/", Time: time.Now().Add(2 * time.Hour)}.Append(nil))
	}})
}

// TestWatchOverAnImport goes on with what the tree has become.
func TestWatchOverAnImport(t *testing.T) {
	from, _ := newTree(t)
	if _, err := from.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: "/1/d/k", Value: "imported"}); err != nil {
		t.Fatal(err)
	}
	document, err := from.Store().Save()
	if err != nil {
		t.Fatal(err)
	}
	r, _ := newTree(t)
	s := embedded.New(r, embedded.Options{OnError: func(key string, err error) { t.Errorf("%s: %v", key, err) }})
	defer s.Close()
	for _, key := range []string{"d/k", "d/gone", "gone"} {
		if err := s.Put(key, []byte("old"), nil); err != nil {
			t.Fatal(err)
		}
	}
	value, err := s.Watch("d/k", nil)
	if err != nil {
		t.Fatal(err)
	}
	gone, err := s.Watch("gone", nil)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.WatchTree("d", nil)
	if err != nil {
		t.Fatal(err)
	}
	<-value
	<-gone
	if list := <-tree; len(list) != 2 {
		t.Errorf("the first list has %d keys", len(list))
	}
	if _, err := r.Import(t.Context(), kvstore.ImportRequest{Document: document, Keep: "/0", Replace: true}); err != nil {
		t.Fatal(err)
	}
	if p := <-value; string(p.Value) != "imported" {
		t.Errorf("the key is %+v", p)
	}
	if p := <-gone; p.Value != nil || p.Key != "gone" {
		t.Errorf("the key that is gone is %+v", p)
	}
	if list := <-tree; len(list) != 1 || string(list[0].Value) != "imported" {
		t.Errorf("the list has %d keys", len(list))
	}
	if err := s.Put("d/k", []byte("later"), nil); err != nil {
		t.Fatal(err)
	}
	if p := <-value; string(p.Value) != "later" {
		t.Errorf("the key is %+v", p)
	}
}

// TestLockIsRenewed, also when the log has no answers for a while; and is lost when somebody takes its key.
func TestLockIsRenewed(t *testing.T) {
	r, log := newTree(t)
	told := make(chan error, 1)
	s := embedded.New(r, embedded.Options{Timeout: 50 * time.Millisecond, OnError: func(_ string, err error) { told <- err }})
	defer s.Close()
	l, err := s.NewLock("l", &store.LockOptions{TTL: 900 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	lost, err := l.Lock(nil)
	if err != nil {
		t.Fatal(err)
	}
	index := func() uint64 {
		p, err := s.Get("l")
		if err != nil {
			t.Fatal(err)
		}
		return p.LastIndex
	}
	await := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain for %s", what)
			}
		}
	}
	first := index()
	await("two renewals", func() bool { return index() > first+1 })
	log.setFail(true)
	unanswered := index()
	await("a renewal without an answer", func() bool { return index() > unanswered })
	log.setFail(false)
	unanswered = index()
	await("a renewal after that", func() bool { return index() > unanswered })
	select {
	case <-lost:
		t.Fatal("the lock is lost")
	default:
	}
	if err := s.Put("l", []byte("thief"), nil); err != nil {
		t.Fatal(err)
	}
	<-lost
	if err := <-told; err == nil {
		t.Error("nobody is told why")
	}
	if err := l.Unlock(); !errors.Is(err, store.ErrKeyModified) {
		t.Errorf("a lock that was lost is released: %v", err)
	}
	if p, err := s.Get("l"); err != nil || string(p.Value) != "thief" {
		t.Errorf("the thief's key is %+v, %v", p, err)
	}
}
