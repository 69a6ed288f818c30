package store_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/cluster/store"
)

func written(t testing.TB, p *store.Snapshot) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := p.WriteTo(&b)
	if err != nil || n != int64(b.Len()) {
		t.Fatalf("WriteTo returned %d, %v", n, err)
	}
	return b.Bytes()
}

// everything makes two objects of each kind.
func everything(t testing.TB, s *store.Store) {
	t.Helper()
	extensions(t, s)
	must(t, s, func(tx *store.Tx) (err error) {
		for _, k := range kinds {
			err = errors.Join(err, k.create(tx, k.make("a", "First", "x", 1)), k.create(tx, k.make("b", "Second", "xy", 11)))
		}
		return err
	})
}

func TestSnapshot(t *testing.T) {
	bothWays(t, func(t *testing.T, s *store.Store) {
		everything(t, s)
		p := s.Snapshot()
		before := dump(t, s)
		must(t, s, func(tx *store.Tx) error { return store.Nodes.Delete(tx, "a") })
		b := written(t, p)
		p.Release()
		if _, err := p.WriteTo(new(bytes.Buffer)); err == nil {
			t.Error("a snapshot can be written after its release")
		}
		again := newStore(t)
		if err := again.Restore(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		if after := dump(t, again); !slices.Equal(before, after) {
			t.Errorf("after the restore there is %q instead of %q", after, before)
		}
		if !bytes.Equal(written(t, again.Snapshot()), b) {
			t.Error("the same state makes another snapshot")
		}
		again.View(func(tx *store.ReadTx) {
			for _, k := range kinds {
				for name, by := range k.by {
					if list, err := k.find(tx, by); err != nil || len(list) == 0 {
						t.Errorf("after the restore, %s finds %v, %v", name, list, err)
					}
				}
			}
		})
		for n := range b {
			if n < 200 || n%50 == 0 || n > len(b)-50 {
				if err := again.Restore(bytes.NewReader(b[:n])); err == nil {
					t.Fatalf("the first %d bytes of %d are taken", n, len(b))
				}
			}
		}
		if err := again.Restore(bytes.NewReader(append(slices.Clone(b), 0))); err == nil {
			t.Error("something behind the end is taken")
		}
		if after := dump(t, again); !slices.Equal(before, after) {
			t.Error("a damaged snapshot changed the store")
		}
	})
}

func TestRestoreTellsTheDifference(t *testing.T) {
	for _, behindLog := range []bool{false, true} {
		source := newStore(t)
		s := newStore(t)
		if behindLog {
			attach(source, s)
		} else {
			attach(source)
		}
		everything(t, source)
		swap := []*objects.Config{config("p", "one"), config("q", "two")}
		must(t, source, func(tx *store.Tx) error {
			return errors.Join(store.Configs.Create(tx, swap[0]), store.Configs.Create(tx, swap[1]))
		})
		if !behindLog {
			if err := s.Restore(bytes.NewReader(written(t, source.Snapshot()))); err != nil {
				t.Fatal(err)
			}
		}
		kept := getNode(s, "b")
		attach(source) // s does not see what comes
		l := attach(source)
		l.index = 100
		must(t, source, func(tx *store.Tx) error {
			swap[0].Spec.Name = "three"
			return store.Configs.Update(tx, swap[0])
		})
		must(t, source, func(tx *store.Tx) error {
			swap[1].Spec.Name = "one"
			return store.Configs.Update(tx, swap[1])
		})
		must(t, source, func(tx *store.Tx) error {
			swap[0].Spec.Name = "two"
			return errors.Join(store.Configs.Update(tx, swap[0]), store.Nodes.Delete(tx, "a"), store.Resources.Delete(tx, "b"),
				store.Extensions.Delete(tx, "ext2"), store.Secrets.Create(tx, &objects.Secret{Header: header("new"), Spec: objects.SecretSpec{Annotations: objects.Annotations{Name: "new"}}}))
		})
		w := s.Watch(t.Context())
		b := written(t, source.Snapshot())
		if err := s.Restore(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		want := []string{"delete resource b Second", "delete extension ext2 xy", "delete node a First", "update config p two from one", "update config q one from two", "create secret new new", "commit 103"}
		if got := describe(told(t, w, 0)); !slices.Equal(got, want) {
			t.Errorf("a watcher was told of %q", got)
		}
		if !slices.Equal(dump(t, s), dump(t, source)) {
			t.Error("the stores are not the same")
		}
		if getNode(s, "b") != kept {
			t.Error("an object that is the same has another place")
		}
		if err := s.Restore(bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
		must(t, newStore(t), func(*store.Tx) error { return nil })
		w.Cancel()
		for e := range w.Events() {
			t.Errorf("a restore of the same told of %v", describe([]store.Event{e}))
		}
	}
}

func TestRestoredSessions(t *testing.T) {
	s := newStore(t)
	l := attach(s)
	must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, node("a", "a")) })
	again := newStore(t)
	if err := again.Restore(bytes.NewReader(written(t, s.Snapshot()))); err != nil {
		t.Fatal(err)
	}
	if r := again.Apply(9, l.commands[0]).(store.Result); r != (store.Result{Index: 1}) {
		t.Errorf("after a restore, a repeat returned %v", r)
	}
}
