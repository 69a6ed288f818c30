package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	api "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"

	"stated.dev/stated/network/datastore"
	"stated.dev/stated/network/driver"
	"stated.dev/stated/network/netns"
	"stated.dev/stated/network/sandbox"
)

// Restore takes up what an earlier daemon left. Active maps the sandboxes of running containers to their
// containers; holders returns who holds a container's ports. What is not active is removed: sandboxes with their
// endpoints, endpoints without sandbox, networks whose removal was interrupted, namespaces and interfaces. The
// default networks are made if they are missing, and the kernel is made to match.
//
// One bad object never fails the call; it is set aside and listed by Problems. A default bridge that another daemon
// holds does, with what to do about it.
func (c *Controller) Restore(ctx context.Context, active map[string]string, holders func(containerID string) sandbox.PortHolder) (map[string]*sandbox.Sandbox, error) {
	live, err := c.dropStale(ctx, active)
	if err != nil {
		return nil, err
	}
	if err := c.sweepNamespaces(); err != nil {
		return nil, err
	}
	c.finishDeletions(ctx)
	if err := c.checkDefaultBridge(ctx); err != nil {
		return nil, err
	}
	if err := c.syncKernel(ctx); err != nil {
		return nil, err
	}
	if err := c.createDefaults(ctx); err != nil {
		return nil, err
	}
	out := map[string]*sandbox.Sandbox{}
	for _, b := range live {
		if holders != nil {
			b.holder = holders(b.containerID)
		}
		if !b.host && !netns.Exists(b.key) {
			c.report("sandbox/"+b.id, "its network namespace "+b.key+" is gone")
		}
		b.findInterfaces()
		out[b.id] = b.describe()
	}
	c.mu.Lock()
	list := c.sortedLocked()
	c.mu.Unlock()
	c.writeZones(ctx, list...)
	return out, nil
}

