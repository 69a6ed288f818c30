package store_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/cluster/store"
)

func numbered(i int) store.Event { return store.Event{Action: store.Commit, Version: uint64(i)} }

func TestQueueOrderAndCancel(t *testing.T) {
	q := store.NewQueue(store.QueueOptions{})
	defer q.Close()
	w := q.Watch(t.Context())
	for i := range 1000 {
		q.Publish(numbered(2*i), numbered(2*i+1))
	}
	for i := range 1500 {
		if e := <-w.Events(); e.Version != uint64(i) {
			t.Fatalf("event %d is %d", i, e.Version)
		}
	}
	w.Cancel()
	w.Cancel()
	if e, open := <-w.Events(); open || w.Err() != nil {
		t.Errorf("after Cancel there is %v, %v", e, w.Err())
	}
	ctx, cancel := context.WithCancel(t.Context())
	v := q.Watch(ctx)
	q.Publish(numbered(1))
	cancel()
	<-v.Done()
	if v.Err() != nil {
		t.Errorf("after the context's end: %v", v.Err())
	}
}

func TestQueueLimit(t *testing.T) {
	q := store.NewQueue(store.QueueOptions{Limit: 10})
	defer q.Close()
	slow, quick := q.Watch(t.Context()), q.Watch(t.Context())
	for i := range 11 {
		q.Publish(numbered(i))
		<-quick.Events()
	}
	<-slow.Done()
	if !errors.Is(slow.Err(), store.ErrBacklog) {
		t.Errorf("the slow one ended with %v", slow.Err())
	}
	if _, open := <-slow.Events(); open {
		t.Error("it has events yet")
	}
	q.Publish(numbered(11))
	if e := <-quick.Events(); e.Version != 11 {
		t.Errorf("the quick one got %d", e.Version)
	}
	unlimited := store.NewQueue(store.QueueOptions{Limit: -1, KeepOpen: true})
	w := unlimited.Watch(t.Context())
	for i := range 2 * store.DefaultBacklog {
		unlimited.Publish(numbered(i))
	}
	for i := range 2 * store.DefaultBacklog {
		if e := <-w.Events(); e.Version != uint64(i) {
			t.Fatalf("event %d is %d", i, e.Version)
		}
	}
	unlimited.Close()
	select {
	case _, open := <-w.Events():
		t.Errorf("the channel is open: %v", open)
	case <-w.Done():
	}
	if late := unlimited.Watch(t.Context()); !errors.Is(late.Err(), store.ErrQueueClosed) {
		t.Errorf("a watcher of a closed queue has %v", late.Err())
	} else {
		<-late.Done()
	}
}

func TestQueueTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := store.NewQueue(store.QueueOptions{Timeout: time.Second})
		w := q.Watch(context.Background())
		q.Publish(numbered(1))
		<-w.Done()
		if !errors.Is(w.Err(), store.ErrSlow) {
			t.Errorf("it ended with %v", w.Err())
		}
		q.Close()
	})
}

// TestQueueCloses closes queues while everything else goes on. STATED_SOAK=long makes ten thousand rounds.
func TestQueueCloses(t *testing.T) {
	rounds := 500
	if os.Getenv("STATED_SOAK") == "long" {
		rounds = 10000
	}
	for range rounds {
		q := store.NewQueue(store.QueueOptions{Limit: 5})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				for i := range 20 {
					q.Publish(numbered(i))
				}
			})
			wg.Go(func() {
				w := q.Watch(context.Background())
				for range w.Events() {
				}
				<-w.Done()
			})
			wg.Go(func() {
				w := q.Watch(context.Background())
				<-w.Events()
				w.Cancel()
				if _, open := <-w.Events(); open {
					t.Error("there is an event after Cancel")
				}
			})
			wg.Go(q.Close)
		}
		wg.Wait()
	}
}

