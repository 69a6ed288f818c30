package containers

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/term"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/daemon/runtime"
)

// defaultDetachKeys leave a terminal without ending what runs in it.
const defaultDetachKeys = "ctrl-p,ctrl-q"

// Attach joins the standard streams of a container. One that does not run yet is joined when it starts, before its
// first byte.
func (s *Service) Attach(ctx context.Context, ref string, req api.AttachRequest) (api.Stream, bool, error) {
	keys, err := detachKeys(req.DetachKeys)
	if err != nil {
		return nil, false, err
	}
	c, err := s.lookup(ref)
	if err != nil {
		return nil, false, err
	}
	rec := c.rec()
	if rec.State.Paused {
		return nil, false, errdefs.ErrConflict.WithMessage("container " + ref + " is paused, unpause the container before attach")
	}
	if rec.State.Restarting {
		return nil, false, errdefs.ErrConflict.WithMessage("container " + ref + " is restarting, wait until the container is running")
	}
	want := runtime.AttachRequest{Stdin: req.Stdin && rec.Config.OpenStdin, Stdout: req.Stdout, Stderr: req.Stderr}
	var stream api.Stream
	switch {
	case !req.Stream:
		stream = ended{}
	default:
		if stream, err = s.attachRun(ctx, c, want); err != nil {
			return nil, false, err
		}
	}
	if req.Logs {
		past, err := s.pastOutput(c, req)
		if err != nil {
			return nil, false, errors.Join(err, stream.Close())
		}
		stream = &replay{Stream: stream, past: past}
	}
	if rec.Config.Tty && want.Stdin {
		stream = newDetachable(stream, keys, func() { s.publish(c, events.ActionDetach, nil) })
	}
	s.publish(c, events.ActionAttach, nil)
	return stream, !rec.Config.Tty, nil
}

// attachRun joins the live run, or promises to join the next one.
func (s *Service) attachRun(ctx context.Context, c *Container, want runtime.AttachRequest) (api.Stream, error) {
	c.mu.Lock()
	r := c.run
	if r != nil {
		select {
		case <-r.exited:
			r = nil
		default:
		}
	}
	if c.gone {
		c.mu.Unlock()
		return nil, c.errGone()
	}
	if r == nil {
		p := &pendingStream{container: c, want: want, ready: make(chan struct{})}
		c.pending = append(c.pending, p)
		c.mu.Unlock()
		return p, nil
	}
	c.mu.Unlock()
	return r.task().Attach(ctx, want)
}

// attachPending joins those who were there before the container started.
func (s *Service) attachPending(ctx context.Context, c *Container, task runtime.Task) error {
	c.mu.Lock()
	pending := c.pending
	c.pending = nil
	c.mu.Unlock()
	var errs []error
	for _, p := range pending {
		stream, err := task.Attach(ctx, p.want)
		p.resolve(stream, err)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// failPending tells them that the container will not start.
func (c *Container) failPending(cause error) {
	c.mu.Lock()
	pending := c.pending
	c.pending = nil
	c.mu.Unlock()
	for _, p := range pending {
		p.resolve(nil, cause)
	}
}

// pendingStream stands for the streams of a container that has not started.
type pendingStream struct {
	container *Container
	want      runtime.AttachRequest
	ready     chan struct{} // closed when stream or err is set, or the client has gone

	mu     sync.Mutex // guards the fields below
	stream runtime.Stream
	err    error
	closed bool
}

func (p *pendingStream) resolve(stream runtime.Stream, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		if stream != nil {
			_ = stream.Close() // the client has gone
		}
		return
	}
	p.stream, p.err = stream, err
	p.closed = true
	close(p.ready)
}

func (p *pendingStream) wait() (runtime.Stream, error) {
	<-p.ready
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.err != nil:
		return nil, io.EOF // the verb that started it reports the reason
	case p.stream == nil:
		return nil, io.ErrClosedPipe
	}
	return p.stream, nil
}

