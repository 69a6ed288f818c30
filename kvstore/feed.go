package kvstore

import (
	"sync"
	"sync/atomic"
)

// subject is what a feed tells of.
type subject struct {
	path      string
	recursive bool
	stream    bool
	from      uint64 // events with a lower index are not told; 0 when all are
}

// matches says whether an event of the past belongs to the subject, whatever its index is.
func (t *subject) matches(e *Event) bool {
	if e.Refresh {
		return false
	}
	key := e.Node.Key
	switch {
	case key == t.path:
		return true
	case t.recursive && isBelow(key, t.path):
		return !isHidden(key, t.path)
	}
	removed := e.Action == ActionDelete || e.Action == ActionExpire
	return removed && e.PrevNode != nil && e.PrevNode.Dir && isBelow(t.path, key)
}

// feed is the list of the events of a subject, which all its watchers read. To tell an event costs the same however many they
// are, but for waking those that wait.
//
// The list is made of slots, each of which leads to the next. A watcher holds the slot that it reads next, and takes no lock as
// long as there are events. The feed holds the newest one only: what all have read is the collector's.
type feed struct {
	subject
	limit int // how many events a watcher may be behind

	// The store's lock guards these. The reason may also be read by who has come to the end.
	prev, next *feed // of the same path
	watchers   []*Watcher
	newest     *slot  // the one that is still empty
	behind     uint64 // no watcher is at a slot with a lower number
	reason     error  // why the feed was ended

	mu   sync.Mutex    // guards wake and a watcher's done; taken after the store's lock, and held for a few instructions
	wake chan struct{} // is closed when the next event comes; nil when nobody has waited since the last one
}

// slot is the place of one event. The event is there when there is a next slot, and stays.
type slot struct {
	number uint64
	event  *Event
	next   atomic.Pointer[slot]
}

// Slots that stand for an end.
var (
	finished = new(slot) // comes next when the feed has ended; its reason says why
	lost     = new(slot) // comes next when the watcher was cut
	closed   = new(slot) // where a closed watcher is
)

func newFeed(t subject, limit int) *feed { return &feed{subject: t, limit: limit, newest: new(slot)} }

// join adds a watcher, which reads what comes from now on.
func (f *feed) join(w *Watcher) {
	w.feed, w.place = f, len(f.watchers)
	w.at.Store(f.newest)
	f.watchers = append(f.watchers, w)
}

// leave takes a watcher out.
func (f *feed) leave(w *Watcher) {
	last := len(f.watchers) - 1
	f.watchers[w.place] = f.watchers[last]
	f.watchers[w.place].place = w.place
	f.watchers[last] = nil
	f.watchers = f.watchers[:last]
	w.place = -1
}

// tell adds an event and wakes who waits.
func (f *feed) tell(e *Event) {
	next := &slot{number: f.newest.number + 1}
	f.newest.event = e
	f.newest.next.Store(next)
	f.newest = next
	f.rouse()
}

// finish ends the feed after the events that it has told.
func (f *feed) finish(reason error) {
	f.reason, f.watchers = reason, nil
	f.newest.next.Store(finished)
	f.rouse()
}

// cut takes out the watchers that are as far behind as they may be, before another event is told, and returns how many. They
// keep what they have still to read. It looks at the watchers as often as the slowest of them makes it: once in limit events
// when all keep up.
func (f *feed) cut() (n uint64) {
	if f.newest.number-f.behind < uint64(f.limit) {
		return 0
	}
	f.behind = f.newest.number
	var rest *slot // of the events; all share it, for none has been let fall further behind than to the same slot
	// Backwards, for a watcher that leaves gives its place to the last one.
	for i := len(f.watchers) - 1; i >= 0; i-- {
		w := f.watchers[i]
		at := w.at.Load()
		if f.newest.number-at.number >= uint64(f.limit) {
			if rest == nil {
				rest = f.copyFrom(at)
			}
			if w.at.CompareAndSwap(at, rest) {
				f.leave(w)
				n++
				continue
			}
			at = w.at.Load() // it has just read one
		}
		f.behind = min(f.behind, at.number)
	}
	return n
}

// copyFrom returns a list of the events from a slot on, which ends there.
func (f *feed) copyFrom(at *slot) *slot {
	first := new(slot)
	last := first
	for ; at != f.newest; at = at.next.Load() {
		next := new(slot)
		last.event = at.event
		last.next.Store(next)
		last = next
	}
	last.next.Store(lost)
	return first
}

// rouse wakes who waits.
func (f *feed) rouse() {
	f.mu.Lock()
	wake := f.wake
	f.wake = nil
	f.mu.Unlock()
	if wake != nil {
		close(wake)
	}
}

