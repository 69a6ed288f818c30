package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/storage"
)

// Reader walks the entries of one uncompressed tar. It must be closed.
type Reader struct {
	src *source
	tar *tar.Reader
	rec *recorder // nil when nothing is recorded

	hdr      *tar.Header // current entry
	asFile   bool        // the record refers to the entry's contents instead of holding them
	consumed bool        // CopyTo was called
	eof      bool
	buf      []byte
}

// NewReader returns a Reader of in that hashes what it reads. When record is not nil, the tar-split record is
// written to it, gzipped; the record is complete once Finish has returned.
func NewReader(in io.Reader, record io.Writer) *Reader {
	src := newSource(in)
	r := &Reader{src: src, tar: tar.NewReader(src)}
	if record != nil {
		r.rec = newRecorder(record)
		src.capturing = true
	}
	return r
}

// Next returns the next entry, or io.EOF. What was not copied of the entry before is skipped, but for the record.
func (r *Reader) Next() (*tar.Header, error) {
	if err := r.endEntry(); err != nil {
		return nil, err
	}
	hdr, err := r.tar.Next()
	switch {
	case errors.Is(err, tar.ErrInsecurePath): // the header is good, and unpacking contains every path
	case errors.Is(err, io.EOF):
		r.eof = true
		return nil, io.EOF
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong), errors.Is(err, io.ErrUnexpectedEOF):
		return nil, fmt.Errorf("read tar: %v: %w", err, errdefs.ErrInvalidArgument)
	case err != nil:
		return nil, fmt.Errorf("read tar: %w", err)
	}
	r.hdr, r.consumed, r.asFile = hdr, false, false
	return hdr, nil
}

// CopyTo writes the contents of the current entry to w. It is to be called at most once for an entry, and only when
// the contents will be found again under the entry's name: the record then refers to them.
func (r *Reader) CopyTo(w io.Writer) (int64, error) {
	r.consumed = true
	if r.rec == nil {
		if r.buf == nil {
			r.buf = make([]byte, chunkSize)
		}
		return r.copy(w, func() []byte { return r.buf }, func([]byte) {})
	}
	if isSparse(r.hdr) {
		// The contents on disk are not the bytes of the tar: the record keeps the tar's.
		return r.copyCaptured(w)
	}
	r.asFile = true
	r.flushSegment()
	r.src.capturing = false
	n, err := r.copy(w, func() []byte {
		b := <-r.rec.free
		if b == nil {
			b = make([]byte, chunkSize)
		}
		return b
	}, func(b []byte) {
		if len(b) == 0 {
			r.rec.free <- b[:cap(b)]
			return
		}
		r.rec.items <- item{chunk: b}
	})
	r.src.capturing = true
	return n, err
}

// copyCaptured moves the contents to w while the record takes the bytes as they are in the tar.
func (r *Reader) copyCaptured(w io.Writer) (int64, error) {
	b := make([]byte, chunkSize)
	return r.copy(w, func() []byte { return b }, func([]byte) {
		if len(r.src.captured) >= blockSize {
			r.flushSegment()
		}
	})
}

// copy moves the contents to w, in chunks got from get and given to put once written.
func (r *Reader) copy(w io.Writer, get func() []byte, put func([]byte)) (int64, error) {
	var done int64
	for size := contentSize(r.hdr); done < size; {
		b := get()
		n, err := io.ReadFull(r.tar, b[:min(int64(len(b)), size-done)])
		if err != nil {
			put(b[:0])
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return done, fmt.Errorf("contents of %q end after %d of %d bytes: %w", r.hdr.Name, done+int64(n), size, errdefs.ErrInvalidArgument)
			}
			return done, fmt.Errorf("read contents of %q: %w", r.hdr.Name, err)
		}
		_, err = w.Write(b[:n])
		put(b[:n])
		if err != nil {
			return done, err
		}
		done += int64(n)
	}
	return done, nil
}

// endEntry tells the record about the current entry.
func (r *Reader) endEntry() error {
	hdr := r.hdr
	if r.rec == nil || hdr == nil {
		return nil
	}
	size := contentSize(hdr)
	if size > 0 && !r.asFile {
		if r.consumed {
			r.hdr = nil
			return nil // copyCaptured has dealt with it
		}
		r.consumed = true
		_, err := r.copyCaptured(io.Discard)
		r.hdr = nil
		return err
	}
	r.hdr = nil
	r.flushSegment()
	r.rec.items <- item{end: &fileEnd{name: hdr.Name, size: size}}
	return nil
}

func (r *Reader) flushSegment() {
	if seg := r.src.take(); len(seg) > 0 {
		r.rec.items <- item{segment: seg}
	}
}

// Finish reads to the end of the input and returns the digest of all its bytes and their number. It closes r.
func (r *Reader) Finish() (digest.Digest, int64, error) {
	defer r.Close()
	for !r.eof {
		if _, err := r.Next(); err != nil && !errors.Is(err, io.EOF) {
			return "", 0, err
		}
	}
	// What follows the end mark belongs to the bytes, though to no entry. It may be long: keep it in pieces.
	buf := make([]byte, 64<<10)
	for {
		_, err := r.src.Read(buf)
		if r.rec != nil && len(r.src.captured) >= blockSize {
			r.flushSegment()
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", 0, fmt.Errorf("read tar: %w", err)
		}
	}
	if r.rec != nil {
		r.flushSegment()
		if err := r.rec.close(); err != nil {
			if errors.Is(err, storage.ErrDuplicatePath) {
				err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
			}
			return "", 0, err
		}
	}
	return r.src.digest(), r.src.total, nil
}

// Close releases what r holds and waits for its goroutines. It does not close the input.
func (r *Reader) Close() error {
	r.src.close()
	if r.rec != nil {
		_ = r.rec.close() // an unfinished record is of no use, so its errors are none either
	}
	return nil
}

// contentSize returns the number of bytes of contents that the parser gives for an entry.
func contentSize(hdr *tar.Header) int64 {
	switch hdr.Typeflag {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return 0 // some writers state a size there, but no contents follow
	}
	return hdr.Size
}

// isSparse reports whether the entry's bytes in the tar differ from its contents.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for _, key := range []string{"GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.realsize"} {
		if _, ok := hdr.PAXRecords[key]; ok {
			return true
		}
	}
	return false
}
