package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/cluster/store"
)

// bothWays runs a test on a store that commits at once, and on one behind a log.
func bothWays(t *testing.T, f func(t *testing.T, s *store.Store)) {
	t.Run("alone", func(t *testing.T) { f(t, newStore(t)) })
	t.Run("log", func(t *testing.T) {
		s := newStore(t)
		attach(s)
		f(t, s)
	})
}

func TestTables(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.kind.String(), func(t *testing.T) { bothWays(t, func(t *testing.T, s *store.Store) { testTable(t, s, k) }) })
	}
}

func testTable(t *testing.T, s *store.Store, k kindCase) {
	extensions(t, s)
	first, second := k.make("a", "First", "x", 1), k.make("b", "Second", "xy", 11)
	must(t, s, func(tx *store.Tx) error {
		if k.get(tx, "a") != nil {
			t.Error("an object is there before its time")
		}
		err := errors.Join(k.create(tx, first), k.create(tx, second))
		if got := k.get(tx, "a"); got.Name() != "First" {
			t.Errorf("the transaction does not see its own change: %v", got)
		}
		return err
	})
	expect := func(want error, cb func(*store.Tx) error) {
		t.Helper()
		if err := s.Update(t.Context(), cb); !errors.Is(err, want) {
			t.Errorf("an update returned %v instead of %v", err, want)
		}
	}
	expect(store.ErrExist, func(tx *store.Tx) error { return k.create(tx, k.make("a", "Third", "x", 1)) })
	taken := store.ErrNameConflict
	if k.free {
		taken = errAsked
	}
	expect(taken, func(tx *store.Tx) error {
		if err := k.create(tx, k.make("c", "fIRST", "x", 1)); err != nil {
			return err
		}
		return errAsked
	})
	expect(store.ErrNoID, func(tx *store.Tx) error { return k.create(tx, k.make("", "Third", "x", 1)) })
	if !k.free {
		expect(store.ErrNoName, func(tx *store.Tx) error { return k.create(tx, k.make("c", "", "x", 1)) })
	}

	s.View(func(tx *store.ReadTx) {
		for name, by := range selectors() {
			own, allowed := k.by[name]
			if allowed {
				by = own
			}
			for _, by := range []store.By{by, store.Or(by), store.Or(store.All(), store.Or(by))} {
				if list, err := k.find(tx, by); allowed == errors.Is(err, store.ErrInvalidFindBy) || !allowed && list != nil {
					t.Errorf("the selector %s: %v, %v", name, list, err)
				}
			}
			found := 1
			if name == "custom prefix" && k.kind != objects.KindResource {
				found = 2 // the value xy begins with x
			}
			if list, _ := k.find(tx, by); allowed && (len(list) != found || list[0].Head().ID != "a") {
				t.Errorf("the selector %s found %v", name, list)
			}
		}
		total := 2
		if k.kind == objects.KindExtension {
			total = 4
		}
		if list, err := k.find(tx, store.All()); err != nil || len(list) != total {
			t.Errorf("All found %v, %v", list, err)
		}
		if list, err := k.find(tx, store.ByIDPrefix("")); err != nil || len(list) != total {
			t.Errorf("the empty prefix found %v, %v", list, err)
		}
		if list, err := k.find(tx, store.ByName("Firs")); err != nil || len(list) != 0 {
			t.Errorf("a part of a name found %v, %v", list, err)
		}
		list, err := k.find(tx, store.Or(store.ByName("second"), store.Or(store.ByIDPrefix("b"), store.ByName("first")), store.ByIDPrefix("a")))
		if err != nil || len(list) != 2 || list[0].Head().ID != "b" || list[1].Head().ID != "a" {
			t.Errorf("Or found %v, %v", list, err)
		}
		if list, err := k.find(tx, store.Or()); err != nil || len(list) != 0 {
			t.Errorf("Or of nothing found %v, %v", list, err)
		}
	})

	if k.kind == objects.KindExtension {
		expect(store.ErrImmutable, func(tx *store.Tx) error { return k.update(tx, first) })
		expect(store.ErrNameConflict, func(tx *store.Tx) error { return k.create(tx, k.make("c", "Task", "x", 1)) })
	} else {
		renamed := k.make("a", "Renamed", "xy", 11)
		renamed.Head().Meta = first.Head().Meta
		must(t, s, func(tx *store.Tx) error { return k.update(tx, renamed) })
		s.View(func(tx *store.ReadTx) {
			if got := k.get(tx, "a"); got.Name() != "Renamed" || got == renamed {
				t.Errorf("after an update there is %v", got)
			}
			for name, by := range k.by {
				if list, _ := k.find(tx, by); name != "id prefix" && name != "custom prefix" && len(list) != 0 {
					t.Errorf("the selector %s still finds %v", name, list)
				}
			}
		})
		expect(store.ErrNotExist, func(tx *store.Tx) error { return k.update(tx, k.make("c", "Third", "x", 1)) })
		taken := k.make("a", "sECOND", "x", 1)
		taken.Head().Meta = renamed.Head().Meta
		if k.free {
			must(t, s, func(tx *store.Tx) error { return k.update(tx, taken) })
		} else {
			expect(store.ErrNameConflict, func(tx *store.Tx) error { return k.update(tx, taken) })
		}
	}
	expect(store.ErrNotExist, func(tx *store.Tx) error { return k.remove(tx, "c") })
	must(t, s, func(tx *store.Tx) error { return errors.Join(k.remove(tx, "a"), k.remove(tx, "b")) })
	expect(store.ErrNotExist, func(tx *store.Tx) error { return k.remove(tx, "a") })
	left := 0
	if k.kind == objects.KindExtension {
		left = 2
	}
	if n := s.Stats().Objects[k.kind.String()]; n != left {
		t.Errorf("%d are left", n)
	}
	must(t, s, func(tx *store.Tx) error { return k.create(tx, k.make("d", "First", "x", 1)) })
}

