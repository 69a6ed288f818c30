package store_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/cluster/store"
)

func createNodes(b *store.Batching, from, to int) error {
	for i := from; i < to; i++ {
		id := fmt.Sprintf("n%04d", i)
		if err := b.Update(func(tx *store.Tx) error { return store.Nodes.Create(tx, node(id, id)) }); err != nil {
			return err
		}
	}
	return nil
}

func TestBatch(t *testing.T) {
	bothWays(t, func(t *testing.T, s *store.Store) {
		w := s.Watch(t.Context(), store.Specifier{Action: store.Commit})
		if err := s.Batch(t.Context(), func(b *store.Batching) error {
			if err := b.Update(func(tx *store.Tx) error {
				return errors.Join(store.Nodes.Create(tx, node("x", "x")), errAsked)
			}); !errors.Is(err, errAsked) {
				t.Errorf("a part's error is %v", err)
			}
			return createNodes(b, 0, 1000)
		}); err != nil {
			t.Fatal(err)
		}
		if n := s.Stats().Objects["node"]; n != 1000 {
			t.Errorf("there are %d nodes", n)
		}
		last := uint64(0)
		for range 5 {
			e := told(t, w, 0)[0]
			if stats := s.Stats(); stats.Version != 0 && e.Version <= last {
				t.Errorf("a commit has version %d after %d", e.Version, last)
			}
			last = e.Version
		}
		if last != s.Stats().Version {
			t.Errorf("the last commit has version %d", last)
		}
	})
}