// dropStale deletes, in one transaction, the records of everything that no running container uses.
func (c *Controller) dropStale(ctx context.Context, active map[string]string) (live []*box, err error) {
	used := map[string]bool{} // endpoint ids
	var stale []*box
	for id, b := range c.sandboxes {
		if container, ok := active[id]; !ok || container != b.containerID {
			stale = append(stale, b)
			continue
		}
		live = append(live, b)
		for _, e := range b.endpoints {
			used[e.id()] = true
		}
	}
	var dead []*endpoint
	for _, n := range c.networks {
		for _, e := range n.endpoints {
			if !used[e.id()] {
				dead = append(dead, e)
			}
		}
	}
	dangling, err := c.dangling(ctx)
	if err != nil {
		return nil, err
	}
	err = c.store.Update(ctx, func(tx *datastore.Tx) {
		for _, b := range stale {
			tx.Delete(&b.obj)
		}
		for _, e := range dead {
			deleteEndpoint(tx, e)
		}
		for _, parts := range dangling {
			tx.DeleteKey(parts...)
		}
		for _, b := range live {
			if len(b.endpoints) != len(b.obj.doc.Eps) {
				b.obj.doc.Eps = []sandboxEndpoint{}
				for _, e := range b.endpoints {
					b.obj.doc.Eps = append(b.obj.doc.Eps, sandboxEndpoint{Eid: e.id(), Nid: e.network.id()})
				}
				tx.Put(&b.obj)
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("delete stale network records: %w", err)
	}
	for _, e := range dead {
		if e.obj.doc.Sandbox != "" && c.sandboxes[e.obj.doc.Sandbox] == nil {
			c.report("endpoint/"+e.id(), "Removing stale endpoint "+e.obj.doc.Name)
		}
		c.retireAddresses(e)() // the interface goes before anything new is connected
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range stale {
		delete(c.sandboxes, b.id)
	}
	for _, e := range dead {
		delete(e.network.endpoints, e.id())
	}
	return live, nil
}

// dangling lists keys that refer to a network or an endpoint that does not exist.
func (c *Controller) dangling(ctx context.Context) ([][]string, error) {
	pairs, err := c.store.List(ctx)
	if err != nil {
		return nil, err
	}
	endpoints := map[string]bool{}
	for _, n := range c.networks {
		for id := range n.endpoints {
			endpoints[id] = true
		}
	}
	var out [][]string
	for _, p := range pairs {
		parts, err := c.store.Keys().Parse(p.Key)
		if err != nil {
			continue
		}
		lost := false
		switch {
		case parts[0] == "endpoint" && len(parts) == 3,
			parts[0] == "endpoint_count" && len(parts) == 2,
			parts[0] == "bridge" && len(parts) == 2:
			lost = c.networks[parts[1]] == nil
		case parts[0] == "bridge-endpoint" && len(parts) == 2:
			lost = !endpoints[parts[1]]
		}
		if lost {
			c.report(p.Key, "refers to something that does not exist; deleted")
			out = append(out, parts)
		}
	}
	return out, nil
}

// sweepNamespaces removes the namespaces that no sandbox has.
func (c *Controller) sweepNamespaces() error {
	paths, err := netns.List(filepath.Join(c.opts.ExecRoot, "netns"))
	if err != nil {
		return err
	}
	keep := map[string]bool{c.hostNetnsPath(): true}
	for _, b := range c.sandboxes {
		keep[b.key] = true
	}
	for _, p := range paths {
		if !keep[p] {
			if err := netns.Remove(p); err != nil {
				c.report(p, err.Error())
			}
		}
	}
	return nil
}

// finishDeletions removes the networks whose removal was interrupted.
func (c *Controller) finishDeletions(ctx context.Context) {
	c.mu.Lock()
	list := c.sortedLocked()
	c.mu.Unlock()
	for _, n := range list {
		if !n.obj.doc.InDelete || len(n.endpoints) > 0 {
			continue
		}
		if err := c.remove(ctx, n); err != nil {
			c.report("network/"+n.id(), "finish its removal: "+err.Error())
		}
	}
}

// syncKernel hands every network and endpoint to its driver.
func (c *Controller) syncKernel(ctx context.Context) error {
	networks := map[driver.Driver][]*driver.Network{}
	attachments := map[driver.Driver][]driver.Attachment{}
	for _, n := range c.networks {
		if n.broken != nil || n.obj.doc.ConfigOnly {
			continue
		}
		networks[n.drv] = append(networks[n.drv], n.cfg)
		for _, e := range n.endpoints {
			attachments[n.drv] = append(attachments[n.drv], e.att)
		}
	}
	for _, drv := range c.drivers {
		failed, err := drv.Sync(ctx, networks[drv], attachments[drv])
		if err != nil {
			return fmt.Errorf("restore networks of the driver %s: %w", drv.Type(), err)
		}
		for id, why := range failed {
			n := c.networks[id]
			if n.name() == api.NetworkBridge {
				return c.bridgeRefused(why)
			}
			c.report("network/"+id, why.Error())
			n.broken = why
		}
	}
	return nil
}

// findInterfaces learns the names of a running container's interfaces, which records of Docker do not have.
func (b *box) findInterfaces() {
	if b.host || !netns.Exists(b.key) {
		return
	}
	_ = netns.Do(b.key, func() error { // without the names only Join numbers interfaces less well
		list, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, i := range list {
			for _, e := range b.endpoints {
				if mac := e.obj.doc.mac(); mac != nil && mac.String() == i.HardwareAddr.String() {
					e.att.IfName = i.Name
				}
			}
		}
		return nil
	})
}

// createDefaults makes the networks of the daemon that are missing, in Docker's order.
func (c *Controller) createDefaults(ctx context.Context) error {
	for _, d := range []struct{ name, driver string }{{api.NetworkNone, "null"}, {api.NetworkHost, "host"}} {
		if _, err := c.find(d.name); err == nil {
			continue
		}
		n, err := c.create(ctx, api.CreateRequest{Name: d.name, Driver: d.driver})
		if err != nil {
			return fmt.Errorf("create network %s: %w", d.name, err)
		}
		c.publish(n, events.ActionCreate, nil)
	}
	if c.opts.DefaultBridge.Name == noBridge {
		return nil
	}
	if _, err := c.find(api.NetworkBridge); err == nil {
		return nil
	}
	req, err := c.defaultBridgeRequest()
	if err != nil {
		return err
	}
	n, err := c.create(ctx, req)
	if err != nil {
		return c.bridgeRefused(err)
	}
	c.publish(n, events.ActionCreate, nil)
	return nil
}

// bridgeRefused says what to do when the default bridge cannot be had.
func (c *Controller) bridgeRefused(why error) error {
	return fmt.Errorf("create the default bridge %s: %w (choose another interface with --bridge, or another subnet with --bip)", c.opts.DefaultBridge.Name, why)
}

// defaultBridgeRequest describes the network "bridge". An interface that exists keeps its address.
func (c *Controller) defaultBridgeRequest() (api.CreateRequest, error) {
	b := c.opts.DefaultBridge
	req := api.CreateRequest{Name: api.NetworkBridge, Driver: "bridge", Options: c.defaultBridgeOptions()}
	bip := b.BIP
	existing, err := interfaceAddress(b.Name)
	if err != nil {
		return req, err
	}
	if existing.IsValid() && !bip.IsValid() {
		bip = existing
	}
	if !bip.IsValid() {
		avoid, err := hostRoutes()
		if err != nil {
			return req, err
		}
		if bip, err = c.firstFreeBridge(avoid); err != nil {
			return req, err
		}
	} else if existing != bip {
		if taken, err := routedElsewhere(bip, b.Name); err != nil {
			return req, err
		} else if taken != "" {
			return req, c.bridgeRefused(errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("subnet %s is in use by interface %s", bip.Masked(), taken)))
		}
	}
	cfg := api.IPAMConfig{Subnet: bip.Masked(), Gateway: bip.Addr()}
	if b.FixedCIDR.IsValid() {
		cfg.IPRange = b.FixedCIDR.Masked()
	}
	if b.Gateway.IsValid() {
		cfg.AuxAddress = map[string]netip.Addr{"DefaultGatewayIPv4": b.Gateway}
	}
	req.IPAM = &api.IPAM{Driver: "default", Config: []api.IPAMConfig{cfg}}
	return req, nil
}

func (c *Controller) defaultBridgeOptions() map[string]string {
	b := c.opts.DefaultBridge
	mtu := b.MTU
	if mtu == 0 {
		mtu = 1500
	}
	ip := netip.IPv4Unspecified()
	if b.BindingIP.IsValid() {
		ip = b.BindingIP
	}
	return map[string]string{
		"com.docker.network.bridge.default_bridge":       "true",
		"com.docker.network.bridge.enable_icc":           strconv.FormatBool(!b.NoICC),
		"com.docker.network.bridge.enable_ip_masquerade": strconv.FormatBool(!b.NoMasquerade),
		"com.docker.network.bridge.host_binding_ipv4":    ip.String(),
		"com.docker.network.bridge.name":                 b.Name,
		"com.docker.network.driver.mtu":                  strconv.Itoa(mtu),
	}
}

// checkDefaultBridge removes a recorded default bridge that is not what the options ask for, and refuses an
// interface that a running dockerd has.
func (c *Controller) checkDefaultBridge(ctx context.Context) error {
	if name := c.opts.DefaultBridge.Name; name != noBridge {
		if pid := c.foreignDockerd(name); pid != 0 {
			return c.bridgeRefused(errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("interface %s is in use by dockerd, process %d", name, pid)))
		}
	}
	n, err := c.find(api.NetworkBridge)
	if err != nil || n.broken != nil {
		return nil
	}
	want := c.defaultBridgeOptions()
	same := c.opts.DefaultBridge.Name != noBridge
	for k, v := range want {
		same = same && n.cfg.Options[k] == v
	}
	bip := c.opts.DefaultBridge.BIP
	if bip.IsValid() && (len(n.cfg.IPv4) == 0 || n.cfg.IPv4[0].Gateway != bip) {
		same = false
	}
	if same {
		return nil
	}
	if len(n.endpoints) > 0 {
		c.report("network/"+n.id(), "the default bridge differs from the configuration, but running containers use it")
		return nil
	}
	if err := c.remove(ctx, n); err != nil {
		c.report("network/"+n.id(), "remove the default bridge to make it anew: "+err.Error())
	}
	return nil
}

// foreignDockerd returns the process id of a dockerd in this network namespace when an interface called name is
// there that is not ours.
func (c *Controller) foreignDockerd(name string) int {
	link, err := netlink.LinkByName(name)
	if err != nil || strings.HasPrefix(link.Attrs().Alias, c.opts.Table+":") {
		return 0
	}
	here, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return 0
	}
	comms, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is well-formed
	for _, comm := range comms {
		text, err := os.ReadFile(comm)
		if err != nil || strings.TrimSpace(string(text)) != "dockerd" {
			continue
		}
		dir := filepath.Dir(comm)
		if there, err := os.Readlink(dir + "/ns/net"); err == nil && there == here {
			pid, _ := strconv.Atoi(filepath.Base(dir)) // the pattern lets only digits through
			return pid
		}
	}
	return 0
}

// interfaceAddress returns the first IPv4 address of an interface; the zero prefix when there is none.
func interfaceAddress(name string) (netip.Prefix, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return netip.Prefix{}, nil // absent
	}
	addrs, err := i.Addrs()
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			return p, nil
		}
	}
	return netip.Prefix{}, nil
}

// routedElsewhere returns the interface, other than name, whose address lies in the subnet.
func routedElsewhere(subnet netip.Prefix, name string) (string, error) {
	list, err := net.Interfaces()
	if err != nil {
		return "", fmt.Errorf("list interfaces: %w", err)
	}
	for _, i := range list {
		addrs, err := i.Addrs()
		if err != nil || i.Name == name {
			continue // it has gone meanwhile
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Overlaps(subnet) {
				return i.Name, nil
			}
		}
	}
	return "", nil
}
