package shim

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// readSize is how much output is taken at once: half of what a pipe of the usual size holds.
const readSize = 32 << 10

// pipeSize is what a stream that has much to say may hold while the disk that its log is on is busy, or every processor:
// the process that writes goes on meanwhile. A stream has much to say once busy bytes wait to be read, an eighth of what
// it holds until then. Not every stream gets it, as the kernel gives the processes of a user smaller pipes when all of
// theirs together are large.
const (
	pipeSize = 1 << 20
	busy     = 8 << 10
)

// stdio is the standard streams of one process. Without a terminal they are pipes, whose other ends runc gets as its
// own streams (handover.go), so that nothing stands between the process and this side. With one they are FIFOs of which
// this side opens both ends before the task service does, so that neither waits for the other and no byte is lost; the
// task service copies between them and the terminal.
type stdio struct {
	// Paths of the FIFOs; empty for a stream that the process does not have, and for a pipe.
	in, out string

	fan  *fanout
	sink *sink // nil for a process whose output is not recorded

	output    []*os.File    // our ends of it
	ready     chan struct{} // closed when the output is the process's, and not of the runc that makes it
	drained   chan struct{} // closed when every output stream has ended
	readers   sync.WaitGroup
	sealed    atomic.Bool  // output is no longer delivered
	delivered atomic.Int64 // bytes of output

	mu    sync.Mutex // guards what is below
	stdin *os.File   // our write end: keeps the process's stdin open whoever goes
	held  ends       // the other ends, until the process has its own
	ended bool       // stdin has ended
	begun bool       // ready is closed
}

// ends are the process's ends of its streams; nil where it has none.
type ends struct{ in, out, err *os.File }

// each calls do with every end there is.
func (e ends) each(do func(*os.File)) {
	for _, f := range []*os.File{e.in, e.out, e.err} {
		if f != nil {
			do(f)
		}
	}
}

// owner is who owns the pipes of a process: the container's root, so that it may open them again by /dev/stdout.
type owner struct{ uid, gid int }

// openStdio opens the streams of a process. Its output is read from begin on.
func openStdio(dir, name string, tty, stdin bool, root owner, rec *sink) (_ *stdio, err error) {
	s := &stdio{fan: &fanout{tty: tty}, sink: rec, ready: make(chan struct{}), drained: make(chan struct{})}
	if tty {
		err = s.openFIFOs(filepath.Join(dir, "io-"+name), stdin)
	} else {
		err = s.openPipes(stdin, root)
	}
	if err != nil {
		return nil, fmt.Errorf("open streams of %s: %w", name, err)
	}
	for i, f := range s.output {
		s.readers.Go(func() { s.read(f, byte(stdout+i)) })
	}
	go func() { // ends with the readers, which end when the process's output does
		s.readers.Wait()
		close(s.drained)
		s.fan.end()
	}()
	return s, nil
}

func (s *stdio) openPipes(stdin bool, root owner) (err error) {
	var opened []*os.File
	pipe := func() (r, w *os.File) {
		if err == nil {
			r, w, err = os.Pipe()
		}
		if err == nil {
			opened = append(opened, r, w)
			if root != (owner{}) { // they are the host's root's already
				err = w.Chown(root.uid, root.gid)
			}
		}
		return r, w
	}
	var outR, errR *os.File
	outR, s.held.out = pipe()
	errR, s.held.err = pipe()
	if stdin {
		s.held.in, s.stdin = pipe()
	}
	if err != nil {
		closeAll(opened)
	}
	s.output = []*os.File{outR, errR}
	return err
}

// openFIFOs makes and opens the FIFOs that the task service copies a terminal to and from.
func (s *stdio) openFIFOs(prefix string, stdin bool) (err error) {
	var opened []*os.File
	defer func() {
		if err != nil {
			closeAll(opened)
			s.unlink()
		}
	}()
	open := func(kind string) (path string, r, w *os.File, err error) {
		path = prefix + "-" + kind
		if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
			return "", nil, nil, fmt.Errorf("make %s: %w", path, err)
		}
		if r, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
			return "", nil, nil, err
		}
		opened = append(opened, r)
		if w, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
			return "", nil, nil, err
		}
		opened = append(opened, w)
		return path, r, w, nil
	}
	var outR *os.File
	if s.out, outR, s.held.out, err = open("stdout"); err != nil {
		return err
	}
	if stdin {
		if s.in, s.held.in, s.stdin, err = open("stdin"); err != nil {
			return err
		}
	}
	s.output = []*os.File{outR}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was read or written
	}
}

// widen lets a pipe hold pipeSize. Where the kernel refuses, a smaller one serves too.
func widen(pipe *os.File) {
	conn, err := pipe.SyscallConn() // Fd would make its reads and writes block a thread
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) }) // see above
}

// begin starts to read the output, once runc has made the process.
func (s *stdio) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.beginLocked()
}

func (s *stdio) beginLocked() {
	if !s.begun {
		s.begun = true
		close(s.ready)
	}
}

