// Package raft is the one replicated log: commands that are durable in the same order on all its voters, and fed to a few
// state machines. A host that is in no cluster is its only voter, leads at once and opens no port.
//
// It never looks into commands, knows no objects and no keys, and imports nothing of those whose commands it carries.
// It keeps the log in files of its own (docs/formats/log.md) and leaves agreement to hashicorp/raft.
//
// Locks: Log.mu guards what is known of leadership. store.appending orders writers, store.mu guards the list of segments,
// votes.mu the vote, snapshots.mu the list of snapshots, fsm.mu who waits for an index. Each says above it what it guards
// and what may be done under it. None is held over a call to a machine, and only store.appending is taken before another
// (store.mu, then store.cacheMu).
package raft

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	hraft "github.com/hashicorp/raft"
)

var (
	// ErrOutcomeUnknown is returned by Propose when the command may be applied, now or later, or may not: the wait for it
	// ended, or this host lost its leadership meanwhile.
	ErrOutcomeUnknown = fmt.Errorf("whether the command will be applied is not known: %w", errdefs.ErrUnknown)

	// ErrNotLeading is returned where only the leader can answer. Nothing was done.
	ErrNotLeading = fmt.Errorf("this host does not lead the log: %w", errdefs.ErrUnavailable)

	// ErrClosed is returned after Close. Nothing was done.
	ErrClosed = fmt.Errorf("the log is closed: %w", errdefs.ErrUnavailable)

	// ErrStopped is returned after an entry could not be applied. The log takes no more commands until the daemon is
	// started again, and a start refuses if the entry still cannot be applied.
	ErrStopped = fmt.Errorf("the log has stopped: %w", errdefs.ErrInternal)

	// ErrTooLarge is returned for a command of more than MaxCommand bytes. Nothing was done.
	ErrTooLarge = fmt.Errorf("the command is too large: %w", errdefs.ErrInvalidArgument)

	// ErrDamaged is returned by Open when what is on disk is not what was written there.
	ErrDamaged = fmt.Errorf("damaged: %w", errdefs.ErrDataLoss)

	// ErrVersion is returned by Open when a later version of stated wrote what is on disk.
	ErrVersion = fmt.Errorf("written by a later version: %w", errdefs.ErrFailedPrecondition)

	// ErrLocked is returned by Open when another process has the directory.
	ErrLocked = fmt.Errorf("locked: %w", errdefs.ErrConflict)

	// ErrKey is returned by Open when what is on disk is sealed and no key that was given opens it.
	ErrKey = fmt.Errorf("wrong key: %w", errdefs.ErrPermissionDenied)
)

// MaxCommand bounds a command, in bytes.
const MaxCommand = 16 << 20

// DefaultSnapshotBytes is how long the log grows at least before a snapshot is taken.
const DefaultSnapshotBytes = 64 << 20

// batchEntries bounds how many entries share a flush, and with it how many proposals are under way.
const batchEntries = 512

// Time-outs of raft. A single voter never waits for the first two.
const (
	heartbeatTimeout = 500 * time.Millisecond
	electionTimeout  = 500 * time.Millisecond
	leaseTimeout     = 250 * time.Millisecond
)

// trailing is how many entries stay behind a snapshot for voters that are a little late.
const trailing = 10240

// localAddress is where a single voter can be reached: nowhere.
const localAddress = hraft.ServerAddress("local")

// Options are what a log is opened with.
type Options struct {
	Dir           string       // made when it is not there
	Machines      []Slot       // all that the log has commands for
	Keys          [][]byte     // what is written is sealed with the first; all open what is there. None: not sealed
	SnapshotBytes int64        // DefaultSnapshotBytes when 0
	Logger        *slog.Logger // nothing is logged when nil

	peers *peers
}

// peers makes the log that of several voters.
type peers struct {
	id        hraft.ServerID
	transport hraft.Transport
	voters    []hraft.Server // of a new log
}

// Log is an open log.
type Log struct {
	raft      *hraft.Raft
	transport hraft.Transport
	store     *store
	votes     *votes
	snapshots *snapshots
	fsm       *fsm
	faults    *faults
	lock      *os.File
	logger    *slog.Logger
	id        hraft.ServerID

	snapshotBytes int64
	base          atomic.Int64 // store.written when the last snapshot's state was taken
	marked        atomic.Int64 // the same for the one that is being written

	slots    chan struct{}  // one for each proposal under way
	underWay sync.WaitGroup // proposals and barriers
	running  atomic.Bool    // raft's goroutines run
	closing  chan struct{}  // closed when nothing new is taken
	stopped  chan struct{}  // closed when raft has ended
	done     chan struct{}  // closed when the files are closed, too
	keepers  sync.WaitGroup // follow and keep
	end      sync.Once
	closeErr error // to be read after done

	mu      sync.Mutex // guards what follows; nothing is waited for under it
	term    uint64     // in which this host leads and has applied all that came before; 0 when it does not
	changed chan struct{}
	closed  bool
}

