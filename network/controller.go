// Package network connects containers: it creates networks, gives each container a namespace with an interface per
// network, publishes ports, and keeps all of it across restarts in Docker's own file.
//
// The controller decides and records; drivers (package driver) act on the kernel; package ipam hands out addresses;
// package datastore writes. The record is the truth: what the kernel holds is made from it after a start (Restore),
// and what the kernel holds beyond it is removed. A running container needs nothing of this package: its namespace,
// links and rules stay when the daemon goes, its names are in files that its own resolver reads.
//
// Locks: a sandbox's lock serialises what happens to one container and is taken first. Controller.mu guards the
// maps and what hangs below them; it is held for look-ups only, never over the kernel, the store or another room.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/datastore"
	"stated.dev/stated/network/datastore/boltdb"
	"stated.dev/stated/network/driver"
	"stated.dev/stated/network/driver/bridge"
	"stated.dev/stated/network/driver/host"
	"stated.dev/stated/network/driver/null"
	"stated.dev/stated/network/ipam"
	"stated.dev/stated/network/nft"
	"stated.dev/stated/network/sandbox"
)

// Options configure a controller.
type Options struct {
	// DataDir holds local-kv.db: <data root>/network/files.
	DataDir string
	// StateDir holds the safety copy of the file and what was set aside of it, on the same file system; DataDir when
	// empty.
	StateDir string
	// ExecRoot holds what does not outlive a reboot: netns/ and dns/.
	ExecRoot string
	// EngineID is the id of the engine; it determines the IPv6 pools, and Table when that is empty.
	EngineID string
	// Table is the name of the nftables table and the mark on interfaces: "stated-" and 8 hex digits of the engine id.
	Table string
	// DefaultBridge describes the network "bridge".
	DefaultBridge DefaultBridge
	// DefaultAddressPools replace Docker's ranges for networks that ask for no subnet.
	DefaultAddressPools []ipam.Predefined
	// DefaultNetworkOpts are driver options by driver that every network gets unless it has its own.
	DefaultNetworkOpts map[string]map[string]string
	// Events may be nil.
	Events Publisher
	// Zones may be nil: then names are not served.
	Zones ZoneWriter
	// DNS is used for containers that have no servers, domains or options of their own. Unset parts come from the host.
	DNS        []netip.Addr
	DNSSearch  []string
	DNSOptions []string
	// ResolvConf is the host's resolver configuration; /etc/resolv.conf when empty.
	ResolvConf string
}

// DefaultBridge describes the network "bridge".
type DefaultBridge struct {
	// Name of the interface, "docker0" when empty. "none" means that there is no such network.
	Name string
	// BIP is the interface's address and subnet; the first free pool when it is not set.
	BIP netip.Prefix
	// FixedCIDR restricts the addresses of containers.
	FixedCIDR netip.Prefix
	// Gateway is the containers' default gateway when it is not the bridge.
	Gateway netip.Addr
	// MTU of containers; 1500 when 0.
	MTU int
	// BindingIP is where ports are published that name no address; 0.0.0.0 when not set.
	BindingIP netip.Addr
	// NoICC, NoMasquerade turn features off that are on by default.
	NoICC        bool
	NoMasquerade bool
}

// DefaultBridgeName is the interface of the network "bridge".
const DefaultBridgeName = "docker0"

// noBridge says that there is to be no network "bridge".
const noBridge = "none"

// Problem is something that was set aside so that the start could go on.
type Problem struct {
	Object string // key or name
	Text   string
}

// Controller is the network service.
type Controller struct {
	opts    Options
	drivers map[string]driver.Driver
	pools   *ipam.Allocator
	store   *datastore.Store
	table   *nft.Table // closed by the bridge driver

	mu        sync.Mutex // guards all below
	networks  map[string]*network
	sandboxes map[string]*box
	taken     map[string]bool // names of networks that are being created
	problems  []Problem

	zones zones          // the files of names, with a lock of their own
	tasks sync.WaitGroup // releases that wait for the kernel
}

// network is a network that exists. Its fields are guarded by Controller.mu, except obj and cfg, which do not
// change between creation and deletion.
type network struct {
	obj       networkObject
	drv       driver.Driver
	cfg       *driver.Network
	endpoints map[string]*endpoint // by endpoint id
	joining   int                  // endpoints that are being made
	deleting  bool
	broken    error // the kernel's side could not be made
}

func (n *network) id() string   { return n.obj.doc.ID }
func (n *network) name() string { return n.obj.doc.Name }

// endpoint is a container's place on a network. It does not change after it was made.
type endpoint struct {
	obj      endpointObject
	network  *network
	att      driver.Attachment
	priority int
	ports    []sandbox.Port // as bound
}

func (e *endpoint) id() string { return e.obj.doc.ID }

// box is a container's sandbox.
type box struct {
	id, containerID string
	key             string // path of the namespace
	host            bool
	req             sandbox.Request

	lock      chan struct{} // capacity 1; held while the sandbox changes, over the kernel and the store
	obj       sandboxObject // guarded by lock
	endpoints []*endpoint   // guarded by lock for writing, by Controller.mu for both
	holder    sandbox.PortHolder
	released  bool // guarded by lock
}

