package route

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Content types of streams.
const (
	RawStream         = "application/vnd.docker.raw-stream"
	MultiplexedStream = "application/vnd.docker.multiplexed-stream"
)

// Numbers of the streams in the frames of a multiplexed stream. StreamError carries an error of the daemon.
const (
	StreamStdout byte = 1
	StreamStderr byte = 2
	StreamError  byte = 3
)

// frameHeader is the size of the header before each frame's payload: stream number, three zeroes, length.
const frameHeader = 8

// StreamType returns the content type of a stream for the request's API version.
func StreamType(ctx context.Context, multiplexed bool) string {
	if multiplexed && !VersionBefore(ctx, "1.42") {
		return MultiplexedStream
	}
	return RawStream
}

// AppendFrameHeader appends the header of a frame with size bytes of payload.
func AppendFrameHeader(dst []byte, stream byte, size int) []byte {
	dst = append(dst, stream, 0, 0, 0)
	return binary.BigEndian.AppendUint32(dst, uint32(size))
}

// Stream is what a taken-over connection is joined to: Read yields what is to be sent to the client, Write takes
// what it sends, CloseWrite tells that it will send no more. Close makes a blocked Read or Write return.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Conn is a connection taken over from HTTP: raw bytes both ways.
type Conn struct {
	conn net.Conn
	in   io.Reader // what the server had read ahead, then conn
}

// Hijack takes over the connection of r and sends the header after which it is raw: 101 to a client that asked for
// an upgrade, 200 with neither length nor chunks to one that did not. The client of an upgrade is told contentType.
func Hijack(w http.ResponseWriter, r *http.Request, contentType string) (*Conn, error) {
	// What is left of the body must not be taken for the stream's input.
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return nil, fmt.Errorf("read request body: %w", err)
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over connection: %w", err)
	}
	ahead, _ := buffered.Reader.Peek(buffered.Reader.Buffered()) // what is buffered can be peeked at
	c := &Conn{conn: conn, in: io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), conn)}

	header := "HTTP/1.1 200 OK\r\nContent-Type: " + RawStream + "\r\n\r\n"
	if _, upgrade := r.Header["Upgrade"]; upgrade {
		header = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	}
	err = conn.SetDeadline(time.Time{})
	if err == nil {
		_, err = io.WriteString(conn, header)
	}
	if err != nil {
		_ = conn.Close() // the write's error says more
		return nil, fmt.Errorf("send upgrade header: %w", err)
	}
	return c, nil
}

// Close closes the connection. It is for a connection that is not joined.
func (c *Conn) Close() error { return c.conn.Close() }

// Fail tells the client of an error in band, for the status has been sent.
func (c *Conn) Fail(err error, multiplexed bool) {
	_, _ = c.conn.Write(errorRecord(err, StreamError, multiplexed)) // the client may be gone, and nobody else is to be told
}

// Print sends text as the process's standard output.
func (c *Conn) Print(text string, multiplexed bool) error {
	var out []byte
	if multiplexed {
		out = AppendFrameHeader(nil, StreamStdout, len(text))
	}
	_, err := c.conn.Write(append(out, text...))
	return err
}

func errorRecord(err error, stream byte, multiplexed bool) []byte {
	text := err.Error() + "\r\n"
	if !multiplexed {
		return []byte(text)
	}
	return append(AppendFrameHeader(nil, stream, len(text)), text...)
}

// JoinOptions says what flows over a joined connection.
type JoinOptions struct {
	Stdin       bool // the client's input goes to the stream; without it, it is read and dropped
	Multiplexed bool // the stream's output comes in frames
}

// linger is how long a connection whose output has ended waits for the client to close its side: closing a socket
// that holds unread input makes the client's last read fail instead of end.
const linger = 500 * time.Millisecond

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// Join copies between the client and s until the output of s has ended, the client is gone or ctx ends. A client
// that closes its writing side has ended its input and goes on receiving output. Join closes s and the connection.
func (c *Conn) Join(ctx context.Context, s Stream, o JoinOptions) {
	stop := context.AfterFunc(ctx, func() { _ = s.Close() }) // only to make Read return
	defer stop()

	input := make(chan struct{})
	go func() {
		defer close(input)
		c.feed(s, o.Stdin)
		if c.hungUp() {
			_ = s.Close() // only to make Read return
		}
	}()
	defer func() {
		_ = s.Close()      // its output has ended or nobody wants it
		_ = c.conn.Close() // there is nobody to tell
		<-input
	}()

	readErr, writeErr := c.send(s)
	if readErr != nil && writeErr == nil && ctx.Err() == nil && !errors.Is(readErr, net.ErrClosed) {
		c.Fail(readErr, o.Multiplexed)
	}
	_ = s.Close() // the client's input may wait in a write to it
	if half, ok := c.conn.(interface{ CloseWrite() error }); ok && writeErr == nil && ctx.Err() == nil {
		if half.CloseWrite() == nil && c.conn.SetReadDeadline(time.Now().Add(linger)) == nil {
			<-input
		}
	}
}

// send copies the output of s to the client.
func (c *Conn) send(s Stream) (readErr, writeErr error) {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := s.Read(buf[:])
		if n > 0 {
			if _, err := c.conn.Write(buf[:n]); err != nil {
				return nil, err
			}
		}
		switch {
		case err == io.EOF:
			return nil, nil
		case err != nil:
			return err, nil
		}
	}
}

// feed copies the client's input to s until it ends. Input that s does not take is read and dropped, so that a client
// is not held up in a write.
func (c *Conn) feed(s Stream, stdin bool) {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := c.in.Read(buf[:])
		if n > 0 && stdin {
			if _, err := s.Write(buf[:n]); err != nil {
				stdin = false
			}
		}
		if err != nil {
			break
		}
	}
	if stdin {
		_ = s.CloseWrite() // the process may have ended before its input
	}
}

// hungUp waits, after the client's input has ended, until the client has closed the whole connection, and reports
// whether it has. It returns false when the connection is closed on our side or its read deadline passes. A TCP
// client that goes silently is noticed by the next write only.
func (c *Conn) hungUp() bool {
	conn := c.conn
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	hup := false
	err = raw.Read(func(fd uintptr) bool {
		fds := [1]unix.PollFd{{Fd: int32(fd)}} // hang-up and error are always reported
		n, err := unix.Poll(fds[:], 0)
		hup = err == nil && n > 0
		return hup || (err != nil && !errors.Is(err, unix.EINTR))
	})
	return err == nil && hup
}
