// Package datastore keeps the network controller's objects under Docker's keys, in Docker's encoding, on a store
// with libkv's interface. It knows no object's meaning: it sees keys, JSON bytes and indexes.
//
// The local scope is cached whole: after Load every read is served from memory, and what a caller gets is a copy.
// Several objects are written in one transaction (Update). One mutex guards the cache; it is never held while the
// store writes, so transactions of several callers can share one flush.
package datastore

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/docker/libkv/store"
)

// Scopes of networks and of the stores behind them. A swarm-scoped object has no store of its own.
const (
	ScopeLocal  = "local"
	ScopeGlobal = "global"
	ScopeSwarm  = "swarm"
)

// Object is what a store keeps. Meta implements the part that no object does differently.
type Object interface {
	// Key returns the parts of the key below the root chain, KeyPrefix those of its immediate parent.
	Key() []string
	KeyPrefix() []string
	// Value returns the JSON document, SetValue decodes one.
	Value() ([]byte, error)
	SetValue([]byte) error
	Index() uint64
	SetIndex(uint64)
	Exists() bool
	// Skip reports that the object is cached but never written.
	Skip() bool
}

// Meta holds the index of an object, its optimistic lock. The zero value is an object that was never stored.
type Meta struct {
	index  uint64
	exists bool
}

func (m *Meta) Index() uint64 { return m.index }

// SetIndex also marks the object as stored.
func (m *Meta) SetIndex(i uint64) { m.index, m.exists = i, true }
func (m *Meta) Exists() bool      { return m.exists }

// Skip is false: objects are written unless they say otherwise.
func (m *Meta) Skip() bool { return false }

// Check is the condition under which an Op is carried out.
type Check int

const (
	Always  Check = iota
	Absent        // the key must not exist; otherwise store.ErrKeyExists
	AtIndex       // the key must exist with Op.Index; otherwise store.ErrKeyNotFound or store.ErrKeyModified
)

// Op is one write of a transaction. A nil Value deletes the key, and deleting an absent key unconditionally is no error.
type Op struct {
	Key   string
	Value []byte
	Check Check
	Index uint64
}

// Transactor is what a store offers beside libkv's interface: all operations or none, with one flush. It returns
// the index that each written key got (0 for a deletion) and the newest index of the store after them.
type Transactor interface {
	Transact(ctx context.Context, ops []Op) (indexes []uint64, newest uint64, err error)
}

// KV is a store that can do transactions.
type KV interface {
	store.Store
	Transactor
}

// Quarantiner is a store that can put a broken value where no listing finds it.
type Quarantiner interface {
	Quarantine(ctx context.Context, key string) error
}

type entry struct {
	index uint64
	value []byte
}

// Store is one scope's objects.
type Store struct {
	kv    KV
	keys  Keyspace
	scope string

	mu      sync.Mutex       // guards cache and skipped; never held over kv
	cache   map[string]entry // by full key; nil unless the scope is local
	skipped uint64           // last index given to an object that is not written
}

// Open reads everything that kv has below the key space. Only the local scope is cached.
func Open(_ context.Context, kv KV, scope string, keys Keyspace) (*Store, error) {
	s := &Store{kv: kv, keys: keys, scope: scope}
	switch scope {
	case ScopeLocal:
	case ScopeGlobal:
		return s, nil
	default:
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("unexpected scope %s without configuration passed", scope))
	}
	s.cache = map[string]entry{}
	pairs, err := kv.List(keys.Root())
	if err != nil && !errors.Is(err, store.ErrKeyNotFound) {
		return nil, fmt.Errorf("read network objects: %w", err)
	}
	for _, p := range pairs {
		if len(p.Value) > 0 { // an empty value is a directory marker
			s.cache[p.Key] = entry{index: p.LastIndex, value: p.Value}
		}
	}
	return s, nil
}

// Close closes the store below.
func (s *Store) Close() { s.kv.Close() }

// Keys returns the key space.
func (s *Store) Keys() Keyspace { return s.keys }

