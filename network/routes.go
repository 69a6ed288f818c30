package network

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stated.dev/stated/network/netns"
)

// gatewayEndpoint is the endpoint that gives a sandbox its default route: the one of the highest priority, and of
// several the one whose network's name sorts first.
func gatewayEndpoint(list []*endpoint, gateway func(*endpoint) netip.Addr) *endpoint {
	list = slices.DeleteFunc(slices.Clone(list), func(e *endpoint) bool { return !gateway(e).IsValid() })
	if len(list) == 0 {
		return nil
	}
	return slices.MinFunc(list, func(a, b *endpoint) int {
		if a.priority != b.priority {
			return b.priority - a.priority
		}
		return strings.Compare(a.network.name(), b.network.name())
	})
}

// setDefaultRoutes makes the namespace's default routes those of its gateway endpoints.
func setDefaultRoutes(ns string, list []*endpoint) error {
	gw4 := gatewayEndpoint(list, (*endpoint).gateway4)
	gw6 := gatewayEndpoint(list, (*endpoint).gateway6)
	if gw4 == nil && gw6 == nil {
		return nil
	}
	err := netns.Do(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		defer h.Close()
		if gw4 != nil {
			if err := replaceDefault(h, gw4.gateway4(), gw4.att.IfName); err != nil {
				return err
			}
		}
		if gw6 != nil {
			return replaceDefault(h, gw6.gateway6(), gw6.att.IfName)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set default route: %w", err)
	}
	return nil
}

func replaceDefault(h *netlink.Handle, gw netip.Addr, ifName string) error {
	dst := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if gw.Is6() {
		dst = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	route := &netlink.Route{Dst: dst, Gw: gw.AsSlice()}
	if ifName != "" {
		link, err := h.LinkByName(ifName)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", ifName, err)
		}
		route.LinkIndex = link.Attrs().Index
	}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("through %s: %w", gw, err)
	}
	return nil
}
