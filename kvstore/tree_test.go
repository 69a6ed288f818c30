package kvstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"stated.dev/stated/kvstore"
)

// state is a store's document, in which equal trees are equal.
func state(t *testing.T, s *kvstore.Store) string {
	t.Helper()
	document, err := s.Save()
	if err != nil {
		t.Fatal(err)
	}
	return string(document)
}

// TestFrozenStates changes a store at random and takes snapshots and clones meanwhile, which must stay as they were.
func TestFrozenStates(t *testing.T) {
	for _, c := range []struct {
		name  string
		names int                    // in each directory
		half  func(s *kvstore.Store) // when half of all is done
	}{
		{"few names", 3, func(*kvstore.Store) {}},
		{"many names", 400, func(*kvstore.Store) {}},
		{"no more epochs", 400, (*kvstore.Store).UseUpEpochs},
	} {
		t.Run(c.name, func(t *testing.T) {
			type frozen struct {
				what  string
				state string
				now   func() *kvstore.Store
			}
			var kept []frozen
			random := rand.New(rand.NewPCG(1, 2))
			s := newStore()
			key := func() string {
				k := "/1"
				for range 1 + random.IntN(3) {
					k += fmt.Sprintf("/n%d", random.IntN(c.names))
				}
				return k
			}
			for step := range 6000 {
				if step == 3000 {
					c.half(s)
				}
				command := set(key(), fmt.Sprint(step))
				switch random.IntN(10) {
				case 0, 1, 2:
					command = kvstore.Command{Op: kvstore.OpDelete, Path: key(), Recursive: true}
				case 3:
					command = kvstore.Command{Op: kvstore.OpUpdate, Path: key(), Value: fmt.Sprint(step)}
				}
				_, _ = s.Do(command) // many do not fit the tree, which the model's test looks at
				switch {
				case step%500 == 0:
					snapshot := s.Snapshot()
					kept = append(kept, frozen{"snapshot", state(t, s), func() *kvstore.Store {
						var stream bytes.Buffer
						if _, err := snapshot.WriteTo(&stream); err != nil {
							t.Fatal(err)
						}
						restored := newStore()
						if err := restored.Restore(&stream); err != nil {
							t.Fatal(err)
						}
						return restored
					}})
				case step%500 == 250: // the clone goes on, and the store becomes a frozen state
					before := s
					s = s.Clone()
					kept = append(kept, frozen{"cloned store", state(t, before), func() *kvstore.Store { return before }})
				}
			}
			for i, f := range kept {
				if got := state(t, f.now()); got != f.state {
					t.Errorf("%s %d:\n got %s\nwant %s", f.what, i, got, f.state)
				}
			}
		})
	}
}

// TestNamesThatShareAHash puts names into a directory that cannot be told apart by their first hash.
func TestNamesThatShareAHash(t *testing.T) {
	byHash := map[uint32]string{}
	var pairs []string
	for i := 0; len(pairs) < 6; i++ { // some ten thousand names have one such pair already
		name := fmt.Sprint("name", i)
		if other, shared := byHash[kvstore.Hash(name)]; shared {
			pairs = append(pairs, name, other)
		}
		byHash[kvstore.Hash(name)] = name
	}
	s := newStore()
	for _, name := range pairs {
		do(t, s, set("/1/"+name, name), set("/1/"+name+"x", name))
	}
	check := func(gone int) {
		t.Helper()
		for i, name := range pairs {
			found, err := s.Get("/1/"+name, kvstore.GetRequest{})
			if isGone := i < gone; isGone != (err != nil) || !isGone && found.Node.Value != name {
				t.Errorf("%d gone: %s is %+v, %v", gone, name, found, err)
			}
		}
	}
	check(0)
	for i, name := range pairs {
		do(t, s, kvstore.Command{Op: kvstore.OpDelete, Path: "/1/" + name})
		check(i + 1)
	}
	if found, err := s.Get("/1", kvstore.GetRequest{}); err != nil || len(found.Node.Nodes) != len(pairs) {
		t.Errorf("%d names are left: %v", len(found.Node.Nodes), err)
	}
}

// TestIndexOfWhatIsRead reads a key that exists at odd indexes only, alone and in its directory, while it comes and goes:
// each answer must say an index at which it was true.
func TestIndexOfWhatIsRead(t *testing.T) {
	s := newStore()
	stop := make(chan struct{})
	var readers sync.WaitGroup
	check := func(what string, exists bool, index uint64) bool {
		if exists != (index%2 == 1) {
			t.Errorf("%s: index %d, exists %v", what, index, exists)
			return false
		}
		return true
	}
	for range 2 {
		readers.Go(func() {
			for last := uint64(0); ; {
				select {
				case <-stop:
					return
				default:
				}
				index := uint64(0)
				found, err := s.Get("/1/d/key", kvstore.GetRequest{})
				var missing *kvstore.Error
				if errors.As(err, &missing) {
					index = missing.Index
				} else {
					index = found.EtcdIndex
				}
				if !check("key", err == nil, index) {
					return
				}
				list, err := s.Get("/1", kvstore.GetRequest{Recursive: true})
				if err != nil || !check("list", len(list.Node.Nodes) == 1, list.EtcdIndex) {
					t.Error(err)
					return
				}
				if index < last || list.EtcdIndex < index {
					t.Errorf("index %d after %d, then %d", index, last, list.EtcdIndex)
					return
				}
				last = list.EtcdIndex
			}
		})
	}
	for i := range 5000 {
		if _, err := s.Do(set("/1/d/key", fmt.Sprint(i))); err != nil {
			t.Error(err)
		}
		if _, err := s.Do(kvstore.Command{Op: kvstore.OpDelete, Path: "/1/d", Recursive: true}); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	readers.Wait()
}
