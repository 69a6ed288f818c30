package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// CheckEndpoint says what is wrong with the addresses that a user wants on a network, in Docker's words. A network
// that does not exist has nothing wrong: it may be made before the container starts.
func (c *Controller) CheckEndpoint(ref string, addrs ...netip.Addr) error {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !a.IsValid() })
	if len(addrs) == 0 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.findLocked(ref)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	d := &n.obj.doc
	var wrong []string
	if isPredefined(d.Name) {
		wrong = append(wrong, "user specified IP address is supported on user defined networks only")
	}
	for _, a := range addrs {
		configs := d.IPAMV4Config
		if a.Is6() {
			configs = d.IPAMV6Config
		}
		var pools []netip.Prefix
		if configs != nil {
			for _, cfg := range configs.v {
				if p, err := netip.ParsePrefix(cfg.PreferredPool); err == nil {
					pools = append(pools, p)
				}
			}
		}
		switch {
		case len(pools) == 0 || isPredefined(d.Name):
			wrong = append(wrong, "user specified IP address is supported only when connecting to networks with user configured subnets")
		case !slices.ContainsFunc(pools, func(p netip.Prefix) bool { return p.Contains(a) }):
			wrong = append(wrong, fmt.Sprintf("no configured subnet or ip-range contain the IP address %s", a))
		}
	}
	switch len(wrong) {
	case 0:
		return nil
	case 1:
		return errdefs.ErrInvalidArgument.WithMessage("invalid endpoint settings:\n" + wrong[0])
	}
	return errdefs.ErrInvalidArgument.WithMessage("invalid endpoint settings:\n* " + strings.Join(wrong, "\n* "))
}
