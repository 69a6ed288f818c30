package bridge

import (
	"context"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"

	"stated.dev/stated/network/driver"
	"stated.dev/stated/network/netns"
	"stated.dev/stated/network/nft"
)

// Sync implements driver.Driver: one dump of interfaces, one of addresses, one transaction of rules; no more than
// that when the kernel is as it should be.
func (d *Driver) Sync(ctx context.Context, networks []*driver.Network, attachments []driver.Attachment) (map[string]error, error) {
	links, err := netns.Dump(d.host.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := netns.Dump(func() ([]netlink.Addr, error) { return d.host.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	byName := map[string]netlink.Link{}
	for _, l := range links {
		byName[l.Attrs().Name] = l
	}
	byIndex := map[int][]netlink.Addr{}
	for _, a := range addrs {
		byIndex[a.LinkIndex] = append(byIndex[a.LinkIndex], a)
	}
	failed := map[string]error{}
	var rules []nft.Element
	wanted := map[string]bool{} // ids of networks and endpoints
	inUse := map[string]bool{}  // names of bridges, whose marks may have been another network's until now
	for _, n := range networks {
		wanted[n.ID] = true
		doc, err := read(n)
		if err != nil {
			failed[n.ID] = err
			continue
		}
		link := byName[doc.BridgeName]
		var have []netlink.Addr
		if link != nil {
			have = byIndex[link.Attrs().Index]
		}
		if err := d.ensureBridge(n, doc, link, have); err != nil {
			failed[n.ID] = fmt.Errorf("make bridge %s: %w", doc.BridgeName, err)
			continue
		}
		inUse[doc.BridgeName] = true
		rules = append(rules, doc.rules()...)
	}
	for _, a := range attachments {
		wanted[a.Endpoint.ID] = true
		doc, err := read(a.Network)
		if err != nil || failed[a.Network.ID] != nil {
			continue
		}
		rules = append(rules, endpointRules(doc, a.Endpoint)...)
		if err := d.reconnect(byName, a, doc); err != nil {
			failed[a.Network.ID] = err
		}
	}
	var left []string
	for name, l := range byName {
		if id, ours := strings.CutPrefix(l.Attrs().Alias, d.mark+":"); ours && !wanted[id] && !inUse[name] {
			left = append(left, name)
		}
	}
	if d.table != nil {
		if err := d.table.Sync(ctx, rules); err != nil {
			return failed, err
		}
	}
	return failed, d.reaper.remove(left...).wait(ctx)
}

// reconnect plugs a running container's interface into the bridge again when the bridge had to be made anew.
func (d *Driver) reconnect(byName map[string]netlink.Link, a driver.Attachment, doc *document) error {
	port := byName[hostName(a.Endpoint.ID)]
	if port == nil {
		return nil // made by another daemon, under a name of its own
	}
	if br := byName[doc.BridgeName]; br != nil && port.Attrs().MasterIndex == br.Attrs().Index {
		return nil
	}
	br, err := d.host.LinkByName(doc.BridgeName)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", doc.BridgeName, err)
	}
	if err := d.host.LinkSetMaster(port, br); err != nil {
		return fmt.Errorf("plug %s into bridge %s: %w", port.Attrs().Name, doc.BridgeName, err)
	}
	return nil
}
