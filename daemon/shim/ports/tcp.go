package ports

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dialTimeout = 10 * time.Second
	// acceptPause is how long accepting rests after an error that is not the end, such as too many open files.
	acceptPause = 100 * time.Millisecond
)

// tcpSocket accepts connections and copies both ways. It dials the container only when it has a client.
type tcpSocket struct {
	l      *net.TCPListener
	target string

	ctx    context.Context // ends with close, and with it every dial
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex // guards conns
	conns map[*net.TCPConn]struct{}
}

func listenTCP(local, target netip.AddrPort) (*tcpSocket, error) {
	l, err := net.ListenTCP(network("tcp", local), net.TCPAddrFromAddrPort(local))
	if err != nil {
		return nil, err
	}
	s := &tcpSocket{l: l, target: target.String(), conns: map[*net.TCPConn]struct{}{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// network pins the address family, so that [::] does not take the port on IPv4 as well.
func network(proto string, a netip.AddrPort) string {
	if a.Addr().Is4() {
		return proto + "4"
	}
	return proto + "6"
}

func (s *tcpSocket) port() uint16 { return s.l.Addr().(*net.TCPAddr).AddrPort().Port() }

func (s *tcpSocket) serve() { s.work.Go(s.accept) }

func (s *tcpSocket) close() error {
	s.cancel()
	err := s.l.Close()
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close() // the copies end by it
	}
	s.conns = nil
	s.mu.Unlock()
	s.work.Wait()
	return err
}

func (s *tcpSocket) accept() {
	for {
		client, err := s.l.AcceptTCP()
		switch {
		case err == nil:
			s.work.Go(func() { s.forward(client) })
		case s.ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default:
			select {
			case <-time.After(acceptPause):
			case <-s.ctx.Done():
				return
			}
		}
	}
}

// track makes close end the connection. It reports false when close was there first.
func (s *tcpSocket) track(c *net.TCPConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *tcpSocket) drop(c *net.TCPConn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	_ = c.Close() // both directions have ended, or failed
}

func (s *tcpSocket) forward(client *net.TCPConn) {
	defer s.drop(client)
	if !s.track(client) {
		return
	}
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(s.ctx, "tcp", s.target)
	if err != nil {
		reset(client) // the client is to see a failure, not an empty answer
		return
	}
	server := c.(*net.TCPConn)
	defer s.drop(server)
	if !s.track(server) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		pipe(server, client)
	}()
	pipe(client, server)
	<-done
}

// pipe copies until src has ended, and tells dst. A connection that was aborted at one end is aborted at the other.
// When dst takes no more, the copy in the other direction goes on with what dst has sent before.
func pipe(dst, src *net.TCPConn) {
	_, err := io.Copy(dst, src)
	if err != nil && aborted(src) {
		reset(dst)
		return
	}
	_ = dst.CloseWrite() // the other end may be gone already
	_ = src.CloseRead()
}

// aborted reports whether the peer has reset the connection: it is closed and we did not do it.
func aborted(c *net.TCPConn) (yes bool) {
	const stateClose = 7 // TCP_CLOSE in linux/tcp_states.h
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		yes = err == nil && info.State == stateClose
	})
	return yes || err != nil
}

// reset closes a connection so that the peer sees an error.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // without it the peer sees an orderly end
	_ = c.Close()
}
