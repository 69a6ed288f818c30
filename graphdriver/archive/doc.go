// Package archive reads a layer's tar once, for everybody who needs it: while one goroutine parses it and unpacks it
// into a directory, a second one hashes the bytes and a third one writes the record ("tar-split") from which the same
// bytes can be put together again out of the unpacked files.
//
// Unpacking treats the tar as hostile. Every path is resolved by the kernel with the layer's directory as its root
// (openat2, RESOLVE_IN_ROOT), and the last element is never followed, so that no name, symbolic link or hard link
// reaches outside, whatever else changes meanwhile.
//
// It never decides what a layer is called or where it lies. A Reader belongs to one goroutine; nothing here is locked.
package archive
