package bridge

import (
	"log/slog"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stated.dev/stated/network/driver"
)

// flows chooses entries of the connection table. The kernel goes on sending a flow where its first packet went; a
// client that keeps sending datagrams would never reach a container that came later, or would reach one that left.
type flows struct {
	addrs map[netip.Addr]bool // of containers that leave
	udp   map[uint16]bool     // ports of the host that lead to a container from now on
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol == unix.IPPROTO_UDP && f.udp[flow.Forward.DstPort] {
		return true
	}
	src, _ := netip.AddrFromSlice(flow.Forward.SrcIP) // what is no address matches nothing
	dst, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	return f.addrs[src.Unmap()] || f.addrs[dst.Unmap()]
}

// forgetFlows deletes entries. A failure is logged: flows age by themselves.
func forgetFlows(f flows) {
	if len(f.addrs)+len(f.udp) == 0 {
		return
	}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f); err != nil {
			slog.Debug("stale connections stay until they time out", "error", err)
		}
	}
}

// publishedUDP returns the flows that stand in the way of newly published ports.
func publishedUDP(a []driver.Attachment) flows {
	f := flows{udp: map[uint16]bool{}}
	for _, one := range a {
		for _, p := range one.Endpoint.Ports {
			if p.Proto == unix.IPPROTO_UDP {
				f.udp[p.HostPort] = true
			}
		}
	}
	return f
}

// leaving returns the flows to and from containers that had published ports.
func leaving(a []driver.Attachment) flows {
	f := flows{addrs: map[netip.Addr]bool{}}
	for _, one := range a {
		if len(one.Endpoint.Ports) == 0 {
			continue
		}
		for _, p := range []netip.Prefix{one.Endpoint.IPv4, one.Endpoint.IPv6} {
			if p.IsValid() {
				f.addrs[p.Addr()] = true
			}
		}
	}
	return f
}
