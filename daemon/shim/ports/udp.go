package ports

import (
	"container/list"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// udpIdle is how long a client's session lives without traffic; Docker's forwarder uses the same.
	udpIdle = 90 * time.Second
	// udpSessions bounds the clients of one port. A new one pushes out the one that has been quiet for longest.
	udpSessions = 1024
	udpMaxSize  = 65507
)

// udpSocket receives datagrams and keeps a connected socket to the container for each client, so that answers find
// their way back.
type udpSocket struct {
	c      *net.UDPConn
	target *net.UDPAddr
	work   sync.WaitGroup
	// buffers holds *[udpMaxSize]byte that are not in use.
	buffers sync.Pool

	mu       sync.Mutex // guards all below, and each session's element
	sessions map[sessionKey]*udpSession
	order    *list.List // of sessions, the quietest in front
	closed   bool
}

// sessionKey tells clients apart. Local is the address of the host that the client has written to: the answer must
// come from there.
type sessionKey struct {
	client netip.AddrPort
	local  netip.Addr
}

type udpSession struct {
	key     sessionKey
	server  *net.UDPConn
	source  []byte // control message that sets the source address of the answers
	element *list.Element
	used    time.Time
}

func listenUDP(local, target netip.AddrPort) (*udpSocket, error) {
	c, err := net.ListenUDP(network("udp", local), net.UDPAddrFromAddrPort(local))
	if err != nil {
		return nil, err
	}
	if local.Addr().IsUnspecified() {
		if err := wantDestination(c, local.Addr().Is4()); err != nil {
			_ = c.Close() // nothing has come through it
			return nil, err
		}
	}
	return &udpSocket{
		c: c, target: net.UDPAddrFromAddrPort(target),
		sessions: map[sessionKey]*udpSession{}, order: list.New(),
		buffers: sync.Pool{New: func() any { return new([udpMaxSize]byte) }},
	}, nil
}

// wantDestination asks the kernel to say which address a datagram was sent to.
func wantDestination(c *net.UDPConn, v4 bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		if v4 {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		} else {
			optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	})
	return errors.Join(err, optErr)
}

func (s *udpSocket) port() uint16 { return s.c.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

func (s *udpSocket) serve() { s.work.Go(s.receive) }

func (s *udpSocket) close() error {
	err := s.c.Close()
	s.mu.Lock()
	s.closed = true
	for _, session := range s.sessions {
		_ = session.server.Close() // its goroutine ends by it
	}
	s.mu.Unlock()
	s.work.Wait()
	return err
}

func (s *udpSocket) receive() {
	raw, err := s.c.SyscallConn()
	if err != nil {
		return // closed
	}
	for {
		err := raw.Read(func(fd uintptr) bool { return s.forward(int(fd)) != syscall.EAGAIN })
		if err != nil {
			return // closed; errors of a single datagram are passed over in forward
		}
	}
}

// forward sends one datagram of a client on. The buffer is borrowed only once there is something to read, so that an
// idle port has none.
func (s *udpSocket) forward(fd int) error {
	buf := s.buffers.Get().(*[udpMaxSize]byte)
	defer s.buffers.Put(buf)
	var control [128]byte
	n, cn, _, from, err := unix.Recvmsg(fd, buf[:], control[:], 0)
	if err != nil {
		return err // nothing there, or an ICMP error for an earlier answer
	}
	client, ok := addrPort(from)
	if !ok {
		return nil
	}
	local, source := destination(control[:cn])
	if session := s.session(sessionKey{client, local}, source); session != nil { // else no socket is to be had, or closed
		_, _ = session.server.Write(buf[:n]) // refused: the container does not listen, which the client finds out itself
	}
	return nil
}

func addrPort(from unix.Sockaddr) (netip.AddrPort, bool) {
	switch a := from.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)), true
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 {
			addr = addr.WithZone(strconv.Itoa(int(a.ZoneId)))
		}
		return netip.AddrPortFrom(addr, uint16(a.Port)), true
	}
	return netip.AddrPort{}, false
}

// session returns the client's session and notes that it is used.
func (s *udpSocket) session(key sessionKey, source []byte) *udpSession {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if session := s.sessions[key]; session != nil {
		s.touchLocked(session)
		return session
	}
	if len(s.sessions) >= udpSessions {
		oldest := s.order.Front().Value.(*udpSession)
		s.removeLocked(oldest)
	}
	server, err := net.DialUDP("udp", nil, s.target)
	if err != nil {
		return nil
	}
	session := &udpSession{key: key, server: server, source: source, used: time.Now()}
	session.element = s.order.PushBack(session)
	s.sessions[key] = session
	s.work.Go(func() { s.answer(session) })
	return session
}

func (s *udpSocket) touchLocked(session *udpSession) {
	session.used = time.Now()
	s.order.MoveToBack(session.element)
}

func (s *udpSocket) removeLocked(session *udpSession) {
	if s.sessions[session.key] == session {
		delete(s.sessions, session.key)
		s.order.Remove(session.element)
	}
	_ = session.server.Close() // its goroutine ends by it
}

// answer copies what the container sends back, until the session has been idle.
func (s *udpSocket) answer(session *udpSession) {
	raw, err := session.server.SyscallConn()
	if err != nil {
		return // closed
	}
	deadline := time.Now().Add(udpIdle)
	for {
		_ = session.server.SetReadDeadline(deadline) // fails only when it is closed, which Read tells
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			readErr = s.relay(int(fd), session)
			return readErr != syscall.EAGAIN
		})
		var timeout net.Error
		switch {
		case err == nil && (readErr == nil || readErr == syscall.ECONNREFUSED):
			// A container that does not listen may do so later.
		case errors.As(err, &timeout) && timeout.Timeout():
			if deadline = s.expire(session); deadline.IsZero() {
				return
			}
		default:
			s.mu.Lock()
			s.removeLocked(session)
			s.mu.Unlock()
			return
		}
	}
}

// relay sends one datagram of the container to the session's client. The buffer is borrowed only once there is
// something to read, so that an idle session has none.
func (s *udpSocket) relay(fd int, session *udpSession) error {
	buf := s.buffers.Get().(*[udpMaxSize]byte)
	defer s.buffers.Put(buf)
	n, err := syscall.Read(fd, buf[:])
	if err != nil {
		return err
	}
	_, _, _ = s.c.WriteMsgUDPAddrPort(buf[:n], session.source, session.key.client) // datagrams may be lost
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[session.key] == session {
		s.touchLocked(session)
	}
	return nil
}

// expire ends an idle session. For one that was used meanwhile it returns when to look again.
func (s *udpSocket) expire(session *udpSession) (again time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if end := session.used.Add(udpIdle); time.Now().Before(end) {
		return end
	}
	s.removeLocked(session)
	return time.Time{}
}

// destination reads the address that a datagram was sent to, and makes the control message to answer from it.
func destination(control []byte) (netip.Addr, []byte) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return netip.Addr{}, nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: interface index, local address, destination address in the header.
			local := [4]byte(m.Data[4:8])
			return netip.AddrFrom4(local), unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: local})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			// struct in6_pktinfo: destination address, interface index.
			local := [16]byte(m.Data[:16])
			addr := netip.AddrFrom16(local)
			if addr.IsMulticast() {
				return addr, nil
			}
			info := &unix.Inet6Pktinfo{Addr: local}
			if addr.IsLinkLocalUnicast() {
				info.Ifindex = binary.NativeEndian.Uint32(m.Data[16:20])
			}
			return addr, unix.PktInfo6(info)
		}
	}
	return netip.Addr{}, nil
}