func TestExtensions(t *testing.T) {
	bothWays(t, func(t *testing.T, s *store.Store) {
		extensions(t, s)
		resource := func(id, kind string) *objects.Resource {
			return &objects.Resource{Header: header(id), Annotations: objects.Annotations{Name: id}, Type: kind}
		}
		must(t, s, func(tx *store.Tx) error { return store.Resources.Create(tx, resource("r", "x")) })
		for _, c := range []struct {
			want error
			cb   func(*store.Tx) error
		}{
			{store.ErrNoKind, func(tx *store.Tx) error { return store.Resources.Create(tx, resource("q", "y")) }},
			{store.ErrNoKind, func(tx *store.Tx) error { return store.Resources.Create(tx, resource("q", "X")) }},
			{store.ErrInUse, func(tx *store.Tx) error { return store.Extensions.Delete(tx, "ext1") }},
			{nil, func(tx *store.Tx) error { return store.Extensions.Delete(tx, "ext2") }},
			{nil, func(tx *store.Tx) error {
				return errors.Join(store.Resources.Delete(tx, "r"), store.Extensions.Delete(tx, "ext1"))
			}},
		} {
			if err := s.Update(t.Context(), c.cb); !errors.Is(err, c.want) {
				t.Errorf("%v instead of %v", err, c.want)
			}
		}
	})
}

