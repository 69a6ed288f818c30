package bridge

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stated.dev/stated/network/driver"
	"stated.dev/stated/network/netns"
	"stated.dev/stated/network/nft"
)

// hostName is the name of an endpoint's interface on the host.
func hostName(endpointID string) string { return "veth" + endpointID[:7] }

// PlanEndpoint implements driver.Driver.
func (d *Driver) PlanEndpoint(_ context.Context, n *driver.Network, e *driver.Endpoint) error {
	if len(e.MAC) == 0 {
		e.MAC = randomMAC(func(b []byte) { rand.Read(b) })
	}
	if e.SrcName == "" {
		e.SrcName = "veth" + e.ID[7:14]
	}
	e.RecordKey = []string{"bridge-endpoint", e.ID}
	var err error
	e.Record, err = json.Marshal(newEndpointDocument(n, e))
	return err
}

// Join implements driver.Driver.
func (d *Driver) Join(_ context.Context, a driver.Attachment) error {
	doc, err := read(a.Network)
	if err != nil {
		return err
	}
	if err := d.connect(a, doc); err != nil {
		return fmt.Errorf("connect to network %s: %w", a.Network.Name, err)
	}
	return nil
}

// Publish implements driver.Driver.
func (d *Driver) Publish(ctx context.Context, attachments []driver.Attachment) error {
	var rules []nft.Element
	for _, a := range attachments {
		doc, err := read(a.Network)
		if err != nil {
			return err
		}
		add := endpointRules(doc, a.Endpoint)
		rules = append(rules, add...)
		if len(add) > 0 && filtersBridged() {
			if err := d.allowHairpin(a.Endpoint); err != nil {
				return err
			}
		}
	}
	if err := d.update(ctx, rules, nil); err != nil {
		return fmt.Errorf("publish ports: %w", err)
	}
	forgetFlows(publishedUDP(attachments))
	return nil
}

// filtersBridged says whether the kernel translates the addresses of bridged packets too. It then sends what a
// container addressed to its own published port back to the port that it came from, instead of routing it.
func filtersBridged() bool {
	on, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil && len(on) > 0 && on[0] == '1'
}

func (d *Driver) allowHairpin(e *driver.Endpoint) error {
	link, err := d.host.LinkByName(hostName(e.ID))
	if err == nil {
		err = d.host.LinkSetHairpin(link, true)
	}
	if err != nil {
		return fmt.Errorf("let interface %s reach itself: %w", hostName(e.ID), err)
	}
	return nil
}

// connect makes the pair of interfaces and configures the inner one.
func (d *Driver) connect(a driver.Attachment, doc *document) error {
	br, err := d.host.LinkByName(doc.BridgeName)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", doc.BridgeName, err)
	}
	ns, err := os.Open(a.NetNS)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer ns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = hostName(a.Endpoint.ID)
	attrs.MTU = doc.Mtu
	attrs.MasterIndex = br.Attrs().Index
	attrs.Flags = 1 // net.FlagUp: the outer end is up from the start
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: a.IfName, PeerHardwareAddr: a.Endpoint.MAC, PeerMTU: uint32(doc.Mtu),
		PeerNamespace: netlink.NsFd(int(ns.Fd())),
	}
	if err := d.host.LinkAdd(veth); err != nil {
		return fmt.Errorf("add interfaces %s and %s: %w", attrs.Name, a.IfName, err)
	}
	outer, err := d.host.LinkByName(attrs.Name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", attrs.Name, err)
	}
	if err := d.host.LinkSetAlias(outer, d.mark+":"+a.Endpoint.ID); err != nil {
		return fmt.Errorf("mark interface %s: %w", attrs.Name, err)
	}
	if !doc.EnableICC {
		// Ports that are isolated reach the bridge but not each other; no packet filter sees bridged frames.
		if err := d.host.LinkSetIsolated(outer, true); err != nil {
			return fmt.Errorf("isolate interface %s: %w", attrs.Name, err)
		}
	}
	forward := func() error {
		if err := settleCarrier(d.control, attrs.Name); err != nil {
			return fmt.Errorf("let interface %s forward: %w", attrs.Name, err)
		}
		return nil
	}
	return netns.Do(a.NetNS, func() error { return configure(a, forward) })
}

// configure runs inside of the namespace. Forward makes the port of the bridge forward what the interface sends, once
// the interface is up.
func configure(a driver.Attachment, forward func() error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(a.IfName)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", a.IfName, err)
	}
	noIPv6 := "1"
	if a.Endpoint.IPv6.IsValid() {
		noIPv6 = "0"
	}
	if err := setting("net/ipv6/conf/"+a.IfName+"/disable_ipv6", noIPv6); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("set IPv6 of interface %s: %w", a.IfName, err)
	}
	addrs := append([]netip.Prefix{a.Endpoint.IPv4, a.Endpoint.IPv6}, a.Endpoint.LinkLocal...)
	for _, p := range addrs {
		if !p.IsValid() {
			continue
		}
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p), Flags: nodad(p)}); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring interface %s up: %w", a.IfName, err)
	}
	if err := forward(); err != nil {
		return err
	}
	if err := announce(h, link, a.Endpoint); err != nil {
		return fmt.Errorf("announce addresses of interface %s: %w", a.IfName, err)
	}
	return nil
}

// announce tells the network which MAC the endpoint's addresses have now: a container that comes back with its
// address has another MAC, and neighbours would go on using the old one for up to a minute.
//
// The kernel sends the announcements of both families whenever an interface is given a MAC, be it the one that it
// has. What it sends when the interface comes up is lost, for the port of the bridge does not forward yet.
func announce(h *netlink.Handle, link netlink.Link, e *driver.Endpoint) error {
	name := link.Attrs().Name
	if err := setting("net/ipv4/conf/"+name+"/arp_notify", "1"); err != nil {
		return err
	}
	if e.IPv6.IsValid() {
		if err := setting("net/ipv6/conf/"+name+"/ndisc_notify", "1"); err != nil {
			return err
		}
	}
	return h.LinkSetHardwareAddr(link, link.Attrs().HardwareAddr)
}

// endpointRules returns the entries for the endpoint's ports.
func endpointRules(doc *document, e *driver.Endpoint) []nft.Element {
	if doc.Internal {
		return nil
	}
	var all []nft.Element
	for _, p := range e.Ports {
		ip := targetIP(e, p)
		to := netip.AddrPortFrom(ip, p.Port)
		if doc.routed(ip.Is6()) {
			all = append(all, nft.Open{Proto: p.Proto, To: to}.Elements()...)
			continue
		}
		redirect := nft.Publish{Proto: p.Proto, HostIP: p.HostIP, HostPort: p.HostPort, To: to}.Elements()
		if len(redirect) > 0 {
			all = append(append(all, redirect...), nft.Self{Addr: ip}.Elements()...)
		}
	}
	return all
}

// Leave implements driver.Driver. The rules are gone when it returns; the interfaces go in the next batch.
func (d *Driver) Leave(ctx context.Context, attachments []driver.Attachment) (<-chan struct{}, error) {
	var rules []nft.Element
	var names []string
	var errs []error
	for _, a := range attachments {
		names = append(names, hostName(a.Endpoint.ID))
		doc, err := read(a.Network)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		rules = append(rules, endpointRules(doc, a.Endpoint)...)
	}
	if err := d.update(ctx, nil, rules); err != nil {
		errs = append(errs, fmt.Errorf("withdraw published ports: %w", err))
	}
	return d.reaper.add(&removal{names: names, flows: leaving(attachments)}).done, errors.Join(errs...)
}