// await returns what is closed when a watcher may go on, or nil when it may already.
func (f *feed) await(w *Watcher) <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if at := w.at.Load(); at == closed || at.next.Load() != nil {
		return nil
	}
	if f.wake == nil {
		f.wake = make(chan struct{})
	}
	if w.done == nil {
		w.done = make(chan struct{})
	}
	return f.wake
}

// close wakes a watcher for good.
func (f *feed) close(w *Watcher) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.at.Swap(closed) != closed && w.done != nil {
		close(w.done)
	}
}

// hub knows the feeds by the paths they are about. What a change costs depends on the depth of its path and on the feeds that
// tell it, not on how many there are. The store's lock guards it.
type hub struct {
	feeds map[string]*feed // the first of each path; those with a from come last
	deep  []int            // how many feeds have a path of so many elements: most changes pass directories that nobody watches
	count int              // watchers that have not ended
	cut   uint64
}

// feed returns the feed of a subject, which its watchers share. One that begins in the future is its watcher's own: the
// others' may have ended by then, and need not look at each event's index.
func (h *hub) feed(t subject, limit int) *feed {
	var prev *feed
	next := h.feeds[t.path]
	for next != nil && next.from == 0 {
		if next.subject == t {
			return next
		}
		prev, next = next, next.next
	}
	f := newFeed(t, limit)
	for len(h.deep) <= depth(t.path) {
		h.deep = append(h.deep, 0)
	}
	h.deep[depth(t.path)]++
	f.prev, f.next = prev, next
	if next != nil {
		next.prev = f
	}
	if prev != nil {
		prev.next = f
		return f
	}
	if h.feeds == nil {
		h.feeds = make(map[string]*feed)
	}
	h.feeds[t.path] = f
	return f
}

// add lets a watcher read the feed of a subject.
func (h *hub) add(w *Watcher, t subject, limit int) {
	h.feed(t, limit).join(w)
	h.count++
}

// remove takes a watcher out, unless it has ended. A feed goes with its last watcher.
func (h *hub) remove(w *Watcher) {
	f := w.feed
	if w.place < 0 || f.reason != nil {
		return
	}
	f.leave(w)
	h.count--
	if len(f.watchers) == 0 {
		h.drop(f)
	}
}

// end ends a feed with all its watchers.
func (h *hub) end(f *feed, reason error) {
	h.count -= len(f.watchers)
	f.finish(reason)
	h.drop(f)
}

func (h *hub) drop(f *feed) {
	h.deep[depth(f.path)]--
	if f.next != nil {
		f.next.prev = f.prev
	}
	switch {
	case f.prev != nil:
		f.prev.next = f.next
	case f.next != nil:
		h.feeds[f.path] = f.next
	default:
		delete(h.feeds, f.path)
	}
	f.prev, f.next = nil, nil // its watchers may keep it for long
}

// tell tells a feed of an event, and says whether the feed goes on. One that is no stream has done its duty then.
func (h *hub) tell(f *feed, e *Event) (on bool) {
	if n := f.cut(); n > 0 {
		h.cut += n
		h.count -= int(n)
		if len(f.watchers) == 0 {
			h.drop(f)
			return false
		}
	}
	f.tell(e)
	if !f.stream {
		h.end(f, ErrWatchEnded)
	}
	return f.stream
}

// all goes through the feeds. The one that it is at may end.
func (h *hub) all(yield func(*feed) bool) {
	for _, f := range h.feeds {
		for f != nil {
			next := f.next
			if !yield(f) {
				return
			}
			f = next
		}
	}
}

// endAll ends all watchers.
func (h *hub) endAll(reason error) {
	for f := range h.all {
		h.end(f, reason)
	}
}

// notify tells the feeds of the event's key and of all directories above it.
func (h *hub) notify(e *Event) {
	if h.count == 0 {
		return
	}
	key := e.Node.Key
	for end, n := 1, 0; n < len(h.deep); n++ {
		if h.deep[n] > 0 {
			h.visit(key[:end], e, false)
		}
		if end == len(key) {
			return
		}
		at := end + int(flag(n > 0)) // behind the slash
		end = at + indexSlash(key[at:])
	}
}

// visit tells the feeds of one path. removed says that the path went away with the directory that the event is about.
func (h *hub) visit(path string, e *Event, removed bool) {
	f := h.feeds[path]
	if f == nil {
		return
	}
	key := e.Node.Key
	if path != key && isHidden(key, path) {
		return
	}
	for f != nil {
		next := f.next // f may end
		if (f.recursive || removed || path == key) && e.Index() >= f.from {
			h.tell(f, e)
		}
		f = next
	}
}
