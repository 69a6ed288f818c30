// Package boltdb is the local network store: Docker's local-kv.db. It implements libkv's store interface with the
// semantics of libkv's own bolt backend (values are an 8-byte little-endian index followed by the bytes), and adds
// what the network controller needs beside it: transactions over several keys, an index that goes on where the
// file ends, a check of the file before it is used, and a quarantine for values that do not decode.
//
// It never interprets a value. Writers that wait while another one flushes share the next flush.
package boltdb

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/libkv/store"
	bolt "go.etcd.io/bbolt"

	"stated.dev/stated/network/datastore"
)

// Bucket names: Docker's, and ours beside it for values that do not decode.
const (
	DefaultBucket    = "libnetwork"
	quarantineBucket = "libnetwork-quarantine"
)

// indexLen is the length of the index in front of every value.
const indexLen = 8

// Options choose the file.
type Options struct {
	Path   string
	Bucket string // DefaultBucket when empty
	// StateDir holds the safety copy and what is set aside, on the same file system; the file's directory when empty.
	StateDir string
	// LockWait bounds the wait for another process that has the file open; one second when zero.
	LockWait time.Duration
}

// Store is an open file.
type Store struct {
	path   string
	beside string // path of the copy and of what is set aside, without their suffixes
	bucket []byte

	commit sync.Mutex // held by the one writer that commits; guards db, index and the file's identity
	db     *bolt.DB
	file   fs.FileInfo // of the descriptor that db has open
	index  uint64      // newest index given out

	mu     sync.Mutex // guards queue; taken without commit
	queue  []*request
	repair string // what Open had to do to the file; "" when nothing
}

var (
	_ datastore.KV          = (*Store)(nil)
	_ datastore.Quarantiner = (*Store)(nil)
)

// Open opens or creates the file. A file that another process has open is an error that names the holder. A file
// that is damaged is moved aside and replaced by the last good copy, or by an empty one; Repair tells.
func Open(ctx context.Context, opts Options) (*Store, error) {
	if opts.Bucket == "" {
		opts.Bucket = DefaultBucket
	}
	if opts.LockWait == 0 {
		opts.LockWait = time.Second
	}
	if err := os.MkdirAll(filepath.Dir(opts.Path), 0o750); err != nil {
		return nil, fmt.Errorf("open network store: %w", err)
	}
	if opts.StateDir == "" {
		opts.StateDir = filepath.Dir(opts.Path)
	}
	if err := os.MkdirAll(opts.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("open network store: %w", err)
	}
	s := &Store{path: opts.Path, beside: filepath.Join(opts.StateDir, filepath.Base(opts.Path)), bucket: []byte(opts.Bucket)}
	if err := s.checkFile(ctx, opts.LockWait); err != nil {
		return nil, err
	}
	db, file, err := openBolt(opts.Path, opts.LockWait)
	if err != nil {
		if errors.Is(err, bolt.ErrTimeout) {
			return nil, alreadyOpen(opts.Path)
		}
		return nil, fmt.Errorf("open network store %s: %w", opts.Path, err)
	}
	s.db, s.file = db, file
	if err := s.scanIndex(); err != nil {
		_ = db.Close() // nothing was written
		return nil, fmt.Errorf("open network store %s: %w", opts.Path, err)
	}
	if s.repair == "" {
		if err := s.keepGoodCopy(); err != nil {
			slog.WarnContext(ctx, "no safety copy of the network store", "path", opts.Path, "error", err)
		}
	}
	return s, nil
}

// Repair says what Open had to do to the file, or "".
func (s *Store) Repair() string { return s.repair }

// scanIndex finds the newest index in the file, so that a writer from before a restart cannot pass a check.
func (s *Store) scanIndex() error {
	return s.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(s.bucket)
		if b == nil {
			return nil
		}
		return b.ForEach(func(_, v []byte) error {
			if len(v) >= indexLen {
				s.index = max(s.index, binary.LittleEndian.Uint64(v))
			}
			return nil
		})
	})
}

type request struct {
	ops     []datastore.Op
	indexes []uint64
	newest  uint64
	err     error
	done    chan struct{}
}

