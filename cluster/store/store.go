package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/internal/sessions"
)

// Proposer is a replicated log. It calls Store.Apply for each committed command, in the same order on every host.
type Proposer interface {
	// Propose has a command committed and returns what Apply returned for it on this host. A proposer may propose the
	// same bytes again after a failure of which it cannot tell the outcome: repeats are dropped.
	Propose(ctx context.Context, command []byte) (any, error)

	// Version is the index of the newest item in the log that this host knows. member is false while it has no log. It may
	// wait for a call of Apply, not for a proposal.
	Version() (index uint64, member bool)
}

// Operation is something that the store does and that takes time.
type Operation string

// The operations whose time is told to Options.Observe.
const (
	Read   Operation = "read"   // a View
	Write  Operation = "write"  // an Update, with its proposal
	Lookup Operation = "lookup" // one Get or Find
	Batch  Operation = "batch"  // a whole Batch
	Lock   Operation = "lock"   // how long the update lock was held
)

// Options are a store's settings. The zero value is right for most.
type Options struct {
	Client  uint64                         // names this host's commands; 0 for a random one, which is right outside tests
	Now     func() time.Time               // what objects are stamped by; time.Now
	Queue   QueueOptions                   // of the watch queue
	History int                            // events that WatchFrom can go back; DefaultHistory when 0
	Logger  *slog.Logger                   // slog.Default()
	Observe func(Operation, time.Duration) // is told how long things took; nothing is measured when nil
}

// DefaultHistory is how many events a store with a proposer keeps.
const DefaultHistory = 10000

// Store holds objects. New makes one.
type Store struct {
	options  Options
	proposer Proposer // nil, or set by Attach
	began    time.Time
	queue    *Queue
	names    *sessions.Names // of this host's commands
	seals    seals
	state    atomic.Pointer[state]

	update chan struct{} // has an element while a callback runs
	held   atomic.Int64  // since when, after began; 0 when it is not
	dumped atomic.Bool   // the holder's stack has been logged

	machine  sync.Mutex // guards sessions, and orders Apply, Snapshot and Restore
	sessions sessions.Table[Result]

	mu      sync.Mutex // guards the step from one state to the next: its events, history, and who watches from where
	history history
}

// state is all objects at one moment. It never changes.
type state struct {
	db      *memdb.MemDB
	counts  counts
	version uint64 // index of the last command that changed something
}

// New returns an empty store.
func New(o Options) *Store {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.History == 0 {
		o.History = DefaultHistory
	}
	s := &Store{options: o, began: time.Now(), update: make(chan struct{}, 1), queue: NewQueue(o.Queue), names: sessions.NewNames(o.Client)}
	s.history.limit = o.History
	s.state.Store(&state{db: empty()})
	return s
}

// Attach gives the store the log that it proposes to, once, before it is used otherwise. Apply, Snapshot and Restore work
// without, since a log replays before it serves.
func (s *Store) Attach(p Proposer) { s.proposer = p }

// Close ends all watchers and waits for their goroutines. The store can be read afterwards.
func (s *Store) Close() { s.queue.Close() }

// observe begins to measure.
func (s *Store) observe(o Operation) (end func()) {
	if s.options.Observe == nil {
		return nothing
	}
	began := time.Now()
	return func() { s.options.Observe(o, time.Since(began)) }
}

func nothing() {}

// View calls cb with the present state. It waits for nobody, and nobody for it.
func (s *Store) View(cb func(*ReadTx)) {
	defer s.observe(Read)()
	cb(s.read(s.state.Load()))
}

func (s *Store) read(st *state) *ReadTx {
	return &ReadTx{store: s, txn: st.db.Txn(false), counts: &st.counts, version: st.version}
}

// Update calls cb once with a transaction, and makes its changes take effect together or not at all. It returns cb's error
// as it is.
//
// Callbacks run one after another. With a proposer the changes are proposed afterwards, while other callbacks run on the
// state without them, and take effect in the log's order. If meanwhile something that was changed or removed has got another
// version, or an ID or name has been taken, none does, and Update returns the error, as ErrSequenceConflict, that says so.
// That is so for other updates of this host, too: see Retry. An error of the proposer may mean that the changes take effect
// later.
//
// A callback must not begin an Update or Batch, of this store or another one.
func (s *Store) Update(ctx context.Context, cb func(*Tx) error) error {
	defer s.observe(Write)()
	_, err := s.updateOnce(ctx, cb)
	return err
}

// Retry is Update for a callback that may be called several times: when the changes cannot take effect because of others
// that came first, it is called again and sees those, until ctx ends. It has to read in the transaction what it changes.
// Each time that it is too late another update has come through, so they cannot all keep each other from it.
func (s *Store) Retry(ctx context.Context, cb func(*Tx) error) error {
	defer s.observe(Write)()
	for {
		overtaken, err := s.updateOnce(ctx, cb)
		if !overtaken || ctx.Err() != nil {
			return err
		}
	}
}

// updateOnce also says whether the error is due to changes that were committed since cb ran.
func (s *Store) updateOnce(ctx context.Context, cb func(*Tx) error) (overtaken bool, err error) {
	d, err := s.draw(ctx, cb)
	if err != nil || d == nil {
		return false, err
	}
	r, err := s.propose(ctx, d)
	return r.overtaken(), cmp.Or(err, r.Err)
}

// draw runs the callback under the lock. Without a proposer it commits there, and returns no draft.
func (s *Store) draw(ctx context.Context, cb func(*Tx) error) (*draft, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d := s.draft()
	if err := d.run(cb); err != nil || len(d.changes) == 0 {
		return nil, err
	}
	if s.proposer == nil {
		d.commit()
		return nil, nil
	}
	return d, nil
}