func TestIndexesOfServicesAndTasks(t *testing.T) {
	s := newStore(t)
	deprecated := &objects.Service{Header: header("old"), Spec: objects.ServiceSpec{Annotations: objects.Annotations{Name: "old"}, Networks: []swarm.NetworkAttachmentConfig{{Target: "n"}}}}
	both := objects.Copy(deprecated)
	both.ID, both.Spec.Name, both.Spec.Task.Networks = "both", "both", []swarm.NetworkAttachmentConfig{{Target: "m"}}
	attached := &objects.Task{Header: header("t"), Networks: []objects.NetworkAttachment{{NetworkID: "n"}}, ServiceAnnotations: objects.Annotations{Name: "Web"}, Slot: 2}
	nameless := &objects.Node{Header: header("nameless")}
	must(t, s, func(tx *store.Tx) error {
		return errors.Join(store.Services.Create(tx, deprecated), store.Services.Create(tx, both), store.Tasks.Create(tx, attached), store.Nodes.Create(tx, nameless))
	})
	s.View(func(tx *store.ReadTx) {
		if list, err := store.Services.Find(tx, store.ByReferencedNetworkID("n")); err != nil || len(list) != 1 || list[0].ID != "old" {
			t.Errorf("the deprecated networks find %v, %v", list, err)
		}
		if list, err := store.Tasks.Find(tx, store.ByReferencedNetworkID("n")); err != nil || len(list) != 0 {
			t.Errorf("attachments find %v, %v", list, err)
		}
		if list, err := store.Tasks.Find(tx, store.ByName("web.2.T")); err != nil || len(list) != 1 {
			t.Errorf("the name of a task finds %v, %v", list, err)
		}
		if list, err := store.Nodes.Find(tx, store.ByNamePrefix("")); err != nil || len(list) != 1 {
			t.Errorf("the empty prefix finds %v, %v", list, err)
		}
		if list := store.Services.GetAll(tx, "both", "none", "old"); len(list) != 2 || list[0].ID != "both" || list[1].ID != "old" {
			t.Errorf("GetAll returned %v", list)
		}
	})
}

func TestFailedTransaction(t *testing.T) {
	bothWays(t, func(t *testing.T, s *store.Store) {
		n := node("a", "first")
		must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, n) })
		before, meta := dump(t, s), n.Meta
		w := s.Watch(t.Context())
		var kept *store.Tx
		m := node("b", "second")
		err := s.Update(t.Context(), func(tx *store.Tx) error {
			kept = tx
			n.Description.Hostname = "other"
			return errors.Join(store.Nodes.Create(tx, m), store.Nodes.Update(tx, n), store.Nodes.Delete(tx, "a"), errAsked)
		})
		if !errors.Is(err, errAsked) {
			t.Errorf("the callback's error is %v", err)
		}
		if err := s.Update(t.Context(), func(*store.Tx) error { return errAsked }); err != errAsked {
			t.Errorf("the callback's error is %v", err)
		}
		if err := store.Nodes.Create(kept, node("c", "third")); !errors.Is(err, store.ErrOver) {
			t.Errorf("a change after the end: %v", err)
		}
		must(t, s, func(*store.Tx) error { return nil })
		if after := dump(t, s); !slices.Equal(before, after) {
			t.Errorf("the store has %q", after)
		}
		if n.Meta != meta || m.Meta != (objects.Meta{}) {
			t.Errorf("the caller's objects have %v and %v", n.Meta, m.Meta)
		}
		must(t, s, func(tx *store.Tx) error { return store.Nodes.Delete(tx, "a") })
		if got := describe(told(t, w, 0)); len(got) != 2 || got[0] != "delete node a first" {
			t.Errorf("a watcher was told of %q", got)
		}
	})
}

func TestCallbackPanics(t *testing.T) {
	s := newStore(t)
	func() {
		defer func() { _ = recover() }()
		must(t, s, func(*store.Tx) error { panic("as asked") })
	}()
	must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, node("a", "a")) })
}

