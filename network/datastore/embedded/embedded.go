// Package embedded is a store with libkv's interface on the key tree in this process. Its keys lie below one directory of
// the tree; outside they have no slash at either end.
//
// It holds no copy of anything: reads go to the tree after they have caught up with the log, changes through the log. It
// differs from a store in a file in what the tree is: directories are there of themselves, List returns what is directly
// in one, and elements of a key that begin with an underscore are hidden from it. It has no transactions over several keys.
//
// Locks: Store.mu guards whether the store is closed, and nothing is waited for under it. Lock.mu is held for as long as
// a Lock or Unlock of that lock takes; Store.mu is taken after it.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/docker/libkv/store"

	"stated.dev/stated/kvstore"
)

// Tree is what the store needs of the key tree. *kvstore.Replica is one.
type Tree interface {
	// Do carries out a change and returns when it is durable. Its errors are of type *kvstore.Error.
	Do(ctx context.Context, c kvstore.Command) (*kvstore.Event, error)
	// Get reads what holds every change that was acknowledged before the call.
	Get(ctx context.Context, path string, g kvstore.GetRequest) (kvstore.Found, error)
	// Store is this host's copy, to watch.
	Store() *kvstore.Store
}

var (
	_ Tree        = (*kvstore.Replica)(nil)
	_ store.Store = (*Store)(nil)
)

// Options are a store's settings. The zero value of each is its default.
type Options struct {
	Root    string                      // the directory of the tree that holds the keys; "/1", where the API has its own
	Timeout time.Duration               // of a change or a read; 10 s
	OnError func(key string, err error) // is told why a watch or a lock has ended that nobody ended; may be nil
}

// Store is a part of the tree.
type Store struct {
	tree Tree
	o    Options

	ctx    context.Context // ends with Close; libkv's methods have none
	cancel context.CancelFunc
	tasks  sync.WaitGroup // watches and the keepers of locks

	mu     sync.Mutex // guards closed, so that no task begins while Close waits
	closed bool
}

// New returns a store. It blocks on nothing. The tree stays the caller's, and must outlive the store.
func New(tree Tree, o Options) *Store {
	if o.Root == "" {
		o.Root = "/1"
	}
	if o.Timeout <= 0 {
		o.Timeout = 10 * time.Second
	}
	if o.OnError == nil {
		o.OnError = func(string, error) {}
	}
	o.Root = path.Clean("/" + o.Root)
	s := &Store{tree: tree, o: o}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Close ends watches and gives up locks, which then expire. It returns when all have ended; calls that come later fail.
func (s *Store) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.tasks.Wait()
}

// begin starts a task, unless the store is closed.
func (s *Store) begin(task func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	s.tasks.Go(task)
	return nil
}

var errClosed = fmt.Errorf("the store is closed: %w", store.ErrNotReachable)

// full is where a key lies in the tree.
func (s *Store) full(key string) string { return path.Join(s.o.Root, path.Clean("/"+key)) }

// key is the outer form of a path of the tree.
func (s *Store) key(full string) string {
	return strings.TrimPrefix(strings.TrimPrefix(full, strings.TrimSuffix(s.o.Root, "/")), "/")
}

func (s *Store) do(c kvstore.Command) (*kvstore.Event, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.o.Timeout)
	defer cancel()
	if s.ctx.Err() != nil {
		return nil, errClosed
	}
	return s.tree.Do(ctx, c)
}

func (s *Store) get(key string, g kvstore.GetRequest) (kvstore.Found, error) {
	ctx, cancel := context.WithTimeout(s.ctx, s.o.Timeout)
	defer cancel()
	if s.ctx.Err() != nil {
		return kvstore.Found{}, errClosed
	}
	return s.tree.Get(ctx, s.full(key), g)
}

