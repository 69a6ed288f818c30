package kvstore

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options are a store's settings. The zero value of each is its default.
type Options struct {
	Namespaces    []string         // directories that exist from the start and that, as the root, cannot be written
	HistoryEvents int              // how many past events are kept; 1000. All replicas must agree on it.
	HistoryBytes  int64            // how many bytes of them; 64 MiB. All replicas must agree on it.
	WatchBuffer   int              // how many events wait for a watcher before it is cut; 100
	MaxKey        int              // longest path in bytes; 0 for no limit
	MaxDepth      int              // most elements of a path; 0 for 4096, which is as deep as a tree can be
	MaxValue      int              // longest value in bytes; 0 for no limit
	Limited       string           // the directory whose keys these three are for, counted from there; "" for the whole tree
	Now           func() time.Time // for the time to live in answers only; time.Now
}

// maxDepth bounds every path, since documents and snapshots are read with what a stack holds. It is a constant because hosts
// must agree on it.
const maxDepth = 4096

// Store is the tree with its history and watchers. Its methods may be called from any goroutine.
type Store struct {
	options  Options
	readOnly map[string]bool
	gets     [8]getCount // spread by the path, so that two cores do not write the same line for each Get

	// What follows is changed under mu and read without it.
	tree    tree
	index   atomic.Uint64 // the number of changes so far
	changes atomic.Uint64 // odd while the tree is ahead of the index, another number after each change

	mu      sync.Mutex // guards what follows, too; the replica's lock is taken before it
	clock   time.Time  // the latest time that a leader's command brought
	expiry  expiry
	history history
	hub     hub
	stats   Stats // without the counts of gets and of watchers
}

// version is one state of the tree. It never changes.
type version struct {
	index uint64
	root  *dir
}

type getCount struct {
	success, fail atomic.Uint64
	_             [48]byte
}

