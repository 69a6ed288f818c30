// Package store keeps a cluster's objects in memory: transactions over go-memdb tables, found by indexes, watched through
// queues. With a proposer, a transaction's changes take effect when a replicated log hands them back; without one they do so
// at once.
//
// It never writes to disk, never looks at the clock but to stamp a proposal, and imports no log: Apply, Snapshot and Restore
// are what one calls.
//
// What is read is shared and must not be changed: Create and Update keep a copy of what they are given. In a build for the
// race detector the store checks that, and panics.
//
// Locks: Store.update is held while callbacks of Update and Batch run, never during a proposal. Store.machine orders what
// the log calls. Store.mu makes a new state and its events one step. Then come Queue.mu and Watcher.mu. They are taken in this
// order. Reads take none. The proposer is asked for its version with no lock but Store.update, and proposed to with none.
package store
