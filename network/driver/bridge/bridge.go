// Package bridge is the driver of bridge networks: a bridge on the host, a pair of virtual interfaces for each
// container, and entries in the daemon's nftables table for what may pass.
//
// What it makes carries the engine's mark as interface alias, so that after a crash leftovers are told from the
// interfaces of other daemons. It runs no commands and writes no records. Removing interfaces takes the kernel tens
// of milliseconds, so one goroutine does it for all callers in batches (reaper.go). The package's only lock is there.
package bridge

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stated.dev/stated/network/driver"
	"stated.dev/stated/network/netns"
	"stated.dev/stated/network/nft"
)

// Options of the driver.
type Options struct {
	// Mark tells this engine's interfaces from others', for instance "stated-" and eight digits of the engine id.
	Mark string
	// Table holds the packet rules; nil leaves the kernel's rules alone.
	Table *nft.Table
}

// Driver is the bridge driver.
type Driver struct {
	mark    string
	table   *nft.Table
	host    *netlink.Handle
	control int // see openControl
	reaper  *reaper
}

var _ driver.Driver = (*Driver)(nil)

// Open returns a driver for the network namespace of the calling process. It changes nothing there.
func Open(opts Options) (*Driver, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	control, err := openControl()
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	return &Driver{mark: opts.Mark, table: opts.Table, host: h, control: control, reaper: startReaper(h)}, nil
}

// Close waits for the removals that are under way.
func (d *Driver) Close() error {
	d.reaper.stop()
	d.host.Close()
	_ = unix.Close(d.control) // nothing is written to it
	if d.table == nil {
		return nil
	}
	return d.table.Close()
}

func (*Driver) Type() string          { return "bridge" }
func (*Driver) Traits() driver.Traits { return driver.Traits{Addresses: true, Publishes: true} }

func (d *Driver) update(ctx context.Context, add, del []nft.Element) error {
	if d.table == nil || len(add)+len(del) == 0 {
		return nil
	}
	return d.table.Update(ctx, add, del)
}

// read decodes the record of a network.
func read(n *driver.Network) (*document, error) {
	doc := &document{}
	if len(n.Record) == 0 {
		// The record was lost: it can be made again from the options.
		return parseOptions(n)
	}
	if err := json.Unmarshal(n.Record, doc); err != nil {
		return nil, fmt.Errorf("decode record of bridge network %s: %w", n.ID, err)
	}
	return doc, nil
}

// PlanNetwork implements driver.Driver.
func (d *Driver) PlanNetwork(_ context.Context, n *driver.Network) error {
	doc, err := parseOptions(n)
	if err != nil {
		return err
	}
	doc.BridgeIfaceCreator = creatorUs
	if link, err := d.host.LinkByName(doc.BridgeName); err == nil {
		if err := d.mayUse(link); err != nil {
			return err
		}
		if !strings.HasPrefix(link.Attrs().Alias, d.mark+":") {
			doc.BridgeIfaceCreator = creatorUser
		}
	}
	n.RecordKey = []string{"bridge", n.ID}
	n.Record, err = json.Marshal(doc)
	return err
}

// ErrForeignBridge is returned when an interface of the wanted name belongs to another daemon or is no bridge.
var ErrForeignBridge = fmt.Errorf("bridge is in use: %w", errdefs.ErrPermissionDenied)

// mayUse refuses an interface that is no bridge, or that another engine marked as its own.
func (d *Driver) mayUse(link netlink.Link) error {
	a := link.Attrs()
	if link.Type() != "bridge" {
		return fmt.Errorf("interface %s is a %s: %w", a.Name, link.Type(), ErrForeignBridge)
	}
	owner, _, marked := strings.Cut(a.Alias, ":")
	if marked && owner != d.mark && strings.HasPrefix(owner, "stated-") {
		return fmt.Errorf("interface %s belongs to the engine %s: %w", a.Name, owner, ErrForeignBridge)
	}
	return nil
}

// CreateNetwork implements driver.Driver.
func (d *Driver) CreateNetwork(ctx context.Context, n *driver.Network) error {
	doc, err := read(n)
	if err != nil {
		return err
	}
	if err := d.ensureBridge(n, doc, nil, nil); err != nil {
		return fmt.Errorf("create bridge %s: %w", doc.BridgeName, err)
	}
	return d.update(ctx, doc.rules(), nil)
}

