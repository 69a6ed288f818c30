package kvstore

import (
	"context"
	"io"
	"log/slog"
	"time"
)

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
	Now    func() time.Time // wall clock with a monotonic reading; time.Now
	Logger *slog.Logger     // slog.Default()
	Client uint64           // names this replica's commands; 0 for a random one, which is right outside tests
}

// Replica is a store behind a replicated log.
type Replica struct{}

// NewReplica puts a store behind a log. From here on the store is changed through the replica alone.
func NewReplica(store *Store, o ReplicaOptions) *Replica { panic("not yet") }

// Attach gives the replica the log that it proposes to. Apply, Snapshot and Restore work without one, since a log replays
// before it serves.
func (r *Replica) Attach(log Log) { panic("not yet") }

// Run proposes the removal of keys that are due while this host leads, until ctx ends. It needs Attach first.
func (r *Replica) Run(ctx context.Context) error { panic("not yet") }

// Store returns the store, to read and to watch.
func (r *Replica) Store() *Store { panic("not yet") }

// Do proposes a command and returns its result. It sets Time, Estimate, Client, Sequence and Acked, and Expire when TTL is given. A
// proposal that failed without a verdict is made again under the same name until ctx ends. An error of the store is an
// *Error; any other is an *Error with code 300, whose cause is the failure's text.
func (r *Replica) Do(ctx context.Context, c Command) (*Event, error) { panic("not yet") }

// Get reads after ReadIndex, so the answer holds every change that was acknowledged before the call.
func (r *Replica) Get(ctx context.Context, path string, g GetRequest) (*Event, error) {
	panic("not yet")
}

// Apply carries out a committed command and returns its *Result. It never panics; bytes that are no command have a Result with
// an error.
func (r *Replica) Apply(command []byte) any { panic("not yet") }

// Result is what Apply returns.
type Result struct {
	Event *Event
	Err   error
}

// ReplicaSnapshot is the state of a replica at one moment.
type ReplicaSnapshot struct{}

// Snapshot freezes the replica's state. It is called between two calls of Apply, as logs do.
func (r *Replica) Snapshot() *ReplicaSnapshot { panic("not yet") }

// WriteTo writes the state, which Restore reads.
func (p *ReplicaSnapshot) WriteTo(w io.Writer) (int64, error) { panic("not yet") }

// Release lets go of the state.
func (p *ReplicaSnapshot) Release() { panic("not yet") }

// Restore replaces the replica's state. When the stream is damaged the replica stays as it was.
func (r *Replica) Restore(rd io.Reader) error { panic("not yet") }
