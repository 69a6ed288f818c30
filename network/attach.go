package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/datastore"
	"stated.dev/stated/network/driver"
	"stated.dev/stated/network/ipam"
	"stated.dev/stated/network/netns"
	"stated.dev/stated/network/sandbox"
)

// Attach makes a sandbox with all its endpoints, or nothing. The records are written in one transaction. Host ports
// are held last: until then the container's shim may still be starting.
func (c *Controller) Attach(ctx context.Context, req sandbox.Request, joins []sandbox.JoinRequest) (_ *sandbox.Sandbox, err error) {
	b := newBox(ids.New(), req.ContainerID)
	b.req, b.host = req, req.Host
	b.key = c.netnsPath(b.id)
	var undo undoList
	defer undo.runOn(&err)
	if err := c.lockBox(ctx, b); err != nil {
		return nil, err
	}
	defer b.unlock()

	planned, err := c.plan(ctx, b, joins, &undo)
	if err != nil {
		return nil, err
	}
	if b.host {
		b.key = c.hostNetnsPath()
		if err := netns.Bind(b.key); err != nil {
			return nil, err
		}
	} else {
		if err := makeNamespace(b); err != nil {
			return nil, err
		}
		undo.add(func() error { return netns.Remove(b.key) })
	}
	for _, e := range planned {
		e.att.NetNS = b.key
	}
	if err := fault.Point("network.attach.namespace"); err != nil {
		return nil, err
	}
	if err := c.connect(ctx, b, planned, &undo); err != nil {
		return nil, err
	}
	if err := applySysctls(b); err != nil {
		return nil, err
	}
	if err := c.hold(ctx, b, planned, joins, &undo); err != nil {
		return nil, err
	}
	if err := c.commit(ctx, b, planned, &undo); err != nil {
		return nil, err
	}
	c.enter(b, planned)
	c.writeZones(ctx, networksOf(planned)...)
	c.announce(planned, events.ActionConnect, b.containerID)
	return b.describe(), nil
}

// Join connects a running container to one more network.
func (c *Controller) Join(ctx context.Context, req sandbox.JoinRequest) (_ *sandbox.Endpoint, err error) {
	b, err := c.box(req.SandboxID)
	if err != nil {
		return nil, err
	}
	var undo undoList
	defer undo.runOn(&err)
	if err := c.lockBox(ctx, b); err != nil {
		return nil, err
	}
	defer b.unlock()
	if b.released {
		return nil, errNoSandbox(req.SandboxID)
	}
	if b.host {
		return nil, errdefs.ErrPermissionDenied.WithMessage("container sharing network namespace with another container or host cannot be connected to any other network")
	}
	for _, e := range b.endpoints {
		if e.network.id() == req.Network || e.network.name() == req.Network {
			return nil, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("endpoint with name %s already exists in network %s", e.obj.doc.Name, e.network.name()))
		}
	}
	joins := []sandbox.JoinRequest{req}
	planned, err := c.plan(ctx, b, joins, &undo)
	if err != nil {
		return nil, err
	}
	planned[0].att.NetNS = b.key
	if err := c.connect(ctx, b, planned, &undo); err != nil {
		return nil, err
	}
	if err := c.hold(ctx, b, planned, joins, &undo); err != nil {
		return nil, err
	}
	if err := c.commit(ctx, b, planned, &undo); err != nil {
		return nil, err
	}
	c.enter(b, planned)
	c.writeZones(ctx, networksOf(planned)...)
	c.announce(planned, events.ActionConnect, b.containerID)
	return planned[0].describe(), nil
}

// makeNamespace gives the sandbox its network namespace: the one that was asked for, or a new one.
func makeNamespace(b *box) error {
	if b.req.NetNS != "" {
		return netns.Take(b.key, b.req.NetNS)
	}
	return netns.Create(b.key, nil)
}

func errNoSandbox(id string) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("sandbox %s not found", id))
}

