package runtime

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// stream is a connection to a shim's attach socket.
type stream struct {
	conn *net.UnixConn
	r    *bufio.Reader

	mu    sync.Mutex // guards what is below, so that packets do not mix
	ended bool
	buf   []byte
}

var _ Stream = (*stream)(nil)

// Attach joins the standard streams of init.
func (t *task) Attach(ctx context.Context, req AttachRequest) (Stream, error) {
	return t.attach(ctx, "", req)
}

func (t *task) attach(ctx context.Context, execID string, req AttachRequest) (_ Stream, err error) {
	conn, err := shimapi.Dial(ctx, t.dir, shimapi.AttachSocket)
	if err != nil {
		if !isLocked(t.dir) {
			err = errShimGone
		}
		return nil, t.gone("attach to", err)
	}
	defer func() {
		if err != nil {
			_ = conn.Close() // nothing was exchanged
		}
	}()
	// The answer comes at once or not at all; ctx may end the wait.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	hello := shimapi.Hello{Exec: execID, Stdin: req.Stdin, Stdout: req.Stdout, Stderr: req.Stderr, Paced: req.Paced}
	if err := shimapi.WriteLine(conn, hello); err != nil {
		return nil, t.wrap("attach to", err)
	}
	s := &stream{conn: conn, r: bufio.NewReaderSize(conn, 32<<10)}
	var answer shimapi.Answer
	if err := shimapi.ReadLine(s.r, &answer); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, t.wrap("attach to", err)
	}
	if answer.NotFound {
		return nil, t.wrap("attach to", fmt.Errorf("%s: %w", answer.Error, errdefs.ErrNotFound))
	}
	if answer.Error != "" {
		return nil, t.wrap("attach to", errors.New(answer.Error))
	}
	if !stop() {
		return nil, t.wrap("attach to", ctx.Err())
	}
	return s, nil
}

// Read yields output until it ends. A client that was cut sees the same end.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

// Write sends stdin. It waits while the process does not read.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return 0, os.ErrClosed
	}
	written := 0
	for len(p) > 0 {
		n := min(len(p), shimapi.MaxPacket)
		s.buf = shimapi.AppendPacket(s.buf[:0], shimapi.PacketData, p[:n])
		if _, err := s.conn.Write(s.buf); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

func (s *stream) CloseWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	s.ended = true
	_, err := s.conn.Write(shimapi.AppendPacket(nil, shimapi.PacketEnd, nil))
	return err
}

// Close leaves. It does not wait for a Write that waits for the process.
func (s *stream) Close() error {
	_ = s.conn.SetWriteDeadline(time.Now().Add(leaveLimit)) // ends such a Write, too; fails only when closed
	s.mu.Lock()
	s.ended = true
	// A process that does not read its stdin may have filled the socket; the shim then sees a client that is gone.
	_, _ = s.conn.Write(shimapi.AppendPacket(nil, shimapi.PacketLeave, nil))
	s.mu.Unlock()
	return s.conn.Close()
}

// leaveLimit bounds how long Close takes.
const leaveLimit = 50 * time.Millisecond