func TestVersions(t *testing.T) {
	now := someDay
	s := newStore(t, store.Options{Now: func() time.Time { return now.In(time.FixedZone("", 3600)) }})
	l := attach(s)
	l.index = 41
	n := node("a", "first")
	must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, n) })
	if n.Meta.Version.Index != 42 || n.Meta.CreatedAt != someDay || n.Meta.UpdatedAt != someDay {
		t.Errorf("after its creation the object has %v", n.Meta)
	}
	if got := getNode(s, "a"); got.Meta != n.Meta {
		t.Errorf("in the store it has %v", got.Meta)
	}
	stale := objects.Copy(n)
	now = now.Add(time.Hour)
	n.Description.Hostname, n.Meta.CreatedAt = "second", time.Time{}
	must(t, s, func(tx *store.Tx) error {
		// Several changes of one object are one after another, on its old version.
		if err := store.Nodes.Update(tx, n); err != nil {
			return err
		}
		n.Description.Hostname = "third"
		return store.Nodes.Update(tx, n)
	})
	if n.Meta.Version.Index != 43 || n.Meta.CreatedAt != someDay || n.Meta.UpdatedAt != now {
		t.Errorf("after its update the object has %v", n.Meta)
	}
	if err := s.Update(t.Context(), func(tx *store.Tx) error { return store.Nodes.Update(tx, stale) }); !errors.Is(err, store.ErrSequenceConflict) {
		t.Errorf("a stale update: %v", err)
	}
	must(t, s, func(tx *store.Tx) error {
		return errors.Join(store.Nodes.Delete(tx, "a"), store.Nodes.Create(tx, node("a", "fourth")), store.Nodes.Delete(tx, "a"), store.Nodes.Create(tx, node("b", "b")))
	})
	if l.n != 3 {
		t.Errorf("there were %d proposals", l.n)
	}
	must(t, s, func(tx *store.Tx) error {
		if tx.Version() != 44 {
			t.Errorf("a transaction has version %d", tx.Version())
		}
		return nil
	})
	if l.n != 3 {
		t.Error("nothing was proposed")
	}

	alone := newStore(t)
	m := node("a", "first")
	must(t, alone, func(tx *store.Tx) error { return store.Nodes.Create(tx, m) })
	m.Meta.Version.Index = 7
	must(t, alone, func(tx *store.Tx) error { return store.Nodes.Update(tx, m) })
	if got := getNode(alone, "a").Meta; got != m.Meta || !got.CreatedAt.IsZero() {
		t.Errorf("without a log an object has %v", got)
	}
}

// TestUpdatesPassProposals holds proposals and shows that everything else goes on, and who wins.
func TestUpdatesPassProposals(t *testing.T) {
	s := newStore(t)
	l := attach(s)
	n := node("a", "first")
	must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, n) })
	l.arrived, l.leave = make(chan []byte), make(chan struct{})

	rename := func(name string) chan error {
		done := make(chan error, 1)
		go func() {
			done <- s.Update(t.Context(), func(tx *store.Tx) error {
				o := objects.Copy(store.Nodes.Get(tx, "a"))
				o.Description.Hostname = name
				return store.Nodes.Update(tx, o)
			})
		}()
		return done
	}
	one := rename("one")
	<-l.arrived // its proposal is under way from here on
	if got := getNode(s, "a"); got.Name() != "first" {
		t.Errorf("a reader sees %s", got.Name())
	}
	other := make(chan error, 1)
	go func() {
		other <- s.Update(t.Context(), func(tx *store.Tx) error { return store.Nodes.Create(tx, node("b", "b")) })
	}()
	<-l.arrived // another writer has been through its callback
	two := rename("two")
	<-l.arrived // and one that is about the same object
	if s.Wedged() {
		t.Error("the lock is held")
	}
	again := make(chan error, 1)
	calls := 0
	go func() {
		again <- s.Retry(t.Context(), func(tx *store.Tx) error {
			calls++
			o := objects.Copy(store.Nodes.Get(tx, "a"))
			o.Description.Hostname += "!"
			return store.Nodes.Update(tx, o)
		})
	}()
	<-l.arrived
	for range 4 {
		l.leave <- struct{}{}
	}
	if err := <-other; err != nil {
		t.Error(err)
	}
	// Of those that began with one version, one alone takes effect; Retry begins anew.
	errs := []error{<-one, <-two}
	select {
	case <-l.arrived:
		l.leave <- struct{}{}
	case err := <-again:
		again <- err
	}
	if err := <-again; err != nil {
		t.Error(err)
	}
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, store.ErrSequenceConflict):
			t.Error(err)
		}
	}
	name := getNode(s, "a").Name()
	if won == 0 && (calls != 1 || name != "first!") || won == 1 && (calls != 2 || name != "one!" && name != "two!") || won > 1 {
		t.Errorf("%d updates won, Retry made %d calls, and the name is %s: %v", won, calls, name, errs)
	}
	l.arrived, l.leave = nil, nil
}

