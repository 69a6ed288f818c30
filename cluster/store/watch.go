package store

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"stated.dev/stated/cluster/objects"
)

// Event tells of one change, or that all of a transaction's have been told. What it points to is shared.
type Event struct {
	Action  Action
	Kind    objects.Kind   // 0 for Commit
	Object  objects.Object // as it is now, or was before its removal
	Old     objects.Object // as it was before an update; nil for one that WatchFrom looked up
	Version uint64         // of a commit: its index in the log, 0 without a log
}

// StoreAction is what the event tells, to be done elsewhere. A commit has none.
func (e Event) StoreAction() (a StoreAction, ok bool) {
	return StoreAction{e.Action, e.Object}, e.Action != Commit
}

// Check compares what a watcher looks for with what an event is about. It must not call the store or the queue.
type Check func(want, is objects.Object) bool

// Specifier says which events a watcher wants.
type Specifier struct {
	Action Action         // 0 for all but commits
	Kind   objects.Kind   // 0 for all
	Object objects.Object // what Checks compare with; needed for them only
	Checks []Check        // all have to hold
}

func (s *Specifier) matches(e *Event) bool {
	if s.Action != e.Action && (s.Action != 0 || e.Action == Commit) {
		return false
	}
	if e.Action == Commit {
		return true
	}
	if s.Kind != 0 && s.Kind != e.Kind || len(s.Checks) > 0 && (s.Object == nil || s.Object.Kind() != e.Kind) {
		return false
	}
	for _, c := range s.Checks {
		if !c(s.Object, e.Object) {
			return false
		}
	}
	return true
}

// CheckID wants the same ID.
func CheckID(want, is objects.Object) bool { return want.Head().ID == is.Head().ID }

// CheckIDPrefix wants an ID that begins so.
func CheckIDPrefix(want, is objects.Object) bool {
	return strings.HasPrefix(is.Head().ID, want.Head().ID)
}

// CheckName wants the same name, in whatever case.
func CheckName(want, is objects.Object) bool { return strings.EqualFold(noteName(want), noteName(is)) }

// CheckNamePrefix wants a name that begins so, in whatever case.
func CheckNamePrefix(want, is objects.Object) bool {
	return strings.HasPrefix(strings.ToLower(noteName(is)), strings.ToLower(noteName(want)))
}

// noteName is the annotation for those kinds whose name is made of other things.
func noteName(o objects.Object) string {
	if n := o.Notes().Name; n != "" {
		return n
	}
	return o.Name()
}

// CheckCustom wants an object that has all of the indices.
func CheckCustom(want, is objects.Object) bool {
	return customs(want, is, func(want, is string) bool { return want == is })
}

// CheckCustomPrefix wants an object that has, for each of the indices, one whose value begins so.
func CheckCustomPrefix(want, is objects.Object) bool {
	return customs(want, is, func(want, is string) bool { return strings.HasPrefix(is, want) })
}

func customs(want, is objects.Object, same func(want, is string) bool) bool {
	for _, w := range want.Notes().Indices {
		if !slices.ContainsFunc(is.Notes().Indices, func(i objects.Index) bool { return i.Key == w.Key && same(w.Value, i.Value) }) {
			return false
		}
	}
	return true
}

// tasks compares tasks, and nothing else.
func tasks(same func(want, is *objects.Task) bool) Check {
	return func(want, is objects.Object) bool {
		w, ok := want.(*objects.Task)
		i, also := is.(*objects.Task)
		return ok && also && same(w, i)
	}
}

// Checks for tasks.
var (
	CheckServiceID    = tasks(func(want, is *objects.Task) bool { return want.ServiceID == is.ServiceID })
	CheckNodeID       = tasks(func(want, is *objects.Task) bool { return want.NodeID == is.NodeID })
	CheckSlot         = tasks(func(want, is *objects.Task) bool { return want.Slot == is.Slot })
	CheckTaskState    = tasks(func(want, is *objects.Task) bool { return want.Status.State == is.Status.State })
	CheckDesiredState = tasks(func(want, is *objects.Task) bool { return want.DesiredState == is.DesiredState })
)

