package stream

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"

	"stated.dev/stated/graphdriver/archive"
)

// Reader reads one stream. It belongs to one goroutine.
type Reader struct {
	head Head
	in   *meter
	tar  *tar.Reader
	buf  []byte

	hdr  *tar.Header // current entry of the tree
	seen Tail        // counted so far
	tail Tail        // valid at the end
}

var _ archive.Entries = (*Reader)(nil)

// NewReader reads the first document. What is no stream of a volume, or one of a newer version, is an
// errdefs.ErrInvalidArgument, as it is for all other functions.
func NewReader(in io.Reader) (*Reader, error) {
	r := &Reader{in: newMeter(in), buf: make([]byte, chunkSize)}
	r.tar = tar.NewReader(r.in)
	hdr, err := r.next()
	if err != nil {
		return nil, err
	}
	if hdr.Name != headName {
		return nil, invalid("it begins with %q and not with %s", hdr.Name, headName)
	}
	if err := r.document(hdr, &r.head); err != nil {
		return nil, err
	}
	switch {
	case r.head.Format != Format:
		return nil, invalid("%s says that its format is %q", headName, r.head.Format)
	case r.head.Version < 1 || r.head.Version > Version:
		return nil, invalid("its version is %d, and this stated reads versions up to %d", r.head.Version, Version)
	}
	return r, nil
}

// Head returns the first document.
func (r *Reader) Head() Head { return r.head }

// Extract unpacks the tree into the empty directory dir, whose own attributes become those of the tree's root, and
// checks that the stream came whole. After an error dir holds a part of it.
func (r *Reader) Extract(ctx context.Context, dir string) (Tail, error) {
	applied, err := archive.Apply(ctx, dir, r, archive.Options{
		Whiteouts: archive.WhiteoutsKeep, OverlayXattrs: true, OneTree: true, BestEffortXattrs: true,
	})
	if err != nil {
		return Tail{}, err
	}
	tail := r.tail
	if applied.Refused > 0 {
		tail.left(fmt.Sprintf("%d extended attributes that the file system refuses", applied.Refused))
	}
	return tail, nil
}

// next returns the next entry of the tar. The end is an error: the last document comes before it.
func (r *Reader) next() (*tar.Header, error) {
	hdr, err := r.tar.Next()
	switch {
	case err == nil:
		return hdr, nil
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, invalid("it ends too early")
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, tar.ErrInsecurePath):
		return nil, invalid("%v", err)
	}
	return nil, fmt.Errorf("read the stream: %w", err)
}

// Next implements archive.Entries: it returns the entries of the tree, under names relative to its root.
func (r *Reader) Next() (*tar.Header, error) {
	hdr, err := r.next()
	if err != nil {
		return nil, err
	}
	if hdr.Name == tailName {
		return nil, r.finish(hdr)
	}
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeDir, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo, tar.TypeGNUSparse:
	default:
		return nil, invalid("%q is of the unknown kind %q", hdr.Name, hdr.Typeflag)
	}
	if isSparse(hdr) {
		return nil, invalid("%q is sparse, in a form that claims any size and costs no bytes", hdr.Name)
	}
	inner := *hdr
	if inner.Name, err = inTree(strings.TrimSuffix(hdr.Name, "/")); err != nil {
		return nil, err
	}
	if hdr.Typeflag == tar.TypeLink {
		if inner.Linkname, err = inTree(hdr.Linkname); err != nil {
			return nil, fmt.Errorf("hard link %q: %w", hdr.Name, err)
		}
	}
	if first := r.seen.Entries == 0; first != (inner.Name == ".") {
		return nil, invalid("the tree's root comes first, and once; here is %q", hdr.Name)
	}
	r.seen.Entries++
	r.hdr = &inner
	if hdr.Typeflag == tar.TypeReg {
		r.seen.Bytes += hdr.Size
	}
	return &inner, nil
}

func isSparse(hdr *tar.Header) bool {
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return hdr.Typeflag == tar.TypeGNUSparse
}

// inTree returns a name of the tar relative to the tree's root. A name that Write would not make is refused, so that
// none means anything else to whoever resolves it.
func inTree(name string) (string, error) {
	if name == treeName {
		return ".", nil
	}
	rel, ok := strings.CutPrefix(name, treeName+"/")
	if !ok || rel == "" || path.Clean("/"+rel) != "/"+rel || strings.ContainsRune(rel, 0) {
		return "", invalid("the name %q is not one below %s/", name, treeName)
	}
	return rel, nil
}

// CopyTo implements archive.Entries.
func (r *Reader) CopyTo(w io.Writer) (int64, error) {
	for done := int64(0); ; {
		n, err := io.ReadFull(r.tar, r.buf) // whole chunks, so that those of zeros can be told
		if n > 0 {
			if _, err := w.Write(r.buf[:n]); err != nil {
				return done, err
			}
			done += int64(n)
		}
		switch {
		case err == nil:
		case done == r.hdr.Size && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)):
			return done, nil
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return done, invalid("it ends in the contents of %q", r.hdr.Name)
		default:
			return done, fmt.Errorf("read the stream: %w", err)
		}
	}
}

// finish reads the last document, whose header is hdr, and returns io.EOF when everything before it is as it says.
func (r *Reader) finish(hdr *tar.Header) error {
	sum := r.in.sumBeforeLastBlock()
	if err := r.document(hdr, &r.tail); err != nil {
		return err
	}
	switch {
	case r.seen.Entries == 0:
		return invalid("it has no tree")
	case r.tail.Entries != r.seen.Entries || r.tail.Bytes != r.seen.Bytes:
		return invalid("it holds %d entries with %d bytes, and was written with %d and %d", r.seen.Entries, r.seen.Bytes, r.tail.Entries, r.tail.Bytes)
	case r.tail.SHA256 != sum:
		return invalid("it was changed or damaged since it was written: its checksum differs")
	}
	return io.EOF
}

func (r *Reader) document(hdr *tar.Header, v any) error {
	if hdr.Typeflag != tar.TypeReg || hdr.Size > maxDocument {
		return invalid("%s is no file of less than %d bytes", hdr.Name, maxDocument)
	}
	data, err := io.ReadAll(r.tar)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("it ends in %s", hdr.Name)
	}
	if err != nil {
		return fmt.Errorf("read the stream: %w", err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return invalid("%s cannot be read: %v", hdr.Name, err)
	}
	return nil
}

// meter hashes what was read, but for the last block: when a tar's header of one block has just been read, that is what
// was before it.
type meter struct {
	in   io.Reader
	sum  hash.Hash
	last []byte // not hashed yet
}

func newMeter(in io.Reader) *meter {
	return &meter{in: bufio.NewReaderSize(in, 2*chunkSize), sum: sha256.New(), last: make([]byte, 0, blockSize)}
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.in.Read(p)
	read := p[:n]
	if over := len(m.last) + len(read) - blockSize; over > 0 {
		fromLast := min(over, len(m.last))
		m.sum.Write(m.last[:fromLast])
		m.last = append(m.last[:0], m.last[fromLast:]...)
		m.sum.Write(read[:over-fromLast])
		read = read[over-fromLast:]
	}
	m.last = append(m.last, read...)
	return n, err
}

func (m *meter) sumBeforeLastBlock() string { return hex.EncodeToString(m.sum.Sum(nil)) }