// Transact carries out ops, all or none. Callers that arrive while another one commits are committed together.
func (s *Store) Transact(_ context.Context, ops []datastore.Op) ([]uint64, uint64, error) {
	r := &request{ops: ops, done: make(chan struct{})}
	s.mu.Lock()
	s.queue = append(s.queue, r)
	s.mu.Unlock()

	s.commit.Lock()
	select {
	case <-r.done: // the writer before us took us along
		s.commit.Unlock()
		return r.indexes, r.newest, r.err
	default:
	}
	s.mu.Lock()
	batch := s.queue
	s.queue = nil
	s.mu.Unlock()
	s.commitLocked(batch)
	s.commit.Unlock()
	return r.indexes, r.newest, r.err
}

// commitLocked writes a batch with one flush. A request whose conditions fail is left out; the others go on.
func (s *Store) commitLocked(batch []*request) {
	err := s.healLocked()
	next := s.index
	if err == nil {
		err = s.db.Update(func(tx *bolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists(s.bucket)
			if err != nil {
				return err
			}
			for _, r := range batch {
				if r.err = check(b, r.ops); r.err != nil {
					continue
				}
				r.indexes = make([]uint64, len(r.ops))
				for i, op := range r.ops {
					if op.Value == nil {
						err = b.Delete([]byte(op.Key))
					} else {
						next++
						r.indexes[i] = next
						err = b.Put([]byte(op.Key), envelope(next, op.Value))
					}
					if err != nil {
						return err
					}
				}
				r.newest = next
			}
			return nil
		})
	}
	if err == nil {
		s.index = next
	}
	for _, r := range batch {
		if err != nil && r.err == nil {
			r.err = fmt.Errorf("write network store: %w", err)
		}
		close(r.done)
	}
}

func check(b *bolt.Bucket, ops []datastore.Op) error {
	for _, op := range ops {
		if op.Check == datastore.Always {
			continue
		}
		v := b.Get([]byte(op.Key))
		switch {
		case op.Check == datastore.Absent && len(v) != 0:
			return store.ErrKeyExists
		case op.Check == datastore.AtIndex && len(v) < indexLen:
			return store.ErrKeyNotFound
		case op.Check == datastore.AtIndex && binary.LittleEndian.Uint64(v) != op.Index:
			return store.ErrKeyModified
		}
	}
	return nil
}

func envelope(index uint64, value []byte) []byte {
	return append(binary.LittleEndian.AppendUint64(make([]byte, 0, indexLen+len(value)), index), value...)
}

// view runs f on the bucket; a file without the bucket has no keys.
func (s *Store) view(f func(b *bolt.Bucket) error) error {
	s.commit.Lock()
	db := s.db
	s.commit.Unlock()
	return db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(s.bucket)
		if b == nil {
			return store.ErrKeyNotFound
		}
		return f(b)
	})
}

func pair(key, v []byte) *store.KVPair {
	p := &store.KVPair{Key: string(key)}
	if len(v) >= indexLen {
		p.LastIndex = binary.LittleEndian.Uint64(v)
		p.Value = bytes.Clone(v[indexLen:])
	}
	return p
}

// Get returns store.ErrKeyNotFound for a key that is absent or has no index.
func (s *Store) Get(key string) (p *store.KVPair, err error) {
	err = s.view(func(b *bolt.Bucket) error {
		v := b.Get([]byte(key))
		if len(v) < indexLen {
			return store.ErrKeyNotFound
		}
		p = pair([]byte(key), v)
		return nil
	})
	return p, err
}

// Put implements store.Store.
func (s *Store) Put(key string, value []byte, _ *store.WriteOptions) error {
	_, _, err := s.Transact(context.Background(), []datastore.Op{{Key: key, Value: nonNil(value)}})
	return err
}

// Delete implements store.Store; an absent key is no error.
func (s *Store) Delete(key string) error {
	_, _, err := s.Transact(context.Background(), []datastore.Op{{Key: key}})
	return err
}

// Exists implements store.Store.
func (s *Store) Exists(key string) (bool, error) {
	_, err := s.Get(key)
	if errors.Is(err, store.ErrKeyNotFound) {
		return false, nil
	}
	return err == nil, err
}