// Open opens the log in a directory, or begins one. If its only voter is this host, it returns when that leads and the
// machines have seen all entries; in a cluster it returns before. It does not wait for another process that has the
// directory.
func Open(ctx context.Context, o Options) (_ *Log, err error) {
	machines, err := newFSM(o.Machines)
	if err != nil {
		return nil, fmt.Errorf("open the log in %s: %w", o.Dir, err)
	}
	keys, err := newKeyring(o.Keys)
	if err != nil {
		return nil, fmt.Errorf("open the log in %s: %w", o.Dir, err)
	}
	l := &Log{fsm: machines, faults: newFaults(), logger: o.Logger, snapshotBytes: o.SnapshotBytes,
		slots: make(chan struct{}, batchEntries-1), closing: make(chan struct{}), stopped: make(chan struct{}),
		done: make(chan struct{}), changed: make(chan struct{})}
	if l.logger == nil {
		l.logger = slog.New(slog.DiscardHandler)
	}
	if l.snapshotBytes == 0 {
		l.snapshotBytes = DefaultSnapshotBytes
	}
	if l.lock, err = lockDir(o.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open the log in %s: %w", o.Dir, err)
			_ = l.Close(context.WithoutCancel(ctx)) // the first error is the one to report
		}
	}()
	if err := l.openFiles(o.Dir, keys); err != nil {
		return nil, err
	}
	if err := l.start(o.peers); err != nil {
		return nil, err
	}
	if l.sole() {
		if err := l.awaitLead(ctx); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// openFiles reads what is on disk and restores the machines from the newest snapshot.
func (l *Log) openFiles(dir string, keys keyring) (err error) {
	if l.store, err = openStore(filepath.Join(dir, "log"), keys, l.faults); err != nil {
		return err
	}
	l.store.waiting = func() int { return len(l.slots) }
	l.store.running, l.store.closing = l.running.Load, l.closing
	first, _ := l.store.FirstIndex() // no error is possible before Close
	last, _ := l.store.LastIndex()
	l.snapshots, err = openSnapshots(filepath.Join(dir, "snapshots"), keys, l.faults, l.logger, func(index uint64) bool {
		return first > 0 && first <= index+1 && last >= index
	})
	if err != nil {
		return err
	}
	l.snapshots.store = l.store
	l.store.floor.Store(l.snapshots.floorLocked())
	base := uint64(0)
	if len(l.snapshots.list) > 0 {
		newest := l.snapshots.list[0]
		base = newest.Index
		if last < base {
			if !newest.Received {
				return fmt.Errorf("%s ends with index %d, and %s has been taken at %d: %w. Nothing was changed: restore the directory of the log as a whole from a backup",
					l.store.dir, last, newest.id, base, ErrDamaged)
			}
			// It came from another voter, and the process died before the entries that it stands for were dropped.
			if err := l.store.DeleteRange(first, last); err != nil {
				return err
			}
			first = 0
		}
	}
	if first > base+1 {
		return fmt.Errorf("%s begins with index %d, and what comes before %[2]d is in no snapshot: %w. Nothing was changed: restore the directory of the log as a whole from a backup",
			l.store.dir, first, ErrDamaged)
	}
	if l.votes, err = openVotes(dir, last > 0 || base > 0, l.faults); err != nil {
		return err
	}
	l.votes.running, l.votes.closing = l.running.Load, l.closing
	err = l.store.each(base+1, func(e *hraft.Log) error {
		if e.Type == hraft.LogCommand {
			l.store.lastCommand.Store(e.Index)
		}
		return l.fsm.check(e)
	})
	if err != nil {
		return err
	}
	l.base.Store(-l.store.sizeAfter(base))
	if base > 0 {
		l.fsm.applied.Store(base)
		if err := l.restore(l.snapshots.list[0].id); err != nil {
			return err
		}
	}
	return errors.Join(l.store.tidy(), l.snapshots.tidy())
}

// restore feeds a snapshot to the machines. It has been checked.
func (l *Log) restore(id string) error {
	_, r, err := l.snapshots.Open(id)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := l.fsm.Restore(r); err != nil {
		return fmt.Errorf("restore snapshot %s: %w", id, err)
	}
	return nil
}

// Under these the vote keeps this voter's name, which is ours, and raft its term.
var keyID, keyTerm = []byte("stated voter"), []byte("CurrentTerm")

// start begins a log that has no voter yet, and starts raft.
func (l *Log) start(p *peers) (err error) {
	name, err := l.votes.Get(keyID)
	if err != nil {
		return err
	}
	if p == nil {
		if len(name) == 0 {
			name = []byte(rand.Text())
		}
		_, transport := hraft.NewInmemTransport(localAddress)
		p = &peers{id: hraft.ServerID(name), transport: transport, voters: []hraft.Server{{ID: hraft.ServerID(name), Address: localAddress}}}
	}
	if err := l.votes.Set(keyID, []byte(p.id)); err != nil {
		return err
	}
	l.id, l.transport = p.id, p.transport
	config := hraft.DefaultConfig()
	config.LocalID = p.id
	config.HeartbeatTimeout, config.ElectionTimeout, config.LeaderLeaseTimeout = heartbeatTimeout, electionTimeout, leaseTimeout
	config.MaxAppendEntries, config.BatchApplyCh = batchEntries, true
	config.ShutdownOnRemove = false
	config.TrailingLogs = trailing
	config.SnapshotInterval, config.SnapshotThreshold = 24*time.Hour, 1<<62 // keep decides when
	config.NoSnapshotRestoreOnStart = true                                  // openFiles did it
	config.Logger = bridge(l.logger)
	last, _ := l.store.LastIndex()
	if last == 0 && len(l.snapshots.list) == 0 && len(p.voters) > 0 {
		term, err := l.votes.GetUint64(keyTerm)
		if err != nil {
			return err
		}
		if term > 1 {
			return fmt.Errorf("%s is empty, and the vote has been in term %d: %w. Nothing was changed: restore the directory of the log as a whole from a backup", l.store.dir, term, ErrDamaged)
		}
		// A start that died in the middle of this may have left a term.
		if err := l.votes.SetUint64(keyTerm, 0); err != nil {
			return err
		}
		if err := hraft.BootstrapCluster(config, l.store, l.votes, l.snapshots, p.transport, hraft.Configuration{Servers: p.voters}); err != nil {
			return fmt.Errorf("begin a log: %w", err)
		}
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("start raft: %v", p)
		}
	}()
	l.fsm.mark = func() { l.marked.Store(l.store.written.Load()) }
	if l.raft, err = hraft.NewRaft(config, l.fsm, l.store, l.votes, l.snapshots, p.transport); err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	l.running.Store(true)
	l.keepers.Go(l.follow)
	l.keepers.Go(l.keep)
	if l.sole() {
		// Nobody else can lead, so there is nobody to wait for: a heartbeat time-out that has become shorter is over.
		now := l.raft.ReloadableConfig()
		now.HeartbeatTimeout -= time.Millisecond
		if err := l.raft.ReloadConfig(now); err != nil {
			return fmt.Errorf("lead at once: %w", err)
		}
	}
	return nil
}