// Open opens the store and reads every object in it, reserves the pools and addresses that networks and endpoints
// have, and deletes nothing. A file that another process has open is an error within a second.
func Open(ctx context.Context, opts Options) (_ *Controller, err error) {
	if opts.Table == "" {
		opts.Table = tableName(opts.EngineID)
	}
	if opts.DefaultBridge.Name == "" {
		opts.DefaultBridge.Name = DefaultBridgeName
	}
	if opts.ResolvConf == "" {
		opts.ResolvConf = hostResolvConf
	}
	for _, dir := range []string{"netns", "dns"} {
		if err := os.MkdirAll(filepath.Join(opts.ExecRoot, dir), 0o755); err != nil {
			return nil, fmt.Errorf("open network: %w", err)
		}
	}
	pools, err := ipam.New(opts.DefaultAddressPools, opts.EngineID)
	if err != nil {
		return nil, err
	}
	kv, err := boltdb.Open(ctx, boltdb.Options{Path: filepath.Join(opts.DataDir, "local-kv.db"), StateDir: opts.StateDir})
	if err != nil {
		return nil, err
	}
	st, err := datastore.Open(ctx, kv, datastore.ScopeLocal, datastore.Keyspace{})
	if err != nil {
		kv.Close()
		return nil, err
	}
	table := nft.New(opts.Table)
	br, err := bridge.Open(bridge.Options{Mark: opts.Table, Table: table})
	if err != nil {
		st.Close()
		return nil, err
	}
	c := &Controller{
		opts: opts, pools: pools, store: st, table: table,
		drivers:  map[string]driver.Driver{},
		networks: map[string]*network{}, sandboxes: map[string]*box{}, taken: map[string]bool{},
	}
	c.zones.init(opts.Zones, filepath.Join(opts.ExecRoot, "dns"))
	for _, d := range []driver.Driver{br, host.Driver{}, null.Driver{}} {
		c.drivers[d.Type()] = d
	}
	if kv.Repair() != "" {
		c.report("local-kv.db", kv.Repair())
	}
	if err := c.load(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// tableName derives the table's name from an engine id, which may be of any form.
func tableName(engineID string) string {
	hex := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'f' {
			return r
		}
		return -1
	}, strings.ToLower(engineID))
	return "stated-" + (hex + "00000000")[:8]
}

// Close waits for what is under way and closes the store. Containers stay connected.
func (c *Controller) Close() error {
	c.tasks.Wait()
	var errs []error
	for _, d := range c.drivers {
		errs = append(errs, d.Close())
	}
	c.store.Close()
	return errors.Join(errs...)
}

// Problems lists what was set aside since the start.
func (c *Controller) Problems() []Problem {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Problem(nil), c.problems...)
}

func (c *Controller) report(object, text string) {
	slog.Warn("network object set aside", "object", object, "problem", text)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problems = append(c.problems, Problem{Object: object, Text: text})
}

// find resolves a full id, a name, or a unique prefix of an id, in this order.
func (c *Controller) find(ref string) (*network, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.findLocked(ref)
}

func (c *Controller) findLocked(ref string) (*network, error) {
	if n, ok := c.networks[ref]; ok {
		return n, nil
	}
	var byName, byPrefix []*network
	for id, n := range c.networks {
		if n.name() == ref {
			byName = append(byName, n)
		}
		if ref != "" && strings.HasPrefix(id, ref) {
			byPrefix = append(byPrefix, n)
		}
	}
	switch {
	case len(byName) == 1:
		return byName[0], nil
	case len(byName) > 1:
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("network %s is ambiguous (%d matches found based on name)", ref, len(byName)))
	case len(byPrefix) == 1:
		return byPrefix[0], nil
	case len(byPrefix) > 1:
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("network %s is ambiguous (%d matches found based on ID prefix)", ref, len(byPrefix)))
	}
	return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s not found", ref))
}

// sorted returns the networks in the order of their names.
func (c *Controller) sortedLocked() []*network {
	list := make([]*network, 0, len(c.networks))
	for _, n := range c.networks {
		list = append(list, n)
	}
	sort.Slice(list, func(i, j int) bool {
		if list[i].name() != list[j].name() {
			return list[i].name() < list[j].name()
		}
		return list[i].id() < list[j].id()
	})
	return list
}

// netnsPath is where a sandbox's namespace is bound.
func (c *Controller) netnsPath(sandboxID string) string {
	return filepath.Join(c.opts.ExecRoot, "netns", ids.Short(sandboxID))
}

// hostNetnsPath is where the host's own namespace is bound.
func (c *Controller) hostNetnsPath() string {
	return filepath.Join(c.opts.ExecRoot, "netns", "default")
}

// Destroy removes the packet rules, for a host that the daemon is leaving for good. Bridges and namespaces go with
// their networks and containers; with any of them left it refuses.
func (c *Controller) Destroy(ctx context.Context) error {
	c.mu.Lock()
	used := ""
	for _, n := range c.networks {
		if len(n.endpoints)+n.joining > 0 {
			used = n.name()
		}
	}
	c.mu.Unlock()
	if used != "" {
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("network %s has active endpoints", used))
	}
	return c.table.Destroy(ctx)
}
