package kvstore

import (
	"errors"
	"strings"
	"sync"
)

// ErrSlowWatcher ends a watcher whose buffer was full when an event came. The store waits for nobody. A client takes up the
// watch again with the index after the last event that it saw.
var ErrSlowWatcher = errors.New("the watcher was removed because it did not keep up with the events")

// Watcher delivers events. Close it when nobody reads it any more.
type Watcher struct {
	events    chan *Event
	start     uint64
	path      string
	recursive bool
	stream    bool
	since     uint64

	mu     *sync.Mutex // the store's lock, which guards the rest
	hub    *hub        // nil once the watcher has ended
	at     int         // its place among the watchers of its path
	reason error
}

// Events returns the channel of events. It is closed when the watcher has ended; Reason then says why.
func (w *Watcher) Events() <-chan *Event { return w.events }

// StartIndex is the store's index when the watch began.
func (w *Watcher) StartIndex() uint64 { return w.start }

// Close ends the watch. It may be called more than once, and while events arrive.
func (w *Watcher) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end(nil)
}

// Reason says why the channel was closed: nil while it is open, after Close, and after a one-shot watcher's event;
// ErrSlowWatcher when the reader was too slow; an *Error with code 400 when the store was restored to a state that the
// watcher cannot follow.
func (w *Watcher) Reason() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reason
}

// end assumes the store's lock.
func (w *Watcher) end(reason error) {
	if w.hub == nil {
		return
	}
	w.hub.remove(w)
	w.hub, w.reason = nil, reason
	close(w.events)
}

// deliver hands the watcher an event. It assumes the store's lock.
func (w *Watcher) deliver(e *Event) {
	select {
	case w.events <- e:
		if !w.stream {
			w.end(nil)
		}
	default:
		w.hub.cut++
		w.end(ErrSlowWatcher)
	}
}

// matches says whether an event of the past is one for the watcher.
func (w *Watcher) matches(e *Event) bool {
	if e.Refresh || e.Index() < w.since {
		return false
	}
	key := e.Node.Key
	switch {
	case key == w.path:
		return true
	case w.recursive && isBelow(key, w.path):
		return !isHidden(key, w.path)
	}
	removed := e.Action == ActionDelete || e.Action == ActionExpire
	return removed && e.PrevNode != nil && e.PrevNode.Dir && isBelow(w.path, key)
}

// hub knows the watchers by the paths they watch. What a change costs depends on the depth of its path and on the watchers that
// see it, not on how many there are. The store's lock guards it.
type hub struct {
	paths map[string][]*Watcher
	count int
	cut   uint64
}

func (h *hub) add(w *Watcher) {
	if h.paths == nil {
		h.paths = make(map[string][]*Watcher)
	}
	w.hub, w.at = h, len(h.paths[w.path])
	h.paths[w.path] = append(h.paths[w.path], w)
	h.count++
}

func (h *hub) remove(w *Watcher) {
	list := h.paths[w.path]
	last := len(list) - 1
	list[w.at] = list[last]
	list[w.at].at = w.at
	list[last] = nil
	if last == 0 {
		delete(h.paths, w.path)
	} else {
		h.paths[w.path] = list[:last]
	}
	h.count--
}

// endAll ends all watchers.
func (h *hub) endAll(reason error) {
	for _, list := range h.paths {
		for i := len(list) - 1; i >= 0; i-- { // the last one's end moves nobody
			list[i].end(reason)
		}
	}
}

// notify tells the watchers of the event's key and of all directories above it.
func (h *hub) notify(e *Event) {
	if h.count == 0 {
		return
	}
	key := e.Node.Key
	h.visit("/", e, false)
	for i := 1; i < len(key); i++ {
		i += indexSlash(key[i:])
		h.visit(key[:i], e, false)
	}
}

// visit tells the watchers of one path. removed says that the path went away with the directory that the event is about.
func (h *hub) visit(path string, e *Event, removed bool) {
	list := h.paths[path]
	if len(list) == 0 {
		return
	}
	key := e.Node.Key
	if path != key && isHidden(key, path) {
		return
	}
	// Backwards, for a watcher that ends gives its place to the last one.
	for i := len(list) - 1; i >= 0; i-- {
		w := list[i]
		if (w.recursive || removed || path == key) && e.Index() >= w.since {
			w.deliver(e)
		}
	}
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
