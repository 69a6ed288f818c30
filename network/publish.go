package network

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/network/driver"
	"stated.dev/stated/network/sandbox"
)

// Protocol numbers, by the names that ports have.
const (
	protoTCP  = 6
	protoUDP  = 17
	protoSCTP = 132
)

func protoNumber(name string) (uint8, error) {
	switch strings.ToLower(name) {
	case "tcp", "":
		return protoTCP, nil
	case "udp":
		return protoUDP, nil
	case "sctp":
		return protoSCTP, nil
	}
	return 0, errdefs.ErrInvalidArgument.WithMessage("invalid protocol: " + name)
}

func protoName(n uint8) string {
	switch n {
	case protoUDP:
		return "udp"
	case protoSCTP:
		return "sctp"
	}
	return "tcp"
}

func parseExposed(text string) (p protoPort, err error) {
	port, proto, _ := strings.Cut(text, "/")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return p, errdefs.ErrInvalidArgument.WithMessage("invalid port: " + text)
	}
	p.Port = uint16(n)
	p.Proto, err = protoNumber(proto)
	return p, err
}

// hold binds the host ports of the endpoint through which the sandbox is reached, if none of its endpoints has
// them yet, and enters what was bound into the endpoint's documents.
func (c *Controller) hold(ctx context.Context, b *box, planned []*endpoint, joins []sandbox.JoinRequest, undo *undoList) error {
	if slices.ContainsFunc(b.endpoints, func(e *endpoint) bool { return len(e.ports) > 0 }) {
		return nil
	}
	public := slices.DeleteFunc(slices.Clone(planned), func(e *endpoint) bool {
		return !e.network.drv.Traits().Publishes || e.network.obj.doc.Internal || len(joins[slices.Index(planned, e)].Ports) == 0
	})
	e := gatewayEndpoint(public, func(e *endpoint) netip.Addr {
		if gw := e.gateway4(); gw.IsValid() {
			return gw
		}
		return e.gateway6()
	})
	if e == nil {
		return nil
	}
	join := joins[slices.Index(planned, e)]
	if join.Holder == nil {
		return errdefs.ErrInvalidArgument.WithMessage("ports are to be published, but nobody holds them")
	}
	want, err := e.wantedPorts(join.Ports)
	if err != nil {
		return err
	}
	b.holder = join.Holder
	undo.add(func() error { return join.Holder.ReleasePorts(context.WithoutCancel(ctx), e.id()) })
	want = onEveryAddress(want)
	bound, err := join.Holder.HoldPorts(ctx, e.id(), want)
	if err != nil {
		if holder := c.portHolder(want); holder != nil && errdefs.IsConflict(err) {
			err = errdefs.ErrConflict.WithMessage(fmt.Sprintf("Bind for %s failed: port is already allocated",
				net.JoinHostPort(holder.HostIP, strconv.Itoa(int(holder.HostPort)))))
		}
		return fmt.Errorf("failed to set up container networking: driver failed programming external connectivity on endpoint %s (%s): %w", e.obj.doc.Name, e.id(), err)
	}
	if len(bound) != len(want) {
		return fmt.Errorf("asked for %d ports, got %d: %w", len(want), len(bound), errdefs.ErrInternal)
	}
	if err := fault.Point("network.attach.held"); err != nil {
		return err
	}
	return e.setPorts(bound)
}

// portHolder is a published port of another container that stands in the way of one in want, or nil.
func (c *Controller) portHolder(want []sandbox.Port) *sandbox.Port {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.networks {
		for _, e := range n.endpoints {
			for _, have := range e.ports {
				if slices.ContainsFunc(want, func(w sandbox.Port) bool {
					return w.Proto == have.Proto && w.HostPort == have.HostPort && w.HostPortEnd <= w.HostPort && (w.HostIP == have.HostIP || isWildcard(w.HostIP) || isWildcard(have.HostIP))
				}) {
					return &have
				}
			}
		}
	}
	return nil
}

func isWildcard(ip string) bool { return ip == "" || ip == "0.0.0.0" || ip == "::" }

// wantedPorts fills in the container's address and the address to bind. A port that names no address is bound on
// every address of the host, of both families.
func (e *endpoint) wantedPorts(ports []sandbox.Port) ([]sandbox.Port, error) {
	fallback := e.network.cfg.Options["com.docker.network.bridge.host_binding_ipv4"]
	var out []sandbox.Port
	for _, p := range ports {
		if _, err := protoNumber(p.Proto); err != nil {
			return nil, err
		}
		p.ContainerIP = e.att.Endpoint.IPv4.Addr().String()
		if !e.att.Endpoint.IPv4.IsValid() {
			p.ContainerIP = e.att.Endpoint.IPv6.Addr().String()
		}
		p.Proto = strings.ToLower(p.Proto)
		if p.Proto == "" {
			p.Proto = "tcp"
		}
		if p.HostIP == "" && fallback != "" && fallback != "0.0.0.0" {
			p.HostIP = fallback
		}
		out = append(out, p)
	}
	return out, nil
}

// onEveryAddress makes of each port that names no address two neighbours, on 0.0.0.0 and on [::]: the holder gives
// such neighbours the same number.
func onEveryAddress(want []sandbox.Port) []sandbox.Port {
	both := hostHasIPv6()
	var out []sandbox.Port
	for _, p := range want {
		if p.HostIP != "" {
			out = append(out, p)
			continue
		}
		p.HostIP = "0.0.0.0"
		out = append(out, p)
		if both {
			p.HostIP = "::"
			out = append(out, p)
		}
	}
	return out
}

// hostHasIPv6 says whether the host has any IPv6 address.
func hostHasIPv6() bool {
	data, err := os.ReadFile("/proc/net/if_inet6")
	return err == nil && len(data) > 0
}

// setPorts enters bound ports into the documents.
func (e *endpoint) setPorts(bound []sandbox.Port) error {
	var docs []portBinding
	for _, p := range bound {
		proto, err := protoNumber(p.Proto)
		if err != nil {
			return err
		}
		ip, err := netip.ParseAddr(p.HostIP)
		if err != nil {
			return fmt.Errorf("bound address %q: %w", p.HostIP, err)
		}
		dp := driver.Port{ProtoPort: driver.ProtoPort{Proto: proto, Port: p.ContainerPort}, HostIP: ip, HostPort: p.HostPort}
		e.att.Endpoint.Ports = append(e.att.Endpoint.Ports, dp)
		p.HostPortEnd = 0
		e.ports = append(e.ports, p)
		docs = append(docs, portBinding{Proto: proto, Port: p.ContainerPort, HostIP: p.HostIP, HostPort: p.HostPort, HostPortEnd: p.HostPort})
	}
	raw, err := json.Marshal(docs)
	e.obj.doc.Generic[labelPortMap] = raw
	return err
}
