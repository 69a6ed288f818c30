//go:build race

package store_test

import (
	"fmt"
	"strings"
	"testing"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/cluster/store"
)

// TestMutatedResult changes what the store gave out, in a build that checks.
func TestMutatedResult(t *testing.T) {
	for _, k := range kinds {
		for name, use := range map[string]func(*store.Store){
			"get":    func(s *store.Store) { s.View(func(tx *store.ReadTx) { k.get(tx, "a") }) },
			"find":   func(s *store.Store) { s.View(func(tx *store.ReadTx) { _, _ = k.find(tx, store.All()) }) },
			"remove": func(s *store.Store) { must(t, s, func(tx *store.Tx) error { return k.remove(tx, "a") }) },
		} {
			s := newStore(t)
			extensions(t, s)
			var o objects.Object
			must(t, s, func(tx *store.Tx) error { return k.create(tx, k.make("a", "First", "x", 1)) })
			s.View(func(tx *store.ReadTx) { o = k.get(tx, "a") })
			o.Notes().Labels["l"] = "changed"
			func() {
				defer func() {
					if p := fmt.Sprint(recover()); !strings.Contains(p, k.kind.String()+" a was changed") {
						t.Errorf("%s of a %s that was changed: %s", name, k.kind, p)
					}
				}()
				use(s)
			}()
		}
	}
}
