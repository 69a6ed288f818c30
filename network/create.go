package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	api "github.com/moby/moby/api/types/network"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/datastore"
	"stated.dev/stated/network/driver"
	"stated.dev/stated/network/ipam"
)

// predefined are the names that belong to the daemon.
var predefined = []string{api.NetworkBridge, api.NetworkHost, api.NetworkNone, api.NetworkDefault}

func isPredefined(name string) bool { return slices.Contains(predefined, name) }

// Create makes a network. It exists, and is announced, when Create returns.
func (c *Controller) Create(ctx context.Context, req api.CreateRequest) (id, warning string, err error) {
	if isPredefined(req.Name) {
		return "", "", errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("operation is not permitted on predefined %s network ", req.Name))
	}
	n, err := c.create(ctx, req)
	if err != nil {
		return "", "", err
	}
	c.publish(n, events.ActionCreate, nil)
	return n.id(), "", nil
}

func (c *Controller) create(ctx context.Context, req api.CreateRequest) (_ *network, err error) {
	if strings.TrimSpace(req.Name) == "" {
		return nil, errdefs.ErrInvalidArgument.WithMessage("invalid name: name is empty")
	}
	doc, drv, err := c.document(req)
	if err != nil {
		return nil, err
	}
	if err := c.take(req.Name); err != nil {
		return nil, err
	}
	defer c.giveBack(req.Name)

	var undo undoList
	defer undo.runOn(&err)
	if drv.Traits().Addresses && !req.ConfigOnly {
		if err := c.allocatePools(ctx, doc, &undo); err != nil {
			return nil, err
		}
	}
	n := &network{obj: networkObject{doc: *doc}, drv: drv, endpoints: map[string]*endpoint{}}
	n.cfg = driverNetwork(&n.obj.doc)
	if !req.ConfigOnly {
		if err := drv.PlanNetwork(ctx, n.cfg); err != nil {
			return nil, err
		}
		if err := c.checkConflicts(n); err != nil {
			return nil, err
		}
	}
	if err := c.recordNetwork(ctx, n); err != nil {
		return nil, err
	}
	undo.add(func() error { return c.forgetNetwork(context.WithoutCancel(ctx), n) })
	if err := fault.Point("network.create.recorded"); err != nil {
		return nil, err
	}
	if !req.ConfigOnly {
		undo.add(func() error { return drv.DeleteNetwork(context.WithoutCancel(ctx), n.cfg) })
		if err := drv.CreateNetwork(ctx, n.cfg); err != nil {
			return nil, err
		}
	}
	if err := fault.Point("network.create.made"); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.networks[n.id()] = n
	c.mu.Unlock()
	return n, nil
}

// take keeps a name for a network that is being created.
func (c *Controller) take(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	clash := c.taken[name]
	for _, n := range c.networks {
		clash = clash || n.name() == name
	}
	if clash {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("network with name %s already exists", name))
	}
	c.taken[name] = true
	return nil
}

func (c *Controller) giveBack(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.taken, name)
}

// document checks a request and makes the network's record of it, without pools.
func (c *Controller) document(req api.CreateRequest) (*networkDocument, driver.Driver, error) {
	typ := req.Driver
	if typ == "" || typ == api.NetworkDefault {
		typ = "bridge"
	}
	if req.ConfigOnly {
		typ = "null"
	}
	if req.Scope != "" && req.Scope != datastore.ScopeLocal {
		return nil, nil, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("networks of scope %q are not served by this daemon yet", req.Scope))
	}
	if req.Ingress {
		return nil, nil, errdefs.ErrPermissionDenied.WithMessage("ingress networks are not served by this daemon yet")
	}
	switch typ {
	case "overlay", "macvlan", "ipvlan":
		return nil, nil, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("networks of the driver %s are not served by this daemon yet", typ))
	}
	drv := c.drivers[typ]
	if drv == nil {
		return nil, nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("plugin %q not found", typ))
	}
	if drv.Traits().Single && !req.ConfigOnly && !isPredefined(req.Name) {
		return nil, nil, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("only one instance of %q network is allowed", typ))
	}
	options := maps.Clone(req.Options)
	if options == nil {
		options = map[string]string{}
	}
	if req.ConfigFrom == nil {
		for k, v := range c.opts.DefaultNetworkOpts[typ] {
			if _, given := options[k]; !given {
				options[k] = v
			}
		}
	}
	v4, err := family(req.EnableIPv4, options, labelEnableIPv4, true)
	if err != nil {
		return nil, nil, err
	}
	v6, err := family(req.EnableIPv6, options, labelEnableIPv6, false)
	if err != nil {
		return nil, nil, err
	}
	doc := &networkDocument{
		ID: ids.New(), Name: req.Name, Created: time.Now().UTC(), NetworkType: typ, Scope: datastore.ScopeLocal,
		Labels: req.Labels, EnableIPv4: &v4, EnableIPv6: v6, Internal: req.Internal, Attachable: req.Attachable,
		ConfigOnly: req.ConfigOnly, Persist: true, IPAMType: "default", LoadBalancerMode: "NAT",
	}
	if req.IPAM != nil {
		if req.IPAM.Driver != "" && req.IPAM.Driver != "default" {
			return nil, nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("plugin %q not found", req.IPAM.Driver))
		}
		doc.IPAMOptions = req.IPAM.Options
		if err := validateIPAM(req.IPAM.Config, v6); err != nil {
			return nil, nil, err
		}
		setIPAMConfig(doc, req.IPAM.Config)
	}
	if req.ConfigFrom != nil && req.ConfigFrom.Network != "" {
		if err := c.inherit(doc, req, &options); err != nil {
			return nil, nil, err
		}
	}
	if drv.Traits().Addresses && !doc.hasIPv4() && !doc.EnableIPv6 {
		return nil, nil, errdefs.ErrInvalidArgument.WithMessage("IPv4 or IPv6 must be enabled")
	}
	setGeneric(doc, options)
	return doc, drv, nil
}

