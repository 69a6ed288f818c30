package shim

import (
	"bytes"
	"log/slog"
	"sync"
	"time"
)

// maxPiece is the largest piece of a line that makes a record; it is Docker's.
const maxPiece = 16 << 10

// sink cuts a container's output into records.
type sink struct {
	mu     sync.Mutex // guards what is below; held over the writer, so that records do not mix
	w      RecordWriter
	rest   [3][]byte    // per stream, what came after the last newline
	since  [3]time.Time // per stream, when the first piece of an unfinished line was written
	failed bool
	closed bool
}

var streamNames = [3]string{stdout: "stdout", stderr: "stderr"}

// write takes one piece of output. Complete lines go to the kernel before it returns.
func (s *sink) write(stream byte, p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.w == nil {
		return
	}
	now := time.Now()
	if rest := s.rest[stream]; len(rest) > 0 {
		// Finish the line that an earlier piece began; take no more than it needs.
		n := min(len(p), maxPiece-len(rest))
		if i := bytes.IndexByte(p[:n], '\n'); i >= 0 {
			n = i + 1
		}
		rest = append(rest, p[:n]...)
		p = p[n:]
		if rest[len(rest)-1] == '\n' || len(rest) == maxPiece {
			s.recordLocked(stream, now, rest)
			rest = rest[:0]
		}
		s.rest[stream] = rest
	}
	for len(p) > 0 {
		n := min(len(p), maxPiece)
		i := bytes.IndexByte(p[:n], '\n')
		if i < 0 && n < maxPiece {
			s.rest[stream] = append(s.rest[stream], p...)
			break
		}
		if i >= 0 {
			n = i + 1
		}
		s.recordLocked(stream, now, p[:n])
		p = p[n:]
	}
	s.reportLocked(s.w.Flush())
}

// recordLocked writes one record. All pieces of one line carry the time of the first.
func (s *sink) recordLocked(stream byte, now time.Time, piece []byte) {
	at := now
	if since := s.since[stream]; !since.IsZero() {
		at = since
	}
	if piece[len(piece)-1] == '\n' {
		s.since[stream] = time.Time{}
	} else {
		s.since[stream] = at
	}
	s.reportLocked(s.w.Write(streamNames[stream], at, piece))
}

// endStream records what a stream left without a newline.
func (s *sink) endStream(stream byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endStreamLocked(stream)
}

func (s *sink) endStreamLocked(stream byte) {
	if s.closed || s.w == nil || len(s.rest[stream]) == 0 {
		return
	}
	s.recordLocked(stream, time.Now(), s.rest[stream])
	s.rest[stream] = nil
	s.reportLocked(s.w.Flush())
}

// close ends the log. What comes later is dropped.
func (s *sink) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.endStreamLocked(stdout)
	s.endStreamLocked(stderr)
	s.closed = true
	if s.w != nil {
		s.reportLocked(s.w.Close())
	}
}

// reportLocked tells of the first failure of a row. The container goes on without its log, as Docker's does.
func (s *sink) reportLocked(err error) {
	if err != nil && !s.failed {
		slog.Error("record output", "error", err)
	}
	s.failed = err != nil
}
