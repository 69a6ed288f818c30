package logs

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"stated.dev/stated/internal/fault"
)

// closeGrace is how long Close waits for a compression. One that is cut short is done by the next writer.
const closeGrace = 2 * time.Second

// rotateLocked starts a new live file. When that fails the old one goes on, and another attempt is made after a
// while.
func (w *Writer) rotateLocked() {
	if err := w.tryRotate(); err != nil {
		w.failed = fmt.Errorf("rotate log %s: %w", w.o.Path, err)
		w.retryAt = w.size + w.o.MaxSize/16 + flushSize
		return
	}
	w.retryAt = 0
}

func (w *Writer) tryRotate() error {
	// After its name has changed the old file is complete: readers rely on it.
	if err := w.flushLocked(); err != nil {
		return err
	}
	if err := w.job.wait(); err != nil {
		w.failed = err // the plain file is whole and moves on as it is
	}
	next, err := openLive(w.o.Path+newSuffix, os.O_EXCL)
	if err != nil {
		return err
	}
	if err := w.exchange(); err != nil {
		_ = next.Close()           // nothing was written to it
		_ = os.Remove(next.Name()) // the next attempt needs the name; a new writer removes it too
		return err
	}
	_ = w.f.Close() // everything has been written
	w.f, w.size = next, 0
	if w.compresses() {
		w.job = compressRotated(w.o, w.last)
	}
	return nil
}

// exchange moves every file one further and gives the new file the live name.
func (w *Writer) exchange() error {
	path := w.o.Path
	keep := w.o.maxFiles()
	if keep == 1 {
		return os.Rename(path+newSuffix, path)
	}
	if err := shift(path, keep); err != nil {
		return err
	}
	if err := fault.Point("logs.rotate.shifted"); err != nil {
		return err
	}
	if err := os.Rename(path, rotatedPath(path, 1)); err != nil {
		return err
	}
	err := fault.Point("logs.rotate.moved")
	if err == nil {
		err = os.Rename(path+newSuffix, path)
	}
	if err != nil {
		// The old file goes on under its own name, so that what is still written to it can be found.
		return errors.Join(err, os.Rename(rotatedPath(path, 1), path))
	}
	return nil
}

// shift removes the oldest of keep files and moves the other rotated ones one further. A file whose compression was
// interrupted may be there in both forms.
func shift(path string, keep int) error {
	for rank := keep - 1; rank > 0; rank-- {
		for _, suffix := range []string{"", gzSuffix} {
			name := rotatedPath(path, rank) + suffix
			var err error
			if rank == keep-1 {
				err = os.Remove(name)
			} else {
				err = os.Rename(name, rotatedPath(path, rank+1)+suffix)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// A job compresses rotated files in the background. A nil job has nothing to do.
type job struct {
	stop atomic.Bool
	done chan struct{}
	err  error // to be read after done
}

// compressRotated starts to compress what is not compressed yet.
func compressRotated(o Options, last time.Time) *job {
	var plain []string
	for rank := 1; rank < o.maxFiles(); rank++ {
		if name := rotatedPath(o.Path, rank); exists(name) {
			plain = append(plain, name)
		}
	}
	if len(plain) == 0 {
		return nil
	}
	j := &job{done: make(chan struct{})}
	go func() {
		defer close(j.done)
		for _, name := range plain {
			if err := j.compress(name, last); err != nil {
				j.err = errors.Join(j.err, fmt.Errorf("compress log %s: %w", name, err))
			}
			last = time.Time{}
		}
	}()
	return j
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func (j *job) wait() error {
	if j == nil {
		return nil
	}
	<-j.done
	return j.err
}

// finish waits for closeGrace, then lets the job give up.
func (j *job) finish() error {
	if j == nil {
		return nil
	}
	timer := time.NewTimer(closeGrace)
	defer timer.Stop()
	select {
	case <-j.done:
	case <-timer.C:
		j.stop.Store(true)
		<-j.done
	}
	if errors.Is(j.err, errStopped) {
		return nil
	}
	return j.err
}

var errStopped = errors.New("compression stopped")

// compress replaces a file by its compressed form. The plain file goes last, so that one of the two is always whole.
func (j *job) compress(name string, last time.Time) (err error) {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	inode, err := inodeOf(in)
	if err != nil {
		return err
	}
	tmp := name + gzSuffix + tmpSuffix
	out, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = out.Close()    // the first error is the one to report
			_ = os.Remove(tmp) // litter is harmless
		}
	}()
	extra, err := json.Marshal(gzInfo{LastTime: last.UTC(), Source: inode})
	if err != nil {
		return err
	}
	// A container that fills files faster than they are compressed waits: speed counts for more than size.
	z, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return err
	}
	z.Extra = extra
	if _, err := io.Copy(z, stoppable{in, &j.stop}); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	if err := os.Rename(tmp, name+gzSuffix); err != nil {
		return err
	}
	if err := fault.Point("logs.compress.renamed"); err != nil {
		return err
	}
	return os.Remove(name)
}

// stoppable is a reader that can be told to stop.
type stoppable struct {
	r    io.Reader
	stop *atomic.Bool
}

func (s stoppable) Read(p []byte) (int, error) {
	if s.stop.Load() {
		return 0, errStopped
	}
	return s.r.Read(p)
}