// CheckNodeState wants a node in the same state.
func CheckNodeState(want, is objects.Object) bool {
	w, ok := want.(*objects.Node)
	i, also := is.(*objects.Node)
	return ok && also && w.Status.State == i.Status.State
}

// DefaultBacklog is how many events may wait for a watcher in a store.
const DefaultBacklog = 10000

// QueueOptions are a queue's settings, for all its watchers.
type QueueOptions struct {
	Limit    int           // events that may wait for a watcher before it ends with ErrBacklog; DefaultBacklog when 0, none when negative
	Timeout  time.Duration // that a watcher may take to receive an event before it ends with ErrSlow; any when 0
	KeepOpen bool          // the channels of watchers that have ended stay open
}

// Queue tells watchers of events, in the order in which they are published.
type Queue struct {
	options QueueOptions
	cut     atomic.Uint64

	mu       sync.Mutex // guards what follows, and is held while events are handed out
	watchers map[*Watcher]struct{}
	closed   bool
}

// NewQueue returns a queue without watchers.
func NewQueue(o QueueOptions) *Queue {
	if o.Limit == 0 {
		o.Limit = DefaultBacklog
	}
	return &Queue{options: o, watchers: map[*Watcher]struct{}{}}
}

// Publish hands events to all watchers. It waits for none of them.
func (q *Queue) Publish(events ...Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for w := range q.watchers {
		w.add(events)
	}
}

// Watch begins to tell of events that match any of some specifiers, or of all when there are none. It ends with ctx.
func (q *Queue) Watch(ctx context.Context, specifiers ...Specifier) *Watcher {
	w := q.newWatcher(specifiers)
	q.start(ctx, w, nil)
	return w
}

func (q *Queue) newWatcher(specifiers []Specifier) *Watcher {
	return &Watcher{queue: q, specifiers: specifiers, events: make(chan Event), wake: make(chan struct{}, 1), stop: make(chan struct{}),
		done: make(chan struct{}), limit: q.options.Limit}
}

// start tells a watcher of what has happened already, which is not counted against its limit, and then of all to come.
func (q *Queue) start(ctx context.Context, w *Watcher, past []Event) {
	if w.limit > 0 {
		w.limit += len(past)
	}
	w.add(past)
	q.mu.Lock()
	closed := q.closed
	if !closed {
		q.watchers[w] = struct{}{}
	}
	q.mu.Unlock()
	if closed {
		w.end(ErrQueueClosed)
	}
	forget := context.AfterFunc(ctx, func() { w.end(nil) })
	go func() { // ends with end, which Close calls at the latest
		w.run()
		forget()
		q.mu.Lock()
		delete(q.watchers, w)
		q.mu.Unlock()
		if !q.options.KeepOpen {
			close(w.events)
		}
		close(w.done)
	}()
}

// Close ends all watchers and waits for their goroutines. What is published later reaches nobody.
func (q *Queue) Close() {
	q.mu.Lock()
	q.closed = true
	list := make([]*Watcher, 0, len(q.watchers))
	for w := range q.watchers {
		list = append(list, w)
	}
	q.mu.Unlock()
	for _, w := range list {
		w.end(ErrQueueClosed)
	}
	for _, w := range list {
		<-w.done
	}
}

func (q *Queue) stats() (watchers, backlog int, cut uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for w := range q.watchers {
		w.mu.Lock()
		backlog = max(backlog, w.backlog)
		w.mu.Unlock()
	}
	return len(q.watchers), backlog, q.cut.Load()
}

// Watcher receives events.
type Watcher struct {
	queue      *Queue
	specifiers []Specifier
	events     chan Event
	wake       chan struct{}
	stop       chan struct{} // closed by end
	done       chan struct{} // closed when the goroutine has ended
	limit      int

	mu      sync.Mutex // guards what follows
	list    []Event    // that the goroutine has not taken
	backlog int        // that have not been received
	ended   bool
	err     error
}

