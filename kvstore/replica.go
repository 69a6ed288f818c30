package kvstore

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"stated.dev/stated/internal/sessions"
)

// ErrLogClosed is what a Log's errors wrap when no later proposal can succeed either.
var ErrLogClosed = errors.New("the log is closed")

// ErrLogRefused is what a Log's errors wrap when it is certain that nothing was done, and asking again at once would be in
// vain, as on a full disk.
var ErrLogRefused = errors.New("the log took nothing")

// Log is the replicated log that a replica proposes to. It calls Replica.Apply for each committed command, in the same
// order on every host.
type Log interface {
	// Propose asks for a command to be committed, here or through the leader, and returns what Apply returned for it
	// on this host. An error may be ambiguous: the command may be applied all the same, later or more than once.
	Propose(ctx context.Context, command []byte) (any, error)
	// Leading reports whether this host leads, and a channel that is closed when that changes.
	Leading() (bool, <-chan struct{})
	// ReadIndex waits until this host has applied all that was committed anywhere before the call.
	ReadIndex(ctx context.Context) error
}

// ReplicaOptions are a replica's settings.
type ReplicaOptions struct {
	Now    func() time.Time // wall clock; time.Now
	Logger *slog.Logger     // slog.Default()
	Client uint64           // names this replica's commands; 0 for a random one, which is right outside tests
}

// Replica is a store behind a replicated log. Its state machine is the store and, beside it, the results that clients may
// ask for again.
type Replica struct {
	store   *Store
	options ReplicaOptions
	log     Log
	names   *sessions.Names
	wake    chan struct{} // tells Run that the next expiry may have changed

	mu       sync.Mutex // guards the state machine and the clock; taken before the store's lock
	clock    logClock
	attached bool
	sessions sessions.Table[*Result]
	// An import under way is a part of the state: the hosts have the same pieces.
	importing importing
}

// Result is what Apply returns.
type Result struct {
	Event *Event
	Err   error
}

// NewReplica puts a store behind a log. From here on the store is changed through the replica alone.
func NewReplica(store *Store, o ReplicaOptions) *Replica {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return &Replica{store: store, options: o, names: sessions.NewNames(o.Client), wake: make(chan struct{}, 1)}
}

// Attach gives the replica the log that it proposes to, once, before Do, Get and Run. Apply, Snapshot and Restore work without
// one, since a log replays before it serves.
func (r *Replica) Attach(log Log) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log, r.attached = log, true
}

// Store returns the store, to read and to watch.
func (r *Replica) Store() *Store { return r.store }

// now reads the clock by which commands are stamped.
func (r *Replica) now() time.Time {
	wall := r.options.Now().Round(0)
	r.mu.Lock()
	t, jumped := r.clock.now(wall, r.store.Time())
	r.mu.Unlock()
	if jumped > 0 {
		r.options.Logger.Warn("the wall clock is ahead of the key store's; keys expire by a clock that catches up slowly", "ahead", jumped)
	}
	return t
}

// Do proposes a command and returns its result. It sets Time, Estimate, Client, Sequence and Acked, and Expire when TTL is
// given. A proposal that failed without a verdict is made again under the same name until ctx ends or the log refuses it, so that
// the command takes effect at most once. The error is always an *Error: the store's, or one with code 300 whose cause is the failure's text. After
// the latter the command may have been carried out.
func (r *Replica) Do(ctx context.Context, c Command) (*Event, error) {
	if err := r.store.Check(c); err != nil {
		return nil, err
	}
	c = r.stamp(c)
	defer r.names.Finish(c.name())
	command := c.Append(nil)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		e, verdict, err := r.propose(ctx, command)
		switch {
		case verdict:
			return e, err
		case ctx.Err() != nil || errors.Is(err, ErrLogClosed) || errors.Is(err, ErrLogRefused):
			return nil, r.failure(err)
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, r.failure(err)
		}
	}
}

// propose makes one proposal. verdict says that the command was applied, and err is then the store's.
func (r *Replica) propose(ctx context.Context, command []byte) (e *Event, verdict bool, err error) {
	answer, err := r.log.Propose(ctx, command)
	if err != nil {
		return nil, false, err
	}
	result, ok := answer.(*Result)
	if !ok {
		return nil, true, r.failure(fmt.Errorf("the log answered a proposal with a %T", answer))
	}
	return result.Event, true, result.Err
}

