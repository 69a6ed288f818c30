package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/network/sandbox"
)

const (
	dnsPort = 53
	// maxForwards bounds the queries that wait for other resolvers at once; what is more is answered with a failure.
	// It also ends loops: a resolver that asks us what we have asked it uses up the places.
	maxForwards = 256
	// maxStreams bounds the TCP connections that are served at once.
	maxStreams  = 64
	streamIdle  = 10 * time.Second
	acceptPause = 100 * time.Millisecond
	maxQuery    = 4 << 10 // larger queries than this are not asked over UDP
)

// listenAddr is where containers ask, as their resolv.conf says.
var listenAddr = netip.AddrFrom4([4]byte{127, 0, 0, 11})

// Server answers the queries of one network namespace.
type Server struct {
	ns  *namespace
	udp *net.UDPConn
	tcp *net.TCPListener

	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	work     sync.WaitGroup
	forwards chan struct{} // one element for each query that is forwarded
	streams  chan struct{} // one element for each TCP connection

	mu  sync.Mutex // guards cfg; taken for an assignment
	cfg *config
}

// config is what Reconfigure replaces. It is not changed once it is in use.
type config struct {
	netns     string
	zones     []*zoneFile
	upstreams []upstream
	// dotsOnly says that names without a dot are not forwarded: the user asked for it by ndots.
	dotsOnly bool
}

// Serve starts a resolver at 127.0.0.11:53 in the network namespace of cfg. The sockets are bound to free ports that
// packet rules inside the namespace lead to, so that a name server in the container can have port 53 on all
// addresses. Where the kernel has no such rules, they are bound to port 53 itself.
func Serve(ctx context.Context, cfg sandbox.DNSConfig) (*Server, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c, err := newConfig(cfg)
	if err != nil {
		return nil, err
	}
	ns, err := openNamespace(cfg.NetNS)
	if err != nil {
		return nil, err
	}
	s := &Server{
		ns: ns, cfg: c,
		forwards: make(chan struct{}, maxForwards), streams: make(chan struct{}, maxStreams),
	}
	if err := ns.do(s.listen); err != nil {
		ns.close()
		return nil, fmt.Errorf("serve DNS in %s: %w", cfg.NetNS, err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.work.Go(s.serveUDP)
	s.work.Go(s.serveTCP)
	return s, nil
}

// listen opens the sockets. It runs in the namespace.
func (s *Server) listen() error {
	if err := s.bind(0); err != nil {
		return err
	}
	if err := redirect(s.udp.LocalAddr().(*net.UDPAddr).AddrPort().Port(), s.tcp.Addr().(*net.TCPAddr).AddrPort().Port()); err == nil {
		return nil
	}
	_ = s.udp.Close() // nothing has come through it
	_ = s.tcp.Close()
	return s.bind(dnsPort)
}

func (s *Server) bind(port uint16) (err error) {
	addr := netip.AddrPortFrom(listenAddr, port)
	// The address belongs to the loopback interface, which need not be up yet.
	free := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var optErr error
		err := c.Control(func(fd uintptr) { optErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(err, optErr)
	}}
	udp, err := free.ListenPacket(context.Background(), "udp4", addr.String())
	if err != nil {
		return err
	}
	tcp, err := free.Listen(context.Background(), "tcp4", addr.String())
	if err != nil {
		_ = udp.Close() // nothing has come through it
		return err
	}
	s.udp, s.tcp = udp.(*net.UDPConn), tcp.(*net.TCPListener)
	return nil
}

// Reconfigure replaces zones, upstreams and options. The namespace stays.
func (s *Server) Reconfigure(cfg sandbox.DNSConfig) error {
	c, err := newConfig(cfg)
	if err != nil {
		return err
	}
	s.mu.Lock()
	old := s.cfg
	if c.netns != old.netns {
		s.mu.Unlock()
		return errdefs.ErrInvalidArgument.WithMessage("a resolver cannot move to another network namespace")
	}
	s.cfg = c
	s.mu.Unlock()
	old.close()
	return nil
}

// Close ends the resolver and waits for its goroutines. The packet rules stay: they end with the namespace, and
// without the resolver nothing answers with them or without.
func (s *Server) Close() error {
	s.cancel()
	err := errors.Join(s.udp.Close(), s.tcp.Close())
	s.work.Wait()
	s.ns.close()
	s.current().close()
	return err
}

func (s *Server) current() *config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg
}

func newConfig(cfg sandbox.DNSConfig) (*config, error) {
	c := &config{netns: cfg.NetNS}
	for _, path := range cfg.Zones {
		c.zones = append(c.zones, &zoneFile{path: path})
	}
	for _, u := range cfg.Upstreams {
		up, err := parseUpstream(u)
		if err != nil {
			return nil, err
		}
		if !up.host && up.addr == netip.AddrPortFrom(listenAddr, dnsPort) {
			continue // that is us
		}
		c.upstreams = append(c.upstreams, up)
	}
	for _, option := range cfg.Options {
		if n, ok := strings.CutPrefix(option, "ndots:"); ok && n != "0" {
			c.dotsOnly = true
		}
	}
	return c, nil
}

func (c *config) close() {
	for _, z := range c.zones {
		z.close()
	}
}

func (s *Server) serveUDP() {
	buf := make([]byte, maxQuery)
	for {
		n, client, err := s.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error for an earlier answer
		}
		cfg := s.current()
		q, ok := parseQuery(buf[:n])
		if !ok {
			continue
		}
		if reply := cfg.answer(q); reply != nil {
			s.replyUDP(reply, client)
			continue
		}
		if !s.enter() {
			s.replyUDP(q.fail(), client)
			continue
		}
		q.raw = append([]byte(nil), q.raw...) // the buffer is used for the next one
		s.work.Go(func() {
			defer s.leave()
			s.replyUDP(s.forward(cfg, q, "udp"), client)
		})
	}
}

func (s *Server) replyUDP(reply []byte, client netip.AddrPort) {
	_, _ = s.udp.WriteToUDPAddrPort(reply, client) // the client is gone, or asks again
}

func (s *Server) enter() bool {
	select {
	case s.forwards <- struct{}{}:
		return true
	default:
		return false
	}
}

func (s *Server) leave() { <-s.forwards }

func (s *Server) serveTCP() {
	for {
		c, err := s.tcp.AcceptTCP()
		if err != nil {
			if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			select {
			case <-time.After(acceptPause): // too many open files
			case <-s.ctx.Done():
				return
			}
			continue
		}
		select {
		case s.streams <- struct{}{}:
			s.work.Go(func() {
				defer func() { <-s.streams }()
				s.serveStream(c)
			})
		default:
			_ = c.Close() // too many
		}
	}
}

func (s *Server) serveStream(c *net.TCPConn) {
	stop := context.AfterFunc(s.ctx, func() { _ = c.Close() }) // ends what waits for the client
	defer stop()
	defer c.Close()
	for {
		_ = c.SetDeadline(time.Now().Add(streamIdle)) // fails only when it is closed, which Read tells
		raw, err := readStream(c)
		if err != nil {
			return
		}
		q, ok := parseQuery(raw)
		if !ok {
			return
		}
		q.limit = maxMessage
		cfg := s.current()
		reply := cfg.answer(q)
		switch {
		case reply != nil:
		case s.enter():
			reply = s.forward(cfg, q, "tcp")
			s.leave()
		default:
			reply = q.fail()
		}
		if err := writeStream(c, reply); err != nil {
			return
		}
	}
}

// readStream reads a message with its length in front.
func readStream(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, message)
	return message, err
}

func writeStream(w io.Writer, message []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}