// lock takes the update lock.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case s.update <- struct{}{}:
	default:
		if inCallback() {
			return nil, ErrNested
		}
		select {
		case s.update <- struct{}{}:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for other updates: %w", ctx.Err())
		}
	}
	s.dumped.Store(false)
	s.held.Store(int64(time.Since(s.began)) + 1)
	observed := s.observe(Lock)
	return func() {
		s.held.Store(0)
		<-s.update
		observed()
	}, nil
}

// call runs a callback under the update lock. inCallback and Wedged look for it in stacks.
//
//go:noinline
func (s *Store) call(cb func(*Tx) error, tx *Tx) error { return cb(tx) }

//go:noinline
func (s *Store) callBatch(cb func(*Batching) error, b *Batching) error { return cb(b) }

// Frames of callbacks.
const (
	callFrame      = "stated.dev/stated/cluster/store.(*Store).call"
	callBatchFrame = "stated.dev/stated/cluster/store.(*Store).callBatch"
)

// inCallback says whether this goroutine runs a callback. It is slow, and asked only where it would wait otherwise.
func inCallback() bool {
	pcs := make([]uintptr, 64)
	for skip := 1; ; skip += len(pcs) {
		n := runtime.Callers(skip, pcs)
		frames := runtime.CallersFrames(pcs[:n])
		for more := n > 0; more; {
			var f runtime.Frame
			f, more = frames.Next()
			if f.Function == callFrame || f.Function == callBatchFrame {
				return true
			}
		}
		if n < len(pcs) {
			return false
		}
	}
}

// draft is a state that callbacks change and nobody else sees.
type draft struct {
	store   *Store
	base    *state
	db      *memdb.MemDB
	editor  *editor
	changes []change
	encoded []encoded // of changes, as far as they have been encoded
	bytes   int       // of encoded
	split   int       // changes that have to be proposed before the others, because all are too many bytes
	stamp   time.Time // zero without a version
}

func (s *Store) draft() *draft {
	base := s.state.Load()
	d := &draft{store: s, base: base, db: base.db.Snapshot()}
	d.editor = edit(d.db, base.counts)
	if s.proposer != nil {
		if _, member := s.proposer.Version(); member {
			d.stamp = s.options.Now().UTC().Round(0)
			d.editor.versioned = true
		}
	}
	return d
}

// run lets a callback change the draft, wholly or not at all.
func (d *draft) run(cb func(*Tx) error) error {
	tx := &Tx{ReadTx: ReadTx{store: d.store, txn: d.editor.txn, editor: d.editor, counts: &d.editor.counts, version: d.base.version}, stamp: d.stamp}
	defer func() { tx.over = true }()
	if err := d.store.call(cb, tx); err != nil {
		if failed := d.editor.undo(tx.changes); failed != nil {
			return errors.Join(err, failed)
		}
		return err
	}
	d.changes = append(d.changes, tx.changes...)
	return nil
}

// commit makes the draft the state of a store without a log.
func (d *draft) commit() {
	if len(d.changes) > 0 {
		d.editor.txn.Commit()
		d.store.commit(&state{d.db, d.editor.counts, d.base.version}, events(d.changes), 0)
	}
}

// commit makes a state the present one and tells of it.
func (s *Store) commit(next *state, happened []Event, version uint64) {
	if checked {
		s.seals.replace(happened)
	}
	happened = append(happened, Event{Action: Commit, Version: version})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Store(next)
	if version != 0 {
		s.history.add(version, happened[:len(happened)-1])
	}
	s.queue.Publish(happened...)
}

// events tells of changes.
func events(changes []change) []Event {
	list := make([]Event, len(changes), len(changes)+1)
	for i, c := range changes {
		list[i] = Event{Action: c.action, Kind: c.object.Kind(), Object: c.object, Old: c.old}
	}
	return list
}

// Stats are figures of a store.
type Stats struct {
	Objects  map[string]int // by table
	Watchers int
	Backlog  int    // events that wait for the slowest watcher
	Cut      uint64 // watchers that were too slow
	Version  uint64
}

// Stats returns figures as they are now.
func (s *Store) Stats() Stats {
	st := s.state.Load()
	stats := Stats{Objects: map[string]int{}, Version: st.version}
	for k := objects.Kind(1); k.Known(); k++ {
		stats.Objects[k.String()] = st.counts[k]
	}
	stats.Watchers, stats.Backlog, stats.Cut = s.queue.stats()
	return stats
}

// WedgeTimeout is how long a callback may hold the update lock.
const WedgeTimeout = 30 * time.Second

// Wedged says whether a callback has held the update lock for longer than WedgeTimeout. A leader should then let another
// host lead. The first time it logs the callback's stack.
func (s *Store) Wedged() bool {
	since := s.held.Load()
	if since == 0 || time.Since(s.began)-time.Duration(since) <= WedgeTimeout {
		return false
	}
	if s.dumped.CompareAndSwap(false, true) {
		s.options.Logger.Error("an update of the cluster's state does not end", "held", time.Since(s.began)-time.Duration(since), "stack", callbackStacks())
	}
	return true
}

// callbackStacks are the stacks of the goroutines that run callbacks: one for each store in the process that is busy.
func callbackStacks() string {
	all := make([]byte, 64<<10)
	n := runtime.Stack(all, true)
	for n == len(all) && n < 64<<20 {
		all = make([]byte, 2*len(all))
		n = runtime.Stack(all, true)
	}
	var found []string
	for g := range strings.SplitSeq(string(all[:n]), "\n\n") {
		if strings.Contains(g, callFrame+"(") || strings.Contains(g, callBatchFrame+"(") {
			found = append(found, g)
		}
	}
	return strings.Join(found, "\n\n")
}
