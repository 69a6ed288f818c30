package volumes

import (
	"context"
	"sync"
)

// nameLocks is one lock for each name in use. Different names never wait for each other.
type nameLocks struct {
	mu    sync.Mutex // guards locks and their waiter counts; held for map operations only
	locks map[string]*nameLock
}

type nameLock struct {
	holder  chan struct{} // holds one token while the lock is taken
	waiters int           // holders included
}

// lock takes name's lock and returns what releases it, or gives up when ctx ends.
func (l *nameLocks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	if l.locks == nil {
		l.locks = map[string]*nameLock{}
	}
	n := l.locks[name]
	if n == nil {
		n = &nameLock{holder: make(chan struct{}, 1)}
		l.locks[name] = n
	}
	n.waiters++
	l.mu.Unlock()

	select {
	case n.holder <- struct{}{}:
		return func() {
			<-n.holder
			l.leave(name, n)
		}, nil
	case <-ctx.Done():
		l.leave(name, n)
		return nil, ctx.Err()
	}
}

func (l *nameLocks) leave(name string, n *nameLock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n.waiters--; n.waiters == 0 {
		delete(l.locks, name)
	}
}