// family decides whether an address family is on: by the request, else by an option.
func family(asked *bool, options map[string]string, label string, fallback bool) (bool, error) {
	if asked != nil {
		delete(options, label)
		return *asked, nil
	}
	text, ok := options[label]
	if !ok {
		return fallback, nil
	}
	on, err := strconv.ParseBool(text)
	if err != nil {
		return false, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("driver-opt %q is not a valid bool", label))
	}
	return on, nil
}

// inherit takes the configuration of a config-only network.
func (c *Controller) inherit(doc *networkDocument, req api.CreateRequest, options *map[string]string) error {
	if doc.ConfigOnly {
		return errdefs.ErrPermissionDenied.WithMessage("a configuration network cannot depend on another configuration network")
	}
	from, err := c.find(req.ConfigFrom.Network)
	if err != nil {
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("configuration network %q does not exist", req.ConfigFrom.Network))
	}
	src := from.obj.doc
	if !src.ConfigOnly {
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("network %q is not a configuration network", req.ConfigFrom.Network))
	}
	if len(req.Options) > 0 || req.IPAM != nil && (len(req.IPAM.Config) > 0 || len(req.IPAM.Options) > 0) || req.Internal {
		return errdefs.ErrPermissionDenied.WithMessage("user specified configurations are not supported if the network depends on a configuration network")
	}
	doc.ConfigFrom = src.Name
	doc.EnableIPv4, doc.EnableIPv6, doc.Internal = src.EnableIPv4, src.EnableIPv6, src.Internal
	doc.IPAMOptions, doc.IPAMV4Config, doc.IPAMV6Config = src.IPAMOptions, src.IPAMV4Config, src.IPAMV6Config
	doc.Labels = maps.Clone(doc.Labels)
	if doc.Labels == nil {
		doc.Labels = map[string]string{}
	}
	for k, v := range src.Labels {
		if _, own := doc.Labels[k]; !own {
			doc.Labels[k] = v
		}
	}
	*options = src.options()
	return nil
}

func setGeneric(doc *networkDocument, options map[string]string) {
	raw := func(v any) json.RawMessage {
		data, _ := json.Marshal(v) // booleans and maps of strings always encode
		return data
	}
	doc.Generic = map[string]json.RawMessage{labelGeneric: raw(options)}
	if !isPredefined(doc.Name) || doc.NetworkType == "bridge" {
		doc.Generic[labelEnableIPv4] = raw(doc.hasIPv4())
		doc.Generic[labelEnableIPv6] = raw(doc.EnableIPv6)
	}
	if doc.Internal {
		doc.Generic[labelInternal] = raw(true)
	}
}

func setIPAMConfig(doc *networkDocument, configs []api.IPAMConfig) {
	var v4, v6 []ipamConfig
	for _, cfg := range configs {
		one := ipamConfig{PreferredPool: cfg.Subnet.String()}
		if cfg.IPRange.IsValid() {
			one.SubPool = cfg.IPRange.String()
		}
		if cfg.Gateway.IsValid() {
			one.Gateway = cfg.Gateway.String()
		}
		for name, addr := range cfg.AuxAddress {
			if one.AuxAddresses == nil {
				one.AuxAddresses = map[string]string{}
			}
			one.AuxAddresses[name] = addr.String()
		}
		if cfg.Subnet.Addr().Is4() {
			v4 = append(v4, one)
		} else {
			v6 = append(v6, one)
		}
	}
	if v4 != nil {
		doc.IPAMV4Config = &embedded[[]ipamConfig]{v4}
	}
	if v6 != nil {
		doc.IPAMV6Config = &embedded[[]ipamConfig]{v6}
	}
}