func (c *Controller) box(id string) (*box, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b, ok := c.sandboxes[id]; ok {
		return b, nil
	}
	return nil, errNoSandbox(id)
}

func (c *Controller) lockBox(ctx context.Context, b *box) error {
	select {
	case b.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the sandbox of container %s: %w", ids.Short(b.containerID), ctx.Err())
	}
}

func (b *box) unlock() { <-b.lock }

// plan decides names and addresses. It takes addresses from the pools and keeps the networks from being removed.
func (c *Controller) plan(ctx context.Context, b *box, joins []sandbox.JoinRequest, undo *undoList) ([]*endpoint, error) {
	var planned []*endpoint
	for _, j := range joins {
		n, err := c.reserve(j.Network)
		if err != nil {
			return nil, err
		}
		undo.add(func() error { c.unreserve(n); return nil })
		e, err := c.planEndpoint(ctx, b, n, j, planned, undo)
		if err != nil {
			return nil, fmt.Errorf("failed to set up container networking: %w", err)
		}
		planned = append(planned, e)
	}
	return planned, nil
}

// reserve finds a network that can be joined.
func (c *Controller) reserve(ref string) (*network, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.findLocked(ref)
	switch {
	case err != nil:
		return nil, err
	case n.deleting:
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s not found", ref))
	case n.obj.doc.ConfigOnly:
		return nil, errdefs.ErrPermissionDenied.WithMessage("cannot create endpoint on configuration-only network")
	case n.broken != nil:
		return nil, fmt.Errorf("network %s is out of order: %w: %w", n.name(), errdefs.ErrUnavailable, n.broken)
	}
	n.joining++
	return n, nil
}

func (c *Controller) unreserve(n *network) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n.joining--
}

func (c *Controller) planEndpoint(ctx context.Context, b *box, n *network, j sandbox.JoinRequest, planned []*endpoint, undo *undoList) (*endpoint, error) {
	e := &endpoint{network: n, priority: j.Priority}
	e.obj.network, e.obj.persist = n.id(), n.obj.doc.Persist
	e.obj.doc = endpointDocument{
		ID: ids.New(), Name: j.Name, Sandbox: b.id, DNSNames: slices.Clone(j.DNSNames),
		DisableResolution: !n.served(), Generic: map[string]json.RawMessage{},
		IngressPorts: []json.RawMessage{}, SvcAliases: []string{}, ExposedPorts: []protoPort{}, JoinInfo: &joinDocument{},
		Iface: &ifaceDocument{},
	}
	if e.obj.doc.DNSNames == nil {
		e.obj.doc.DNSNames = []string{}
	}
	de := &driver.Endpoint{ID: e.obj.doc.ID, Options: j.DriverOpts}
	e.att = driver.Attachment{Network: n.cfg, Endpoint: de}
	if !n.drv.Traits().Addresses {
		return e, n.drv.PlanEndpoint(ctx, n.cfg, de)
	}
	for _, text := range j.Exposed {
		p, err := parseExposed(text)
		if err != nil {
			return nil, err
		}
		de.Exposed = append(de.Exposed, driver.ProtoPort(p))
		e.obj.doc.ExposedPorts = append(e.obj.doc.ExposedPorts, p)
	}
	if j.MAC != "" {
		mac, err := net.ParseMAC(j.MAC)
		if err != nil {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid MAC address %q", j.MAC))
		}
		de.MAC = mac
	}
	if err := c.assignAddresses(ctx, e, j, undo); err != nil {
		return nil, err
	}
	for _, a := range j.LinkLocal {
		bits := 16
		if a.Is6() {
			bits = 64
		}
		de.LinkLocal = append(de.LinkLocal, netip.PrefixFrom(a, bits))
	}
	if err := n.drv.PlanEndpoint(ctx, n.cfg, de); err != nil { // chooses the MAC that connect needs
		return nil, err
	}
	name, err := c.interfaceName(b, n, j, planned)
	if err != nil {
		return nil, err
	}
	e.att.IfName = name
	c.fillDocument(e, j)
	return e, nil
}

