package kvstore

import "time"

// GetRequest says how much of a directory a Get returns.
type GetRequest struct {
	Recursive bool // the whole subtree instead of the direct children
	Sorted    bool // children by key, ascending; without it their order is not promised
}

// WatchRequest says what a watcher wants to see.
type WatchRequest struct {
	Recursive bool   // events below the path, too
	Stream    bool   // all events instead of the first one
	Since     uint64 // the first index of interest; 0 means only what happens from now on
}

// Op is what a command does. The numbers are part of the encoding.
type Op uint8

// The operations.
const (
	OpCreate           Op = 1
	OpSet              Op = 2
	OpUpdate           Op = 3
	OpCompareAndSwap   Op = 4
	OpDelete           Op = 5
	OpCompareAndDelete Op = 6
	OpExpire           Op = 7 // removes all keys that are due at Time
)

// Command is one change. What it does depends on the command and on the store before it, and on nothing else.
type Command struct {
	Op        Op
	Path      string
	Dir       bool // create, set: a directory; delete: a directory may be removed
	Unique    bool // create: a new key in order below Path
	Recursive bool // delete: with all that is below; implies Dir
	Refresh   bool // set, update, compareAndSwap: keep the value, replace the time to live, tell no watcher
	Value     string
	Expire    time.Time // when the key expires; zero, or before the year 2000, for never
	PrevValue string    // compareAndSwap, compareAndDelete: "" does not compare
	PrevIndex uint64    // compareAndSwap, compareAndDelete: 0 does not compare

	// Time is how late it is, by the clock of whoever proposed the command. It never goes back in the store: a command
	// with an earlier time than one before it has the time of that one. For OpExpire it is the cut-off.
	Time time.Time
	// Estimate says that Time was not stamped by the leader. Such a time does not move the store's clock.
	Estimate bool

	// Client and Sequence name the command, so that a repeat after an ambiguous failure does nothing and has the first
	// result. A Client of 0 has no name. Acked says that the client awaits no result of a sequence below it.
	Client, Sequence, Acked uint64

	// TTL, when not nil, replaces Expire by Time plus TTL. It is not encoded: Replica.Do and Store.Do set Expire first.
	TTL *time.Duration
}

// Append appends the command's binary form to b.
func (c Command) Append(b []byte) []byte { panic("not yet") }

// DecodeCommand reads what Append wrote. It never panics, and it allocates no more than the length of its input.
func DecodeCommand(b []byte) (Command, error) { panic("not yet") }
