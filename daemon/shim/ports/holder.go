// Package ports holds published host ports for a container and forwards what arrives at them.
//
// Holding a port is a bound socket: no other program can take the port while the container lives, whatever happens to
// the daemon. Most traffic never reaches the socket, because the kernel translates it; what the kernel cannot
// translate, such as connections from ::1, is copied from here.
//
// The package knows no networks and writes no packet rules. An idle port costs one goroutine in accept or receive; a
// TCP connection costs two, which the kernel serves by splicing, and a UDP client one until it has been quiet for a
// while. The Holder's mutex guards its table and is never held while a socket is waited for.
package ports

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"

	"stated.dev/stated/network/sandbox"
)

// pickAttempts is how often a free port is picked by the kernel when it is needed on several addresses at once and
// one of them turns out to be taken.
const pickAttempts = 20

// Holder holds the ports of one container, by endpoint.
type Holder struct {
	mu        sync.Mutex // guards all below
	endpoints map[string]*endpoint
	closed    bool
}

type endpoint struct {
	asked []sandbox.Port
	bound []sandbox.Port
	socks []socket
}

// socket is a bound port with the goroutines that serve it.
type socket interface {
	port() uint16
	serve()       // starts forwarding
	close() error // stops it and waits for its goroutines
}

// NewHolder returns a holder of no ports.
func NewHolder() *Holder { return &Holder{endpoints: map[string]*endpoint{}} }

// Hold binds host ports and forwards from them. A host port of 0 means any free one, a range the first free one; the
// answer has the ports in the order asked, with HostPort bound and HostPortEnd the same. Neighbours in the list that
// differ only in their host address get the same port. When one cannot be bound none is: an errdefs.ErrConflict when
// it is in use. The same request for the same endpoint gets the same answer again.
func (h *Holder) Hold(ctx context.Context, endpointID string, ports []sandbox.Port) ([]sandbox.Port, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, fmt.Errorf("hold ports of endpoint %s: %w", endpointID, errdefs.ErrUnavailable)
	}
	if old := h.endpoints[endpointID]; old != nil {
		if slices.Equal(old.asked, ports) || slices.Equal(old.bound, ports) {
			return slices.Clone(old.bound), nil
		}
		return nil, fmt.Errorf("ports of endpoint %s are held already: %w", endpointID, errdefs.ErrAlreadyExists)
	}
	e := &endpoint{asked: slices.Clone(ports)}
	for rest := ports; len(rest) > 0; {
		n := 1
		for n < len(rest) && sameButAddress(rest[0], rest[n]) {
			n++
		}
		socks, err := bindGroup(ctx, rest[:n])
		if err != nil {
			e.close()
			return nil, err
		}
		for i, s := range socks {
			p := rest[i]
			p.HostPort, p.HostPortEnd = s.port(), s.port()
			e.bound = append(e.bound, p)
		}
		e.socks = append(e.socks, socks...)
		rest = rest[n:]
	}
	for _, s := range e.socks {
		s.serve()
	}
	h.endpoints[endpointID] = e
	return slices.Clone(e.bound), nil
}

// sameButAddress reports whether b publishes what a does, on another address of the host.
func sameButAddress(a, b sandbox.Port) bool {
	different := a.HostIP != b.HostIP
	a.HostIP, a.ContainerIP = b.HostIP, b.ContainerIP
	return different && reflect.DeepEqual(a, b)
}

// Release closes the ports of an endpoint and the connections that go through them. An unknown endpoint has none.
func (h *Holder) Release(endpointID string) error {
	h.mu.Lock()
	e := h.endpoints[endpointID]
	delete(h.endpoints, endpointID)
	h.mu.Unlock()
	if e == nil {
		return nil
	}
	return e.close()
}

// List returns the ports that are held, by endpoint.
func (h *Holder) List() map[string][]sandbox.Port {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := make(map[string][]sandbox.Port, len(h.endpoints))
	for id, e := range h.endpoints {
		held[id] = slices.Clone(e.bound)
	}
	return held
}

