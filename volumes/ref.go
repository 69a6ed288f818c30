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

// AddRef notes that ref, a container's id, uses the volume. It is idempotent. A volume that the store knows is not
// looked for again: whoever mounts it will.
func (s *Store) AddRef(ctx context.Context, name, ref string) error {
	unlock, err := s.names.lock(ctx, name)
	if err != nil {
		return &OpError{Op: "get", Name: name, Err: err}
	}
	e := s.entry(name)
	if e != nil {
		s.hold(e, ref)
	}
	unlock()
	if e != nil {
		return nil
	}
	_, err = s.Get(ctx, name, GetRequest{Ref: ref})
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

// holdUsers adds those who use the volume by the container records: they were there before it. Like confirmRefs it takes
// no name lock.
func (s *Store) holdUsers(ctx context.Context, e *entry) {
	if s.references == nil {
		return
	}
	for _, ref := range s.references(ctx)[e.name] {
		s.hold(e, ref)
	}
}

// confirmRefs asks the container records who really holds the volume, before somebody is told that it is in use:
// references that they do not confirm are dropped once they are older than refGrace, and missing ones are added. It
// takes no name lock, because the records' owner may be waiting for one.
func (s *Store) confirmRefs(ctx context.Context, name string) {
	if s.references == nil || len(s.Refs(name)) == 0 {
		return
	}
	asked := s.now()
	confirmed := s.references(ctx)[name]
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[name]
	if e == nil {
		return
	}
	for ref, since := range e.refs {
		if !slices.Contains(confirmed, ref) && since.Before(asked.Add(-refGrace)) {
			delete(e.refs, ref)
		}
	}
	for _, ref := range confirmed {
		if _, held := e.refs[ref]; !held && e.refs != nil {
			e.refs[ref] = asked
		}
	}
}