// sole says whether this host is the only voter.
func (l *Log) sole() bool {
	n, ours := 0, false
	for _, s := range l.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == hraft.Voter {
			n, ours = n+1, ours || s.ID == l.id
		}
	}
	return n == 1 && ours
}

func (l *Log) awaitLead(ctx context.Context) error {
	for {
		leading, changed := l.Leading()
		if leading {
			return nil
		}
		select {
		case <-changed:
		case <-l.faults.raised:
			if err := l.faults.last(); err != nil {
				return err
			}
		case <-l.fsm.failed:
			return l.fsm.failure()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// follow keeps what is known of leadership. This host leads when all that was committed before is applied here.
func (l *Log) follow() {
	for {
		select {
		case leads := <-l.raft.LeaderCh():
			if !leads {
				l.lead(0)
				continue
			}
			term := l.raft.CurrentTerm()
			if err := l.await(context.Background(), func() hraft.Future { return l.raft.Barrier(0) }); err == nil && l.fsm.failure() == nil {
				l.lead(term)
			}
		case <-l.fsm.failed:
			l.logger.Error("the log has stopped", "error", l.fsm.failure())
			l.lead(0)
			return
		case <-l.stopped:
			l.lead(0)
			return
		}
	}
}

func (l *Log) lead(term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.term == term {
		return
	}
	l.term = term
	close(l.changed)
	l.changed = make(chan struct{})
}

// begin counts something as under way, unless the log is being closed.
func (l *Log) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.underWay.Add(1)
	}
	return !l.closed
}

// await asks raft for something and waits for the answer.
func (l *Log) await(ctx context.Context, ask func() hraft.Future) error {
	if !l.begin() {
		return ErrClosed
	}
	result := make(chan error, 1)
	go func() { // ends with raft at the latest, but for what raft forgets when it is shut down
		defer l.underWay.Done()
		result <- ask().Error()
	}()
	select {
	case err := <-result:
		return err
	case <-l.stopped:
		return hraft.ErrRaftShutdown
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keep takes a snapshot whenever the log has outgrown the last one.
func (l *Log) keep() {
	wake := l.store.grown
	for least := int64(0); ; {
		select {
		case <-wake:
		case <-l.closing:
			return
		}
		grown := l.store.written.Load() - l.base.Load()
		if grown < max(l.snapshotBytes, l.snapshots.newest.Load(), least) {
			continue
		}
		least = 0
		if err := l.Snapshot(context.Background()); err != nil && !errors.Is(err, ErrClosed) {
			l.logger.Warn("a snapshot could not be taken; the log goes on growing", "error", err)
			least = grown + grown/4
		}
	}
}

// Leading says whether this host leads and has applied all that was committed before it did. The channel is closed when
// that changes.
func (l *Log) Leading() (leading bool, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.term != 0, l.changed
}

// Propose has a command applied by a machine and returns what that made of it. When it returns, the command is durable on
// a majority of the voters. Commands that are proposed at once share a flush. Only after an ErrOutcomeUnknown may a
// command whose proposal failed be applied all the same; when ctx ends, the error is that, too.
func (l *Log) Propose(ctx context.Context, machine byte, command []byte) (any, error) {
	value, err := l.propose(ctx, machine, command)
	if err != nil {
		return nil, fmt.Errorf("propose a command of %d bytes to machine %d: %w", len(command), machine, err)
	}
	return value, nil
}

func (l *Log) propose(ctx context.Context, machine byte, command []byte) (any, error) {
	if l.fsm.byID[machine] == nil {
		return nil, fmt.Errorf("there is no such machine: %w", errdefs.ErrInvalidArgument)
	}
	if len(command) > MaxCommand {
		return nil, ErrTooLarge
	}
	if err := l.fsm.failure(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err // nothing was done
	}
	if leading, _ := l.Leading(); !leading && l.faults.last() != nil {
		return nil, l.notLeading() // raft may be waiting for the disk, and would not answer
	}
	select {
	case l.slots <- struct{}{}: // raft never has more than it takes without waiting
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.closing:
		return nil, ErrClosed
	}
	data := entry(machine, command)
	if err := l.store.promise(len(data)); err != nil {
		<-l.slots
		return nil, err
	}
	if !l.begin() {
		l.store.settle(len(data))
		<-l.slots
		return nil, ErrClosed
	}
	f := l.raft.Apply(data, 0)
	result := make(chan error, 1)
	go func() { // ends with raft at the latest, but for what raft forgets when it is shut down
		defer l.underWay.Done()
		err := f.Error()
		l.store.settle(len(data))
		<-l.slots
		result <- err
	}()
	select {
	case err := <-result:
		return l.result(f, err)
	case <-ctx.Done():
		if err := l.faults.last(); err != nil {
			return nil, fmt.Errorf("%w: %w: %w", ErrOutcomeUnknown, ctx.Err(), err)
		}
		return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
	case <-l.stopped:
		return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ErrClosed)
	}
}

// result tells what became of a proposal.
func (l *Log) result(f hraft.ApplyFuture, err error) (any, error) {
	switch {
	case err == nil:
		out := f.Response().(outcome)
		if out.err != nil {
			return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, out.err)
		}
		return out.value, nil
	case errors.Is(err, hraft.ErrNotLeader), errors.Is(err, hraft.ErrLeadershipTransferInProgress):
		return nil, l.notLeading()
	case errors.Is(err, hraft.ErrLeadershipLost), errors.Is(err, hraft.ErrRaftShutdown), errors.Is(err, hraft.ErrAbortedByRestore):
		return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return nil, err
}

// notLeading is ErrNotLeading, with the reason if the disk is it.
func (l *Log) notLeading() error {
	if err := l.faults.last(); err != nil {
		return fmt.Errorf("%w: %w", ErrNotLeading, err)
	}
	return ErrNotLeading
}

// ReadIndex returns when the machines here have seen all commands whose proposals had returned, anywhere, when it was
// called: what is read from them afterwards is not stale. It costs no entry in the log and no flush.
func (l *Log) ReadIndex(ctx context.Context) error {
	if err := l.readIndex(ctx); err != nil {
		return fmt.Errorf("wait for a read that is not stale: %w", err)
	}
	return nil
}

func (l *Log) readIndex(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l.mu.Lock()
	term, changed, closed := l.term, l.changed, l.closed
	l.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if err := l.fsm.failure(); err != nil {
		return err
	}
	if l.sole() {
		changed = nil // nobody else can commit, so it need not ask anybody, nor lead at the moment
	} else {
		if term == 0 {
			return l.notLeading()
		}
		if err := l.await(ctx, l.raft.VerifyLeader); err != nil {
			if ctx.Err() != nil {
				return err
			}
			return fmt.Errorf("%w: %w", l.notLeading(), err)
		}
		if l.raft.CurrentTerm() != term {
			return l.notLeading() // it leads again, and may not know yet what was committed meanwhile
		}
	}
	return l.fsm.wait(ctx, min(l.raft.CommitIndex(), l.store.lastCommand.Load()), changed)
}

// Snapshot writes the machines' state to disk, so that a start need not go through the log, and drops what is not needed
// of that any more.
func (l *Log) Snapshot(ctx context.Context) error {
	err := l.await(ctx, func() hraft.Future { return l.raft.Snapshot() })
	switch {
	case err == nil:
		l.base.Store(l.marked.Load())
		return nil
	case errors.Is(err, hraft.ErrNothingNewToSnapshot):
		return nil
	case errors.Is(err, hraft.ErrRaftShutdown):
		return ErrClosed
	}
	return fmt.Errorf("take a snapshot: %w", err)
}

// Position is the index of the last command that the machines here have seen, or of the snapshot they began with, and the
// term that this host is in. It waits for nothing.
func (l *Log) Position() (index, term uint64) { return l.fsm.applied.Load(), l.raft.CurrentTerm() }

// Stats are figures of a log.
type Stats struct {
	Leading     bool
	Term        uint64
	FirstIndex  uint64 // of the entries that are kept; 0 when there are none
	LastIndex   uint64
	CommitIndex uint64
	Applied     uint64 // index of the last command that the machines have seen, or of the snapshot they began with
	LogBytes    int64  // on disk, with what is set aside
	Flushes     uint64 // since Open
	Fault       error  // why the disk refused the last write, nil when it did not
}

// Stats returns figures as they are now.
func (l *Log) Stats() Stats {
	leading, _ := l.Leading()
	first, _ := l.store.FirstIndex()
	last, _ := l.store.LastIndex()
	return Stats{Leading: leading, Term: l.raft.CurrentTerm(), FirstIndex: first, LastIndex: last, CommitIndex: l.raft.CommitIndex(),
		Applied: l.fsm.applied.Load(), LogBytes: l.store.size(), Flushes: l.faults.flushes.Load(), Fault: l.faults.last()}
}

// Close takes no more proposals, waits for those under way, and closes the files. It returns earlier when ctx ends, and
// goes on in the background.
func (l *Log) Close(ctx context.Context) error {
	l.end.Do(func() {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		go l.close()
	})
	select {
	case <-l.done:
		return l.closeErr
	case <-ctx.Done():
		return fmt.Errorf("close the log: %w", ctx.Err())
	}
}

// drainLimit bounds how long Close waits for proposals under way: the disk may not answer.
const drainLimit = 5 * time.Second

func (l *Log) close() {
	if l.raft != nil {
		drained := make(chan struct{})
		go func() { // ends with the proposals, at the latest with the process
			l.underWay.Wait()
			close(drained)
		}()
		select {
		case <-drained:
		case <-l.fsm.failed:
		case <-time.After(drainLimit):
		}
		shutdown := l.raft.Shutdown()
		close(l.closing)
		l.closeErr = shutdown.Error()
		close(l.stopped)
		l.keepers.Wait()
	} else {
		close(l.closing)
		close(l.stopped)
	}
	l.running.Store(false)
	if l.store != nil {
		l.closeErr = errors.Join(l.closeErr, l.store.close())
	}
	if l.votes != nil {
		l.closeErr = errors.Join(l.closeErr, l.votes.file.Close())
	}
	l.closeErr = errors.Join(l.closeErr, l.lock.Close())
	close(l.done)
}