// assignAddresses takes an address of each family that the network has.
func (c *Controller) assignAddresses(ctx context.Context, e *endpoint, j sandbox.JoinRequest, undo *undoList) error {
	d := &e.network.obj.doc
	chosen := j.IPv4.IsValid() || j.IPv6.IsValid()
	if chosen && isPredefined(d.Name) {
		return errdefs.ErrInvalidArgument.WithMessage("user specified IP address is supported on user defined networks only")
	}
	take := func(want netip.Addr, infos []ipamInfo, configs *embedded[[]ipamConfig], out *netip.Prefix, pool *string) error {
		if want.IsValid() && (configs == nil || !slices.ContainsFunc(configs.v, func(c ipamConfig) bool { return c.PreferredPool != "" })) {
			return errdefs.ErrInvalidArgument.WithMessage("invalid endpoint settings:\nuser specified IP address is supported only when connecting to networks with user configured subnets")
		}
		var last error
		for _, i := range infos {
			if want.IsValid() && !i.pool().Contains(want) {
				continue
			}
			p, err := c.pools.RequestAddress(ctx, i.PoolID, want)
			if err != nil {
				last = err
				if errors.Is(err, ipam.ErrNoAvailableIPs) {
					continue
				}
				return err
			}
			undo.add(func() error { return c.pools.ReleaseAddress(i.PoolID, p.Addr()) })
			*out, *pool = p, i.PoolID
			return nil
		}
		if last == nil && want.IsValid() {
			last = errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid endpoint settings:\nno configured subnet or ip-range contain the IP address %s", want))
		}
		return last
	}
	de, iface := e.att.Endpoint, e.obj.doc.Iface
	if d.hasIPv4() {
		if err := take(j.IPv4, d.v4(), d.IPAMV4Config, &de.IPv4, &iface.V4PoolID); err != nil {
			return err
		}
	}
	if d.EnableIPv6 {
		if err := take(j.IPv6, d.v6(), d.IPAMV6Config, &de.IPv6, &iface.V6PoolID); err != nil {
			return err
		}
	}
	return nil
}

// interfaceName is the name the user chose, or the prefix with the first number that is free in the sandbox.
func (c *Controller) interfaceName(b *box, n *network, j sandbox.JoinRequest, planned []*endpoint) (string, error) {
	used := map[string]bool{}
	for _, e := range append(slices.Clone(b.endpoints), planned...) {
		used[e.att.IfName] = true
	}
	if name := j.DriverOpts["com.docker.network.endpoint.ifname"]; name != "" {
		if used[name] || len(name) > 15 || strings.ContainsAny(name, "/ ") {
			return "", errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid interface name %q", name))
		}
		return name, nil
	}
	prefix := n.cfg.Options["com.docker.network.container_iface_prefix"]
	if prefix == "" {
		prefix = "eth"
	}
	for i := 0; ; i++ {
		if name := prefix + strconv.Itoa(i); !used[name] {
			return name, nil
		}
	}
}

