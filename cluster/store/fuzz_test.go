package store_test

import (
	"bytes"
	"slices"
	"testing"

	"stated.dev/stated/cluster/store"
)

// FuzzApply carries out what is no command, twice, on a store with objects. Both hosts have to make the same of it.
func FuzzApply(f *testing.F) {
	source := newStore(f)
	l := attach(source)
	everything(f, source)
	must(f, source, func(tx *store.Tx) error { return store.Configs.Delete(tx, "a") })
	for _, c := range l.commands {
		f.Add(c)
	}
	state := written(f, source.Snapshot())
	f.Fuzz(func(t *testing.T, command []byte) {
		var results []any
		var dumps [][]string
		for range 2 {
			s := newStore(t)
			if err := s.Restore(bytes.NewReader(state)); err != nil {
				t.Fatal(err)
			}
			before := dump(t, s)
			r := s.Apply(10, command).(store.Result)
			after := dump(t, s)
			if r.Err != nil && !slices.Equal(before, after) {
				t.Errorf("a command that failed with %v changed something", r.Err)
			}
			results, dumps = append(results, r), append(dumps, after)
			if again := newStore(t); again.Restore(bytes.NewReader(written(t, s.Snapshot()))) != nil {
				t.Error("the state cannot be restored")
			}
		}
		if results[0] != results[1] || !slices.Equal(dumps[0], dumps[1]) {
			t.Errorf("%v is not %v, or the states are different", results[0], results[1])
		}
	})
}

// FuzzRestore reads what is no snapshot.
func FuzzRestore(f *testing.F) {
	source := newStore(f)
	attach(source)
	everything(f, source)
	f.Add(written(f, source.Snapshot()))
	f.Add([]byte("stco\x01\x02\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newStore(t)
		must(t, s, func(tx *store.Tx) error { return store.Nodes.Create(tx, node("n", "n")) })
		before := dump(t, s)
		if err := s.Restore(bytes.NewReader(b)); err != nil {
			if !slices.Equal(before, dump(t, s)) {
				t.Error("a damaged snapshot changed the store")
			}
			return
		}
		again := newStore(t)
		if err := again.Restore(bytes.NewReader(written(t, s.Snapshot()))); err != nil || !slices.Equal(dump(t, s), dump(t, again)) {
			t.Errorf("what was restored cannot be written and restored: %v", err)
		}
	})
}
