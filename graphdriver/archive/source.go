package archive

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
)

const (
	blockSize  = 256 << 10 // bytes that are read from the input at once and handed to the hash
	blockCount = 8         // blocks of one Reader under way
)

// A block of input is released by the parser and by the hash; whoever is last gives it back.
type block struct {
	buf     []byte
	n       int
	holders atomic.Int32
}

// source feeds the parser and, beside it, the hash. While capturing it keeps what the parser reads.
type source struct {
	in   io.Reader
	err  error // sticky end of the input
	free chan *block
	cur  *block
	off  int

	total     int64
	capturing bool
	captured  []byte

	hash    hash.Hash
	hashing chan *block
	over    bool          // hashing is closed
	hashed  chan struct{} // closed when the hash has seen all
}

func newSource(in io.Reader) *source {
	s := &source{
		in:      in,
		free:    make(chan *block, blockCount),
		hash:    sha256.New(),
		hashing: make(chan *block, blockCount),
		hashed:  make(chan struct{}),
	}
	for range blockCount {
		s.free <- nil // allocated when first needed, as many layers are smaller than one block
	}
	go s.runHash(s.hashing)
	return s
}

func (s *source) runHash(blocks <-chan *block) {
	defer close(s.hashed)
	for b := range blocks {
		s.hash.Write(b.buf[:b.n])
		s.release(b)
	}
}

func (s *source) release(b *block) {
	if b.holders.Add(-1) == 0 {
		s.free <- b
	}
}

// Read gives the parser the next bytes.
func (s *source) Read(p []byte) (int, error) {
	if s.cur == nil || s.off == s.cur.n {
		if err := s.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.cur.buf[s.off:s.cur.n])
	s.off += n
	s.total += int64(n)
	if s.capturing {
		s.captured = append(s.captured, p[:n]...)
	}
	return n, nil
}

func (s *source) fill() error {
	if s.cur != nil {
		s.release(s.cur)
		s.cur = nil
	}
	if s.err != nil {
		return s.err
	}
	b := <-s.free
	if b == nil {
		b = &block{buf: make([]byte, blockSize)}
	}
	n, err := io.ReadFull(s.in, b.buf)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF // the input may end anywhere; the parser knows whether it was too early
	}
	s.err = err
	if n == 0 {
		s.free <- b
		return s.err
	}
	b.n = n
	b.holders.Store(2)
	s.cur, s.off = b, 0
	s.hashing <- b
	return nil
}

// take returns what was captured since the last call.
func (s *source) take() []byte {
	c := s.captured
	s.captured = nil
	return c
}

// close ends the hash. It may be called more than once.
func (s *source) close() {
	if !s.over {
		s.over = true
		close(s.hashing)
	}
	<-s.hashed
}

// digest returns the digest of all that was read. It closes the source.
func (s *source) digest() digest.Digest {
	s.close()
	return digest.NewDigest(digest.SHA256, s.hash)
}
