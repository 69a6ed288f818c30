package runtimetest

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"stated.dev/stated/daemon/runtime"
)

// fakeProc is a process of the fake.
type fakeProc struct {
	tty       bool
	stdinOnce bool
	stdin     *queue // nil for none
	spec      *specs.Process
	onEnd     func()

	signals chan int
	ended   chan struct{}

	mu      sync.Mutex // guards what is below
	state   runtime.State
	done    bool
	width   int
	height  int
	streams map[*fakeStream]struct{}
}

func newFakeProc(tty, stdin bool) *fakeProc {
	p := &fakeProc{
		tty: tty, signals: make(chan int, 16), ended: make(chan struct{}), streams: map[*fakeStream]struct{}{},
	}
	if stdin {
		p.stdin = newQueue()
	}
	return p
}

func (p *fakeProc) snapshot() runtime.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

func (p *fakeProc) set(s runtime.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state.Status != runtime.StatusStopped {
		p.state.Status = s
	}
}

func (p *fakeProc) prepare(spec *specs.Process) error {
	if missing(spec) {
		return fmt.Errorf("exec: %q: stat %s: no such file or directory", spec.Args[0], spec.Args[0])
	}
	p.spec = spec
	return nil
}

func (p *fakeProc) created(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Pid = pid
	p.state.Status = runtime.StatusCreated
}

// start runs the program. Its goroutine ends with the process.
func (p *fakeProc) start() {
	p.mu.Lock()
	p.state.Status = runtime.StatusRunning
	p.state.StartedAt = time.Now()
	p.mu.Unlock()
	go func() { p.finish(runtime.Exit{Code: p.run(), At: time.Now()}) }()
}

// run is the program.
func (p *fakeProc) run() int {
	args := words(p.spec)
	verb := ""
	if len(args) > 0 {
		verb, args = args[0], args[1:]
	}
	switch verb {
	case "exit":
		code, _ := strconv.Atoi(args[0])
		return code
	case "both":
		p.write(1, []byte(args[0]+"\n"))
		p.write(2, []byte(args[1]+"\n"))
		return 0
	case "cat":
		return p.meanwhile(func() int {
			buf := make([]byte, 32<<10)
			for {
				n, err := p.stdin.Read(buf)
				p.write(1, buf[:n])
				if err != nil {
					p.write(1, []byte("EOF\n"))
					return 0
				}
			}
		})
	case "sizes":
		return p.meanwhile(func() int {
			in := bufio.NewReader(p.stdin)
			for {
				b, err := in.ReadByte()
				if err != nil || b == 4 {
					return 0
				}
				if b == '\n' {
					p.mu.Lock()
					line := fmt.Sprintf("size %dx%d\r\n", p.width, p.height)
					p.mu.Unlock()
					p.write(1, []byte(line))
				}
			}
		})
	case "wait":
		p.write(1, []byte("ready\n"))
		for {
			select {
			case sig := <-p.signals:
				switch syscall.Signal(sig) {
				case syscall.SIGTERM:
					return 0
				case syscall.SIGUSR1:
					return 7
				case syscall.SIGKILL:
					return 137
				}
			case <-p.ended:
				return 0 // told to end
			}
		}
	}
	return p.untilKilled()
}

func (p *fakeProc) untilKilled() int {
	for {
		select {
		case sig := <-p.signals:
			switch syscall.Signal(sig) {
			case syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL:
				return 128 + sig
			}
		case <-p.ended:
			return 0 // told to end
		}
	}
}

// meanwhile runs fn until it returns or the process is killed.
func (p *fakeProc) meanwhile(fn func() int) int {
	code := make(chan int, 2)
	go func() { code <- fn() }() // ends at the end of stdin, which finish brings about
	go func() { code <- p.untilKilled() }()
	return <-code
}