// Close releases everything. Nothing can be held afterwards.
func (h *Holder) Close() error {
	h.mu.Lock()
	h.closed = true
	endpoints := slices.Collect(maps.Values(h.endpoints))
	clear(h.endpoints)
	h.mu.Unlock()
	var errs []error
	for _, e := range endpoints {
		errs = append(errs, e.close())
	}
	return errors.Join(errs...)
}

func (e *endpoint) close() error {
	var errs []error
	for _, s := range e.socks {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// bindGroup binds ports that differ only in their address to one port number.
func bindGroup(ctx context.Context, group []sandbox.Port) ([]socket, error) {
	first, last := group[0].HostPort, max(group[0].HostPort, group[0].HostPortEnd)
	attempts := int(last-first) + 1
	if first == 0 {
		last, attempts = 0, 1
		if len(group) > 1 {
			attempts = pickAttempts
		}
	}
	var err error
	for i := range attempts {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		number := first
		if first != 0 {
			number += uint16(i)
		}
		var socks []socket
		if socks, err = bindAll(group, number); err == nil {
			return socks, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, err
		}
	}
	return nil, err
}

// bindAll binds every port of the group to the same number. With number 0 the first one picks it.
func bindAll(group []sandbox.Port, number uint16) (socks []socket, err error) {
	for _, p := range group {
		s, err := bind(p, number)
		if err != nil {
			for _, s := range socks {
				_ = s.close() // nothing has come through it
			}
			return nil, err
		}
		number = s.port()
		socks = append(socks, s)
	}
	return socks, nil
}

func bind(p sandbox.Port, number uint16) (socket, error) {
	host := netip.IPv4Unspecified()
	if p.HostIP != "" {
		var err error
		if host, err = netip.ParseAddr(p.HostIP); err != nil {
			return nil, invalid("invalid host address %q", p.HostIP)
		}
	}
	addr, err := netip.ParseAddr(p.ContainerIP)
	if err != nil {
		return nil, invalid("invalid container address %q", p.ContainerIP)
	}
	local, target := netip.AddrPortFrom(host.Unmap(), number), netip.AddrPortFrom(addr.Unmap(), p.ContainerPort)
	var s socket
	switch p.Proto {
	case "tcp":
		s, err = listenTCP(local, target)
	case "udp":
		s, err = listenUDP(local, target)
	case "sctp":
		return nil, errdefs.ErrNotImplemented.WithMessage(
			fmt.Sprintf("failed to bind host port for %s: publishing sctp ports is not supported", describe(local, p)))
	default:
		return nil, invalid("invalid protocol %q", p.Proto)
	}
	if err != nil {
		return nil, bindError{what: describe(local, p), err: err}
	}
	return s, nil
}

// describe names a port as Docker does: 0.0.0.0:8080:172.17.0.2:80/tcp.
func describe(local netip.AddrPort, p sandbox.Port) string {
	host := local.String()
	if p.HostPort == 0 {
		host = net.JoinHostPort(local.Addr().String(), "")
	}
	return host + ":" + net.JoinHostPort(p.ContainerIP, strconv.Itoa(int(p.ContainerPort))) + "/" + p.Proto
}

// bindError has Docker's text and the class of its cause.
type bindError struct {
	what string
	err  error
}

func (e bindError) Error() string {
	err := e.err
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return fmt.Sprintf("failed to bind host port for %s: %v", e.what, err)
}

func (e bindError) Unwrap() error { return e.err }

func (e bindError) Is(target error) bool {
	switch target {
	case errdefs.ErrConflict:
		return errors.Is(e.err, syscall.EADDRINUSE)
	case errdefs.ErrPermissionDenied:
		return errors.Is(e.err, syscall.EACCES) || errors.Is(e.err, syscall.EPERM)
	case errdefs.ErrInvalidArgument:
		return errors.Is(e.err, syscall.EADDRNOTAVAIL)
	}
	return false
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}
