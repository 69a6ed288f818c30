// Package logs writes and reads the output of containers in Docker's two local formats: json-file, one JSON object
// a line, and local, length-framed protobuf records. A Writer belongs to the process beside the container; any
// number of Readers, in this process or another, may read the same files at the same time.
//
// The two sides share no lock, only the order of file operations: a Writer puts everything into the old file before
// it renames it, and never writes to it again; a Reader that sees another file under the live name reads its own to
// the end before it goes on. Files are compressed beside their original and replace it by rename.
//
// The package never starts or ends containers, never sends logs elsewhere, and never flushes to the disk: like
// Docker it leaves that to the kernel. A Writer has one mutex, which guards all its fields; a Reader has none and
// is used by one goroutine; a Notifier has one for its tables.
package logs