func TestSpecifiers(t *testing.T) {
	s := newStore(t)
	task := kinds[2].make("a", "First", "x", 1).(*objects.Task)
	renamed := objects.Copy(task)
	renamed.Annotations.Name, renamed.Status.State, renamed.NodeID = "Other", 2, "y"
	like := func(f func(*objects.Task)) *objects.Task {
		o := objects.Copy(task)
		f(o)
		return o
	}
	cases := []struct {
		name string
		spec store.Specifier
		want int // of: create task, update task, create node, delete task, four commits
	}{
		{"all of a kind", store.Specifier{Kind: objects.KindTask}, 3},
		{"all changes", store.Specifier{}, 4},
		{"commits", store.Specifier{Action: store.Commit}, 4},
		{"updates", store.Specifier{Action: store.Update}, 1},
		{"no such", store.Specifier{Action: store.Update, Kind: objects.KindNode}, 0},
		{"id", store.Specifier{Object: task, Checks: []store.Check{store.CheckID}}, 3},
		{"id prefix", store.Specifier{Object: like(func(o *objects.Task) { o.ID = "" }), Checks: []store.Check{store.CheckIDPrefix}}, 3},
		{"other id", store.Specifier{Object: like(func(o *objects.Task) { o.ID = "ab" }), Checks: []store.Check{store.CheckIDPrefix}}, 0},
		{"name", store.Specifier{Object: like(func(o *objects.Task) { o.Annotations.Name = "FIRST" }), Checks: []store.Check{store.CheckName}}, 1},
		{"name prefix", store.Specifier{Object: like(func(o *objects.Task) { o.Annotations.Name = "Oth" }), Checks: []store.Check{store.CheckNamePrefix}}, 2},
		{"service", store.Specifier{Object: task, Checks: []store.Check{store.CheckServiceID, store.CheckSlot}}, 3},
		{"node", store.Specifier{Object: task, Checks: []store.Check{store.CheckNodeID}}, 1},
		{"state", store.Specifier{Object: renamed, Checks: []store.Check{store.CheckTaskState, store.CheckDesiredState}}, 2},
		{"custom", store.Specifier{Object: task, Checks: []store.Check{store.CheckCustom}}, 3},
		{"custom prefix", store.Specifier{Object: like(func(o *objects.Task) { o.Annotations.Indices = []objects.Index{{Key: "key", Value: ""}} }), Checks: []store.Check{store.CheckCustomPrefix}}, 3},
		{"other custom", store.Specifier{Object: like(func(o *objects.Task) { o.Annotations.Indices[0].Value = "p" }), Checks: []store.Check{store.CheckCustom}}, 0},
		{"node state", store.Specifier{Object: node("", ""), Checks: []store.Check{store.CheckNodeState}}, 1},
	}
	var watchers []*store.Watcher
	for _, c := range cases {
		watchers = append(watchers, s.Watch(t.Context(), c.spec, store.Specifier{Action: store.Create, Kind: objects.KindConfig}))
	}
	all := s.Watch(t.Context())
	for _, cb := range []func(*store.Tx) error{
		func(tx *store.Tx) error { return store.Tasks.Create(tx, task) },
		func(tx *store.Tx) error { return store.Tasks.Update(tx, renamed) },
		func(tx *store.Tx) error { return store.Nodes.Create(tx, node("a", "a")) },
		func(tx *store.Tx) error { return store.Tasks.Delete(tx, "a") },
		func(tx *store.Tx) error { return store.Configs.Create(tx, config("last", "last")) },
	} {
		must(t, s, cb)
	}
	for i, c := range cases {
		n := 0
		for e := range watchers[i].Events() {
			if e.Kind == objects.KindConfig {
				break
			}
			n++
		}
		if n != c.want {
			t.Errorf("%s: %d events instead of %d", c.name, n, c.want)
		}
	}
	for range 10 {
		<-all.Events()
	}
	if stats := s.Stats(); stats.Watchers != len(cases)+1 {
		t.Errorf("there are %d watchers", stats.Watchers)
	}
}

