package logs

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// pollEvery is how often a follower looks at its file when the kernel gives it no notices.
const pollEvery = 250 * time.Millisecond

// ReadRequest says what to read.
type ReadRequest struct {
	Since, Until time.Time // zero: no bound
	// Tail is the number of records from the end to begin with; less than 0 means all. As with Docker, Since and Until
	// choose among these.
	Tail   int
	Follow bool
	// Done tells a follower that no more is written: it reads what is there and ends. A nil Done never ends.
	Done <-chan struct{}
	// Notifier is shared by the readers of a process. Without one a follower opens its own.
	Notifier *Notifier
}

// Reader yields the records of a log, oldest first. It is used by one goroutine and holds its files open.
type Reader struct {
	o   Options
	req ReadRequest
	fm  format

	queue   []*source // files to be read after cur
	cur     *source
	current io.Reader // over cur
	offset  int64     // bytes of cur that have been read, when it is not compressed
	limit   int64     // of cur; -1 when it is followed
	skip    int       // records to pass over at the start of cur

	buf  []byte // bytes read; those from pos on are not decoded
	pos  int
	lost bool // cur is damaged from here on

	own      *Notifier // to be closed by Close
	listener *listener // nil: poll
	ended    bool      // no more records are to come
}

// Open begins to read a log. A log that has no files is empty.
func Open(o Options, req ReadRequest) (*Reader, error) {
	fm, err := o.format()
	if err != nil {
		return nil, err
	}
	r := &Reader{o: o, req: req, fm: fm}
	if req.Follow {
		r.listen() // before the files are listed, so that no notice is missed
	}
	sources, err := openSources(o)
	if err != nil {
		r.Close()
		return nil, err
	}
	if err := r.begin(sources); err != nil {
		closeAll(sources)
		r.Close()
		return nil, fmt.Errorf("read log %s: %w", o.Path, err)
	}
	return r, nil
}

func (r *Reader) listen() {
	n := r.req.Notifier
	if n == nil {
		var err error
		if n, err = NewNotifier(); err != nil {
			return // too many of them: poll
		}
		r.own = n
	}
	if l, err := n.listen(filepath.Dir(r.o.Path)); err == nil {
		r.listener = l
	}
}

// begin chooses where reading starts and takes the sources over.
func (r *Reader) begin(sources []*source) error {
	first, offset, skip, err := r.start(sources)
	if err != nil {
		return err
	}
	closeAll(sources[:first])
	r.queue = sources[first:]
	r.advance()
	if r.cur != nil {
		r.offset, r.skip = offset, skip
	}
	return nil
}

// start finds the first source to be read, and how much of it is passed over: bytes, or records of a compressed one.
func (r *Reader) start(sources []*source) (first int, offset int64, skip int, err error) {
	if r.req.Tail < 0 {
		for first < len(sources) && r.isBefore(sources[first]) {
			first++
		}
		return first, 0, 0, nil
	}
	want := r.req.Tail
	for first = len(sources); first > 0 && (want > 0 || first == len(sources)); {
		first--
		s := sources[first]
		var found int
		if s.gz {
			total, err := countRecords(s, r.fm)
			if err != nil {
				return 0, 0, 0, err
			}
			found = min(total, want)
			offset, skip = 0, total-found
		} else {
			size, err := sizeOf(s.f)
			if err != nil {
				return 0, 0, 0, err
			}
			if offset, found, err = r.fm.tail(s.f, size, want); err != nil {
				return 0, 0, 0, err
			}
			skip = 0
		}
		want -= found
	}
	return first, offset, skip, nil
}

// isBefore reports whether a compressed file is known to hold nothing that is asked for.
func (r *Reader) isBefore(s *source) bool {
	return s.gz && !s.info.LastTime.IsZero() && s.info.LastTime.Before(r.req.Since)
}

