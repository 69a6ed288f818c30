//go:build race

package store

import (
	"fmt"
	"hash/maphash"
	"sync"

	"stated.dev/stated/cluster/objects"
)

const checked = true

// seals has a hash of each object in the store, so that one which was changed by a reader is noticed when it is read or
// replaced.
type seals struct{ sums sync.Map }

var sealSeed = maphash.MakeSeed()

func seal(o objects.Object) uint64 {
	b, err := objects.Append(nil, o)
	if err != nil {
		panic(err)
	}
	return maphash.Bytes(sealSeed, b)
}

func (s *seals) check(o objects.Object) {
	if sum, ok := s.sums.Load(o); ok && sum.(uint64) != seal(o) {
		panic(fmt.Sprintf("store: %s %s was changed by somebody who read it", o.Kind(), o.Head().ID))
	}
}

func (s *seals) replace(events []Event) {
	for _, e := range events {
		for _, gone := range []objects.Object{e.Old, e.Object} {
			if gone != nil && (gone == e.Old || e.Action == Delete) {
				s.check(gone)
				s.sums.Delete(gone)
			}
		}
		if e.Action != Delete {
			s.sums.Store(e.Object, seal(e.Object))
		}
	}
}
