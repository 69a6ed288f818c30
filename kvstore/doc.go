// Package kvstore keeps a tree of keys in memory with the data model of the etcd v2 API: directories and files, one index
// for the whole store, compare and swap, keys that expire, a history of the last events, and watches.
//
// It writes no file, opens no socket and starts no goroutine of its own but for Replica.Run. What is true on disk is the
// replicated log below it: every change is a Command, and the same commands in the same order give the same store on
// every host, byte for byte. Time is no exception. A key expires when a command says how late it is, never because a local
// clock does.
//
// A Store has four parts that do not know each other: the tree of keys, the heap of keys that expire, the ring of past
// events and the hub of watches. Store.mu is the lock of all of them; it is held by changes and by the beginning and the end of
// watches, never over anything that blocks. The tree is changed under it and read without it: see
// tree.go. A state as a whole, for Save, Snapshot and Clone, is frozen under the lock, which takes as long for any size of tree.
//
// Watchers of one path share a feed, a list of events in which each has its place. A change adds an event to a list, whoever
// reads it; a watcher that reads takes no lock, and one that has to wait takes its feed's, which comes after Store.mu.
package kvstore