// code is that of the tree's error, or 0.
func code(err error) int {
	var e *kvstore.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

// failure is a tree's error as a user of libkv knows it.
func failure(what, key string, err error) error {
	if errors.Is(err, store.ErrNotReachable) {
		return fmt.Errorf("%s %s: %w", what, key, err)
	}
	switch code(err) {
	case 0, kvstore.CodeRaftInternal, kvstore.CodeLeaderElection:
		return fmt.Errorf("%s %s: %w: %w", what, key, store.ErrNotReachable, err)
	case kvstore.CodeKeyNotFound, kvstore.CodeNotDir:
		return store.ErrKeyNotFound
	case kvstore.CodeCompareFailed:
		return store.ErrKeyModified
	case kvstore.CodeKeyExists:
		return store.ErrKeyExists
	}
	return fmt.Errorf("%s %s: %w", what, key, err)
}

// pair is a node as libkv has it. A directory has an empty value; what was deleted has none.
func (s *Store) pair(n *kvstore.Node) *store.KVPair {
	return &store.KVPair{Key: s.key(n.Key), Value: []byte(n.Value), LastIndex: n.ModifiedIndex}
}

// command is a change of one key.
func (s *Store) command(op kvstore.Op, key string, value []byte, o *store.WriteOptions) kvstore.Command {
	c := kvstore.Command{Op: op, Path: s.full(key), Value: string(value)}
	if o != nil {
		if o.TTL > 0 {
			c.TTL = &o.TTL
		}
		if o.IsDir {
			c.Dir, c.Value = true, ""
		}
	}
	return c
}

// Put writes a key, or makes a directory. A directory that is there gets the new time to live.
func (s *Store) Put(key string, value []byte, o *store.WriteOptions) error {
	c := s.command(kvstore.OpSet, key, value, o)
	_, err := s.do(c)
	if c.Dir && code(err) == kvstore.CodeNotFile {
		c.Op = kvstore.OpUpdate
		_, err = s.do(c)
	}
	switch code(err) {
	case 0:
		if err == nil {
			return nil
		}
	case kvstore.CodeNotDir:
		return fmt.Errorf("put %s: a key is where a directory has to be: %w", key, err)
	}
	return failure("put", key, err)
}

// Get returns a key; of a directory, an empty value.
func (s *Store) Get(key string) (*store.KVPair, error) {
	e, err := s.get(key, kvstore.GetRequest{})
	if err != nil {
		return nil, failure("get", key, err)
	}
	return s.pair(&e.Node), nil
}

// Exists says whether there is such a key or directory.
func (s *Store) Exists(key string) (bool, error) {
	_, err := s.Get(key)
	if errors.Is(err, store.ErrKeyNotFound) {
		return false, nil
	}
	return err == nil, err
}

// Delete removes a key.
func (s *Store) Delete(key string) error {
	_, err := s.do(kvstore.Command{Op: kvstore.OpDelete, Path: s.full(key)})
	switch {
	case err == nil:
		return nil
	case code(err) == kvstore.CodeNotFile:
		return store.ErrKeyNotFound // there is a directory of that name, but no key
	}
	return failure("delete", key, err)
}

// List returns what is directly in a directory, in the order of the keys, or ErrKeyNotFound when nothing is.
func (s *Store) List(dir string) ([]*store.KVPair, error) {
	pairs, _, err := s.list(dir)
	if err == nil && len(pairs) == 0 {
		err = store.ErrKeyNotFound
	}
	return pairs, err
}

// list returns the children of a directory, which may be none, and the store's index at which it is so.
func (s *Store) list(dir string) (pairs []*store.KVPair, index uint64, err error) {
	e, err := s.get(dir, kvstore.GetRequest{Sorted: true})
	if err != nil {
		return nil, 0, failure("list", dir, err)
	}
	if !e.Node.Dir {
		return nil, 0, store.ErrKeyNotFound
	}
	pairs = make([]*store.KVPair, 0, len(e.Node.Nodes))
	for _, n := range e.Node.Nodes {
		pairs = append(pairs, s.pair(n))
	}
	return pairs, e.EtcdIndex, nil
}

// DeleteTree removes a directory with all that is in it, or ErrKeyNotFound when it is not there. The root of the store is emptied.
func (s *Store) DeleteTree(dir string) error {
	if s.full(dir) != s.o.Root {
		_, err := s.do(kvstore.Command{Op: kvstore.OpDelete, Path: s.full(dir), Recursive: true})
		if err != nil {
			return failure("delete the tree", dir, err)
		}
		return nil
	}
	pairs, err := s.List(dir)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		if err := s.DeleteTree(p.Key); err != nil && !errors.Is(err, store.ErrKeyNotFound) {
			return err
		}
	}
	return nil
}

// AtomicPut writes a key that is as previous says: absent when that is nil, else last changed at its index.
func (s *Store) AtomicPut(key string, value []byte, previous *store.KVPair, o *store.WriteOptions) (bool, *store.KVPair, error) {
	c := s.command(kvstore.OpCreate, key, value, o)
	if previous != nil {
		if previous.LastIndex == 0 { // which the tree would take for no condition
			return false, nil, store.ErrKeyModified
		}
		c.Op, c.PrevIndex = kvstore.OpCompareAndSwap, previous.LastIndex
	}
	e, err := s.do(c)
	if err != nil {
		return false, nil, failure("put", key, err)
	}
	return true, s.pair(e.Node), nil
}

// AtomicDelete removes a key that was last changed at the index of previous.
func (s *Store) AtomicDelete(key string, previous *store.KVPair) (bool, error) {
	if previous == nil {
		return false, store.ErrPreviousNotSpecified
	}
	if previous.LastIndex == 0 {
		return false, store.ErrKeyModified
	}
	if _, err := s.do(kvstore.Command{Op: kvstore.OpCompareAndDelete, Path: s.full(key), PrevIndex: previous.LastIndex}); err != nil {
		return false, failure("delete", key, err)
	}
	return true, nil
}
