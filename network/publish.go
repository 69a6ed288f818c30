package network

import (
	"context"
	"encoding/json"
	"fmt"
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
	bound, err := holdBoth(ctx, join.Holder, e.id(), want)
	if err != nil {
		return fmt.Errorf("failed to set up container networking: %w", err)
	}
	if err := fault.Point("network.attach.held"); err != nil {
		return err
	}
	return e.setPorts(bound)
}

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

// holdBoth binds ports without an address on 0.0.0.0 first and then, with the number that was found, on [::].
func holdBoth(ctx context.Context, holder sandbox.PortHolder, endpointID string, want []sandbox.Port) ([]sandbox.Port, error) {
	const attempts = 5 // a number that is free for one family may be taken in the other
	both := hostHasIPv6()
	for attempt := 1; ; attempt++ {
		first := slices.Clone(want)
		for i := range first {
			if first[i].HostIP == "" {
				first[i].HostIP = "0.0.0.0"
			}
		}
		bound, err := holder.HoldPorts(ctx, endpointID, first)
		if err != nil {
			return nil, err
		}
		if len(bound) != len(first) {
			return nil, fmt.Errorf("asked for %d ports, got %d: %w", len(first), len(bound), errdefs.ErrInternal)
		}
		var twins []sandbox.Port
		for i, p := range want {
			if p.HostIP == "" && both {
				twin := bound[i]
				twin.HostIP = "::"
				twin.HostPortEnd = twin.HostPort
				twins = append(twins, twin)
			}
		}
		if len(twins) == 0 {
			return bound, nil
		}
		more, err := holder.HoldPorts(ctx, endpointID, twins)
		if err == nil {
			return append(bound, more...), nil
		}
		dynamic := slices.ContainsFunc(want, func(p sandbox.Port) bool { return p.HostPort == 0 || p.HostPortEnd > p.HostPort })
		if !dynamic || attempt == attempts || !errdefs.IsConflict(err) {
			return nil, err
		}
		if err := holder.ReleasePorts(ctx, endpointID); err != nil {
			return nil, err
		}
	}
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