// finish ends the process, once.
func (p *fakeProc) finish(exit runtime.Exit) {
	p.mu.Lock()
	if p.done {
		p.mu.Unlock()
		return
	}
	p.done = true
	p.state.Status = runtime.StatusStopped
	p.state.Exit = exit
	streams := p.streams
	p.streams = nil
	p.mu.Unlock()
	if p.onEnd != nil {
		p.onEnd()
	}
	if p.stdin != nil {
		p.stdin.CloseWrite()
	}
	for s := range streams {
		s.out.CloseWrite()
	}
	close(p.ended)
}

func (p *fakeProc) wait(ctx context.Context, closed <-chan struct{}) (runtime.Exit, error) {
	select {
	case <-p.ended:
		return p.snapshot().Exit, nil
	default:
	}
	select {
	case <-p.ended:
		return p.snapshot().Exit, nil
	case <-closed:
		return runtime.Exit{}, fmt.Errorf("runtime was closed: %w", errdefs.ErrUnavailable)
	case <-ctx.Done():
		return runtime.Exit{}, ctx.Err()
	}
}

func (p *fakeProc) signal(sig int) error {
	switch st := p.snapshot().Status; st {
	case runtime.StatusStopped, runtime.StatusSpawned:
		return fmt.Errorf("process is %s: %w", st, errdefs.ErrNotFound)
	}
	select {
	case p.signals <- sig:
	default: // as many as that are the same as one
	}
	return nil
}

func (p *fakeProc) resize(width, height int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.width, p.height = width, height
	return nil
}

// write hands output to the streams that want it.
func (p *fakeProc) write(stream byte, data []byte) {
	if len(data) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.streams {
		if stream == 1 && !s.req.Stdout || stream == 2 && !s.req.Stderr {
			continue
		}
		if !p.tty {
			h := [8]byte{stream}
			binary.BigEndian.PutUint32(h[4:], uint32(len(data)))
			s.out.Write(h[:])
		}
		s.out.Write(data)
	}
}

func (p *fakeProc) attach(req runtime.AttachRequest) *fakeStream {
	s := &fakeStream{p: p, req: req, out: newQueue()}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		s.out.CloseWrite()
	} else {
		p.streams[s] = struct{}{}
	}
	return s
}

// fakeStream is a client of a fakeProc.
type fakeStream struct {
	p   *fakeProc
	req runtime.AttachRequest
	out *queue

	mu    sync.Mutex // guards ended
	ended bool
}

func (s *fakeStream) Read(b []byte) (int, error) { return s.out.Read(b) }

func (s *fakeStream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return 0, os.ErrClosed
	}
	if s.req.Stdin && s.p.stdin != nil {
		s.p.stdin.Write(b)
	}
	return len(b), nil
}

func (s *fakeStream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended && s.req.Stdin && s.p.stdin != nil && s.p.stdinOnce && !s.p.tty {
		s.p.stdin.CloseWrite()
	}
	s.ended = true
	return nil
}

func (s *fakeStream) Close() error {
	_ = s.CloseWrite() // returns nil
	s.Break()
	return nil
}

// Break drops the stream as the death of a daemon would.
func (s *fakeStream) Break() {
	s.p.mu.Lock()
	delete(s.p.streams, s)
	s.p.mu.Unlock()
	s.out.CloseWrite()
}

// queue is a pipe without a limit.
type queue struct {
	mu    sync.Mutex
	cond  *sync.Cond // the fields below changed
	data  []byte
	ended bool
}

func newQueue() *queue {
	q := &queue{}
	q.cond = sync.NewCond(&q.mu)
	return q
}

func (q *queue) Write(p []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.data = append(q.data, p...)
	q.cond.Broadcast()
}

func (q *queue) CloseWrite() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.cond.Broadcast()
}

func (q *queue) Read(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.data) == 0 {
		if q.ended {
			return 0, io.EOF
		}
		q.cond.Wait()
	}
	n := copy(p, q.data)
	q.data = q.data[n:]
	return n, nil
}
