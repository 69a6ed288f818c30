package embedded

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/docker/libkv/store"

	"stated.dev/stated/kvstore"
)

// ErrAborted is returned by Lock when it was told to stop before it had the lock.
var ErrAborted = fmt.Errorf("lock operation aborted: %w", store.ErrCannotLock)

// defaultTTL is how long a lock outlives a holder that does not renew it.
const defaultTTL = 20 * time.Second

// Lock is a key that is there as long as somebody holds the lock.
type Lock struct {
	s     *Store
	key   string
	value string
	ttl   time.Duration
	renew <-chan struct{} // ends the renewal; nil when nobody can

	mu   sync.Mutex // guards held; from the beginning of a Lock or Unlock to its end
	held *hold      // nil when the lock is not held
}

// hold is one time of holding a lock.
type hold struct {
	created uint64        // the key's createdIndex, by which it is known to be ours
	index   uint64        // of its last change; the keeper's until done is closed
	end     chan struct{} // is closed for the keeper to end
	done    chan struct{} // is closed when it has ended: the lock is lost, or was released
}

// NewLock returns a lock that is not held. The value stands in its key. A lock that is not renewed is lost after its time to
// live, 20 seconds; whoever holds it renews it three times as often, until RenewLock is closed.
func (s *Store) NewLock(key string, o *store.LockOptions) (store.Locker, error) {
	l := &Lock{s: s, key: key, ttl: defaultTTL}
	if o != nil {
		l.value, l.renew = string(o.Value), o.RenewLock
		if o.TTL > 0 {
			l.ttl = o.TTL
		}
	}
	return l, nil
}

// Lock waits for the lock. The channel it returns is closed when the lock is lost or released.
func (l *Lock) Lock(stop chan struct{}) (<-chan struct{}, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held != nil {
		select {
		case <-l.held.done: // it was lost
			l.held = nil
		default:
			return nil, fmt.Errorf("lock %s: it is held already: %w", l.key, store.ErrCannotLock)
		}
	}
	for {
		select {
		case <-stop:
			return nil, ErrAborted
		default:
		}
		e, err := l.s.do(kvstore.Command{Op: kvstore.OpCreate, Path: l.s.full(l.key), Value: l.value, TTL: &l.ttl})
		if err == nil {
			h := &hold{created: e.Node.CreatedIndex, index: e.Node.ModifiedIndex, end: make(chan struct{}), done: make(chan struct{})}
			if err := l.s.begin(func() { l.keep(h) }); err != nil {
				return nil, fmt.Errorf("lock %s: %w", l.key, err)
			}
			l.held = h
			return h.done, nil
		}
		var exists *kvstore.Error
		if !errors.As(err, &exists) || exists.Code != kvstore.CodeKeyExists {
			return nil, fmt.Errorf("lock %s: %w: %w", l.key, store.ErrCannotLock, failure("create", l.key, err))
		}
		if err := l.await(stop, exists.Index+1); err != nil {
			return nil, err
		}
	}
}

// await returns when the key may be gone.
func (l *Lock) await(stop <-chan struct{}, since uint64) error {
	w, err := l.s.tree.Store().Watch(l.s.full(l.key), kvstore.WatchRequest{Stream: true, Since: since})
	if err != nil {
		return nil // too much has happened since: try again
	}
	defer w.Close()
	ctx, release := l.s.until(stop)
	defer release()
	for {
		e, err := w.Next(ctx)
		switch {
		case err == nil && !e.Removes():
		case ctx.Err() == nil:
			return nil
		case l.s.ctx.Err() != nil:
			return fmt.Errorf("lock %s: %w", l.key, errClosed)
		default:
			return ErrAborted
		}
	}
}

// keep renews the lock until it is lost, released, or not to be renewed any more.
func (l *Lock) keep(h *hold) {
	defer close(h.done)
	until := time.Now().Add(l.ttl)
	timer := time.NewTimer(l.ttl / 3)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-h.end:
			return
		case <-l.renew:
			return
		case <-l.s.ctx.Done():
			return
		}
		begun := time.Now()
		err := l.renewOnce(h, until)
		switch {
		case err == nil:
			until = begun.Add(l.ttl)
		case errors.Is(err, errLost) || time.Now().After(until):
			if l.s.ctx.Err() == nil {
				l.s.o.OnError(l.key, fmt.Errorf("lock %s: it is lost: %w", l.key, err))
			}
			return
		}
		timer.Reset(min(l.ttl/3, max(time.Until(until), 0)))
	}
}

var errLost = errors.New("somebody else has changed or removed its key")

// renewOnce gives the lock another time to live, unless that takes longer than the one it has. Watchers of the key are not told.
func (l *Lock) renewOnce(h *hold, until time.Time) error {
	ctx, cancel := context.WithDeadline(l.s.ctx, until)
	defer cancel()
	e, err := l.s.tree.Do(ctx, kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: l.s.full(l.key), PrevIndex: h.index, TTL: &l.ttl, Refresh: true})
	if err == nil {
		h.index = e.Node.ModifiedIndex
		return nil
	}
	switch code(err) {
	case kvstore.CodeCompareFailed:
		// A renewal whose answer was lost has changed it, or an update that left the key ours.
		now, getErr := l.s.tree.Get(ctx, l.s.full(l.key), kvstore.GetRequest{})
		if getErr == nil && now.Node.CreatedIndex == h.created {
			h.index = now.Node.ModifiedIndex
			return err // with the right index next time
		}
		if getErr != nil && code(getErr) != kvstore.CodeKeyNotFound {
			return getErr
		}
		return errLost
	case kvstore.CodeRaftInternal, kvstore.CodeLeaderElection:
		return err
	}
	return errLost
}

// Unlock releases the lock. When it was lost meanwhile, somebody else's stays, and the error is ErrKeyModified or
// ErrKeyNotFound.
func (l *Lock) Unlock() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.held
	if h == nil {
		return fmt.Errorf("unlock %s: it is not held: %w", l.key, store.ErrKeyNotFound)
	}
	l.held = nil
	close(h.end)
	<-h.done
	_, err := l.s.do(kvstore.Command{Op: kvstore.OpCompareAndDelete, Path: l.s.full(l.key), PrevIndex: h.index})
	if code(err) == kvstore.CodeCompareFailed {
		// The last renewal may have had no answer.
		if now, getErr := l.s.get(l.key, kvstore.GetRequest{}); getErr == nil && now.Node.CreatedIndex == h.created {
			_, err = l.s.do(kvstore.Command{Op: kvstore.OpCompareAndDelete, Path: l.s.full(l.key), PrevIndex: now.Node.ModifiedIndex})
		}
	}
	if err != nil {
		return failure("unlock", l.key, err)
	}
	return nil
}
