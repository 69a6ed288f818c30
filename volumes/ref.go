package volumes

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// refGrace is how long a reference is believed although no container record confirms it: the container that took it
// may be in the making.
const refGrace = time.Minute

// AddRef notes that ref, a container's id, uses the volume. It is idempotent.
func (s *Store) AddRef(ctx context.Context, name, ref string) error {
	_, err := s.Get(ctx, name, GetRequest{Ref: ref})
	return err
}

// Release takes the reference back. It is idempotent, and an unknown volume has no references.
func (s *Store) Release(ctx context.Context, name, ref string) error {
	unlock, err := s.names.lock(ctx, name)
	if err != nil {
		return fmt.Errorf("release volume %s: %w", name, err)
	}
	defer unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.entries[name]; e != nil {
		delete(e.refs, ref)
	}
	return nil
}

// Refs returns who holds the volume, sorted.
func (s *Store) Refs(name string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.entries[name]
	if e == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(e.refs))
}

// hold adds ref to e, unless it is empty.
func (s *Store) hold(e *entry, ref string) {
	if ref == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.referenced = true
	if _, held := e.refs[ref]; held {
		return
	}
	if e.refs == nil {
		e.refs = map[string]time.Time{}
	}
	e.refs[ref] = s.now()
}

// confirmedRefs returns who holds e after asking the container records: references that they do not confirm are
// dropped once they are older than refGrace, and those that were missing are added.
func (s *Store) confirmedRefs(ctx context.Context, e *entry) []string {
	if s.references == nil || len(s.Refs(e.name)) == 0 {
		return s.Refs(e.name)
	}
	asked := s.now()
	confirmed := s.references(ctx)[e.name]
	s.mu.Lock()
	for ref, since := range e.refs {
		if !slices.Contains(confirmed, ref) && since.Before(asked.Add(-refGrace)) {
			delete(e.refs, ref)
		}
	}
	for _, ref := range confirmed {
		if _, held := e.refs[ref]; !held {
			e.refs[ref] = asked
		}
	}
	s.mu.Unlock()
	return s.Refs(e.name)
}
