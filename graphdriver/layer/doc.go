// Package layer keeps the layers of images, named by chain id, and the writable layers of containers on top of them.
// The files lie in a storage driver; what says which is which lies in Docker's layerdb:
//
//	layerdb/sha256/<chain>/{diff,parent,cache-id,size,tar-split.json.gz}
//	layerdb/mounts/<name>/{mount-id,init-id,parent}
//	layerdb/tmp/                                   layers and writable layers being made
//	layerdb/sha256/<chain>-<random>-removing/      layers being deleted
//
// The records are the truth. A layer is unpacked and flushed before its record appears, by a rename, and its record
// is gone for good before its files are deleted; so a crash leaves litter, which Sweep takes away, but never a record
// of something that is not there. What is broken all the same is set aside and listed by Problems.
//
// The store never verifies that a layer is the one that was wanted: callers compare the DiffID. It mounts nothing
// when it is opened and unmounts nothing when it is closed.
//
// Locks: Store.mu guards the tables and all counts, and is never held over I/O. Each writable layer has a lock of its
// own that makes operations on it exclude each other, taken before Store.mu. A chain that is being committed or
// deleted is in Store.busy, and whoever needs it waits.
package layer