func (c *Controller) fillDocument(e *endpoint, j sandbox.JoinRequest) {
	d, de, i := &e.obj.doc, e.att.Endpoint, e.obj.doc.Iface
	i.MAC = de.MAC.String()
	i.SrcName = de.SrcName
	i.DstPrefix = strings.TrimRight(e.att.IfName, "0123456789")
	i.CreatedInContainer = true
	if j.DriverOpts["com.docker.network.endpoint.ifname"] != "" {
		i.DstName, i.DstPrefix = e.att.IfName, ""
	}
	if de.IPv4.IsValid() {
		i.Addr = nilText(de.IPv4.String())
	}
	if de.IPv6.IsValid() {
		i.AddrV6 = nilText(de.IPv6.String())
	}
	for _, a := range de.LinkLocal {
		i.LinkLocal = append(i.LinkLocal, a.String())
	}
	if gw := e.gateway4(); gw.IsValid() {
		d.JoinInfo.Gateway = nilText(gw.String())
	}
	if gw := e.gateway6(); gw.IsValid() {
		d.JoinInfo.Gateway6 = nilText(gw.String())
	}
	exposed, _ := json.Marshal(d.ExposedPorts) // numbers always encode
	d.Generic[labelExposedPorts] = exposed
	d.Generic[labelPortMap] = json.RawMessage("[]")
	if j.MAC != "" {
		mac, _ := json.Marshal([]byte(de.MAC)) // bytes always encode
		d.Generic[labelMAC] = mac
	}
}

// gateway4 is the default gateway that the endpoint's network offers.
func (e *endpoint) gateway4() netip.Addr { return e.gatewayOf(e.network.cfg.IPv4, e.att.Endpoint.IPv4) }
func (e *endpoint) gateway6() netip.Addr { return e.gatewayOf(e.network.cfg.IPv6, e.att.Endpoint.IPv6) }

func (e *endpoint) gatewayOf(subnets []driver.Subnet, addr netip.Prefix) netip.Addr {
	if e.network.obj.doc.Internal || !addr.IsValid() {
		return netip.Addr{}
	}
	for _, s := range subnets {
		if s.Pool.Contains(addr.Addr()) {
			if gw, err := netip.ParseAddr(e.network.obj.doc.defaultGateway()); err == nil && s.Pool.Contains(gw) {
				return gw
			}
			return s.Gateway.Addr()
		}
	}
	return netip.Addr{}
}

// defaultGateway is an auxiliary address of this name: a router other than the bridge.
func (d *networkDocument) defaultGateway() string {
	for _, i := range d.v4() {
		if text := i.IPAMData.v.AuxAddresses["DefaultGatewayIPv4"]; text != "" {
			addr, _, _ := strings.Cut(text, "/")
			return addr
		}
	}
	return ""
}

// connect makes the interfaces and the default routes.
func (c *Controller) connect(ctx context.Context, b *box, planned []*endpoint, undo *undoList) error {
	for _, e := range planned {
		undo.add(func() error {
			done, err := e.network.drv.Leave(context.WithoutCancel(ctx), []driver.Attachment{e.att})
			<-done
			return err
		})
		if err := e.network.drv.Join(ctx, e.att); err != nil {
			return err
		}
	}
	if b.host {
		return nil
	}
	if err := setDefaultRoutes(b.key, append(slices.Clone(b.endpoints), planned...)); err != nil {
		return err
	}
	return fault.Point("network.attach.connected")
}