// TestConflictsAtCommit commits something between a callback and its own commit.
func TestConflictsAtCommit(t *testing.T) {
	for _, c := range []struct {
		name          string
		first, second func(*store.Tx) error
		want          error
	}{
		{"create", func(tx *store.Tx) error { return store.Configs.Create(tx, config("n", "n")) }, func(tx *store.Tx) error { return store.Configs.Create(tx, config("n", "m")) }, store.ErrExist},
		{"name", func(tx *store.Tx) error { return store.Configs.Create(tx, config("n", "n")) }, func(tx *store.Tx) error { return store.Configs.Create(tx, config("m", "N")) }, store.ErrNameConflict},
		{"gone", func(tx *store.Tx) error { return store.Configs.Delete(tx, "c") }, func(tx *store.Tx) error { return store.Configs.Update(tx, store.Configs.Get(tx, "c")) }, store.ErrNotExist},
		{"removal", func(tx *store.Tx) error { return store.Configs.Update(tx, store.Configs.Get(tx, "c")) }, func(tx *store.Tx) error { return store.Configs.Delete(tx, "c") }, store.ErrSequenceConflict},
		{"kind", func(tx *store.Tx) error { return store.Extensions.Delete(tx, "ext1") }, func(tx *store.Tx) error {
			return store.Resources.Create(tx, &objects.Resource{Header: header("r"), Annotations: objects.Annotations{Name: "r"}, Type: "x"})
		}, store.ErrNoKind},
		{"use", func(tx *store.Tx) error {
			return store.Resources.Create(tx, &objects.Resource{Header: header("r"), Annotations: objects.Annotations{Name: "r"}, Type: "x"})
		}, func(tx *store.Tx) error { return store.Extensions.Delete(tx, "ext1") }, store.ErrInUse},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, follower := newStore(t), newStore(t)
			l := attach(s, follower)
			extensions(t, s)
			must(t, s, func(tx *store.Tx) error { return store.Configs.Create(tx, config("c", "c")) })
			l.arrived, l.leave = make(chan []byte), make(chan struct{})
			done := make(chan error, 1)
			go func() { done <- s.Update(t.Context(), c.second) }()
			second := <-l.arrived
			inner := &fakeLog{stores: l.stores, index: l.index}
			s.Attach(inner)
			must(t, s, c.first)
			s.Attach(l)
			l.index = inner.index
			before := dump(t, s)
			l.leave <- struct{}{}
			if err := <-done; !errors.Is(err, c.want) {
				t.Errorf("the later of two updates returned %v", err)
			}
			if after := dump(t, s); !slices.Equal(before, after) || !slices.Equal(after, dump(t, follower)) {
				t.Errorf("%s is not dropped: %q", second, after)
			}
		})
	}
}

func TestNested(t *testing.T) {
	bothWays(t, func(t *testing.T, s *store.Store) {
		nested := func() {
			if err := s.Update(t.Context(), func(*store.Tx) error { return nil }); !errors.Is(err, store.ErrNested) {
				t.Errorf("an update within another one returned %v", err)
			}
			if err := s.Batch(t.Context(), func(*store.Batching) error { return nil }); !errors.Is(err, store.ErrNested) {
				t.Errorf("a batch within an update returned %v", err)
			}
		}
		must(t, s, func(tx *store.Tx) error {
			nested()
			s.View(func(tx *store.ReadTx) {})
			return nil
		})
		if err := s.Batch(t.Context(), func(b *store.Batching) error {
			nested()
			return b.Update(func(*store.Tx) error { nested(); return nil })
		}); err != nil {
			t.Error(err)
		}
	})
}