func sizeOf(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func countRecords(s *source, fm format) (int, error) {
	z, err := gzip.NewReader(io.NewSectionReader(s.f, 0, 1<<62))
	if err != nil {
		return 0, err
	}
	total := 0
	buf := make([]byte, 0, 64<<10)
	for {
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
		n, readErr := z.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		pos := 0
		for {
			_, taken, _, err := fm.next(buf[pos:])
			if err != nil {
				return total, nil // what lies before the damage can be read
			}
			if taken == 0 {
				break
			}
			total++ // also those that cannot be decoded: they are counted in plain files too
			pos += taken
		}
		buf = buf[:copy(buf, buf[pos:])]
		if readErr != nil {
			return total, nil
		}
	}
}

// Next returns the next record, or io.EOF when there is none and, for a follower, none will come. After an error of
// ctx it can be called again.
func (r *Reader) Next(ctx context.Context) (Record, error) {
	for {
		rec, ok := r.decode()
		if ok {
			switch {
			case !r.req.Until.IsZero() && rec.Time.After(r.req.Until):
				r.ended = true // as with Docker: the first later record ends the answer
				return Record{}, io.EOF
			case rec.Time.Before(r.req.Since):
				continue
			}
			return rec, nil
		}
		if r.ended {
			return Record{}, io.EOF
		}
		if err := ctx.Err(); err != nil {
			return Record{}, err
		}
		more, err := r.fill()
		if err != nil {
			return Record{}, fmt.Errorf("read log %s: %w", r.o.Path, err)
		}
		if more {
			continue
		}
		if err := r.atEnd(ctx); err != nil {
			return Record{}, err
		}
	}
}

// decode takes the next record out of the buffer.
func (r *Reader) decode() (Record, bool) {
	for {
		rec, taken, ok, err := r.fm.next(r.buf[r.pos:])
		if err != nil {
			r.lost = true
			r.pos = len(r.buf)
		}
		if taken == 0 {
			return Record{}, false
		}
		r.pos += taken
		switch {
		case r.skip > 0:
			r.skip--
		case ok:
			return rec, true
		}
	}
}

// fill reads more of the current file. It reports false at its end.
func (r *Reader) fill() (bool, error) {
	if r.cur == nil || r.lost {
		return false, nil
	}
	r.buf = r.buf[:copy(r.buf, r.buf[r.pos:])]
	r.pos = 0
	if len(r.buf) == cap(r.buf) {
		r.buf = append(make([]byte, 0, max(32<<10, 2*cap(r.buf))), r.buf...)
	}
	room := r.buf[len(r.buf):cap(r.buf)]
	if r.cur.gz {
		n, err := r.current.Read(room)
		r.buf = r.buf[:len(r.buf)+n]
		if err != nil && err != io.EOF {
			r.lost = true // what has been read is good; the files after this one are, too
		}
		return n > 0, nil
	}
	if r.limit >= 0 {
		room = room[:min(int64(len(room)), max(r.limit-r.offset, 0))]
	}
	if len(room) == 0 {
		return false, nil
	}
	n, err := r.cur.f.ReadAt(room, r.offset)
	r.buf = r.buf[:len(r.buf)+n]
	r.offset += int64(n)
	if err != nil && err != io.EOF {
		return false, err
	}
	return n > 0, nil
}

// advance goes on to the next file of the queue.
func (r *Reader) advance() {
	if r.cur != nil {
		_ = r.cur.Close() // read-only
	}
	r.cur, r.current = nil, nil
	r.offset, r.limit, r.skip, r.lost = 0, -1, 0, false
	r.buf, r.pos = r.buf[:0], 0
	for len(r.queue) > 0 && r.cur == nil {
		s := r.queue[0]
		r.queue = r.queue[1:]
		if s.gz {
			z, err := gzip.NewReader(s.f)
			if err != nil {
				_ = s.Close() // read-only; a damaged file ends before it begins
				continue
			}
			r.current = z
		}
		r.cur = s
	}
	if r.cur != nil && r.cur.rank == 0 && !r.req.Follow {
		// A writer may be faster than we are: what is there now is what was asked for.
		if size, err := sizeOf(r.cur.f); err == nil {
			r.limit = size
		}
	}
}

// atEnd is called when the current file has no more. It goes on to the next one, waits, or ends.
func (r *Reader) atEnd(ctx context.Context) error {
	if len(r.queue) > 0 {
		r.advance()
		return nil
	}
	if !r.req.Follow {
		r.ended = true
		return nil
	}
	// What Done promises holds before the look at the files, so that nothing comes after it.
	done := isClosed(r.req.Done) || (!r.req.Until.IsZero() && time.Now().After(r.req.Until))
	moved, err := r.findSuccessors()
	if err != nil || moved {
		return err
	}
	if more, err := r.fill(); err != nil || more {
		return err
	}
	if done {
		r.ended = true
		return nil
	}
	return r.wait(ctx)
}

// findSuccessors queues the files that came after the current one, if the log was rotated. The current file is read
// to its end before: the writer had put everything into it when it got its new name.
func (r *Reader) findSuccessors() (bool, error) {
	if r.cur != nil {
		inode, err := inodeAt(r.o.Path)
		if err != nil {
			return false, err
		}
		if inode == 0 {
			return false, nil // between two renames, or removed
		}
		if !r.cur.gz && inode == r.cur.inode {
			return false, r.startOverIfCut()
		}
	}
	sources, err := openSources(r.o)
	if err != nil {
		return false, err
	}
	first := 0
	if r.cur != nil {
		for i := len(sources) - 1; i >= 0; i-- {
			if sources[i].holds(r.cur) {
				first = i + 1
				break
			}
		}
	}
	closeAll(sources[:first])
	r.queue = sources[first:]
	return len(r.queue) > 0, nil
}

// startOverIfCut notices that somebody emptied the file while it was in use.
func (r *Reader) startOverIfCut() error {
	size, err := sizeOf(r.cur.f)
	if err != nil {
		return err
	}
	if size < r.offset {
		r.offset = 0
		r.buf, r.pos, r.lost = r.buf[:0], 0, false
	}
	return nil
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (r *Reader) wait(ctx context.Context) error {
	var wake <-chan struct{}
	var poll, until <-chan time.Time
	if r.listener != nil {
		wake = r.listener.wake
	} else {
		timer := time.NewTimer(pollEvery)
		defer timer.Stop()
		poll = timer.C
	}
	if !r.req.Until.IsZero() {
		timer := time.NewTimer(time.Until(r.req.Until) + time.Millisecond)
		defer timer.Stop()
		until = timer.C
	}
	select {
	case <-wake:
	case <-poll:
	case <-until:
	case <-r.req.Done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// Close releases the files. It is not to be called while Next runs.
func (r *Reader) Close() error {
	r.ended = true
	if r.listener != nil {
		r.listener.close()
		r.listener = nil
	}
	var err error
	if r.own != nil {
		err = r.own.Close()
		r.own = nil
	}
	closeAll(r.queue)
	r.queue = nil
	if r.cur != nil {
		err = errors.Join(err, r.cur.Close())
		r.cur = nil
	}
	return err
}
