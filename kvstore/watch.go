package kvstore

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
)

// ErrSlowWatcher ends a watcher that was Options.WatchBuffer events behind when another came. The store waits for nobody. A
// client takes up the watch again with the index after the last event that it saw.
var ErrSlowWatcher = errors.New("the watcher was removed because it did not keep up with the events")

// ErrWatchEnded ends a watcher that was closed, and a one-shot watcher after its event.
var ErrWatchEnded = errors.New("the watch has ended")

// Watcher reads events, each once and in their order, from the feed that it shares with the others of its path. Next and Poll
// are for one goroutine at a time, and never take the store's lock. Close is for any goroutine. Close a watcher when nobody
// reads it any more.
type Watcher struct {
	store *Store
	feed  *feed
	start uint64
	place int // in the feed; -1 when it was cut or closed; guarded by the store's lock

	past []*Event             // the reader's: what came before the watch, and is still to be read
	at   atomic.Pointer[slot] // where it reads next; moved by the reader, by cut and by Close
	done chan struct{}        // made by the reader under the feed's lock when it first waits; Close closes it
}

// Next returns the next event. It waits for it until ctx ends, and then returns ctx.Err(); an event that has come already is
// returned all the same. Each other error comes after the events before it and is for good: ErrSlowWatcher when the buffer was
// full and an event was lost; an *Error with code 400 when the store was restored to a state that the watcher cannot
// follow; ErrWatchEnded after the event of a one-shot watcher. After Close it is ErrWatchEnded at once.
func (w *Watcher) Next(ctx context.Context) (*Event, error) {
	for {
		if e, err := w.Poll(); e != nil || err != nil {
			return e, err
		}
		wake := w.feed.await(w)
		if wake == nil {
			continue
		}
		select {
		case <-wake:
		case <-w.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Poll is Next without waiting. It returns neither an event nor an error when the next event has not come yet.
func (w *Watcher) Poll() (*Event, error) {
	for {
		at := w.at.Load()
		if at == closed {
			return nil, ErrWatchEnded
		}
		if len(w.past) > 0 {
			return w.pollPast(), nil
		}
		next := at.next.Load()
		switch next {
		case nil:
			return nil, nil
		case finished:
			return nil, w.feed.reason
		case lost:
			return nil, ErrSlowWatcher
		}
		if w.at.CompareAndSwap(at, next) {
			return at.event, nil
		}
		// It was cut or closed meanwhile.
	}
}

func (w *Watcher) pollPast() *Event {
	e := w.past[0]
	w.past[0] = nil
	if w.past = w.past[1:]; len(w.past) == 0 {
		w.past = nil
	}
	return e
}

// StartIndex is the store's index when the watch began.
func (w *Watcher) StartIndex() uint64 { return w.start }

// Close ends the watch, and wakes who waits in Next. It may be called more than once, and while events arrive.
func (w *Watcher) Close() {
	w.store.mu.Lock()
	defer w.store.mu.Unlock()
	w.feed.close(w)
	w.store.hub.remove(w)
}

// isBelow says whether key lies below dir.
func isBelow(key, dir string) bool {
	if dir == "/" {
		return len(key) > 1
	}
	return len(key) > len(dir) && key[len(dir)] == '/' && key[:len(dir)] == dir
}

// isHidden says whether an element of key below the watched path begins with an underscore.
func isHidden(key, watched string) bool {
	if len(watched) > len(key) {
		return false
	}
	rest := key[len(watched):]
	if watched == "/" && strings.HasPrefix(rest, "_") {
		return true
	}
	return strings.Contains(rest, "/_")
}