func TestWaitForTheLock(t *testing.T) {
	s := newStore(t)
	inside, leave := make(chan struct{}), make(chan struct{})
	done := make(chan error)
	go func() {
		done <- s.Update(context.Background(), func(*store.Tx) error { close(inside); <-leave; return nil })
	}()
	<-inside
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Update(ctx, func(*store.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("an update that waits returned %v", err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func holdTheLock(leave chan struct{}) { <-leave }

func TestWedged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		s := newStore(t, store.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))})
		leave, done := make(chan struct{}), make(chan error)
		go func() {
			done <- s.Update(context.Background(), func(*store.Tx) error { holdTheLock(leave); return nil })
		}()
		time.Sleep(store.WedgeTimeout) // in a bubble: no test waits for it
		synctest.Wait()
		if s.Wedged() {
			t.Error("it is wedged too early")
		}
		time.Sleep(time.Second)
		for range 3 {
			if !s.Wedged() {
				t.Error("it is not wedged")
			}
		}
		close(leave)
		if err := <-done; err != nil {
			t.Error(err)
		}
		if s.Wedged() {
			t.Error("it is still wedged")
		}
		if n := strings.Count(log.String(), "does not end"); n != 1 || !strings.Contains(log.String(), "holdTheLock") {
			t.Errorf("the log has it %d times: %s", n, log.String())
		}
		s.Close()
	})
}

func TestRepeats(t *testing.T) {
	s, follower := newStore(t), newStore(t)
	l := attach(s, follower)
	l.fail = func(n int) fate { return fate{repeat: true} }
	n := node("a", "a")
	must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, n) })
	if n.Meta.Version.Index != 1 {
		t.Errorf("a repeat returned version %d", n.Meta.Version.Index)
	}
	create := l.commands[0]
	must(t, s, func(tx *store.Tx) error { return store.Nodes.Delete(tx, "a") })
	must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, node("b", "b")) })
	if r := l.commit(create).(store.Result); r.Err == nil {
		t.Error("a late repeat was carried out")
	}
	if getNode(s, "a") != nil || !slices.Equal(dump(t, s), dump(t, follower)) {
		t.Error("a late repeat made an object")
	}

	// A proposal whose outcome is not known takes effect once at most.
	l.fail = func(n int) fate { return fate{err: errAsked} }
	m := node("m", "m")
	if err := s.Update(t.Context(), func(tx *store.Tx) error { return store.Nodes.Create(tx, m) }); !errors.Is(err, errAsked) {
		t.Errorf("a failing proposal: %v", err)
	}
	if m.Meta.Version.Index != 0 || getNode(s, "m") == nil {
		t.Errorf("the caller was told of %v", m.Meta)
	}
	l.fail = func(n int) fate { return fate{drop: true} }
	if err := s.Update(t.Context(), func(tx *store.Tx) error { return store.Nodes.Delete(tx, "m") }); err == nil || !strings.Contains(err.Error(), "answered") {
		t.Errorf("an answer that is none: %v", err)
	}
}

func TestManyClients(t *testing.T) {
	s := newStore(t)
	l := &fakeLog{stores: []*store.Store{s}}
	for i := range 600 {
		other := store.New(store.Options{Client: uint64(i + 1)})
		other.Attach(proposerFunc(func(command []byte) any { return l.commit(command) }))
		must(t, other, func(tx *store.Tx) error { return store.Nodes.Create(tx, node(fmt.Sprint(i), "n")) })
	}
	var b bytes.Buffer
	if _, err := s.Snapshot().WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if n := s.Stats().Objects["node"]; n != 600 {
		t.Errorf("there are %d nodes", n)
	}
}

