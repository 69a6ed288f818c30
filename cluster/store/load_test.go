package store_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/cluster/store"
)

// TestLoad has 64 readers, 8 writers and 256 watchers at once, and is closed among them.
func TestLoad(t *testing.T) {
	bothWays(t, func(t *testing.T, s *store.Store) {
		must(t, s, func(tx *store.Tx) (err error) {
			for i := range 50 {
				err = errors.Join(err, store.Nodes.Create(tx, node(fmt.Sprint(i), fmt.Sprint("n", i))))
			}
			return err
		})
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		var background, writers sync.WaitGroup
		for range 64 {
			background.Go(func() {
				for range 30 {
					s.View(func(tx *store.ReadTx) {
						if list, err := store.Nodes.Find(tx, store.ByNamePrefix("n1")); err != nil || len(list) == 0 {
							t.Errorf("a reader found %v, %v", list, err)
						}
						if store.Nodes.Get(tx, "7") == nil {
							t.Error("a reader found nothing")
						}
					})
				}
			})
		}
		var events atomic.Int64
		for i := range 256 {
			background.Go(func() {
				var spec []store.Specifier
				if i%2 == 0 {
					spec = []store.Specifier{{Action: store.Update, Object: node(fmt.Sprint(i%50), ""), Checks: []store.Check{store.CheckID}}}
				}
				w := s.Watch(ctx, spec...)
				for range w.Events() {
					events.Add(1)
				}
			})
		}
		for i := range 8 {
			writers.Go(func() {
				for j := range 30 {
					if err := s.Retry(t.Context(), func(tx *store.Tx) error {
						n := objects.Copy(store.Nodes.Get(tx, fmt.Sprint((i*30+j)%50)))
						n.Spec.Availability = "drain"
						return store.Nodes.Update(tx, n)
					}); err != nil {
						t.Error(err)
					}
				}
			})
		}
		writers.Wait()
		s.Close()
		stop()
		background.Wait()
		if events.Load() == 0 {
			t.Error("nobody was told of anything")
		}
		if n := s.Stats().Watchers; n != 0 {
			t.Errorf("%d watchers are left", n)
		}
	})
}

// model is a plain store of configs.
type model map[string]modelConfig

type modelConfig struct {
	name    string
	version uint64
}

func (m model) check(id, name string, create bool) error {
	if _, ok := m[id]; ok == create {
		if create {
			return store.ErrExist
		}
		return store.ErrNotExist
	}
	for other, c := range m {
		if other != id && strings.EqualFold(c.name, name) {
			return store.ErrNameConflict
		}
	}
	return nil
}

// TestModel compares random transactions, some of which fail, with a plain model, and a follower and restored store with the
// leader.
func TestModel(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		s, follower := newStore(t), newStore(t)
		l := attach(s, follower)
		m := model{}
		for range 150 {
			trial := model{}
			for id, c := range m {
				trial[id] = c
			}
			var want error
			touched := map[string]bool{}
			err := s.Update(t.Context(), func(tx *store.Tx) error {
				for range r.IntN(5) {
					id, name := fmt.Sprint("c", r.IntN(8)), string("abcdABCD"[r.IntN(8)])
					c := config(id, name)
					var got error
					switch r.IntN(4) {
					case 0, 1:
						if want = trial.check(id, name, true); want == nil {
							trial[id] = modelConfig{name: name}
						}
						got = store.Configs.Create(tx, c)
					case 2:
						c.Meta.Version.Index = trial[id].version
						if r.IntN(10) == 0 {
							c.Meta.Version.Index += 1000
						}
						want = trial.check(id, name, false)
						if (want == nil || want == store.ErrNameConflict) && c.Meta.Version.Index != trial[id].version {
							want = store.ErrSequenceConflict
						}
						if want == nil {
							trial[id] = modelConfig{name, trial[id].version}
						}
						got = store.Configs.Update(tx, c)
					case 3:
						if _, ok := trial[id]; !ok {
							want = store.ErrNotExist
						}
						delete(trial, id)
						got = store.Configs.Delete(tx, id)
					}
					if got != want {
						t.Fatalf("seed %d: a change returned %v instead of %v", seed, got, want)
					}
					if want != nil {
						return want
					}
					touched[id] = true
				}
				return nil
			})
			if err != want {
				t.Fatalf("seed %d: an update returned %v instead of %v", seed, err, want)
			}
			if err == nil {
				for id := range touched {
					if c, ok := trial[id]; ok {
						trial[id] = modelConfig{c.name, l.index}
					}
				}
				m = trial
			}
			s.View(func(tx *store.ReadTx) {
				list, err := store.Configs.Find(tx, store.All())
				if err != nil || len(list) != len(m) {
					t.Fatalf("seed %d: there is %v instead of %v: %v", seed, list, m, err)
				}
				for _, c := range list {
					if is := (modelConfig{c.Spec.Name, c.Meta.Version.Index}); is != m[c.ID] {
						t.Fatalf("seed %d: %s is %v instead of %v", seed, c.ID, is, m[c.ID])
					}
					if found, err := store.Configs.Find(tx, store.ByName(strings.ToUpper(c.Spec.Name))); err != nil || len(found) != 1 || found[0] != c {
						t.Fatalf("seed %d: %s finds %v, %v", seed, c.Spec.Name, found, err)
					}
				}
			})
		}
		if !slices.Equal(dump(t, s), dump(t, follower)) {
			t.Errorf("seed %d: the follower has another state", seed)
		}
	}
}
