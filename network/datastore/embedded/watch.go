package embedded

import (
	"context"
	"errors"
	"time"

	"github.com/docker/libkv/store"

	"stated.dev/stated/kvstore"
)

// Watch delivers the key as it is, and then after every change; a pair without a value says that it was deleted. A reader that
// is slow does not make it miss changes as long as the tree knows them; after that, and after the tree was replaced, it
// goes on with the key as it is. The channel is closed when stop is, or with Close. The key has to be there.
func (s *Store) Watch(key string, stop <-chan struct{}) (<-chan *store.KVPair, error) {
	e, err := s.get(key, kvstore.GetRequest{})
	if err != nil {
		return nil, failure("watch", key, err)
	}
	out := make(chan *store.KVPair)
	send := func(p *store.KVPair) bool {
		select {
		case out <- p:
			return true
		case <-stop:
		case <-s.ctx.Done():
		}
		return false
	}
	w := follower{Store: s, key: key, stop: stop, next: e.EtcdIndex + 1,
		event: func(e *kvstore.Event) bool {
			if e.Node.Key != s.full(key) { // a directory above was removed
				return send(&store.KVPair{Key: s.key(s.full(key)), LastIndex: e.Index()})
			}
			p := s.pair(e.Node)
			if e.Removes() {
				p.Value = nil
			}
			return send(p)
		},
		again: func() (uint64, bool, error) {
			e, err := s.get(key, kvstore.GetRequest{})
			switch {
			case err == nil:
				return e.EtcdIndex, send(s.pair(&e.Node)), nil
			case errors.Is(failure("watch", key, err), store.ErrKeyNotFound):
				var gone *kvstore.Error
				errors.As(err, &gone)
				return gone.Index, send(&store.KVPair{Key: s.key(s.full(key)), LastIndex: gone.Index}), nil
			}
			return 0, true, err
		}}
	first := s.pair(&e.Node)
	err = s.begin(func() {
		defer close(out)
		if send(first) {
			w.run(false)
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// WatchTree delivers what is directly in a directory, and that again after every change below it. Changes that come while the reader
// is busy are told by one list. A directory that is removed has an empty list. The channel is closed when stop is, or with
// Close. The directory has to be there.
func (s *Store) WatchTree(dir string, stop <-chan struct{}) (<-chan []*store.KVPair, error) {
	first, index, err := s.list(dir)
	if err != nil {
		return nil, err
	}
	out := make(chan []*store.KVPair)
	send := func(pairs []*store.KVPair) bool {
		select {
		case out <- pairs:
			return true
		case <-stop:
		case <-s.ctx.Done():
		}
		return false
	}
	again := func() (uint64, bool, error) {
		pairs, index, err := s.list(dir)
		if errors.Is(err, store.ErrKeyNotFound) {
			pairs, index, err = []*store.KVPair{}, s.tree.Store().Index(), nil
		}
		return index, err != nil || send(pairs), err
	}
	w := follower{Store: s, key: dir, stop: stop, next: index + 1, again: again}
	err = s.begin(func() {
		defer close(out)
		if send(first) {
			w.run(true)
		}
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// follower follows one watch of the tree after another.
type follower struct {
	*Store
	key  string
	stop <-chan struct{}
	next uint64 // the first index that was not told

	event func(e *kvstore.Event) bool // tells of one event, and whether to go on; nil when again does
	// again tells of the present state: its index, and whether to go on. An error that is not the tree's answer is
	// tried again.
	again func() (index uint64, on bool, err error)
}

// run ends with stop or Close.
func (f *follower) run(recursive bool) {
	ctx, release := f.until(f.stop)
	defer release()
	for pause := 100 * time.Millisecond; ; {
		w, err := f.tree.Store().Watch(f.full(f.key), kvstore.WatchRequest{Recursive: recursive, Stream: true, Since: f.next})
		if err == nil {
			on := false
			on, err = f.copy(ctx, w)
			w.Close()
			if !on {
				return
			}
			if errors.Is(err, kvstore.ErrSlowWatcher) {
				continue // from where it was; the history has the rest
			}
		}
		// What happened cannot be told any more, but what there is.
		index, on, err := f.again()
		if !on {
			return
		}
		if err == nil {
			f.next, pause = index+1, 100*time.Millisecond
			continue
		}
		if f.ctx.Err() != nil {
			return
		}
		f.o.OnError(f.key, failure("watch", f.key, err))
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, 30*time.Second)
	}
}

// copy tells of a watcher's events until it ends, and whether to go on then. It returns why the watcher ended, or nil when
// something is still to be told.
func (f *follower) copy(ctx context.Context, w *kvstore.Watcher) (on bool, ended error) {
	for {
		e, err := w.Next(ctx)
		if err != nil {
			return ctx.Err() == nil, err
		}
		if e.Index() < f.next {
			continue // a list has told it
		}
		f.next = e.Index() + 1
		if f.event != nil {
			if !f.event(e) {
				return false, nil
			}
			continue
		}
		index, on, err := f.again()
		if !on {
			return false, nil
		}
		if err != nil {
			f.next = e.Index() // it is still to be told
			return true, nil
		}
		f.next = max(f.next, index+1)
	}
}

// until returns a context that ends with stop or with Close, and what gives it up.
func (s *Store) until(stop <-chan struct{}) (ctx context.Context, release func()) {
	ctx, cancel := context.WithCancel(s.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel()
		<-ended
	}
}