// New returns an empty store. It keeps nothing of the options but their values.
func New(o Options) *Store {
	if o.HistoryEvents <= 0 {
		o.HistoryEvents = 1000
	}
	if o.HistoryBytes <= 0 {
		o.HistoryBytes = 64 << 20
	}
	if o.WatchBuffer <= 0 {
		o.WatchBuffer = 100
	}
	if o.MaxDepth <= 0 || o.MaxDepth > maxDepth {
		o.MaxDepth = maxDepth
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Store{options: o, readOnly: map[string]bool{"/": true}, tree: tree{epoch: 1}}
	s.tree.root.Store(newDir("", attributes{}))
	o.Namespaces = append([]string(nil), o.Namespaces...)
	for _, name := range o.Namespaces {
		s.readOnly[clean(name)] = true
	}
	s.addNamespaces()
	s.history = history{maxEvents: o.HistoryEvents, maxBytes: o.HistoryBytes}
	return s
}

// clean returns the path from the root without empty, "." and ".." elements, and without a slash at its end.
func clean(p string) string {
	if len(p) == 0 || p[0] != '/' {
		return path.Clean("/" + p)
	}
	for i := 0; ; {
		// p[i] is a slash.
		if i+1 == len(p) {
			if i == 0 {
				return p
			}
			return path.Clean(p)
		}
		if p[i+1] == '/' || p[i+1] == '.' {
			return path.Clean(p)
		}
		next := strings.IndexByte(p[i+1:], '/')
		if next < 0 {
			return p
		}
		i += 1 + next
	}
}

func depth(path string) int {
	if path == "/" {
		return 0
	}
	return strings.Count(path, "/")
}

// addNamespaces makes the directories that cannot be written, where there are none.
func (s *Store) addNamespaces() {
	for name := range s.readOnly {
		if _, code, _ := s.tree.root.Load().find(name); code == CodeKeyNotFound {
			s.tree.put(name, entry{dir: newDir(base(name), attributes{})}, attributes{})
		}
	}
}

// base returns the last element of a clean path.
func base(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// change has f change the tree, after which the store has that index.
func (s *Store) changeLocked(index uint64, f func(t *tree)) {
	s.changes.Add(1)
	f(&s.tree)
	s.index.Store(index)
	s.changes.Add(1)
}

// freezeLocked returns the present state.
func (s *Store) freezeLocked() version { return version{s.index.Load(), s.tree.freeze()} }

// Get returns the key or directory at path. A key that is there is read without any lock. Other answers are
// looked for again, and at last with the lock that changes of the tree in memory take, when a change came between.
func (s *Store) Get(path string, r GetRequest) (Found, error) {
	path = clean(path)
	count := &s.gets[int(path[len(path)-1])%len(s.gets)]
	for range 2 {
		before, index := s.changes.Load(), s.index.Load()
		e, code, stop := s.tree.root.Load().find(path)
		if code == 0 && e.dir == nil {
			count.success.Add(1)
			n := s.file(path, e.file)
			// The tree may be ahead of the index: then by the change that made this very record, or by one of another key.
			return Found{n, max(index, n.ModifiedIndex)}, nil
		}
		if n, err := s.answer(path, r, e, code, stop, index); before&1 == 0 && s.changes.Load() == before {
			count.add(err)
			return Found{n, index}, err
		}
	}
	s.mu.Lock()
	v := s.freezeLocked()
	s.mu.Unlock()
	e, code, stop := v.root.find(path)
	n, err := s.answer(path, r, e, code, stop, v.index)
	count.add(err)
	return Found{n, v.index}, err
}

func (c *getCount) add(err error) {
	if err == nil {
		c.success.Add(1)
	} else {
		c.fail.Add(1)
	}
}

// answer returns what was found at a path.
func (s *Store) answer(path string, r GetRequest, e entry, code, stop int, index uint64) (Node, error) {
	if code != 0 {
		return Node{}, NewError(code, path[:stop], index)
	}
	if e.dir == nil {
		return s.file(path, e.file), nil
	}
	var now time.Time
	l := lister{recursive: r.Recursive, now: func() time.Time {
		if now.IsZero() {
			now = s.options.Now()
		}
		return now
	}}
	var n Node
	l.fill(&n, path, e, true)
	return n, nil
}

// file returns the outer form of a file.
func (s *Store) file(path string, f record) Node {
	a, value := f.read()
	n := Node{Key: path, Value: value, ModifiedIndex: a.modified, CreatedIndex: a.created}
	if !a.expire.IsZero() {
		n.expires(a.expire, s.options.Now())
	}
	return n
}

// lister makes the outer form of directories.
type lister struct {
	recursive bool
	now       func() time.Time
}

// fill makes n the outer form of an entry, with its children when open.
func (l *lister) fill(n *Node, key string, e entry, open bool) {
	a, value := e.read()
	*n = Node{Key: key, Value: value, Dir: e.dir != nil, ModifiedIndex: a.modified, CreatedIndex: a.created}
	if !a.expire.IsZero() {
		n.expires(a.expire, l.now())
	}
	if !n.Dir || !open {
		return
	}
	if key == "/" {
		key = ""
	}
	children := slices.DeleteFunc(e.dir.children(), func(c child) bool { return c.name[0] == '_' })
	if len(children) == 0 {
		return
	}
	// All keys are in one piece of memory, and so are all nodes.
	size := len(children) * (len(key) + 1)
	for _, c := range children {
		size += len(c.name)
	}
	var keys strings.Builder
	keys.Grow(size)
	nodes := make([]Node, len(children))
	n.Nodes = make([]*Node, len(children))
	for i, c := range children {
		start := keys.Len()
		keys.WriteString(key)
		keys.WriteByte('/')
		keys.WriteString(c.name)
		n.Nodes[i] = &nodes[i]
		l.fill(&nodes[i], keys.String()[start:], entryOf(c.p), l.recursive)
	}
}

// Watch begins to watch path. When the history of r.Since is gone it returns an *Error with code 401.
func (s *Store) Watch(path string, r WatchRequest) (*Watcher, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index := s.index.Load()
	t := subject{path: clean(path), recursive: r.Recursive, stream: r.Stream}
	since := r.Since
	switch {
	case since == 0:
		since = index + 1
	case since > index+1:
		t.from = since
	}
	if start := s.history.start(); since < start {
		cause := "the requested history has been cleared [" + strconv.FormatUint(start, 10) + "/" + strconv.FormatUint(since, 10) + "]"
		return nil, NewError(CodeHistoryCleared, cause, index)
	}
	w := &Watcher{store: s, start: index, past: t.past(&s.history, since)}
	if !r.Stream && len(w.past) > 0 {
		f := newFeed(t, 0) // of its own, which tells nothing
		f.join(w)
		f.finish(ErrWatchEnded)
		return w, nil
	}
	s.hub.add(w, t, s.options.WatchBuffer)
	return w, nil
}

// past returns the events of the history that a new watcher has missed; just the first one for a one-shot watcher.
func (t *subject) past(h *history, since uint64) (past []*Event) {
	for _, e := range h.since(since) {
		if t.matches(e) {
			past = append(past, e)
			if !t.stream {
				break
			}
		}
	}
	return past
}

// Check says whether a command keeps the limits of Options. Do does so itself; a replica does before it proposes, not
// when it applies, so that hosts with different limits stay equal.
func (s *Store) Check(c Command) error {
	p, o := clean(c.Path), &s.options
	if o.Limited != "" {
		if !isBelow(p, o.Limited) {
			return nil
		}
		p = p[len(o.Limited):]
	}
	refused := ""
	switch {
	case o.MaxKey > 0 && len(p) > o.MaxKey:
		refused = "key is longer than " + strconv.Itoa(o.MaxKey) + " bytes"
	case depth(p)+int(flag(c.Unique)) > o.MaxDepth:
		refused = "key has more than " + strconv.Itoa(o.MaxDepth) + " elements"
	case o.MaxValue > 0 && len(c.Value) > o.MaxValue:
		refused = "value is longer than " + strconv.Itoa(o.MaxValue) + " bytes"
	default:
		return nil
	}
	return NewError(CodeInvalidField, refused, 0)
}

// Do carries out a command. An error is always an *Error, and leaves the tree as it was. OpExpire returns the last of its
// events, or nil when no key was due.
func (s *Store) Do(c Command) (*Event, error) {
	if err := s.Check(c); err != nil {
		return nil, err
	}
	if c.TTL != nil {
		at := c.Time
		if at.IsZero() {
			at = s.options.Now()
		}
		c.Expire, c.TTL = at.Add(*c.TTL), nil
	}
	if e, err := s.apply(&c); err != nil {
		return nil, err
	} else {
		return e, nil
	}
}

// apply is Do without limits.
func (s *Store) apply(c *Command) (*Event, *Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := c.Time
	switch {
	case now.IsZero():
		now = s.options.Now()
	case !c.Estimate && c.Op != OpExpire:
		s.tickLocked(now)
		now = s.clock
	}
	m := change{s: s, c: *c, path: clean(c.Path), now: now, index: s.index.Load()}
	if depth(m.path)+int(flag(c.Unique)) > maxDepth {
		return nil, m.fail(CodeInvalidField, "key has more than "+strconv.Itoa(maxDepth)+" elements")
	}
	var e *Event
	var err *Error
	st := &s.stats
	switch c.Op {
	case OpCreate:
		e, err = m.create()
		count(err, &st.CreateSuccess, &st.CreateFail)
	case OpSet:
		e, err = m.set()
		count(err, &st.SetSuccess, &st.SetFail)
	case OpUpdate:
		e, err = m.update()
		count(err, &st.UpdateSuccess, &st.UpdateFail)
	case OpCompareAndSwap:
		e, err = m.compareAndSwap()
		count(err, &st.CompareAndSwapSuccess, &st.CompareAndSwapFail)
	case OpDelete:
		e, err = m.delete()
		count(err, &st.DeleteSuccess, &st.DeleteFail)
	case OpCompareAndDelete:
		e, err = m.compareAndDelete()
		count(err, &st.CompareAndDeleteSuccess, &st.CompareAndDeleteFail)
	case OpExpire:
		e = s.expireLocked(c.Time)
	default:
		err = m.fail(CodeInvalidField, "unknown operation "+strconv.Itoa(int(c.Op)))
	}
	return e, err
}

func count(err *Error, success, fail *uint64) {
	if err == nil {
		*success++
	} else {
		*fail++
	}
}

// tickLocked moves the store's clock on, never back.
func (s *Store) tickLocked(t time.Time) {
	if t.After(s.clock) {
		s.clock = t.UTC().Round(0)
	}
}

// expireLocked removes what is due at the cut-off. Each path has an index and an event of its own.
func (s *Store) expireLocked(cutoff time.Time) (last *Event) {
	s.tickLocked(cutoff)
	for {
		next, ok := s.expiry.next()
		if !ok || next.time.After(cutoff) {
			return last
		}
		m := change{s: s, path: next.path, now: cutoff, index: s.index.Load()}
		e, code, _ := m.lookup()
		if code != 0 { // a path expires only while it exists; should it not, it must not be met for ever
			s.expiry.set(next.path, time.Time{})
			continue
		}
		last = m.take(ActionExpire, e)
		s.stats.ExpireCount++
	}
}

// Index returns the store's index: the number of changes so far.
func (s *Store) Index() uint64 { return s.index.Load() }

// Time returns the store's clock: the latest Time of a command.
func (s *Store) Time() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.statsLocked()
}

func (s *Store) statsLocked() Stats {
	st := s.stats
	for i := range s.gets {
		st.GetSuccess += s.gets[i].success.Load()
		st.GetFail += s.gets[i].fail.Load()
	}
	st.Watchers, st.CutWatchers = uint64(s.hub.count), s.hub.cut
	return st
}

// NextExpiry returns when the next key is due, if any key is.
func (s *Store) NextExpiry() (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, ok := s.expiry.next()
	return next.time, ok
}

// Stats are the store's counters, since it was made or as they were restored. The JSON form has the API's names and order.
type Stats struct {
	GetSuccess              uint64 `json:"getsSuccess"`
	GetFail                 uint64 `json:"getsFail"`
	SetSuccess              uint64 `json:"setsSuccess"`
	SetFail                 uint64 `json:"setsFail"`
	DeleteSuccess           uint64 `json:"deleteSuccess"`
	DeleteFail              uint64 `json:"deleteFail"`
	UpdateSuccess           uint64 `json:"updateSuccess"`
	UpdateFail              uint64 `json:"updateFail"`
	CreateSuccess           uint64 `json:"createSuccess"`
	CreateFail              uint64 `json:"createFail"`
	CompareAndSwapSuccess   uint64 `json:"compareAndSwapSuccess"`
	CompareAndSwapFail      uint64 `json:"compareAndSwapFail"`
	CompareAndDeleteSuccess uint64 `json:"compareAndDeleteSuccess"`
	CompareAndDeleteFail    uint64 `json:"compareAndDeleteFail"`
	ExpireCount             uint64 `json:"expireCount"`
	Watchers                uint64 `json:"watchers"`
	CutWatchers             uint64 `json:"-"` // watchers that were removed because they were too slow; not part of the API
}
