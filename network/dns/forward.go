package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"stated.dev/stated/network/sandbox"
)

const (
	// exchangeTimeout is how long an upstream may take.
	exchangeTimeout = 4 * time.Second
	// hurryAfter is when the next upstream is asked as well, while the one before may still answer. Clients give up
	// after five seconds.
	hurryAfter = 1500 * time.Millisecond
)

type upstream struct {
	addr netip.AddrPort
	host bool
}

func parseUpstream(u sandbox.Upstream) (upstream, error) {
	if addr, err := netip.ParseAddr(u.Addr); err == nil {
		return upstream{netip.AddrPortFrom(addr.Unmap(), dnsPort), u.Host}, nil
	}
	addr, err := netip.ParseAddrPort(u.Addr)
	if err != nil {
		return upstream{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid DNS server address %q", u.Addr))
	}
	return upstream{netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()), u.Host}, nil
}

// forward asks the upstreams in their order and returns the first usable reply. An upstream that fails or refuses
// passes the question on to the next; when none has a better one, the client gets what the last one said.
func (s *Server) forward(cfg *config, q *query, proto string) []byte {
	ctx, cancel := context.WithTimeout(s.ctx, exchangeTimeout)
	defer cancel() // ends those who are still waiting for a reply
	if len(cfg.upstreams) == 0 {
		return q.fail()
	}
	replies := make(chan []byte, len(cfg.upstreams))
	next, pending := 0, 0
	ask := func() {
		up := cfg.upstreams[next]
		next++
		pending++
		s.work.Go(func() { replies <- s.ask(ctx, up, q, proto) })
	}
	ask()
	hurry := time.NewTicker(hurryAfter)
	defer hurry.Stop()
	var last []byte
	for {
		select {
		case reply := <-replies:
			pending--
			if usable(reply) {
				return q.fit(reply)
			}
			if reply != nil {
				last = reply
			}
			if next < len(cfg.upstreams) {
				ask()
			} else if pending == 0 {
				return q.lastResort(last)
			}
		case <-hurry.C:
			if next < len(cfg.upstreams) {
				ask()
			}
		case <-ctx.Done():
			return q.lastResort(last)
		}
	}
}

func (q *query) lastResort(reply []byte) []byte {
	if reply == nil {
		return q.fail()
	}
	return q.fit(reply)
}

// usable reports whether a reply settles the question. That a name does not exist does.
func usable(reply []byte) bool {
	if reply == nil {
		return false
	}
	code := dnsmessage.RCode(reply[3] & 15)
	return code == dnsmessage.RCodeSuccess || code == dnsmessage.RCodeNameError
}

// fit gives the reply the client's identifier, and cuts one that the client has no room for.
func (q *query) fit(reply []byte) []byte {
	if len(reply) > q.limit {
		reply = append(append([]byte(nil), reply[:headerSize]...), q.raw[headerSize:q.end]...)
		reply[2] |= 2                                             // truncated
		copy(reply[4:headerSize], []byte{0, 1, 0, 0, 0, 0, 0, 0}) // the question alone
	}
	binary.BigEndian.PutUint16(reply, q.header.ID)
	return reply
}

// ask puts the question to one upstream and returns its reply, or nil. Over TCP it falls back to UDP, for upstreams
// that do not serve TCP.
func (s *Server) ask(ctx context.Context, up upstream, q *query, proto string) []byte {
	message := append([]byte(nil), q.raw...)
	binary.BigEndian.PutUint16(message, uint16(rand.Uint32()))
	if proto == "tcp" {
		if reply, err := s.exchangeTCP(ctx, up, q, message); err == nil {
			return reply
		}
	}
	reply, err := s.exchangeUDP(ctx, up, q, message)
	if err != nil {
		return nil // unreachable, silent or talking nonsense: all the same to the client
	}
	return reply
}

func (s *Server) exchangeUDP(ctx context.Context, up upstream, q *query, message []byte) ([]byte, error) {
	c, err := s.dial(up, unix.SOCK_DGRAM)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { expire(c) })()
	if _, err := c.Write(message); err != nil {
		return nil, err
	}
	buf := make([]byte, min(max(q.limit, ednsSize), maxMessage))
	for {
		n, err := c.Read(buf)
		if err != nil && err != io.EOF { // an empty datagram looks like the end of a file
			return nil, err
		}
		if reply := buf[:n]; q.answeredBy(reply, message) {
			return reply, nil
		}
	}
}

func (s *Server) exchangeTCP(ctx context.Context, up upstream, q *query, message []byte) ([]byte, error) {
	c, err := s.dial(up, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { expire(c) })()
	if err := writeStream(c, message); err != nil {
		return nil, err
	}
	reply, err := readStream(c)
	if err != nil {
		return nil, err
	}
	if !q.answeredBy(reply, message) {
		return nil, errors.New("not a reply to the question")
	}
	return reply, nil
}

// answeredBy reports whether reply belongs to message. Some upstreams leave the question out when they refuse.
func (q *query) answeredBy(reply, message []byte) bool {
	if len(reply) < headerSize || !bytes.Equal(reply[:2], message[:2]) || reply[2]&0x80 == 0 {
		return false
	}
	if binary.BigEndian.Uint16(reply[4:]) == 0 {
		return !usable(reply) && len(reply) >= headerSize
	}
	return len(reply) >= q.end && bytes.EqualFold(reply[headerSize:q.end], message[headerSize:q.end])
}

// expire ends what waits for a socket.
func expire(c *os.File) {
	_ = c.SetDeadline(time.Unix(1, 0)) // fails only when it is closed
}

// dial opens a connected socket to an upstream, in the container's namespace or in ours. Connecting does not wait;
// writing does.
func (s *Server) dial(up upstream, kind int) (*os.File, error) {
	var fd int
	open := func() (err error) {
		fd, err = connect(up.addr, kind)
		return err
	}
	var err error
	if up.host {
		err = open()
	} else {
		err = s.ns.do(open)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", up.addr, err)
	}
	return os.NewFile(uintptr(fd), up.addr.String()), nil
}

func connect(addr netip.AddrPort, kind int) (int, error) {
	family, to, err := sockaddr(addr)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		_ = unix.Close(fd) // it was never used
		return -1, err
	}
	return fd, nil
}

func sockaddr(addr netip.AddrPort) (int, unix.Sockaddr, error) {
	if addr.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}, nil
	}
	to := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: addr.Addr().As16()}
	if zone := addr.Addr().Zone(); zone != "" {
		index, err := strconv.Atoi(zone)
		if err != nil {
			link, err := net.InterfaceByName(zone)
			if err != nil {
				return 0, nil, err
			}
			index = link.Index
		}
		to.ZoneId = uint32(index)
	}
	return unix.AF_INET6, to, nil
}