// Quarantine takes a key whose value does not decode out of the way, if the store can; else it leaves it alone.
func (s *Store) Quarantine(ctx context.Context, key string) error {
	q, ok := s.kv.(Quarantiner)
	if !ok {
		return nil
	}
	if err := q.Quarantine(ctx, key); err != nil {
		return err
	}
	s.mu.Lock()
	delete(s.cache, key)
	s.mu.Unlock()
	return nil
}

// PutObjectAtomic writes obj if the store still has the index that obj was read with, or nothing when obj was
// never stored. Otherwise it returns store.ErrKeyModified.
func (s *Store) PutObjectAtomic(ctx context.Context, obj Object) error {
	return s.Update(ctx, func(tx *Tx) { tx.PutAtomic(obj) })
}

// PutObject writes obj whatever the store has.
func (s *Store) PutObject(ctx context.Context, obj Object) error {
	return s.Update(ctx, func(tx *Tx) { tx.Put(obj) })
}

// DeleteObject deletes obj whatever its index.
func (s *Store) DeleteObject(ctx context.Context, obj Object) error {
	return s.Update(ctx, func(tx *Tx) { tx.Delete(obj) })
}

// DeleteObjectAtomic deletes obj if it is unchanged since it was read.
func (s *Store) DeleteObjectAtomic(ctx context.Context, obj Object) error {
	return s.Update(ctx, func(tx *Tx) { tx.DeleteAtomic(obj) })
}

// DeleteTree deletes every object that has obj's prefix.
func (s *Store) DeleteTree(ctx context.Context, obj Object) error {
	if obj == nil {
		return errNilObject
	}
	prefix := s.keys.Key(obj.KeyPrefix()...)
	pairs, err := s.list(prefix)
	if err != nil {
		return err
	}
	return s.Update(ctx, func(tx *Tx) {
		for _, p := range pairs {
			tx.ops = append(tx.ops, pending{op: Op{Key: p.Key}})
		}
	})
}

// GetObject fills obj from its key. It returns store.ErrKeyNotFound when there is none.
func (s *Store) GetObject(_ context.Context, obj Object) error {
	if obj == nil {
		return errNilObject
	}
	key := s.keys.Key(obj.Key()...)
	var e entry
	if s.cache != nil {
		s.mu.Lock()
		cached, ok := s.cache[key]
		s.mu.Unlock()
		if !ok {
			return store.ErrKeyNotFound
		}
		e = cached
	} else {
		p, err := s.kv.Get(key)
		if err != nil {
			return err
		}
		e = entry{index: p.LastIndex, value: p.Value}
	}
	if err := obj.SetValue(e.value); err != nil {
		return fmt.Errorf("decode %s: %w", key, err)
	}
	obj.SetIndex(e.index)
	return nil
}

// List returns key, value and index of everything below the key made of parts, in the order of the keys.
func (s *Store) List(_ context.Context, parts ...string) ([]*store.KVPair, error) {
	return s.list(s.keys.Key(parts...))
}