type proposerFunc func([]byte) any

func (f proposerFunc) Propose(_ context.Context, c []byte) (any, error) { return f(c), nil }
func (f proposerFunc) Version() (uint64, bool)                          { return 1, true }

func TestTooLarge(t *testing.T) {
	s := newStore(t)
	l := attach(s)
	small, big := config("small", "small"), config("big", "big one")
	small.Spec.Data, big.Spec.Data = make([]byte, 200000), make([]byte, 1000000)
	err := s.Update(t.Context(), func(tx *store.Tx) error {
		return errors.Join(store.Configs.Create(tx, small), store.Configs.Create(tx, big))
	})
	if !errors.Is(err, store.ErrRequestTooLarge) || !strings.Contains(err.Error(), "big one") || l.n != 0 {
		t.Errorf("an update that is too large returned %v after %d proposals", err, l.n)
	}
	must(t, s, func(tx *store.Tx) error { return store.Configs.Create(tx, big) })
}

func TestApplyActionsAndReplay(t *testing.T) {
	s := newStore(t)
	n := node("a", "a")
	n.Meta.Version.Index = 9
	w := s.Watch(t.Context())
	if err := s.ApplyActions(t.Context(), store.StoreAction{Action: store.Create, Object: n}, store.StoreAction{Action: store.Delete, Object: config("c", "c")}); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("an action that fails: %v", err)
	}
	if err := s.ApplyActions(t.Context(), store.StoreAction{Action: store.Create, Object: n}, store.StoreAction{Action: 9, Object: n}); !errors.Is(err, store.ErrUnknownAction) {
		t.Errorf("an action that is none: %v", err)
	}
	renamed := node("a", "b")
	for _, a := range []store.StoreAction{{Action: store.Create, Object: n}, {Action: store.Update, Object: renamed}, {Action: store.Delete, Object: header9("a")}} {
		if err := s.ApplyActions(t.Context(), a); err != nil {
			t.Error(err)
		}
	}
	copied := newStore(t)
	want := []string{"create node a a", "commit 0", "update node a b from a", "commit 0", "delete node a b", "commit 0"}
	for i := 0; i < len(want); i += 2 {
		list := told(t, w, 0)
		if got := describe(list); !slices.Equal(got, want[i:i+2]) {
			t.Errorf("a watcher is told of %q instead of %q", got, want[i:i+2])
		}
		for _, e := range list {
			if err := copied.Replay(t.Context(), e); err != nil {
				t.Error(err)
			}
		}
		if i == 2 && getNode(copied, "a").Name() != "b" {
			t.Error("an event was not replayed")
		}
	}
	for _, e := range []store.Event{{Action: store.Create, Kind: objects.KindConfig, Object: config("c", "c")}, {Action: 77, Kind: objects.KindNode, Object: n}} {
		if err := copied.Replay(t.Context(), e); !errors.Is(err, store.ErrUnknownEvent) {
			t.Errorf("an event that is not known: %v", err)
		}
	}
	attach(s)
	if err := s.ApplyActions(t.Context()); !errors.Is(err, store.ErrReplicated) {
		t.Errorf("actions beside the log: %v", err)
	}
}

func header9(id string) *objects.Node { return &objects.Node{Header: header(id)} }

func TestObserve(t *testing.T) {
	seen := map[store.Operation]int{}
	s := newStore(t, store.Options{Observe: func(o store.Operation, d time.Duration) { seen[o]++ }})
	must(t, s, func(tx *store.Tx) error { store.Nodes.Get(tx, "a"); return nil })
	s.View(func(*store.ReadTx) {})
	if err := s.Batch(t.Context(), func(*store.Batching) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for _, o := range []store.Operation{store.Read, store.Write, store.Lookup, store.Batch, store.Lock} {
		if seen[o] == 0 {
			t.Errorf("nothing is said of %s: %v", o, seen)
		}
	}
}