// validateIPAM reports everything that is wrong with the subnets, in Docker's words.
func validateIPAM(configs []api.IPAMConfig, v6 bool) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, cfg := range configs {
		s := cfg.Subnet
		if !s.IsValid() {
			bad("invalid subnet %s: invalid CIDR block notation", "")
			continue
		}
		if s.Addr().Is6() && !v6 {
			continue
		}
		if s != s.Masked() {
			bad("invalid subnet %s: it should be %s", s, s.Masked())
		}
		block := "IPv4"
		if s.Addr().Is6() {
			block = "IPv6"
		}
		if r := cfg.IPRange; r.IsValid() {
			switch {
			case r.Addr().Is4() != s.Addr().Is4():
				bad("invalid ip-range %s: parent subnet is an %s block", r, block)
			case r.Bits() < s.Bits():
				bad("invalid ip-range %s: CIDR block is bigger than its parent subnet %s", r, s)
			case r != r.Masked():
				bad("invalid ip-range %s: it should be %s", r, r.Masked())
			case !s.Overlaps(r):
				bad("invalid ip-range %s: parent subnet %s doesn't contain ip-range", r, s)
			}
		}
		within := func(what string, a netip.Addr) {
			switch {
			case a.Is4() != s.Addr().Is4():
				bad("invalid %s %s: parent subnet is an %s block", what, a, block)
			case !s.Contains(a):
				bad("invalid %s %s: parent subnet %s doesn't contain this address", what, a, s)
			}
		}
		if cfg.Gateway.IsValid() {
			within("gateway", cfg.Gateway)
		}
		for _, name := range slices.Sorted(maps.Keys(cfg.AuxAddress)) {
			within("auxiliary address", cfg.AuxAddress[name])
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return errdefs.ErrInvalidArgument.WithMessage("invalid network config:\n" + errors.Join(errs...).Error())
}

// allocatePools takes a pool for each configuration, or one from the defaults for a family that has none.
func (c *Controller) allocatePools(ctx context.Context, doc *networkDocument, undo *undoList) error {
	doc.AddrSpace = ipam.LocalDefault
	var avoid []netip.Prefix
	for _, f := range []struct {
		on      bool
		v6      bool
		configs **embedded[[]ipamConfig]
		infos   **embedded[[]ipamInfo]
	}{
		{doc.hasIPv4(), false, &doc.IPAMV4Config, &doc.IPAMV4Info},
		{doc.EnableIPv6, true, &doc.IPAMV6Config, &doc.IPAMV6Info},
	} {
		if !f.on {
			continue
		}
		if *f.configs == nil {
			*f.configs = &embedded[[]ipamConfig]{[]ipamConfig{{}}}
		}
		*f.infos = &embedded[[]ipamInfo]{}
		for _, cfg := range (*f.configs).v {
			req := ipam.PoolRequest{V6: f.v6}
			if cfg.PreferredPool != "" {
				var err error
				if req.Pool, err = netip.ParsePrefix(cfg.PreferredPool); err != nil {
					return fmt.Errorf("parse subnet: %w", err)
				}
				if cfg.SubPool != "" {
					if req.SubPool, err = netip.ParsePrefix(cfg.SubPool); err != nil {
						return fmt.Errorf("parse ip-range: %w", err)
					}
				}
			} else if avoid == nil {
				var err error
				if avoid, err = hostRoutes(); err != nil {
					return err
				}
			}
			req.Avoid = avoid
			got, err := c.allocatePool(ctx, doc.AddrSpace, cfg, req)
			if err != nil {
				return err
			}
			undo.add(got.free)
			(*f.infos).v = append((*f.infos).v, got.info)
		}
	}
	return nil
}

// checkConflicts refuses a bridge whose interface or addresses another network has.
func (c *Controller) checkConflicts(n *network) error {
	name := n.cfg.Options["com.docker.network.bridge.name"]
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range c.networks {
		if other.drv != n.drv || name == "" {
			continue
		}
		if other.cfg.Options["com.docker.network.bridge.name"] == name || "br-"+ids.Short(other.id()) == name {
			return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("cannot create network %s (%s): conflicts with network %s (%s): networks have same bridge name",
				n.id(), name, other.id(), name))
		}
	}
	return nil
}

// recordNetwork writes the network and what belongs to it in one transaction.
func (c *Controller) recordNetwork(ctx context.Context, n *network) error {
	err := c.store.Update(ctx, func(tx *datastore.Tx) {
		if n.cfg.Record != nil {
			tx.PutKey(n.cfg.Record, n.cfg.RecordKey...)
		}
		tx.PutKey(countValue, "endpoint_count", n.id())
		tx.PutAtomic(&n.obj)
	})
	if err != nil {
		return fmt.Errorf("record network %s: %w", n.name(), err)
	}
	return nil
}

func (c *Controller) forgetNetwork(ctx context.Context, n *network) error {
	err := c.store.Update(ctx, func(tx *datastore.Tx) {
		if n.cfg.RecordKey != nil {
			tx.DeleteKey(n.cfg.RecordKey...)
		}
		tx.DeleteKey("endpoint_count", n.id())
		tx.Delete(&n.obj)
	})
	if err != nil {
		return fmt.Errorf("delete record of network %s: %w", n.name(), err)
	}
	return nil
}

// publish tells clients what happened to a network.
func (c *Controller) publish(n *network, action events.Action, more map[string]string) {
	if c.opts.Events == nil {
		return
	}
	attrs := map[string]string{"name": n.name(), "type": n.obj.doc.NetworkType}
	maps.Copy(attrs, more)
	c.opts.Events.Publish(events.NetworkEventType, action, n.id(), attrs)
}
