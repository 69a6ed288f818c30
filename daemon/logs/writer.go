package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// flushSize is how much is gathered before it is written without being asked.
	flushSize = 32 << 10
	// maxPending is how much is kept when the file cannot be written, for instance because the disk is full.
	maxPending = 1 << 20
	// keepBuffer is the largest buffer kept between flushes.
	keepBuffer = 64 << 10
)

// Writer appends records to a log and rotates it. It is the only one who writes to these files. It may be used by
// many goroutines.
type Writer struct {
	o Options

	mu      sync.Mutex // guards all below
	enc     encoder
	f       *os.File // nil for the driver none, and when closed
	closed  bool
	buf     []byte    // encoded records that are not in the file yet
	flushAt int       // length of buf at which a write that failed is tried again
	size    int64     // of the file, with what is in buf
	last    time.Time // of the newest record
	retryAt int64     // size at which a rotation that failed is tried again
	failed  error     // of the last rotation, until Flush has reported it
	job     *job      // the compression that runs, or ran last
}

// NewWriter opens the log for appending, and makes its directory if that is missing. What a crash left is put right:
// a torn record at the end is cut off, unfinished files are removed, and files that were not compressed yet are.
func NewWriter(o Options) (*Writer, error) {
	w := &Writer{o: o}
	if o.Driver == None {
		return w, nil
	}
	var err error
	if w.enc, err = o.encoder(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	if w.f, err = openLive(o.Path, 0); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	if err := w.repair(); err != nil {
		_ = w.f.Close() // the first error is the one to report
		return nil, fmt.Errorf("repair log %s: %w", o.Path, err)
	}
	if w.compresses() {
		w.job = compressRotated(o, time.Time{})
	}
	return w, nil
}

func openLive(path string, flag int) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|flag, 0o640)
}

func (w *Writer) compresses() bool { return w.o.Compress && w.o.maxFiles() > 1 }

func (w *Writer) repair() error {
	info, err := w.f.Stat()
	if err != nil {
		return err
	}
	w.size = info.Size()
	fm, err := w.o.format()
	if err != nil {
		return err
	}
	good, err := fm.intact(w.f, w.size)
	if err != nil {
		return err
	}
	if good < w.size {
		if err := w.f.Truncate(good); err != nil {
			return err
		}
		w.size = good
	}
	for _, litter := range []string{w.o.Path + newSuffix, rotatedPath(w.o.Path, 1) + gzSuffix + tmpSuffix} {
		if err := os.Remove(litter); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Write adds a record. The line has its newline if it had one. The record is in memory when Write returns, and in the
// file after Flush, Close, or enough further records. On an error the record was not taken.
func (w *Writer) Write(stream string, t time.Time, line []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("write log %s: %w", w.o.Path, os.ErrClosed)
	}
	if w.f == nil {
		return nil
	}
	if len(w.buf) >= max(flushSize, w.flushAt) {
		if err := w.flushLocked(); err != nil && len(w.buf) >= maxPending {
			return fmt.Errorf("write log: record dropped: %w", err)
		}
	}
	// Docker rotates before the record that finds the file full, so that each file is at least this long.
	if w.o.MaxSize > 0 && w.size >= max(w.o.MaxSize, w.retryAt) {
		w.rotateLocked()
	}
	before := len(w.buf)
	buf, err := w.enc.append(w.buf, stream, t, line)
	if err != nil {
		return err
	}
	w.buf = buf
	w.size += int64(len(buf) - before)
	w.last = t
	return nil
}

// Flush writes what is in memory to the file. It also reports a rotation that failed since; the records are in the
// old file then.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := errors.Join(w.flushLocked(), w.failed)
	w.failed = nil
	return err
}

func (w *Writer) flushLocked() error {
	if w.f == nil || len(w.buf) == 0 {
		return nil
	}
	n, err := w.f.Write(w.buf)
	w.flushAt = 0
	if n == len(w.buf) {
		if w.buf = w.buf[:0]; cap(w.buf) > keepBuffer {
			w.buf = nil
		}
		return nil
	}
	// The rest follows next time, exactly where this stopped, and not with every record.
	if n > 0 {
		w.buf = w.buf[:copy(w.buf, w.buf[n:])]
	}
	w.flushAt = min(len(w.buf)+flushSize, maxPending)
	return fmt.Errorf("write log: %w", err)
}

// Close flushes, waits a little for a compression that runs, and closes the file.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	if w.f == nil {
		return nil
	}
	err := errors.Join(w.flushLocked(), w.failed, w.f.Close(), w.job.finish())
	w.f, w.buf = nil, nil
	return err
}