// TestWatchUnderWriters replays what watchers are told into second stores, from many moments.
func TestWatchUnderWriters(t *testing.T) {
	s := newStore(t)
	attach(s)
	var wg sync.WaitGroup
	const writers, rounds = 4, 60
	must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, node("first", "first")) })
	for i := range writers {
		wg.Go(func() {
			for j := range rounds {
				id := fmt.Sprint(i, "-", j%7)
				err := s.Update(t.Context(), func(tx *store.Tx) error {
					n := store.Nodes.Get(tx, id)
					switch {
					case n == nil:
						return store.Nodes.Create(tx, node(id, id))
					case j%3 == 0:
						return errors.Join(store.Nodes.Delete(tx, id), store.Nodes.Create(tx, node(fmt.Sprint(i, " ", j), id)))
					}
					n = objects.Copy(n)
					n.Description.Hostname = fmt.Sprint(j)
					return store.Nodes.Update(tx, n)
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	// A writer's last word tells watchers that nothing comes any more.
	last := make(chan uint64)
	go func() {
		wg.Wait()
		n := node("last", "last")
		must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, n) })
		for {
			select {
			case last <- n.Meta.Version.Index:
			case <-t.Context().Done():
				return
			}
		}
	}()
	var followers sync.WaitGroup
	for i := range 12 {
		followers.Go(func() {
			second := store.New(store.Options{})
			defer second.Close()
			var w *store.Watcher
			var err error
			from := uint64(0)
			replay := func(o objects.Object) error {
				return second.ApplyActions(t.Context(), store.StoreAction{Action: store.Create, Object: o})
			}
			copyAll := func(tx *store.ReadTx) (err error) {
				from = tx.Version()
				list, err := store.Nodes.Find(tx, store.All())
				for _, n := range list {
					err = errors.Join(err, replay(n))
				}
				return err
			}
			if i%2 == 0 {
				w, err = s.ViewAndWatch(t.Context(), copyAll)
			} else {
				s.View(func(tx *store.ReadTx) { err = copyAll(tx) })
				if err == nil {
					w, err = s.WatchFrom(t.Context(), from)
				}
			}
			if err != nil {
				t.Error(err)
				return
			}
			for end := <-last; from < end; {
				e, open := <-w.Events()
				if !open {
					t.Errorf("the watcher ended: %v", w.Err())
					return
				}
				if a, ok := e.StoreAction(); ok {
					if err := second.ApplyActions(t.Context(), a); err != nil {
						t.Errorf("replay %q: %v", describe([]store.Event{e}), err)
					}
				}
				if e.Action == store.Commit {
					if e.Version <= from {
						t.Errorf("version %d comes after %d", e.Version, from)
					}
					from = e.Version
				}
			}
			w.Cancel()
			if !slices.Equal(dump(t, s), dump(t, second)) {
				t.Errorf("follower %d has another state", i)
			}
		})
	}
	followers.Wait()
}

func TestViewAndWatchFails(t *testing.T) {
	s := newStore(t)
	if w, err := s.ViewAndWatch(t.Context(), func(*store.ReadTx) error { return errAsked }); err != errAsked || w != nil {
		t.Errorf("it returned %v, %v", w, err)
	}
	if n := s.Stats().Watchers; n != 0 {
		t.Errorf("%d watchers are left", n)
	}
}

func TestWatchFrom(t *testing.T) {
	alone := newStore(t)
	if _, err := alone.WatchFrom(t.Context(), 1); !errors.Is(err, store.ErrUnversioned) {
		t.Errorf("without a log: %v", err)
	}
	if _, err := alone.ChangesBetween(1, 2); !errors.Is(err, store.ErrUnversioned) {
		t.Errorf("without a log: %v", err)
	}
	s := newStore(t, store.Options{History: 20})
	l := attach(s)
	l.outside = true
	if _, err := s.WatchFrom(t.Context(), 0); !errors.Is(err, store.ErrNoVersion) {
		t.Errorf("without a membership: %v", err)
	}
	l.outside = false
	n := node("a", "0")
	must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, n) })
	rename := func(i int) {
		must(t, s, func(tx *store.Tx) error {
			n.Description.Hostname = fmt.Sprint(i)
			return store.Nodes.Update(tx, n)
		})
	}
	rename(1)
	now, err := s.WatchFrom(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.WatchFrom(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	rename(2)
	want := []string{"update node a 1 from nothing", "commit 2", "update node a 2 from 1", "commit 3"}
	if got := describe(told(t, w, 3)); !slices.Equal(got, want) {
		t.Errorf("it told of %q", got)
	}
	if got := describe(told(t, now, 3)); !slices.Equal(got, want[2:]) {
		t.Errorf("from now on it told of %q", got)
	}
	changes, err := s.ChangesBetween(1, 2)
	if err != nil || len(changes) != 1 || changes[0].Version != 2 || len(changes[0].Actions) != 1 || changes[0].Actions[0].Object.Name() != "1" {
		t.Errorf("the changes are %v, %v", changes, err)
	}
	if changes, err := s.ChangesBetween(3, 3); err != nil || len(changes) != 0 {
		t.Errorf("no changes are %v, %v", changes, err)
	}
	if _, err := s.WatchFrom(t.Context(), 99); !errors.Is(err, store.ErrFuture) {
		t.Errorf("from the future: %v", err)
	}
	for i := range 60 {
		rename(i)
	}
	if _, err := s.WatchFrom(t.Context(), 3); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("from a version that is gone: %v", err)
	}
	old := uint64(0)
	for v := uint64(4); v <= n.Meta.Version.Index; v++ {
		changes, err := s.ChangesBetween(v, 0)
		switch {
		case errors.Is(err, store.ErrCompacted) && old == 0:
		case err != nil || uint64(len(changes)) != n.Meta.Version.Index-v:
			t.Errorf("after %d there are %d changes: %v", v, len(changes), err)
		case old == 0:
			old = v
		}
	}
	if kept := n.Meta.Version.Index - old; kept < 9 || kept > 20 {
		t.Errorf("%d changes are kept", kept)
	}

	// A watcher that waits for nobody to receive can be cancelled, in the past and in the present.
	past, err := s.WatchFrom(t.Context(), old)
	if err != nil {
		t.Fatal(err)
	}
	past.Cancel()
	present, err := s.WatchFrom(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	rename(99)
	present.Cancel()
}