// Events is the channel of events. It is closed when the watcher ends, unless the queue's options keep it open.
func (w *Watcher) Events() <-chan Event { return w.events }

// Done is closed when the watcher has ended.
func (w *Watcher) Done() <-chan struct{} { return w.done }

// Err is why the watcher has ended: ErrBacklog and ErrSlow mean that events were lost, and that whoever watches has to read
// anew. It is nil before, and after Cancel.
func (w *Watcher) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

// Cancel ends the watcher. No event comes after it has returned. It may be called several times.
func (w *Watcher) Cancel() {
	w.end(nil)
	<-w.done
}

func (w *Watcher) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLocked(err)
}

func (w *Watcher) endLocked(err error) {
	if !w.ended {
		w.ended, w.err, w.list, w.backlog = true, err, nil, 0
		close(w.stop)
	}
}

// add appends the events that the watcher wants.
func (w *Watcher) add(events []Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range events {
		if w.ended || !w.wants(&events[i]) {
			continue
		}
		if w.limit > 0 && w.backlog >= w.limit {
			w.queue.cut.Add(1)
			w.endLocked(ErrBacklog)
			return
		}
		w.list = append(w.list, events[i])
		w.backlog++
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (w *Watcher) wants(e *Event) bool {
	if len(w.specifiers) == 0 {
		return true
	}
	for i := range w.specifiers {
		if w.specifiers[i].matches(e) {
			return true
		}
	}
	return false
}

// run sends events until the watcher ends.
func (w *Watcher) run() {
	for {
		select {
		case <-w.wake:
		case <-w.stop:
			return
		}
		w.mu.Lock()
		list := w.list
		w.list = nil
		w.mu.Unlock()
		for _, e := range list {
			if !w.send(e) {
				return
			}
			w.mu.Lock()
			w.backlog = max(w.backlog-1, 0)
			w.mu.Unlock()
		}
	}
}

func (w *Watcher) send(e Event) bool {
	var late <-chan time.Time
	if d := w.queue.options.Timeout; d > 0 {
		late = time.After(d)
	}
	select {
	case w.events <- e:
		return true
	case <-w.stop:
	case <-late:
		w.queue.cut.Add(1)
		w.end(ErrSlow)
	}
	return false
}

// Watch begins to tell of changes that match any of some specifiers, or of all changes and commits when there are none. It
// ends with ctx.
func (s *Store) Watch(ctx context.Context, specifiers ...Specifier) *Watcher {
	return s.queue.Watch(ctx, specifiers...)
}

// ViewAndWatch calls cb with a state, and tells of the changes from that on. When cb returns an error, there is no watcher.
func (s *Store) ViewAndWatch(ctx context.Context, cb func(*ReadTx) error, specifiers ...Specifier) (*Watcher, error) {
	w := s.queue.newWatcher(specifiers)
	s.mu.Lock()
	st := s.state.Load()
	s.queue.start(ctx, w, nil)
	s.mu.Unlock()
	returned := false
	defer func() {
		if !returned { // cb panicked
			w.Cancel()
		}
	}()
	err := cb(s.read(st))
	returned = true
	if err != nil {
		w.Cancel()
		return nil, err
	}
	return w, nil
}

// WatchFrom tells of all changes after a version, those of the past and those to come, each once. Updates of the past have
// no old object. Version 0 stands for now. It returns ErrCompacted when not all that came after the version are kept.
func (s *Store) WatchFrom(ctx context.Context, version uint64, specifiers ...Specifier) (*Watcher, error) {
	if s.proposer == nil {
		return nil, ErrUnversioned
	}
	known, member := s.proposer.Version() // which may wait for Apply, so nothing is locked here
	if !member {
		return nil, ErrNoVersion
	}
	w := s.queue.newWatcher(specifiers)
	s.mu.Lock()
	defer s.mu.Unlock()
	var past []Event
	if version != 0 {
		var err error
		if past, err = s.sinceLocked(version, 0, known); err != nil {
			return nil, err
		}
	}
	s.queue.start(ctx, w, past)
	return w, nil
}
