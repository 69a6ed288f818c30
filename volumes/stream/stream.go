// Package stream is the form in which a volume leaves a host and comes to another one: a tar with a document that says
// what the volume is, its tree, and a document from which the reader knows that everything came whole. docs/formats.md
// describes it.
//
// Reading treats the stream as hostile: what is unpacked stays below the directory given, and what does not look like a
// stream that Write makes is refused. Nothing here decides under which name a volume comes or where it lies, and
// nothing is locked.
package stream

import (
	"fmt"

	"github.com/containerd/errdefs"
)

// Format and Version are in the first document of a stream. The version changes when an older reader would mistake a
// newer stream.
const (
	Format  = "stated volume"
	Version = 1
)

// Names in the tar, in their order.
const (
	headName = "volume.json"
	treeName = "data"
	tailName = "end.json"
)

const (
	// maxDocument bounds the two documents.
	maxDocument = 1 << 20
	// maxNamed is how many things that were left out are named; the others are counted.
	maxNamed  = 100
	blockSize = 512 // of a tar
	chunkSize = 128 << 10
)

// Head is the first document.
type Head struct {
	Format  string
	Version int
	Name    string
	Driver  string
	Options map[string]string
	Labels  map[string]string
}

// Tail is the last document. It comes from what was written, so that a reader can tell a whole stream from a part.
type Tail struct {
	Entries int64    // in the tree, its root included
	Bytes   int64    // contents of the files
	SHA256  string   // of the stream's bytes up to this document's own header
	LeftOut []string // what the tar has no form for: sockets
}

// left notes what was left out.
func (t *Tail) left(what string) {
	switch n := len(t.LeftOut); {
	case n < maxNamed:
		t.LeftOut = append(t.LeftOut, what)
	case n == maxNamed:
		t.LeftOut = append(t.LeftOut, "and more")
	}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("not a whole stream of a volume: "+format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