// forget drops what a runc that failed has written to the output, which it had for its own: what went wrong is in its
// log, too. It may be tried again.
func (s *stdio) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun {
		return
	}
	buf := make([]byte, readSize)
	for _, f := range s.output {
		conn, err := f.SyscallConn() // Read would wait for more
		if err != nil {
			continue // it is closed
		}
		_ = conn.Control(func(fd uintptr) { // a failure leaves words in the log, no more
			for n := 1; n > 0; {
				n, _ = unix.Read(int(fd), buf)
			}
		})
	}
}

// read delivers one stream until all its writers have closed it.
func (s *stdio) read(f *os.File, stream byte) {
	defer f.Close()
	<-s.ready
	buf := make([]byte, readSize)
	wide := false
	for {
		n, err := f.Read(buf)
		if n >= busy && !wide {
			widen(f)
			wide = true
		}
		if n > 0 && !s.sealed.Load() {
			if s.sink != nil {
				s.sink.write(stream, buf[:n])
			}
			s.fan.send(stream, buf[:n])
			s.delivered.Add(int64(n))
		}
		if err != nil {
			break // the end of the stream; a FIFO has no other errors
		}
	}
	if s.sink != nil {
		s.sink.endStream(stream)
	}
}

// readerLimit bounds the wait for the task service to open its end of stdin, which takes some microseconds.
const readerLimit = 2 * time.Second

// awaitReader returns when the task service reads stdin. It opens the FIFO in a goroutine of its own, perhaps after it
// has said that the process runs; until then our ends must stay, and nobody may close the service's writing end: a
// reader that opens a FIFO without writers waits for good.
func (s *stdio) awaitReader() {
	s.mu.Lock()
	var own *os.File
	if s.in != "" {
		own = s.held.in
	}
	s.mu.Unlock()
	if own == nil {
		return
	}
	limit := time.Now().Add(readerLimit)
	for !otherReader(own) {
		if time.Now().After(limit) {
			slog.Warn("the task service does not open stdin", "after", readerLimit)
			return
		}
		time.Sleep(100 * time.Microsecond)
	}
}

// otherReader reports whether this process has the FIFO open for reading a second time.
func otherReader(own *os.File) bool {
	conn, err := own.SyscallConn() // Fd would make its reads block a thread
	if err != nil {
		return true // it is closed: nobody waits for it
	}
	var mine int
	var fifo unix.Stat_t
	if cerr := conn.Control(func(fd uintptr) { mine, err = int(fd), unix.Fstat(int(fd), &fifo) }); cerr != nil || err != nil {
		return true
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return true
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd == mine {
			continue
		}
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Ino != fifo.Ino || st.Dev != fifo.Dev {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err == nil && flags&unix.O_PATH == 0 && flags&unix.O_ACCMODE == unix.O_RDONLY {
			return true
		}
	}
	return false
}

// release closes the ends that were held for the process, once it has its own or will not be. From then on the output
// ends with its last writer. What comes of a process that was never made is dropped.
func (s *stdio) release() {
	s.mu.Lock()
	held := s.held
	s.held = ends{}
	if !s.begun {
		s.sealed.Store(true)
		s.beginLocked()
	}
	s.mu.Unlock()
	if held.out == nil {
		return // it was done before
	}
	held.each(func(f *os.File) { _ = f.Close() }) // nothing is buffered in this process
	s.unlink()
}

func (s *stdio) unlink() {
	for _, path := range []string{s.in, s.out} {
		if path != "" {
			_ = os.Remove(path) // litter in a directory that goes with the container
		}
	}
}

// leftover is more than what lies between a process and us when it ends: a pipe, or a terminal, a FIFO and some buffers.
const leftover = pipeSize + 128<<10

// drain waits for the end of the output after the process's exit, for limit and for as long as a paced client takes
// to read what the process left. Children may keep the output open; what they write later is taken, so that they
// live on, and dropped.
func (s *stdio) drain(limit time.Duration) {
	s.begin() // its start may not have returned yet
	s.release()
	s.closeStdin()
	t := time.NewTicker(limit)
	defer t.Stop()
	before := s.delivered.Load()
	for {
		select {
		case <-s.drained:
			return
		case <-t.C:
			if s.fan.held.Load() > 0 && s.delivered.Load()-before < leftover {
				continue
			}
			slog.Warn("output is held open after the exit; the rest is dropped", "after", limit)
			s.sealed.Store(true)
			s.fan.end()
			return
		}
	}
}

// writeStdin writes to the process's stdin and waits for it to read. Closing stdin ends the wait.
func (s *stdio) writeStdin(p []byte) error {
	s.mu.Lock()
	f := s.stdin
	s.mu.Unlock()
	if f == nil {
		return os.ErrClosed
	}
	_, err := f.Write(p)
	return err
}

// closeStdin closes our write end. It reports whether this call was the one that did.
func (s *stdio) closeStdin() bool {
	s.mu.Lock()
	f := s.stdin
	s.stdin = nil
	first := !s.ended && f != nil
	s.ended = true
	s.mu.Unlock()
	if f != nil {
		_ = f.Close() // a FIFO's close has nothing to report
	}
	return first
}

// stdinEnded reports whether the process's stdin is to be at its end.
func (s *stdio) stdinEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}