func (p *pendingStream) Read(b []byte) (int, error) {
	s, err := p.wait()
	if err != nil {
		return 0, err
	}
	return s.Read(b)
}

func (p *pendingStream) Write(b []byte) (int, error) {
	s, err := p.wait()
	if err != nil {
		return 0, err
	}
	return s.Write(b)
}

func (p *pendingStream) CloseWrite() error {
	s, err := p.wait()
	if err != nil {
		return err
	}
	return s.CloseWrite()
}

func (p *pendingStream) Close() error {
	p.mu.Lock()
	stream := p.stream
	if !p.closed {
		p.closed = true
		close(p.ready)
	}
	p.mu.Unlock()
	if stream != nil {
		return stream.Close()
	}
	c := p.container
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending = slices.DeleteFunc(c.pending, func(other *pendingStream) bool { return other == p })
	return nil
}

// ended is a stream without anything to come.
type ended struct{}

func (ended) Read([]byte) (int, error)    { return 0, io.EOF }
func (ended) Write(b []byte) (int, error) { return len(b), nil }
func (ended) CloseWrite() error           { return nil }
func (ended) Close() error                { return nil }

// replay yields past output before a stream's own.
type replay struct {
	api.Stream
	past io.ReadCloser
}

func (r *replay) Read(b []byte) (int, error) {
	if r.past != nil {
		n, err := r.past.Read(b)
		if err == nil || n > 0 {
			return n, nil
		}
		_ = r.past.Close() // read to its end
		r.past = nil
	}
	return r.Stream.Read(b)
}

// detachable ends when the detach keys come through its stdin.
type detachable struct {
	api.Stream
	keys    io.Reader
	in      *io.PipeWriter
	copied  chan struct{}
	once    sync.Once
	detach  func()
	dropped chan struct{} // closed when the keys came
}

func newDetachable(stream api.Stream, keys []byte, detach func()) *detachable {
	pr, pw := io.Pipe()
	d := &detachable{Stream: stream, keys: term.NewEscapeProxy(pr, keys), in: pw, detach: detach,
		copied: make(chan struct{}), dropped: make(chan struct{})}
	go d.copy()
	return d
}

// copy feeds stdin until the client ends it or types the keys. Close waits for it.
func (d *detachable) copy() {
	defer close(d.copied)
	_, err := io.Copy(d.Stream, d.keys)
	var escape term.EscapeError
	if errors.As(err, &escape) {
		d.once.Do(func() {
			close(d.dropped)
			d.detach()
		})
		_ = d.in.CloseWithError(io.ErrClosedPipe) // further input has nowhere to go
		_ = d.Stream.Close()                      // ends the client's read
		return
	}
	_ = d.Stream.CloseWrite() // the client may have gone already
}

func (d *detachable) Read(b []byte) (int, error) {
	n, err := d.Stream.Read(b)
	select {
	case <-d.dropped:
		return n, io.EOF
	default:
		return n, err
	}
}

func (d *detachable) Write(b []byte) (int, error) { return d.in.Write(b) }

func (d *detachable) CloseWrite() error { return d.in.Close() }

func (d *detachable) Close() error {
	_ = d.in.Close() // ends copy
	err := d.Stream.Close()
	<-d.copied
	return err
}

func detachKeys(text string) ([]byte, error) {
	if text == "" {
		text = defaultDetachKeys
	}
	keys, err := term.ToBytes(text)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage("Invalid detach keys (" + text + ") provided")
	}
	return keys, nil
}

// Resize sets the size of the container's terminal.
func (s *Service) Resize(ctx context.Context, ref string, width, height int) error {
	c, err := s.lookup(ref)
	if err != nil {
		return err
	}
	r := c.live()
	if r == nil {
		return errdefs.ErrConflict.WithMessage("container " + c.id + " is not running")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := r.task().Resize(ctx, width, height); err != nil {
		return err
	}
	s.publish(c, events.ActionResize, sizeAttributes(width, height))
	return nil
}
