package network

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/network"

	"stated.dev/stated/internal/filters"
)

// List returns the networks that match, in the order of their names, without their containers.
func (c *Controller) List(_ context.Context, f filters.Args) ([]api.Inspect, error) {
	if err := f.Validate("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, err
	}
	dangling, err := f.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	for _, typ := range f["type"] {
		if typ != "custom" && typ != "builtin" {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid filter 'type=%s'", typ))
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	list := []api.Inspect{}
	for _, n := range c.sortedLocked() {
		d := n.obj.doc
		builtin := isPredefined(d.Name)
		unused := len(n.endpoints)+n.joining == 0 && !builtin
		if n.deleting || f.Has("dangling") && unused != dangling ||
			!f.Match("driver", d.NetworkType) || !f.Match("scope", d.Scope) || !f.MatchLabels("label", d.Labels) ||
			!f.MatchAny("name", matches(d.Name)) || !f.MatchAny("id", matches(d.ID)) ||
			!f.MatchAny("type", func(want string) bool { return (want == "builtin") == builtin }) {
			continue
		}
		list = append(list, n.describe())
	}
	return list, nil
}

// matches says whether a filter, a regular expression or a part, fits value.
func matches(value string) func(want string) bool {
	return func(want string) bool {
		re, err := regexp.Compile(want)
		if err != nil {
			return strings.Contains(value, want)
		}
		return re.MatchString(value)
	}
}

// InspectRequest refines Inspect. Verbose adds nothing for networks of one host. It is an alias so that the API's
// routes need not know this package.
type InspectRequest = struct {
	Verbose bool
	Scope   string
}

// Inspect returns one network with the containers that are connected to it and run.
func (c *Controller) Inspect(_ context.Context, ref string, req InspectRequest) (api.Inspect, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.findLocked(ref)
	if err != nil {
		return api.Inspect{}, err
	}
	if req.Scope != "" && req.Scope != n.obj.doc.Scope {
		return api.Inspect{}, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s not found", ref))
	}
	out := n.describe()
	for _, e := range n.endpoints {
		key := "ep-" + e.id()
		if b := c.sandboxes[e.obj.doc.Sandbox]; b != nil {
			key = b.containerID
		}
		res := api.EndpointResource{Name: e.obj.doc.Name, EndpointID: e.id(), IPv4Address: e.obj.doc.addr4(), IPv6Address: e.obj.doc.addr6()}
		res.MacAddress = api.HardwareAddr(e.obj.doc.mac())
		out.Containers[key] = res
	}
	return out, nil
}

func (n *network) describe() api.Inspect {
	d := n.obj.doc
	out := api.Inspect{Containers: map[string]api.EndpointResource{}}
	out.Network = api.Network{
		Name: d.Name, ID: d.ID, Created: d.Created, Scope: d.Scope, Driver: d.NetworkType,
		EnableIPv4: d.hasIPv4(), EnableIPv6: d.EnableIPv6, Internal: d.Internal, Attachable: d.Attachable, Ingress: d.Ingress,
		ConfigFrom: api.ConfigReference{Network: d.ConfigFrom}, ConfigOnly: d.ConfigOnly,
		Options: d.options(), Labels: d.Labels,
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	out.IPAM = api.IPAM{Driver: d.IPAMType, Options: d.IPAMOptions}
	for _, family := range []struct {
		configs *embedded[[]ipamConfig]
		infos   []ipamInfo
	}{{d.IPAMV4Config, d.v4()}, {d.IPAMV6Config, d.v6()}} {
		out.IPAM.Config = append(out.IPAM.Config, describePools(family.configs, family.infos)...)
	}
	return out
}

// describePools shows what the user configured, or what was allocated when that was nothing.
func describePools(configs *embedded[[]ipamConfig], infos []ipamInfo) []api.IPAMConfig {
	var list []api.IPAMConfig
	if configs != nil {
		for _, cfg := range configs.v {
			subnet, err := netip.ParsePrefix(cfg.PreferredPool)
			if err != nil {
				continue // none was asked for
			}
			one := api.IPAMConfig{Subnet: subnet}
			one.IPRange, _ = netip.ParsePrefix(cfg.SubPool) // what is not set stays the zero value
			one.Gateway, _ = netip.ParseAddr(cfg.Gateway)
			for name, text := range cfg.AuxAddresses {
				if addr, err := netip.ParseAddr(text); err == nil {
					if one.AuxAddress == nil {
						one.AuxAddress = map[string]netip.Addr{}
					}
					one.AuxAddress[name] = addr
				}
			}
			list = append(list, one)
		}
	}
	if len(list) > 0 {
		return list
	}
	for _, i := range infos {
		list = append(list, api.IPAMConfig{Subnet: i.pool(), Gateway: i.gateway().Addr()})
	}
	return list
}
