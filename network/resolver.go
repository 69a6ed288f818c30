package network

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"stated.dev/stated/network/sandbox"
)

const (
	hostResolvConf = "/etc/resolv.conf"
	// systemdResolvConf has the real servers where hostResolvConf points to systemd's own stub.
	systemdResolvConf = "/run/systemd/resolve/resolv.conf"
	systemdStub       = "127.0.0.53"
	embeddedServer    = "127.0.0.11"
)

// fallbackServers are asked where the host has no server that a container can reach. They are Docker's.
func fallbackServers() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("8.8.4.4")}
}

// resolvConf is what a resolver configuration says.
type resolvConf struct {
	servers []netip.Addr
	search  []string
	options []string
}

func parseResolvConf(data []byte) resolvConf {
	var r resolvConf
	for line := range strings.Lines(string(data)) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				r.servers = append(r.servers, a)
			}
		case "search", "domain":
			r.search = slices.Clone(f[1:]) // the last line counts
		case "options":
			r.options = append(r.options, f[1:]...)
		}
	}
	return r
}

// format writes the file that a container gets.
func (r resolvConf) format(comment string) []byte {
	var b bytes.Buffer
	b.WriteString("# Written by stated. " + comment + "\n\n")
	for _, s := range r.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(r.search) > 0 && !(len(r.search) == 1 && r.search[0] == ".") {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.search, " "))
	}
	if len(r.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.options, " "))
	}
	return b.Bytes()
}

// hostConf reads the host's configuration; a host without one has none.
func (c *Controller) hostConf() resolvConf {
	data, err := os.ReadFile(c.opts.ResolvConf)
	if err != nil {
		return resolvConf{}
	}
	r := parseResolvConf(data)
	if c.opts.ResolvConf == hostResolvConf && len(r.servers) == 1 && r.servers[0].String() == systemdStub {
		if data, err := os.ReadFile(systemdResolvConf); err == nil {
			return parseResolvConf(data)
		}
	}
	return r
}

// effective merges what the container, the daemon and the host say; each part comes from the first that has it.
// Own tells that the servers are not the host's.
func (c *Controller) effective(b *box) (r resolvConf, own bool) {
	r = c.hostConf()
	first := func(lists ...[]string) []string {
		for _, l := range lists {
			if len(l) > 0 {
				return l
			}
		}
		return nil
	}
	switch {
	case len(b.req.DNS) > 0:
		r.servers, own = b.req.DNS, true
	case len(c.opts.DNS) > 0:
		r.servers, own = c.opts.DNS, true
	}
	r.search = first(b.req.DNSSearch, c.opts.DNSSearch, r.search)
	r.options = first(b.req.DNSOptions, c.opts.DNSOptions, r.options)
	return r, own
}

// embedded says whether a sandbox's names are served by its own resolver.
func embeddedResolver(list []*endpoint) bool {
	return slices.ContainsFunc(list, func(e *endpoint) bool { return e.network.served() })
}

// Resolver returns what the container's resolv.conf must say and what its resolver must serve.
func (c *Controller) Resolver(_ context.Context, sandboxID string) (sandbox.Resolver, error) {
	b, err := c.box(sandboxID)
	if err != nil {
		return sandbox.Resolver{}, err
	}
	c.mu.Lock()
	list := b.endpoints
	c.mu.Unlock()
	r, own := c.effective(b)
	switch {
	case b.host:
		if !own && len(b.req.DNSSearch)+len(b.req.DNSOptions)+len(c.opts.DNSSearch)+len(c.opts.DNSOptions) == 0 {
			if data, err := os.ReadFile(c.opts.ResolvConf); err == nil {
				return sandbox.Resolver{ResolvConf: data}, nil
			}
		}
		return sandbox.Resolver{ResolvConf: r.format("The container shares the host's network.")}, nil
	case !embeddedResolver(list):
		if !own {
			// A loopback address of the host is another one in the container.
			r.servers = slices.DeleteFunc(slices.Clone(r.servers), netip.Addr.IsLoopback)
			if len(r.servers) == 0 {
				r.servers = fallbackServers()
			}
		}
		return sandbox.Resolver{ResolvConf: r.format("Based on the configuration of the host.")}, nil
	}
	out := sandbox.Resolver{Embedded: true}
	out.Config = sandbox.DNSConfig{NetNS: b.key, Search: r.search}
	for _, e := range list {
		if e.network.served() {
			out.Config.Zones = append(out.Config.Zones, c.zones.path(e.network.id()))
		}
	}
	for _, ext := range c.externalDNS(b, list) {
		out.Config.Upstreams = append(out.Config.Upstreams, sandbox.Upstream{Addr: ext.IPStr, Host: ext.HostLoopback})
	}
	file := r
	file.servers = []netip.Addr{netip.MustParseAddr(embeddedServer)}
	if !slices.ContainsFunc(file.options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		file.options = append(slices.Clone(file.options), "ndots:0")
	}
	out.Config.Options = file.options
	out.ResolvConf = file.format("Names are served by the container's own resolver.")
	return out, nil
}

// externalDNS lists the servers that a sandbox's resolver forwards to: none when it can reach nothing outside.
// The host's own servers are asked from the host.
func (c *Controller) externalDNS(b *box, list []*endpoint) []externalDNS {
	if !embeddedResolver(list) {
		return nil
	}
	if !slices.ContainsFunc(list, func(e *endpoint) bool { return !e.network.obj.doc.Internal }) {
		return nil
	}
	r, own := c.effective(b)
	if len(r.servers) == 0 {
		r.servers = fallbackServers()
	}
	var out []externalDNS
	for _, s := range r.servers {
		out = append(out, externalDNS{IPStr: s.String(), HostLoopback: !own})
	}
	return out
}
