// Package adopt looks at a data root that stated does not run on yet: what is in it, what of it is broken, whether a
// dockerd uses it, and it keeps a copy of its records before the first change.
//
// Check writes nothing below the root: databases are copied elsewhere before they are opened. It holds no locks.
package adopt