// List returns everything whose key begins with prefix, or store.ErrKeyNotFound when there is nothing.
func (s *Store) List(prefix string) ([]*store.KVPair, error) {
	var pairs []*store.KVPair
	err := s.view(func(b *bolt.Bucket) error {
		c := b.Cursor()
		for k, v := c.Seek([]byte(prefix)); bytes.HasPrefix(k, []byte(prefix)) && k != nil; k, v = c.Next() {
			if len(v) >= indexLen {
				pairs = append(pairs, pair(k, v))
			}
		}
		return nil
	})
	if err == nil && len(pairs) == 0 {
		err = store.ErrKeyNotFound
	}
	return pairs, err
}

// DeleteTree deletes every key that begins with prefix.
func (s *Store) DeleteTree(prefix string) error {
	pairs, err := s.List(prefix)
	if errors.Is(err, store.ErrKeyNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	ops := make([]datastore.Op, len(pairs))
	for i, p := range pairs {
		ops[i].Key = p.Key
	}
	_, _, err = s.Transact(context.Background(), ops)
	return err
}

// AtomicPut implements store.Store.
func (s *Store) AtomicPut(key string, value []byte, previous *store.KVPair, _ *store.WriteOptions) (bool, *store.KVPair, error) {
	op := datastore.Op{Key: key, Value: nonNil(value), Check: datastore.Absent}
	if previous != nil {
		op.Check, op.Index = datastore.AtIndex, previous.LastIndex
	}
	indexes, _, err := s.Transact(context.Background(), []datastore.Op{op})
	if err != nil {
		return false, nil, err
	}
	return true, &store.KVPair{Key: key, Value: value, LastIndex: indexes[0]}, nil
}

// AtomicDelete implements store.Store.
func (s *Store) AtomicDelete(key string, previous *store.KVPair) (bool, error) {
	if previous == nil {
		return false, store.ErrPreviousNotSpecified
	}
	op := datastore.Op{Key: key, Check: datastore.AtIndex, Index: previous.LastIndex}
	_, _, err := s.Transact(context.Background(), []datastore.Op{op})
	return err == nil, err
}

func nonNil(v []byte) []byte {
	if v == nil {
		return []byte{}
	}
	return v
}

// Quarantine moves the value of key to a bucket that nothing reads.
func (s *Store) Quarantine(_ context.Context, key string) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	return s.db.Update(func(tx *bolt.Tx) error {
		from := tx.Bucket(s.bucket)
		if from == nil || from.Get([]byte(key)) == nil {
			return nil
		}
		to, err := tx.CreateBucketIfNotExists([]byte(quarantineBucket))
		if err != nil {
			return err
		}
		if err := to.Put([]byte(key), bytes.Clone(from.Get([]byte(key)))); err != nil {
			return err
		}
		return from.Delete([]byte(key))
	})
}

// WriteTo writes a consistent copy of the file while the store is in use.
func (s *Store) WriteTo(w io.Writer) (n int64, err error) {
	s.commit.Lock()
	db := s.db
	s.commit.Unlock()
	err = db.View(func(tx *bolt.Tx) error {
		n, err = tx.WriteTo(w)
		return err
	})
	return n, err
}

// Close closes the file.
func (s *Store) Close() {
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.db.Close(); err != nil {
		slog.Error("close network store", "path", s.path, "error", err)
	}
}

// NewLock, Watch and WatchTree have no meaning on a file that one process holds.
func (s *Store) NewLock(string, *store.LockOptions) (store.Locker, error) {
	return nil, store.ErrCallNotSupported
}

func (s *Store) Watch(string, <-chan struct{}) (<-chan *store.KVPair, error) {
	return nil, store.ErrCallNotSupported
}

func (s *Store) WatchTree(string, <-chan struct{}) (<-chan []*store.KVPair, error) {
	return nil, store.ErrCallNotSupported
}

func alreadyOpen(path string) error {
	text := fmt.Sprintf("boltdb file %s is already open", path)
	if pid := lockHolder(path); pid > 0 {
		text += fmt.Sprintf(" (by process %d)", pid)
	}
	return errdefs.ErrUnavailable.WithMessage(text)
}