func (s *Store) list(prefix string) ([]*store.KVPair, error) {
	if s.cache == nil {
		pairs, err := s.kv.List(prefix)
		if errors.Is(err, store.ErrKeyNotFound) {
			return nil, nil
		}
		kept := pairs[:0]
		for _, p := range pairs {
			if len(p.Value) > 0 {
				kept = append(kept, p)
			}
		}
		return kept, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var pairs []*store.KVPair
	for key, e := range s.cache {
		if strings.HasPrefix(key, prefix) {
			pairs = append(pairs, &store.KVPair{Key: key, Value: append([]byte(nil), e.value...), LastIndex: e.index})
		}
	}
	sort.Slice(pairs, func(i, j int) bool { return pairs[i].Key < pairs[j].Key })
	return pairs, nil
}

var errNilObject = errdefs.ErrInvalidArgument.WithMessage("invalid KV Object: nil")

type pending struct {
	op  Op
	obj Object // nil for a bare key
}

// Tx collects the writes of one transaction.
type Tx struct {
	store *Store
	ops   []pending
	err   error
}

// PutAtomic adds a write of obj on the condition of PutObjectAtomic.
func (t *Tx) PutAtomic(obj Object) {
	check := Absent
	if obj != nil && obj.Exists() {
		check = AtIndex
	}
	t.put(obj, check)
}

// Put adds an unconditional write of obj.
func (t *Tx) Put(obj Object) { t.put(obj, Always) }

func (t *Tx) put(obj Object, check Check) {
	if t.err != nil {
		return
	}
	if obj == nil {
		t.err = errNilObject
		return
	}
	key := t.store.keys.Key(obj.Key()...)
	value, err := obj.Value()
	if err == nil && value == nil {
		err = errdefs.ErrInvalidArgument.WithMessage("invalid KV Object with a nil Value for key " + key)
	}
	if err != nil {
		t.err = err
		return
	}
	t.ops = append(t.ops, pending{obj: obj, op: Op{Key: key, Value: value, Check: check, Index: obj.Index()}})
}

// PutKey adds an unconditional write of a document that is no Object, such as a driver's record.
func (t *Tx) PutKey(value []byte, parts ...string) {
	t.ops = append(t.ops, pending{op: Op{Key: t.store.keys.Key(parts...), Value: value}})
}

// DeleteKey adds the deletion of the key made of parts.
func (t *Tx) DeleteKey(parts ...string) {
	t.ops = append(t.ops, pending{op: Op{Key: t.store.keys.Key(parts...)}})
}

// Delete adds the deletion of obj, whatever its index.
func (t *Tx) Delete(obj Object) { t.remove(obj, Always) }

// DeleteAtomic adds the deletion of obj if it is unchanged.
func (t *Tx) DeleteAtomic(obj Object) { t.remove(obj, AtIndex) }

func (t *Tx) remove(obj Object, check Check) {
	if obj == nil {
		t.err = errNilObject
		return
	}
	t.ops = append(t.ops, pending{obj: obj, op: Op{Key: t.store.keys.Key(obj.Key()...), Check: check, Index: obj.Index()}})
}

// Update carries out what fill adds, all or nothing. Objects that were written get their new index.
func (s *Store) Update(ctx context.Context, fill func(tx *Tx)) error {
	tx := &Tx{store: s}
	fill(tx)
	if tx.err != nil {
		return tx.err
	}
	var written []pending
	var ops []Op
	for _, p := range tx.ops {
		if p.obj != nil && p.obj.Skip() {
			if err := s.applySkipped(p); err != nil {
				return err
			}
			continue
		}
		written = append(written, p)
		ops = append(ops, p.op)
	}
	if len(ops) == 0 {
		return nil
	}
	indexes, newest, err := s.kv.Transact(ctx, ops)
	if errors.Is(err, store.ErrKeyExists) {
		return store.ErrKeyModified
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range written {
		have := s.cache[p.op.Key]
		switch {
		case p.op.Value == nil:
			if have.index <= newest { // else somebody has created it again since
				delete(s.cache, p.op.Key)
			}
		default:
			if p.obj != nil {
				p.obj.SetIndex(indexes[i])
			}
			if s.cache != nil && have.index < indexes[i] {
				s.cache[p.op.Key] = entry{index: indexes[i], value: p.op.Value}
			}
		}
	}
	return nil
}

// applySkipped gives an object that is never written the same sequencing, in the cache alone.
func (s *Store) applySkipped(p pending) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache == nil {
		return errdefs.ErrInvalidArgument.WithMessage("caching supported only for scope local")
	}
	have, found := s.cache[p.op.Key]
	switch {
	case p.op.Check == Absent && found, p.op.Check == AtIndex && found && have.index != p.op.Index:
		return store.ErrKeyModified
	case p.op.Check == AtIndex && !found:
		return store.ErrKeyNotFound
	case p.op.Value == nil:
		delete(s.cache, p.op.Key)
		return nil
	}
	s.skipped++
	next := max(s.skipped, have.index+1)
	s.cache[p.op.Key] = entry{index: next, value: p.op.Value}
	p.obj.SetIndex(next)
	return nil
}
