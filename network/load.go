package network

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"stated.dev/stated/network/datastore"
	"stated.dev/stated/network/driver"
	"stated.dev/stated/network/sandbox"
)

// load builds everything from one pass over the store. What does not decode is put into quarantine; what refers
// to something that is not there stays out of the maps, for Restore to drop.
func (c *Controller) load(ctx context.Context) error {
	pairs, err := c.store.List(ctx)
	if err != nil {
		return err
	}
	var endpoints []*endpointObject
	var boxes []*sandboxObject
	records := map[string][]byte{} // of drivers, by key parts joined with slashes
	for _, p := range pairs {
		parts, err := c.store.Keys().Parse(p.Key)
		if err != nil {
			continue // not ours, and not to be touched
		}
		var obj datastore.Object
		switch {
		case parts[0] == "network" && len(parts) == 2:
			n := &networkObject{}
			obj = n
			if err = n.SetValue(p.Value); err == nil {
				c.addLoaded(n)
			}
		case parts[0] == "endpoint" && len(parts) == 3:
			e := &endpointObject{network: parts[1], persist: true}
			obj = e
			if err = e.SetValue(p.Value); err == nil {
				endpoints = append(endpoints, e)
			}
		case parts[0] == "sandbox" && len(parts) == 2:
			s := &sandboxObject{}
			obj = s
			if err = s.SetValue(p.Value); err == nil {
				boxes = append(boxes, s)
			}
		case strings.HasPrefix(parts[0], "bridge") && len(parts) == 2:
			if !json.Valid(p.Value) {
				err = fmt.Errorf("invalid JSON")
			}
			records[parts[0]+"/"+parts[1]] = p.Value
		default:
			continue
		}
		if err != nil {
			c.report(p.Key, err.Error())
			if err := c.store.Quarantine(ctx, p.Key); err != nil {
				return fmt.Errorf("set %s aside: %w", p.Key, err)
			}
			continue
		}
		if obj != nil {
			obj.SetIndex(p.LastIndex)
		}
	}
	for _, n := range c.networks {
		if rec, ok := records["bridge/"+n.id()]; ok {
			n.cfg.RecordKey, n.cfg.Record = []string{"bridge", n.id()}, rec
		}
		c.reservePools(n)
	}
	byID := map[string]*endpoint{}
	for _, o := range endpoints {
		n := c.networks[o.network]
		if n == nil {
			continue
		}
		e := c.loadedEndpoint(n, o, records["bridge-endpoint/"+o.doc.ID])
		n.endpoints[e.id()] = e
		byID[e.id()] = e
		c.reserveAddresses(ctx, e)
	}
	for _, o := range boxes {
		b := newBox(o.doc.ID, o.doc.Cid)
		b.obj = *o
		b.key = c.netnsPath(b.id)
		for _, ext := range o.doc.ExtDNS2 {
			if addr, err := netip.ParseAddr(ext.IPStr); err == nil && !ext.HostLoopback {
				b.req.DNS = append(b.req.DNS, addr) // the container's own; the host's are asked from the host
			}
		}
		for _, ref := range o.doc.Eps {
			e := byID[ref.Eid]
			if e == nil || e.obj.doc.Sandbox != b.id {
				c.report("sandbox/"+b.id, "endpoint "+ref.Eid+" is missing")
				continue
			}
			e.priority = o.doc.EpPriority[ref.Eid]
			if e.network.drv.Traits().Host {
				b.host, b.key = true, c.hostNetnsPath()
			}
			e.att.NetNS = b.key
			b.endpoints = append(b.endpoints, e)
		}
		c.sandboxes[b.id] = b
	}
	return nil
}

func newBox(id, containerID string) *box {
	b := &box{id: id, containerID: containerID, lock: make(chan struct{}, 1)}
	b.obj.doc = sandboxDocument{ID: id, Cid: containerID, Eps: []sandboxEndpoint{}, EpPriority: map[string]int{}}
	return b
}

func (c *Controller) addLoaded(o *networkObject) {
	n := &network{obj: *o, endpoints: map[string]*endpoint{}}
	n.drv = c.drivers[o.doc.NetworkType]
	if n.drv == nil || o.doc.Scope != datastore.ScopeLocal {
		// It stays listed, and can be removed, but nothing can join it.
		n.broken = fmt.Errorf("network %s of driver %q and scope %q cannot be served by this daemon", o.doc.Name, o.doc.NetworkType, o.doc.Scope)
		n.drv = c.drivers["null"]
		c.report("network/"+o.doc.ID, n.broken.Error())
	}
	n.cfg = driverNetwork(&n.obj.doc)
	c.networks[n.id()] = n
}

// driverNetwork tells a driver of a network.
func driverNetwork(d *networkDocument) *driver.Network {
	n := &driver.Network{
		ID: d.ID, Name: d.Name, Options: d.options(), Internal: d.Internal,
		EnableIPv4: d.hasIPv4(), EnableIPv6: d.EnableIPv6,
	}
	for _, i := range d.v4() {
		n.IPv4 = append(n.IPv4, driver.Subnet{Pool: i.pool(), Gateway: i.gateway()})
	}
	for _, i := range d.v6() {
		n.IPv6 = append(n.IPv6, driver.Subnet{Pool: i.pool(), Gateway: i.gateway()})
	}
	return n
}

// loadedEndpoint rebuilds an endpoint from its record.
func (c *Controller) loadedEndpoint(n *network, o *endpointObject, record []byte) *endpoint {
	e := &endpoint{obj: *o, network: n}
	d := &e.obj.doc
	de := &driver.Endpoint{ID: d.ID, MAC: d.mac(), IPv4: d.addr4(), IPv6: d.addr6(), Record: record}
	if record != nil {
		de.RecordKey = []string{"bridge-endpoint", d.ID}
	}
	if d.Iface != nil {
		de.SrcName = d.Iface.SrcName
		e.att.IfName = d.Iface.DstName
	}
	for _, p := range d.ExposedPorts {
		de.Exposed = append(de.Exposed, driver.ProtoPort(p))
	}
	var bound []portBinding
	if raw, ok := d.Generic[labelPortMap]; ok {
		if err := json.Unmarshal(raw, &bound); err != nil {
			c.report("endpoint/"+d.ID, "port map: "+err.Error())
		}
	}
	for _, b := range bound {
		ip, err := netip.ParseAddr(b.HostIP)
		if err != nil {
			ip = netip.IPv4Unspecified()
		}
		if b.HostPort == 0 {
			continue // Docker writes what was asked for here, not what was bound
		}
		de.Ports = append(de.Ports, driver.Port{ProtoPort: driver.ProtoPort{Proto: b.Proto, Port: b.Port}, HostIP: ip, HostPort: b.HostPort})
		e.ports = append(e.ports, sandbox.Port{
			Proto: protoName(b.Proto), HostIP: ip.String(), HostPort: b.HostPort,
			ContainerIP: d.addr4().Addr().String(), ContainerPort: b.Port,
		})
	}
	e.att.Network, e.att.Endpoint = n.cfg, de
	return e
}
