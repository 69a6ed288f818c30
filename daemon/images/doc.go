// Package images keeps the images of the host: their configurations, their names, and which layers they need.
// It loads, saves, imports, tags, lists and removes them. It never touches a layer's files, which belong to the
// layer store, and never talks to a registry.
//
// On disk, below image/<driver> of the data root, it writes what Docker 28 writes: repositories.json,
// imagedb/content and imagedb/metadata. A configuration is stored under the digest of its bytes, and those bytes
// are never rewritten.
//
// # Making several files change as one
//
// Adding or removing a named image changes two files: the configuration and repositories.json. The second decides.
// A configuration that is on its way in or out lies beside the others under a name that Docker passes over
// (see stagedPrefix). Open finishes what a crash left: a staged configuration that repositories.json names becomes
// an image, one that it does not name is deleted.
//
// # Locks
//
// Service.writing serialises everything that changes the disk; Service.mu guards the maps in memory, is taken after
// writing, and is never held over the disk or over a call to another room.
package images
