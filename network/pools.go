package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"stated.dev/stated/network/ipam"
	"stated.dev/stated/network/netns"
)

// hostRoutes lists the prefixes that the host routes, so that no pool is chosen that would hide one.
func hostRoutes() ([]netip.Prefix, error) {
	routes, err := netns.Dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes of the host: %w", err)
	}
	var list []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		addr, ok := netip.AddrFromSlice(r.Dst.IP)
		ones, _ := r.Dst.Mask.Size()
		if ok && ones > 0 {
			list = append(list, netip.PrefixFrom(addr.Unmap(), ones))
		}
	}
	return list, nil
}

// allocated is a pool as a network got it, with what gives it back.
type allocated struct {
	info ipamInfo
	free func() error
}

// allocatePool takes a pool, its gateway and its auxiliary addresses, all or none.
func (c *Controller) allocatePool(ctx context.Context, space string, cfg ipamConfig, req ipam.PoolRequest) (_ allocated, err error) {
	var undo undoList
	defer undo.runOn(&err)
	req.Space = space
	id, prefix, err := c.pools.RequestPool(req)
	if err != nil {
		return allocated{}, err
	}
	free := func() error { return c.pools.ReleasePool(id) }
	undo.add(free)
	info := ipamInfo{PoolID: id}
	info.IPAMData.v = ipamData{AddressSpace: space, Pool: prefix.String()}
	var want netip.Addr
	if cfg.Gateway != "" {
		if want, err = netip.ParseAddr(cfg.Gateway); err != nil {
			return allocated{}, fmt.Errorf("parse gateway of %s: %w", prefix, err)
		}
	}
	// Auxiliary addresses first, so that a gateway that is not given does not take one of them.
	if len(cfg.AuxAddresses) > 0 {
		info.IPAMData.v.AuxAddresses = map[string]string{}
	}
	for name, text := range cfg.AuxAddresses {
		addr, err := netip.ParseAddr(text)
		if err == nil && addr != want {
			_, err = c.pools.RequestAddress(ctx, id, addr)
		}
		if err != nil {
			return allocated{}, fmt.Errorf("reserve auxiliary address %s: %w", text, err)
		}
		info.IPAMData.v.AuxAddresses[name] = netip.PrefixFrom(addr, prefix.Bits()).String()
	}
	gateway, err := c.requestGateway(ctx, id, prefix, want)
	if err != nil {
		return allocated{}, fmt.Errorf("reserve gateway of %s: %w", prefix, err)
	}
	info.IPAMData.v.Gateway = gateway.String()
	return allocated{info: info, free: free}, nil
}

// requestGateway takes the address given, or the first of the pool, which may lie outside of its sub-pool.
func (c *Controller) requestGateway(ctx context.Context, id string, pool netip.Prefix, want netip.Addr) (netip.Prefix, error) {
	if want.IsValid() {
		return c.pools.RequestAddress(ctx, id, want)
	}
	return c.pools.RequestAddress(ctx, id, netip.Addr{})
}

// reservePools takes the pools and gateways of a network that was read from the store.
func (c *Controller) reservePools(n *network) {
	for _, i := range append(append([]ipamInfo{}, n.obj.doc.v4()...), n.obj.doc.v6()...) {
		space, prefix, sub, err := ipam.ParsePoolID(i.PoolID)
		if err != nil {
			if prefix = i.pool(); !prefix.IsValid() {
				continue
			}
			space = ipam.LocalDefault
		}
		if _, _, err := c.pools.RequestPool(ipam.PoolRequest{Space: space, Pool: prefix, SubPool: sub}); err != nil {
			c.report("network/"+n.id(), fmt.Sprintf("pool %s: %v", i.PoolID, err))
			continue
		}
		reserved := []string{i.IPAMData.v.Gateway}
		for _, aux := range i.IPAMData.v.AuxAddresses {
			reserved = append(reserved, aux)
		}
		for _, text := range reserved {
			p, err := netip.ParsePrefix(text)
			if err != nil {
				continue // not set
			}
			if _, err := c.pools.RequestAddress(context.Background(), i.PoolID, p.Addr()); err != nil && !errors.Is(err, ipam.ErrAddressInUse) {
				c.report("network/"+n.id(), fmt.Sprintf("address %s: %v", text, err))
			}
		}
	}
}

func (c *Controller) releasePools(n *network) {
	for _, i := range append(append([]ipamInfo{}, n.obj.doc.v4()...), n.obj.doc.v6()...) {
		if err := c.pools.ReleasePool(i.PoolID); err != nil && !errors.Is(err, ipam.ErrUnknownPool) {
			c.report("network/"+n.id(), fmt.Sprintf("release pool %s: %v", i.PoolID, err))
		}
	}
}

// reserveAddresses takes the addresses of an endpoint that was read from the store.
func (c *Controller) reserveAddresses(ctx context.Context, e *endpoint) {
	if e.obj.doc.Iface == nil {
		return
	}
	for _, a := range e.addresses() {
		if _, err := c.pools.RequestAddress(ctx, a.pool, a.addr); err != nil {
			c.report("endpoint/"+e.id(), fmt.Sprintf("address %s: %v", a.addr, err))
		}
	}
}

type pooled struct {
	pool string
	addr netip.Addr
}

// addresses lists what an endpoint has from pools.
func (e *endpoint) addresses() []pooled {
	i := e.obj.doc.Iface
	if i == nil {
		return nil
	}
	var list []pooled
	if p := e.obj.doc.addr4(); p.IsValid() && i.V4PoolID != "" {
		list = append(list, pooled{i.V4PoolID, p.Addr()})
	}
	if p := e.obj.doc.addr6(); p.IsValid() && i.V6PoolID != "" {
		list = append(list, pooled{i.V6PoolID, p.Addr()})
	}
	return list
}

// retireAddresses keeps an endpoint's addresses out of use until the function it returns is called.
func (c *Controller) retireAddresses(e *endpoint) (free func()) {
	var frees []func()
	for _, a := range e.addresses() {
		if f, err := c.pools.Retire(a.pool, a.addr); err == nil { // else the pool is gone, and the address with it
			frees = append(frees, f)
		}
	}
	return func() {
		for _, f := range frees {
			f()
		}
	}
}

// firstFreeBridge returns the gateway's address in the first pool that is free, and leaves the pool free: creating
// the network takes it.
func (c *Controller) firstFreeBridge(avoid []netip.Prefix) (netip.Prefix, error) {
	id, pool, err := c.pools.RequestPool(ipam.PoolRequest{Space: ipam.LocalDefault, Avoid: avoid})
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(pool.Addr().Next(), pool.Bits()), c.pools.ReleasePool(id)
}
