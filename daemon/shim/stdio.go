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

// pipeSize is what a stream that has much to say may hold while the disk that its log is on is busy: the process that
// writes goes on meanwhile. Few streams get it, as the kernel gives the processes of a user smaller pipes when all of
// theirs together are large.
const pipeSize = 1 << 20

// stdio is the standard streams of one process: FIFOs of which this side opens both ends before the task service
// does, so that neither waits for the other and no byte is lost.
type stdio struct {
	// Paths for the task service; empty for a stream that the process does not have.
	in, out, err string

	fan  *fanout
	sink *sink // nil for a process whose output is not recorded

	drained   chan struct{} // closed when every output stream has ended
	readers   sync.WaitGroup
	sealed    atomic.Bool  // output is no longer delivered
	delivered atomic.Int64 // bytes of output

	mu    sync.Mutex // guards what is below
	stdin *os.File   // our write end: keeps the process's stdin open whoever goes
	held  []*os.File // the other ends, until the task service has opened its own
	ended bool       // stdin has ended
}

// openStdio makes the FIFOs of a process and starts to read its output.
func openStdio(dir, name string, tty, stdin bool, rec *sink) (_ *stdio, err error) {
	s := &stdio{fan: &fanout{tty: tty}, sink: rec, drained: make(chan struct{})}
	var opened []*os.File
	defer func() {
		if err != nil {
			for _, f := range opened {
				_ = f.Close() // nothing was read or written
			}
			s.unlink()
			err = fmt.Errorf("open streams of %s: %w", name, err)
		}
	}()
	open := func(kind string) (path string, r, w *os.File, err error) {
		path = filepath.Join(dir, "io-"+name+"-"+kind)
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
	var outR, errR *os.File
	var w, r *os.File
	if s.out, outR, w, err = open("stdout"); err != nil {
		return nil, err
	}
	s.held = append(s.held, w)
	if !tty {
		if s.err, errR, w, err = open("stderr"); err != nil {
			return nil, err
		}
		s.held = append(s.held, w)
	}
	if stdin {
		if s.in, r, s.stdin, err = open("stdin"); err != nil {
			return nil, err
		}
		s.held = append(s.held, r)
	}
	s.readers.Go(func() { s.read(outR, stdout) })
	if errR != nil {
		s.readers.Go(func() { s.read(errR, stderr) })
	}
	go func() { // ends with the readers, which end when the process's output does
		s.readers.Wait()
		close(s.drained)
		s.fan.end()
	}()
	return s, nil
}

// widen lets a pipe hold pipeSize. Where the kernel refuses, a smaller one serves too.
func widen(pipe *os.File) {
	conn, err := pipe.SyscallConn() // Fd would make its reads and writes block a thread
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeSize) }) // see above
}

// read delivers one stream until all its writers have closed it.
func (s *stdio) read(f *os.File, stream byte) {
	defer f.Close()
	buf := make([]byte, readSize)
	wide := false
	for {
		n, err := f.Read(buf)
		if n == len(buf) && !wide {
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
	if s.in != "" && len(s.held) > 0 {
		own = s.held[len(s.held)-1] // stdin's reading end is the last that was opened
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

// release closes the ends that were held for the task service, once it has its own. From then on the output ends
// with its last writer.
func (s *stdio) release() {
	s.mu.Lock()
	held := s.held
	s.held = nil
	s.mu.Unlock()
	for _, f := range held {
		_ = f.Close() // nothing is buffered in this process
	}
	if len(held) > 0 {
		s.unlink()
	}
}

func (s *stdio) unlink() {
	for _, path := range []string{s.in, s.out, s.err} {
		if path != "" {
			_ = os.Remove(path) // litter in a directory that goes with the container
		}
	}
}

// leftover is more than what lies between a process and us when it ends: two pipes and some buffers.
const leftover = pipeSize + 128<<10

// drain waits for the end of the output after the process's exit, for limit and for as long as a paced client takes
// to read what the process left. Children may keep the output open; what they write later is taken, so that they
// live on, and dropped.
func (s *stdio) drain(limit time.Duration) {
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