func TestBatchProposals(t *testing.T) {
	s := newStore(t)
	l := attach(s)
	l.arrived = make(chan []byte, 100)
	data := make([]byte, 300000) // two thirds of an encoded object are these
	if err := s.Batch(t.Context(), func(b *store.Batching) error {
		if err := createNodes(b, 0, 450); err != nil {
			return err
		}
		for i := range 6 {
			if err := b.Update(func(tx *store.Tx) error {
				c := config(fmt.Sprint(i), fmt.Sprint(i))
				c.Spec.Data = data
				return store.Configs.Create(tx, c)
			}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(l.commands) != 4 {
		t.Errorf("there were %d proposals", len(l.commands))
	}
	for _, c := range l.commands {
		if len(c) > store.MaxTransactionBytes {
			t.Errorf("a proposal has %d bytes", len(c))
		}
	}
}

// TestBatchSplits lets a part grow over the limit at once, with an object that is in both halves.
func TestBatchSplits(t *testing.T) {
	s := newStore(t)
	l := attach(s)
	c := config("c", "c")
	if err := s.Batch(t.Context(), func(b *store.Batching) error {
		c.Spec.Data = make([]byte, 600000)
		if err := b.Update(func(tx *store.Tx) error { return store.Configs.Create(tx, c) }); err != nil {
			return err
		}
		return b.Update(func(tx *store.Tx) error {
			c.Spec.Data = make([]byte, 800000)
			return store.Configs.Update(tx, c)
		})
	}); err != nil {
		t.Fatal(err)
	}
	if len(l.commands) != 2 || c.Meta.Version.Index != 2 {
		t.Errorf("there were %d proposals, and the object has version %d", len(l.commands), c.Meta.Version.Index)
	}
	s.View(func(tx *store.ReadTx) {
		if got := store.Configs.Get(tx, "c"); len(got.Spec.Data) != 800000 || got.Meta != c.Meta {
			t.Errorf("the object has %d bytes and %v", len(got.Spec.Data), got.Meta)
		}
	})
}

func TestBatchFails(t *testing.T) {
	s := newStore(t)
	l := attach(s)
	l.fail = func(n int) fate {
		if n == 2 {
			return fate{drop: true, err: errAsked}
		}
		return fate{}
	}
	err := s.Batch(t.Context(), func(b *store.Batching) error {
		first := createNodes(b, 0, 1000)
		if again := createNodes(b, 2000, 2001); first == nil || first != again {
			t.Errorf("after a failure, a batch returned %v and then %v", first, again)
		}
		return nil
	})
	if !errors.Is(err, errAsked) {
		t.Errorf("the batch returned %v", err)
	}
	if n := s.Stats().Objects["node"]; n != 200 || l.n != 2 {
		t.Errorf("there are %d nodes after %d proposals", n, l.n)
	}
	err = s.Batch(t.Context(), func(b *store.Batching) error {
		return errors.Join(createNodes(b, 1000, 1350), errAsked)
	})
	if n := s.Stats().Objects["node"]; n != 400 || !errors.Is(err, errAsked) {
		t.Errorf("there are %d nodes after %v", n, err)
	}
}

func TestWritersBetweenBatches(t *testing.T) {
	s := newStore(t)
	l := attach(s)
	l.arrived, l.leave = make(chan []byte), make(chan struct{})
	done := make(chan error, 2)
	go func() {
		done <- s.Batch(t.Context(), func(b *store.Batching) error { return createNodes(b, 0, 201) })
	}()
	<-l.arrived // the first part is under way
	go func() {
		done <- s.Update(t.Context(), func(tx *store.Tx) error { return store.Configs.Create(tx, config("c", "c")) })
	}()
	<-l.arrived // and so is another writer's change
	l.leave <- struct{}{}
	l.leave <- struct{}{}
	<-l.arrived
	l.leave <- struct{}{}
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
	if n := s.Stats().Objects; n["node"] != 201 || n["config"] != 1 {
		t.Errorf("there is %v", n)
	}
}

func TestBatchUpdatesTwice(t *testing.T) {
	s := newStore(t)
	attach(s)
	n := node("a", "a")
	var names []string
	w := s.Watch(t.Context(), store.Specifier{Action: store.Update})
	if err := s.Batch(t.Context(), func(b *store.Batching) error {
		if err := b.Update(func(tx *store.Tx) error { return store.Nodes.Create(tx, n) }); err != nil {
			return err
		}
		for i := range 300 { // over the border of two parts
			if err := b.Update(func(tx *store.Tx) error {
				o := objects.Copy(store.Nodes.Get(tx, "a"))
				o.Description.Hostname = fmt.Sprint(i)
				names = append(names, o.Description.Hostname)
				return store.Nodes.Update(tx, o)
			}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for range names {
		e := <-w.Events()
		got = append(got, e.Object.Name())
		if e.Old == nil {
			t.Error("an update has no old object")
		}
	}
	if !slices.Equal(got, names) {
		t.Errorf("a watcher was told of %q", got)
	}
}

// TestBatchUndoes lets random parts of batches fail and compares what is left with a plain model.
func TestBatchUndoes(t *testing.T) {
	bothWays(t, func(t *testing.T, s *store.Store) {
		r := rand.New(rand.NewPCG(1, 2))
		m := map[string]string{}
		same := func(tx store.Reader) {
			t.Helper()
			list, err := store.Configs.Find(tx, store.All())
			if err != nil || len(list) != len(m) {
				t.Fatalf("there is %v instead of %v: %v", list, m, err)
			}
			for _, c := range list {
				found, err := store.Configs.Find(tx, store.ByName(c.Spec.Name))
				if err != nil || len(found) != 1 || m[c.ID] != c.Spec.Name || store.Configs.Get(tx, c.ID) != c {
					t.Fatalf("%s is %s instead of %s, and its name finds %v: %v", c.ID, c.Spec.Name, m[c.ID], found, err)
				}
			}
		}
		for range 20 {
			if err := s.Batch(t.Context(), func(b *store.Batching) error {
				for range 30 {
					trial := maps.Clone(m)
					fail := r.IntN(3) == 0
					err := b.Update(func(tx *store.Tx) error {
						for range 4 {
							id, name := fmt.Sprint(r.IntN(5)), fmt.Sprint("n", r.IntN(5))
							switch old := store.Configs.Get(tx, id); {
							case slices.Contains(slices.Collect(maps.Values(trial)), name):
								if old != nil {
									delete(trial, id)
									if err := store.Configs.Delete(tx, id); err != nil {
										return err
									}
								}
							case old == nil:
								trial[id] = name
								if err := store.Configs.Create(tx, config(id, name)); err != nil {
									return err
								}
							default:
								trial[id] = name
								c := objects.Copy(old)
								c.Spec.Name = name
								if err := store.Configs.Update(tx, c); err != nil {
									return err
								}
							}
						}
						if fail {
							return errAsked
						}
						return nil
					})
					if fail != errors.Is(err, errAsked) || !fail && err != nil {
						t.Fatalf("a part returned %v", err)
					}
					if !fail {
						m = trial
					}
					if err := b.Update(func(tx *store.Tx) error { same(tx); return nil }); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			s.View(func(tx *store.ReadTx) { same(tx) })
			if n := s.Stats().Objects["config"]; n != len(m) {
				t.Fatalf("%d objects are counted instead of %d", n, len(m))
			}
		}
	})
}
