package shim

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"stated.dev/stated/daemon/runtime/shimapi"
)

const (
	// Up to ringSoft bytes wait for a client at no cost to the process. Beyond that each piece of output waits for
	// the client, at most for patience; a client with ringHard bytes to go is cut. So one that takes its share in
	// time loses nothing, however fast the process writes, and one that stands still is soon gone.
	ringSoft = 4 << 20
	ringHard = 24 << 20
	patience = 8 * time.Millisecond
	// parting is how long a client may take to read what is left after the output has ended.
	parting = 30 * time.Second
)

// Streams, as Docker numbers them in its frames.
const (
	stdout = 1
	stderr = 2
)

// fanout hands a process's output to the clients that are attached. A client that lags is cut, unless it is paced:
// then the process waits for it, as a process waits for any pipe.
type fanout struct {
	tty  bool
	held atomic.Int32 // readers of output that wait for a paced client

	mu      sync.Mutex // guards what is below; taken before client.mu
	clients []*client
	ended   bool
}

// client is one connection's share. Its goroutine, write, is owned by the connection's handler.
type client struct {
	conn           net.Conn
	stdout, stderr bool
	paced          bool

	mu      sync.Mutex  // guards what is below
	pending net.Buffers // in pieces, so that a large backlog is never copied
	size    int         // bytes in pending
	last    bool        // no more will come
	isGone  bool
	gone    chan struct{} // closed when isGone is set
	wake    chan struct{} // something is pending, or it is the last
	room    chan struct{} // something was taken
}

func newClient(conn net.Conn, hello shimapi.Hello) *client {
	return &client{
		conn:   conn,
		stdout: hello.Stdout,
		stderr: hello.Stderr,
		paced:  hello.Paced,
		gone:   make(chan struct{}),
		wake:   make(chan struct{}, 1),
		room:   make(chan struct{}, 1),
	}
}

// join adds a client behind the bytes in head. It gets what comes from now on.
func (f *fanout) join(c *client, head []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c.mu.Lock()
	c.addLocked(head)
	c.last = f.ended
	c.mu.Unlock()
	nudge(c.wake)
	if !f.ended {
		f.clients = append(f.clients, c)
	}
}

func (f *fanout) leave(c *client) {
	c.cut()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, other := range f.clients {
		if other == c {
			f.clients = append(f.clients[:i:i], f.clients[i+1:]...)
			return
		}
	}
}

// send hands one piece of output to every client that wants it.
func (f *fanout) send(stream byte, p []byte) {
	f.mu.Lock()
	clients := f.clients // replaced, never changed in place
	f.mu.Unlock()
	for _, c := range clients {
		if stream == stdout && c.stdout || stream == stderr && c.stderr {
			c.push(f, stream, p)
		}
	}
}

// end tells every client that there is no more output.
func (f *fanout) end() {
	f.mu.Lock()
	clients := f.clients
	f.clients, f.ended = nil, true
	f.mu.Unlock()
	for _, c := range clients {
		c.mu.Lock()
		c.last = true
		c.mu.Unlock()
		nudge(c.wake)
	}
}

func (c *client) push(f *fanout, stream byte, p []byte) {
	need := len(p) + shimapi.FrameHeader
	c.mu.Lock()
	for c.paced && !c.isGone && c.size > 0 && c.size+need > ringSoft {
		c.mu.Unlock()
		f.held.Add(1)
		select {
		case <-c.room:
		case <-c.gone:
		}
		f.held.Add(-1)
		c.mu.Lock()
	}
	if !c.paced && !c.isGone && c.size+need > ringSoft {
		c.mu.Unlock()
		limit := time.NewTimer(patience)
		select {
		case <-c.room:
		case <-c.gone:
		case <-limit.C:
		}
		limit.Stop()
		c.mu.Lock()
		if c.size+need > ringHard {
			c.mu.Unlock()
			c.cut()
			return
		}
	}
	if c.isGone {
		c.mu.Unlock()
		return
	}
	if !f.tty {
		var h [shimapi.FrameHeader]byte
		shimapi.PutFrameHeader(h[:], stream, len(p))
		c.addLocked(h[:])
	}
	c.addLocked(p)
	c.mu.Unlock()
	nudge(c.wake)
}

// addLocked appends to what is pending. Pieces grow with the backlog, so that few bytes take little memory.
func (c *client) addLocked(p []byte) {
	const least, most = 4 << 10, 256 << 10
	for len(p) > 0 {
		i := len(c.pending) - 1
		if i < 0 || len(c.pending[i]) == cap(c.pending[i]) {
			c.pending = append(c.pending, make([]byte, 0, min(max(c.size, len(p), least), most)))
			i++
		}
		last := c.pending[i]
		n := min(len(p), cap(last)-len(last))
		c.pending[i] = append(last, p[:n]...)
		p = p[n:]
		c.size += n
	}
}

// cut drops the client. Its connection is closed, which ends its goroutines.
func (c *client) cut() {
	c.mu.Lock()
	if !c.isGone {
		c.isGone = true
		c.pending, c.size = nil, 0
		close(c.gone)
	}
	c.mu.Unlock()
	_ = c.conn.Close() // the client is told by the end of its stream
}

// write sends what is pending until the last of it is sent or the client is gone.
func (c *client) write() {
	for {
		c.mu.Lock()
		buf := c.pending
		c.pending, c.size = nil, 0
		last, isGone := c.last, c.isGone
		c.mu.Unlock()
		if isGone {
			return
		}
		if len(buf) == 0 {
			if last {
				c.hangUp()
				return
			}
			select {
			case <-c.wake:
			case <-c.gone:
			}
			continue
		}
		if last && !c.paced {
			_ = c.conn.SetWriteDeadline(time.Now().Add(parting)) // fails only on a closed connection
		}
		nudge(c.room)
		if _, err := buf.WriteTo(c.conn); err != nil {
			c.cut()
			return
		}
	}
}

// hangUp ends our side and gives the client time to end its own.
func (c *client) hangUp() {
	if half, ok := c.conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()                               // the client may be gone already
		_ = c.conn.SetReadDeadline(time.Now().Add(parting)) // ends the handler's read
		return
	}
	_ = c.conn.Close()
}

// nudge makes a waiter on ch look again.
func nudge(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