func (r *Replica) failure(err error) error {
	return NewError(CodeRaftInternal, err.Error(), r.store.Index())
}

// stamp gives a command its time and its name, whose result is awaited until Names.Finish.
func (r *Replica) stamp(c Command) Command {
	leading, _ := r.log.Leading()
	c.Time, c.Estimate = r.now(), !leading
	if c.TTL != nil {
		c.Expire, c.TTL = c.Time.Add(*c.TTL), nil
	}
	name := r.names.Begin()
	c.Client, c.Sequence, c.Acked = name.Client, name.Sequence, name.Acked
	return c
}

// Get reads after ReadIndex, so the answer holds every change that was acknowledged before the call.
func (r *Replica) Get(ctx context.Context, path string, g GetRequest) (Found, error) {
	if err := r.log.ReadIndex(ctx); err != nil {
		return Found{}, r.failure(err)
	}
	return r.store.Get(path, g)
}

// Apply carries out a committed command and returns its *Result. It never panics; bytes that are no command have a Result with
// an error.
func (r *Replica) Apply(command []byte) any {
	c, err := DecodeCommand(command)
	if err != nil {
		return &Result{Err: NewError(CodeRaftInternal, err.Error(), r.store.Index())}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !c.Estimate && r.attached && c.Client != r.names.Client() {
		r.clock.follow(c.Time)
	}
	result, verdict := r.sessions.Begin(c.name())
	switch verdict {
	case sessions.Late:
		return &Result{Err: NewError(CodeRaftInternal, "the command is a late repeat and was dropped", r.store.Index())}
	case sessions.New:
		result = r.carryOut(&c)
		r.sessions.End(c.name(), result)
	}
	return result
}

func (r *Replica) carryOut(c *Command) *Result {
	if c.Op == OpImport {
		return r.importPiece(c)
	}
	result := &Result{}
	e, err := r.store.apply(c)
	result.Event = e
	if err != nil {
		result.Err = err
	}
	if !c.Expire.IsZero() || c.Op == OpExpire {
		r.wakeRun()
	}
	return result
}

func (r *Replica) wakeRun() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// grid is how often keys expire at most.
const grid = 500 * time.Millisecond

// Run proposes the removal of keys that are due while this host leads, until ctx ends. It proposes nothing while no key is due.
// It needs Attach first.
func (r *Replica) Run(ctx context.Context) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	failing := false // it is said once, not twice a second for as long as a disk is full
	for {
		leading, changed := r.log.Leading()
		timer.Stop()
		if due, ok := r.store.NextExpiry(); ok && leading {
			due = due.Add(grid - 1).Truncate(grid)
			wait := due.Sub(r.now())
			if wait <= 0 {
				err := r.expire(ctx)
				if err != nil && ctx.Err() == nil && !failing {
					r.options.Logger.Warn("cannot remove the keys that have expired; trying again and again", "error", err)
				}
				failing = err != nil
				wait = grid
				if next, ok := r.store.NextExpiry(); ok {
					wait = max(wait, next.Sub(r.now()))
				}
			}
			timer.Reset(min(wait, time.Minute)) // the clock may run faster than the timer
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// expire makes one proposal and lets a failure be. The next one covers what this one did not.
func (r *Replica) expire(ctx context.Context) error {
	c := r.stamp(Command{Op: OpExpire, Path: "/"})
	defer r.names.Finish(c.name())
	if c.Estimate {
		return nil // the new leader sees to it
	}
	_, _, err := r.propose(ctx, c.Append(nil))
	return err
}

// ReplicaSnapshot is the state of a replica at one moment.
type ReplicaSnapshot struct {
	store    *Snapshot
	applied  uint64
	sessions []sessions.Client[*Result]
	// Its pieces never change.
	importing importing
}

// Snapshot freezes the replica's state.
func (r *Replica) Snapshot() *ReplicaSnapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &ReplicaSnapshot{r.store.Snapshot(), r.sessions.Applied(), r.sessions.Clients(), r.importing}
}

// Index is the store's index when the snapshot was made.
func (p *ReplicaSnapshot) Index() uint64 { return p.store.Index() }

// Release lets go of the state.
func (p *ReplicaSnapshot) Release() {
	p.store.Release()
	p.sessions, p.importing = nil, importing{}
}

// The version before has no import under way.
const (
	replicaMagic = "stkr\x02"
	replicaFirst = "stkr\x01"
)

// The kinds of results.
const (
	resultNothing = 0
	resultEvent   = 1
	resultError   = 2
)

// WriteTo writes the state, which Restore reads.
func (p *ReplicaSnapshot) WriteTo(w io.Writer) (int64, error) {
	c := chunker{w: w}
	c.raw([]byte(replicaMagic))
	c.buf = binary.AppendUvarint(c.buf, p.applied)
	c.buf = binary.AppendUvarint(c.buf, uint64(len(p.sessions)))
	for _, s := range p.sessions {
		for _, n := range []uint64{s.ID, s.Acked, s.Used, uint64(len(s.Results))} {
			c.buf = binary.AppendUvarint(c.buf, n)
		}
		c.next()
		for sequence, result := range s.Results {
			c.buf = binary.AppendUvarint(c.buf, sequence)
			c.buf = appendResult(c.buf, result)
			c.next()
		}
	}
	p.importing.writeTo(&c)
	c.flush()
	c.chunk(nil)
	if c.err != nil {
		return c.written, fmt.Errorf("write a snapshot of the key store's replica: %w", c.err)
	}
	n, err := p.store.WriteTo(w)
	return c.written + n, err
}

func appendResult(b []byte, r *Result) []byte {
	var failure *Error
	switch {
	case errors.As(r.Err, &failure):
		b = append(b, resultError)
		b = binary.AppendUvarint(b, uint64(failure.Code))
		b = appendString(b, failure.Cause)
		return binary.AppendUvarint(b, failure.Index)
	case r.Event != nil:
		return appendEvent(append(b, resultEvent), r.Event)
	}
	return append(b, resultNothing)
}

func (d *decoder) result() *Result {
	switch kind := d.byte(); kind {
	case resultNothing:
		return &Result{}
	case resultEvent:
		return &Result{Event: d.event()}
	case resultError:
		code, cause, index := d.uvarint(), d.string(), d.uvarint()
		if code > 999 {
			d.fail()
		}
		return &Result{Err: NewError(int(code), cause, index)}
	}
	d.fail()
	return nil
}

// Restore replaces the replica's state. When the stream is damaged the replica stays as it was.
func (r *Replica) Restore(rd io.Reader) error {
	br := bufio.NewReaderSize(rd, chunkSize)
	known, importing, err := readSessions(br)
	var c content
	var clock time.Time
	if err == nil {
		c, clock, err = readSnapshot(br)
	}
	if err != nil {
		return fmt.Errorf("restore a snapshot of the key store's replica: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions, r.importing = known, importing
	r.store.replace(c, clock)
	r.wakeRun()
	return nil
}

func readSessions(br *bufio.Reader) (known sessions.Table[*Result], under importing, err error) {
	magic := make([]byte, len(replicaMagic))
	if _, err := io.ReadFull(br, magic); err != nil {
		return known, importing{}, noEOF(err)
	}
	if string(magic) != replicaMagic && string(magic) != replicaFirst {
		return known, importing{}, errors.New("it is no snapshot of a replica, or one of a version that is not known here")
	}
	c := chunks{r: br}
	if err := c.need(); err != nil {
		return known, importing{}, err
	}
	applied := c.d.uvarint()
	var clients []sessions.Client[*Result]
	for n := c.d.uvarint(); n > 0 && c.d.err == nil; n-- {
		if err := c.need(); err != nil {
			return known, importing{}, err
		}
		s := sessions.Client[*Result]{ID: c.d.uvarint(), Acked: c.d.uvarint(), Used: c.d.uvarint(), Results: map[uint64]*Result{}}
		for results := c.d.uvarint(); results > 0 && c.d.err == nil; results-- {
			if err := c.need(); err != nil {
				return known, importing{}, err
			}
			sequence := c.d.uvarint()
			s.Results[sequence] = c.d.result()
		}
		clients = append(clients, s)
	}
	if c.d.err == nil && string(magic) == replicaMagic {
		if err := under.read(&c); err != nil {
			return known, importing{}, err
		}
	}
	if c.d.err != nil {
		return known, importing{}, c.d.err
	}
	if ok, err := c.more(); err != nil || ok {
		return known, importing{}, errors.Join(err, errors.New("there is something behind the sessions"))
	}
	return sessions.Load(applied, clients), under, nil
}