// commit writes the sandbox and its new endpoints in one transaction and lets published ports through.
func (c *Controller) commit(ctx context.Context, b *box, planned []*endpoint, undo *undoList) error {
	for _, e := range planned {
		if err := e.network.drv.PlanEndpoint(ctx, e.network.cfg, e.att.Endpoint); err != nil {
			return err
		}
	}
	before := b.obj
	next := b.obj
	next.doc.Eps = slices.Clone(before.doc.Eps)
	next.doc.EpPriority = maps.Clone(before.doc.EpPriority)
	for _, e := range planned {
		next.doc.Eps = append(next.doc.Eps, sandboxEndpoint{Eid: e.id(), Nid: e.network.id()})
		next.doc.EpPriority[e.id()] = e.priority
	}
	if next.doc.ExtDNS2 == nil {
		next.doc.ExtDNS2 = c.externalDNS(b, append(slices.Clone(b.endpoints), planned...))
	}
	err := c.store.Update(ctx, func(tx *datastore.Tx) {
		tx.PutAtomic(&next)
		for _, e := range planned {
			tx.PutAtomic(&e.obj)
			if r := e.att.Endpoint; r.Record != nil {
				tx.PutKey(r.Record, r.RecordKey...)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("record sandbox of container %s: %w", ids.Short(b.containerID), err)
	}
	b.obj = next
	undo.add(func() error {
		return c.store.Update(context.WithoutCancel(ctx), func(tx *datastore.Tx) {
			for _, e := range planned {
				deleteEndpoint(tx, e)
			}
			if before.Exists() {
				before.SetIndex(b.obj.Index())
				tx.Put(&before)
				b.obj = before
			} else {
				tx.Delete(&b.obj)
			}
		})
	})
	if err := fault.Point("network.attach.recorded"); err != nil {
		return err
	}
	for drv, list := range byDriver(planned) {
		if err := drv.Publish(ctx, list); err != nil {
			return err
		}
	}
	return fault.Point("network.attach.published")
}

func deleteEndpoint(tx *datastore.Tx, e *endpoint) {
	tx.Delete(&e.obj)
	if key := e.att.Endpoint.RecordKey; key != nil {
		tx.DeleteKey(key...)
	}
}

func byDriver(list []*endpoint) map[driver.Driver][]driver.Attachment {
	out := map[driver.Driver][]driver.Attachment{}
	for _, e := range list {
		out[e.network.drv] = append(out[e.network.drv], e.att)
	}
	return out
}

// enter makes the endpoints visible.
func (c *Controller) enter(b *box, planned []*endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sandboxes[b.id] = b
	for _, e := range planned {
		e.network.joining--
		e.network.endpoints[e.id()] = e
	}
	b.endpoints = append(slices.Clone(b.endpoints), planned...)
}

func networksOf(list []*endpoint) []*network {
	var out []*network
	for _, e := range list {
		if !slices.Contains(out, e.network) {
			out = append(out, e.network)
		}
	}
	return out
}

func (c *Controller) announce(list []*endpoint, action events.Action, containerID string) {
	for _, e := range list {
		c.publish(e.network, action, map[string]string{"container": containerID})
	}
}

// applySysctls writes the kernel parameters that the request has for the namespace.
func applySysctls(b *box) error {
	if len(b.req.Sysctls) == 0 || b.host {
		return nil
	}
	return netns.Do(b.key, func() error {
		for _, key := range slices.Sorted(maps.Keys(b.req.Sysctls)) {
			if !strings.HasPrefix(key, "net.") {
				continue
			}
			path := filepath.Join("/proc/sys", filepath.Clean("/"+strings.ReplaceAll(key, ".", "/")))
			if err := os.WriteFile(path, []byte(b.req.Sysctls[key]), 0o644); err != nil {
				return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("set sysctl %s to %q: %v", key, b.req.Sysctls[key], err))
			}
		}
		return nil
	})
}

func (b *box) describe() *sandbox.Sandbox {
	out := &sandbox.Sandbox{ID: b.id, Key: b.key, Endpoints: map[string]*sandbox.Endpoint{}}
	for _, e := range b.endpoints {
		out.Endpoints[e.network.name()] = e.describe()
	}
	return out
}

func (e *endpoint) describe() *sandbox.Endpoint {
	d := &e.obj.doc
	out := &sandbox.Endpoint{
		ID: d.ID, NetworkID: e.network.id(), NetworkName: e.network.name(),
		Gateway: e.gateway4(), IPv6Gateway: e.gateway6(),
		DNSNames: slices.Clone(d.DNSNames), Ports: slices.Clone(e.ports), InterfaceName: e.att.IfName,
	}
	if mac := d.mac(); mac != nil {
		out.MAC = mac.String()
	}
	if p := d.addr4(); p.IsValid() {
		out.IPAddress, out.IPPrefixLen = p.Addr(), p.Bits()
	}
	if p := d.addr6(); p.IsValid() {
		out.GlobalIPv6Address, out.GlobalIPv6PrefixLen = p.Addr(), p.Bits()
	}
	return out
}