// ensureBridge makes the interface, or corrects one that is there. Link and addrs are what the kernel is known to
// have; without a link it is looked up.
func (d *Driver) ensureBridge(n *driver.Network, doc *document, link netlink.Link, addrs []netlink.Addr) error {
	if link == nil {
		found, err := d.host.LinkByName(doc.BridgeName)
		if err == nil {
			link = found
			if addrs, err = netns.Dump(func() ([]netlink.Addr, error) { return d.host.AddrList(link, netlink.FAMILY_ALL) }); err != nil {
				return fmt.Errorf("list its addresses: %w", err)
			}
		} else if !isNotFound(err) {
			return fmt.Errorf("look for the interface: %w", err)
		}
	}
	if link != nil {
		if err := d.mayUse(link); err != nil {
			return err
		}
		// dockerd gives the default network a new id at each of its starts.
		if alias := link.Attrs().Alias; strings.HasPrefix(alias, d.mark+":") && alias != d.mark+":"+n.ID {
			if err := d.host.LinkSetAlias(link, d.mark+":"+n.ID); err != nil {
				return fmt.Errorf("mark the interface: %w", err)
			}
		}
	} else {
		if doc.BridgeIfaceCreator == creatorUser && !doc.DefaultBridge {
			return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("bridge %s, which the network was created upon, is gone", doc.BridgeName))
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = doc.BridgeName
		attrs.MTU = doc.Mtu
		attrs.HardwareAddr = randomMAC(func(b []byte) { rand.Read(b) })
		if err := d.host.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("add the interface: %w", err)
		}
		var err error
		if link, err = d.host.LinkByName(doc.BridgeName); err != nil {
			return fmt.Errorf("find the new interface: %w", err)
		}
		if err := d.host.LinkSetAlias(link, d.mark+":"+n.ID); err != nil {
			return fmt.Errorf("mark the interface: %w", err)
		}
	}
	if err := d.ensureAddresses(n, doc, link, addrs); err != nil {
		return err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := d.host.LinkSetUp(link); err != nil {
			return fmt.Errorf("bring the interface up: %w", err)
		}
	}
	return enableForwarding(doc)
}

func (d *Driver) ensureAddresses(n *driver.Network, doc *document, link netlink.Link, have []netlink.Addr) error {
	var want []netip.Prefix
	if !doc.InhibitIPv4 && doc.GwModeIPv4 != modeIsolated {
		for _, s := range n.IPv4 {
			want = append(want, s.Gateway)
		}
	}
	if doc.GwModeIPv6 != modeIsolated {
		for _, s := range n.IPv6 {
			want = append(want, s.Gateway)
		}
	}
	held := map[netip.Prefix]bool{}
	for _, a := range have {
		held[prefixOf(a.IPNet)] = true
	}
	for _, p := range want {
		if !p.IsValid() || held[p] {
			continue
		}
		if p.Addr().Is6() {
			if err := setting("net/ipv6/conf/"+doc.BridgeName+"/disable_ipv6", "0"); err != nil {
				return fmt.Errorf("enable IPv6: %w", err)
			}
		}
		addr := &netlink.Addr{IPNet: ipNet(p), Flags: nodad(p)}
		if err := d.host.AddrAdd(link, addr); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	return nil
}

// DeleteNetwork implements driver.Driver.
func (d *Driver) DeleteNetwork(ctx context.Context, n *driver.Network) error {
	doc, err := read(n)
	if err != nil {
		return err
	}
	if err := d.update(ctx, nil, doc.rules()); err != nil {
		return fmt.Errorf("remove rules of bridge %s: %w", doc.BridgeName, err)
	}
	if doc.BridgeIfaceCreator == creatorUser {
		return nil
	}
	if err := d.reaper.remove(doc.BridgeName).wait(ctx); err != nil {
		return fmt.Errorf("remove bridge %s: %w", doc.BridgeName, err)
	}
	return nil
}

// enableForwarding lets the host route between bridges and the outside.
func enableForwarding(doc *document) error {
	if doc.has4() && !doc.Internal {
		if err := setting("net/ipv4/ip_forward", "1"); err != nil {
			return fmt.Errorf("enable IPv4 forwarding: %w", err)
		}
	}
	if doc.EnableIPv6 && !doc.Internal {
		if err := setting("net/ipv6/conf/all/forwarding", "1"); err != nil {
			return fmt.Errorf("enable IPv6 forwarding: %w", err)
		}
	}
	return nil
}

// setting writes a kernel parameter of the current network namespace unless it has the value.
func setting(name, value string) error {
	path := "/proc/sys/" + name
	have, err := os.ReadFile(path)
	if err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	return os.WriteFile(path, []byte(value), 0o644)
}

func isNotFound(err error) bool {
	var nf netlink.LinkNotFoundError
	return errors.As(err, &nf)
}

func nodad(p netip.Prefix) int {
	if p.Addr().Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefixOf(n *net.IPNet) netip.Prefix {
	addr, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones)
}
