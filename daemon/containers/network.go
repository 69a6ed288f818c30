package containers

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/sandbox"
)

// holder is the sandbox.PortHolder of a container whose shim may still be starting.
type holder struct {
	ready chan struct{} // closed when task or err is set
	once  sync.Once
	task  runtime.Task
	err   error
}

func newHolder() *holder { return &holder{ready: make(chan struct{})} }

func (h *holder) set(task runtime.Task, err error) {
	h.once.Do(func() {
		h.task, h.err = task, err
		close(h.ready)
	})
}

func (h *holder) get(ctx context.Context) (runtime.Task, error) {
	select {
	case <-h.ready:
		return h.task, h.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// HoldPorts implements sandbox.PortHolder.
func (h *holder) HoldPorts(ctx context.Context, endpointID string, ports []sandbox.Port) ([]sandbox.Port, error) {
	task, err := h.get(ctx)
	if err != nil {
		return nil, err
	}
	return task.HoldPorts(ctx, endpointID, ports)
}

// ReleasePorts implements sandbox.PortHolder.
func (h *holder) ReleasePorts(ctx context.Context, endpointID string) error {
	task, err := h.get(ctx)
	if err != nil {
		return err
	}
	return task.ReleasePorts(ctx, endpointID)
}

// attachNetworks makes the container's sandbox with an endpoint on each of its networks, in the network namespace at
// netns, or in a new one. It returns nil for a container that uses another one's.
func (s *Service) attachNetworks(ctx context.Context, r *Record, h sandbox.PortHolder, netns string) (*sandbox.Sandbox, error) {
	if r.HostConfig.NetworkMode.IsContainer() {
		return nil, nil
	}
	req := sandbox.Request{
		ContainerID: r.ID,
		Host:        r.HostConfig.NetworkMode.IsHost(),
		NetNS:       netns,
		DNS:         r.HostConfig.DNS,
		DNSSearch:   r.HostConfig.DNSSearch,
		DNSOptions:  r.HostConfig.DNSOptions,
		Sysctls:     networkSysctls(r.HostConfig.Sysctls),
	}
	var joins []sandbox.JoinRequest
	if !r.Config.NetworkDisabled {
		for _, name := range slices.Sorted(maps.Keys(r.NetworkSettings.Networks)) {
			join, err := s.joinRequest(ctx, r, name, r.NetworkSettings.Networks[name])
			if err != nil {
				return nil, err
			}
			join.Holder = h
			joins = append(joins, join)
		}
	}
	return s.networks.Attach(ctx, req, joins)
}

// networkSysctls picks the sysctls that belong to the network namespace.
func networkSysctls(all map[string]string) map[string]string {
	net := map[string]string{}
	for k, v := range all {
		if strings.HasPrefix(k, "net.") {
			net[k] = v
		}
	}
	return net
}

// joinRequest says what the container wants of one network. Ports are published on the network that the container
// was started with, or on every bridge when that is not known.
func (s *Service) joinRequest(ctx context.Context, r *Record, name string, ep *EndpointSettings) (sandbox.JoinRequest, error) {
	nw, err := s.networks.Network(ctx, cmp.Or(ep.NetworkID, name))
	if errdefs.IsNotFound(err) && ep.NetworkID != "" {
		nw, err = s.networks.Network(ctx, name) // it was made anew under its old name
	}
	if err != nil {
		return sandbox.JoinRequest{}, err
	}
	join := sandbox.JoinRequest{
		ContainerID: r.ID,
		Network:     nw.ID,
		Name:        r.name(),
		Aliases:     ep.Aliases,
		DNSNames:    dnsNames(r, ep, nw),
		MAC:         cmp.Or(ep.DesiredMacAddress, r.Config.MacAddress),
		DriverOpts:  ep.DriverOpts,
		Priority:    ep.GwPriority,
	}
	if ep.IPAMConfig != nil {
		join.IPv4, join.IPv6, join.LinkLocal = ep.IPAMConfig.IPv4Address, ep.IPAMConfig.IPv6Address, ep.IPAMConfig.LinkLocalIPs
	}
	for port := range r.Config.ExposedPorts {
		join.Exposed = append(join.Exposed, port.String())
	}
	slices.Sort(join.Exposed)
	if nw.Driver != "host" && nw.Driver != "null" {
		if join.Ports, err = publishedPorts(r); err != nil {
			return sandbox.JoinRequest{}, err
		}
	}
	return join, nil
}

// dnsNames are the names that resolve to the container on a user-defined network: its own, aliases, short id, host name.
func dnsNames(r *Record, ep *EndpointSettings, nw Network) []string {
	if nw.Default || nw.Driver == "host" || nw.Driver == "null" {
		return nil
	}
	names := append([]string{r.name()}, ep.Aliases...)
	names = append(names, ids.Short(r.ID))
	if h := r.Config.Hostname; h != "" {
		names = append(names, h)
	}
	var unique []string
	for _, n := range names {
		if !slices.Contains(unique, n) {
			unique = append(unique, n)
		}
	}
	return unique
}

// publishedPorts lists the bindings of HostConfig, and with PublishAllPorts a free port for each exposed one.
func publishedPorts(r *Record) ([]sandbox.Port, error) {
	var ports []sandbox.Port
	for _, port := range sortedPorts(r.HostConfig.PortBindings) {
		bindings := r.HostConfig.PortBindings[port]
		if len(bindings) == 0 {
			bindings = []network.PortBinding{{}}
		}
		for _, b := range bindings {
			p := sandbox.Port{Proto: string(port.Proto()), ContainerPort: port.Num()}
			if b.HostIP.IsValid() {
				p.HostIP = b.HostIP.String()
			}
			var err error
			if p.HostPort, p.HostPortEnd, err = hostPorts(b.HostPort); err != nil {
				return nil, err
			}
			ports = append(ports, p)
		}
	}
	if r.HostConfig.PublishAllPorts {
		for port := range r.Config.ExposedPorts {
			if _, bound := r.HostConfig.PortBindings[port]; !bound {
				ports = append(ports, sandbox.Port{Proto: string(port.Proto()), ContainerPort: port.Num()})
			}
		}
	}
	return ports, nil
}

func sortedPorts(m network.PortMap) []network.Port {
	return slices.SortedFunc(maps.Keys(m), func(a, b network.Port) int {
		return cmp.Or(cmp.Compare(a.Num(), b.Num()), cmp.Compare(a.Proto(), b.Proto()))
	})
}

// hostPorts reads "", "8080" or "8080-8090".
func hostPorts(text string) (first, last uint16, err error) {
	if text == "" {
		return 0, 0, nil
	}
	from, to, ranged := strings.Cut(text, "-")
	if !ranged {
		to = from
	}
	a, errA := strconv.ParseUint(from, 10, 16)
	b, errB := strconv.ParseUint(to, 10, 16)
	if errA != nil || errB != nil || a > b {
		return 0, 0, errdefs.ErrInvalidArgument.WithMessage("invalid port specification: " + strconv.Quote(text))
	}
	return uint16(a), uint16(b), nil
}

// recordNetworks writes what a start got into the record.
func (r *Record) recordNetworks(sb *sandbox.Sandbox) {
	if sb == nil {
		return
	}
	ns := r.NetworkSettings
	ns.SandboxID, ns.SandboxKey = sb.ID, sb.Key
	ns.Ports = network.PortMap{}
	for port := range r.Config.ExposedPorts {
		ns.Ports[port] = nil
	}
	for name, got := range sb.Endpoints {
		ep := ns.Networks[name]
		if ep == nil {
			ep = &EndpointSettings{}
			ns.Networks[name] = ep
		}
		ep.record(got)
		addPorts(ns.Ports, got.Ports)
	}
}

// record writes what the network gave into the endpoint's operational fields.
func (ep *EndpointSettings) record(got *sandbox.Endpoint) {
	ep.NetworkID, ep.EndpointID = got.NetworkID, got.ID
	ep.Gateway, ep.IPAddress, ep.IPPrefixLen = got.Gateway, got.IPAddress, got.IPPrefixLen
	ep.IPv6Gateway, ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen = got.IPv6Gateway, got.GlobalIPv6Address, got.GlobalIPv6PrefixLen
	ep.DNSNames = nil
	if len(got.DNSNames) > 0 {
		ep.DNSNames = got.DNSNames
	}
	_ = ep.MacAddress.UnmarshalText([]byte(got.MAC)) // ours, so well-formed, or empty
}

func addPorts(m network.PortMap, ports []sandbox.Port) {
	for _, p := range ports {
		port, err := network.ParsePort(fmt.Sprintf("%d/%s", p.ContainerPort, p.Proto))
		if err != nil {
			continue // the holder gave us a protocol that it was never asked for
		}
		hostIP, err := netip.ParseAddr(p.HostIP)
		if err != nil {
			hostIP = netip.IPv4Unspecified()
		}
		m[port] = append(m[port], network.PortBinding{HostIP: hostIP, HostPort: strconv.Itoa(int(p.HostPort))})
	}
}

// writeNetworkFiles writes hostname, hosts and resolv.conf below the container's directory. They are made anew at
// every start and so not flushed. A resolv.conf that the user edited is kept.
func (s *Service) writeNetworkFiles(ctx context.Context, r *Record, sb *sandbox.Sandbox, files networkFiles) (*sandbox.Resolver, error) {
	if r.HostConfig.NetworkMode.IsContainer() {
		return nil, nil
	}
	write := s.fileWriter(r)
	if !files.hostname.foreign {
		if err := write(r.HostnamePath, []byte(r.Config.Hostname+"\n")); err != nil {
			return nil, err
		}
	}
	if !files.hosts.foreign {
		if err := write(r.HostsPath, hostsFile(r, sb)); err != nil {
			return nil, err
		}
	}
	resolver, err := s.networks.Resolver(ctx, sb.ID)
	if err != nil {
		return nil, err
	}
	if !files.resolvConf.foreign {
		if err := writeResolvConf(r.ResolvConfPath, resolver.ResolvConf, write); err != nil {
			return nil, err
		}
	}
	return &resolver, nil
}

// writeResolvConf replaces the file unless its digest says that the user has edited it.
func writeResolvConf(path string, text []byte, write fileWriter) error {
	hashPath := path + ".hash"
	have, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		if hash, err := os.ReadFile(hashPath); err == nil && len(hash) > 0 && string(hash) != digest.FromBytes(have).String() {
			return nil
		}
		if bytes.Equal(have, text) {
			return nil
		}
	}
	if err := write(path, text); err != nil {
		return err
	}
	return atomicfile.WriteNoSync(hashPath, []byte(digest.FromBytes(text).String()), 0o644)
}

// hostsFile is the text of /etc/hosts, in Docker's form.
func hostsFile(r *Record, sb *sandbox.Sandbox) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n")
	b.WriteString("::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, extra := range r.HostConfig.ExtraHosts {
		host, ip, ok := cutExtraHost(extra)
		if !ok {
			continue
		}
		if ip == "host-gateway" {
			ip = hostGateway(sb)
		}
		if ip != "" {
			fmt.Fprintf(&b, "%s\t%s\n", ip, host)
		}
	}
	if r.HostConfig.NetworkMode.IsHost() {
		return b.Bytes()
	}
	names := r.Config.Hostname
	if r.Config.Domainname != "" {
		names = r.Config.Hostname + "." + r.Config.Domainname + " " + r.Config.Hostname
	}
	for _, name := range slices.Sorted(maps.Keys(sb.Endpoints)) {
		ep := sb.Endpoints[name]
		for _, ip := range []netip.Addr{ep.IPAddress, ep.GlobalIPv6Address} {
			if ip.IsValid() {
				fmt.Fprintf(&b, "%s\t%s\n", ip, names)
			}
		}
	}
	return b.Bytes()
}

// cutExtraHost splits "host:ip" or "host=ip"; an IPv6 address may be in brackets.
func cutExtraHost(s string) (host, ip string, ok bool) {
	i := strings.IndexAny(s, "=:")
	if i <= 0 {
		return "", "", false
	}
	return s[:i], strings.Trim(s[i+1:], "[]"), true
}

// hostGateway is the address at which the container reaches its host.
func hostGateway(sb *sandbox.Sandbox) string {
	for _, name := range slices.Sorted(maps.Keys(sb.Endpoints)) {
		if gw := sb.Endpoints[name].Gateway; gw.IsValid() {
			return gw.String()
		}
	}
	return ""
}

// ConnectRequest asks to connect a container to a network.
type ConnectRequest struct {
	Container string
	Endpoint  *network.EndpointSettings
}

// Connect joins a container to a network: at once when it runs, at its next start otherwise.
func (s *Service) Connect(ctx context.Context, nw Network, req ConnectRequest) error {
	c, err := s.lookup(req.Container)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	rec := c.rec()
	mode := rec.HostConfig.NetworkMode
	switch {
	case rec.State.Dead:
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is marked for removal and cannot be connected or disconnected to the network", rec.ID))
	case mode.IsContainer(), mode.IsHost() && nw.Driver != "host":
		return errdefs.ErrInvalidArgument.WithMessage("container sharing network namespace with another container or host cannot be connected to any other network")
	case !mode.IsHost() && nw.Driver == "host":
		return errdefs.ErrInvalidArgument.WithMessage("cannot connect container to host network - container must be created in host network mode")
	case mode.IsNone() != (nw.Driver == "null"):
		return errdefs.ErrInvalidArgument.WithMessage("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	if err := s.checkEndpoint(nw.ID, req.Endpoint); err != nil {
		return err
	}
	// A container that does not run takes the new settings in place of those it has.
	if ep, connected := rec.NetworkSettings.Networks[nw.Name]; connected && c.live() != nil && (ep.EndpointID != "" || mode.IsHost() || mode.IsNone()) {
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("endpoint with name %s already exists in network %s", rec.name(), nw.Name))
	}
	ep := &EndpointSettings{}
	if req.Endpoint != nil {
		ep.EndpointSettings = *req.Endpoint.Copy()
		if len(req.Endpoint.MacAddress) > 0 {
			ep.DesiredMacAddress = req.Endpoint.MacAddress.String()
		}
	}
	ep.NetworkID = nw.ID
	run := c.live()
	if run == nil {
		_, err := s.commit(ctx, c, func(r *Record) { r.NetworkSettings.set(nw.Name, ep) })
		return err
	}
	join, err := s.joinRequest(ctx, rec, nw.Name, ep)
	if err != nil {
		return err
	}
	join.SandboxID = rec.NetworkSettings.SandboxID
	join.Holder = run.task()
	got, err := s.networks.Join(ctx, join)
	if err != nil {
		return err
	}
	if _, err := s.commit(ctx, c, func(r *Record) {
		ep.record(got)
		r.NetworkSettings.set(nw.Name, ep)
		addPorts(r.NetworkSettings.Ports, got.Ports)
	}); err != nil {
		return errors.Join(err, s.networks.Leave(ctx, join.SandboxID, nw.ID))
	}
	return s.refreshNetworkFiles(ctx, c, run)
}

// Disconnect takes a container off a network.
func (s *Service) Disconnect(ctx context.Context, nw Network, ref string, force Force) error {
	c, err := s.lookup(ref)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	rec := c.rec()
	if rec.HostConfig.NetworkMode.IsHost() && nw.Driver == "host" {
		return errdefs.ErrInvalidArgument.WithMessage("cannot disconnect container from host network - container was created in host network mode")
	}
	ep, connected := rec.NetworkSettings.Networks[nw.Name]
	if !connected {
		return fmt.Errorf("container %s is not connected to network %s", rec.ID, nw.Name)
	}
	run := c.live()
	if run != nil && ep.EndpointID != "" {
		if err := s.networks.Leave(ctx, rec.NetworkSettings.SandboxID, nw.ID); err != nil && !(bool(force) && errdefs.IsNotFound(err)) {
			return err
		}
	}
	if _, err := s.commit(ctx, c, func(r *Record) { delete(r.NetworkSettings.Networks, nw.Name) }); err != nil {
		return err
	}
	if run == nil {
		return nil
	}
	return s.refreshNetworkFiles(ctx, c, run)
}

// Force says to go on where a part is gone already.
type Force bool

func (ns *NetworkSettings) set(name string, ep *EndpointSettings) {
	if ns.Networks == nil {
		ns.Networks = map[string]*EndpointSettings{}
	}
	ns.Networks[name] = ep
}

// refreshNetworkFiles rewrites the files in place (they are bind-mounted, so a rename would not be seen) and tells the
// resolver, after the container's networks have changed.
func (s *Service) refreshNetworkFiles(ctx context.Context, c *Container, run *run) error {
	rec := c.rec()
	sb := sandboxOf(rec)
	if err := os.WriteFile(rec.HostsPath, hostsFile(rec, sb), 0o644); err != nil {
		return fmt.Errorf("rewrite /etc/hosts: %w", err)
	}
	resolver, err := s.networks.Resolver(ctx, sb.ID)
	if err != nil {
		return err
	}
	if err := os.WriteFile(rec.ResolvConfPath, resolver.ResolvConf, 0o644); err != nil {
		return fmt.Errorf("rewrite /etc/resolv.conf: %w", err)
	}
	if err := os.WriteFile(rec.ResolvConfPath+".hash", []byte(digest.FromBytes(resolver.ResolvConf).String()), 0o644); err != nil {
		return fmt.Errorf("rewrite /etc/resolv.conf: %w", err)
	}
	if !resolver.Embedded {
		return nil
	}
	resolver.Config.NetNS = sb.Key
	return run.task().ServeDNS(ctx, resolver.Config)
}

// sandboxOf rebuilds what Attach returned from the record.
func sandboxOf(r *Record) *sandbox.Sandbox {
	sb := &sandbox.Sandbox{ID: r.NetworkSettings.SandboxID, Key: r.NetworkSettings.SandboxKey, Endpoints: map[string]*sandbox.Endpoint{}}
	for name, ep := range r.NetworkSettings.Networks {
		if ep.EndpointID == "" {
			continue
		}
		sb.Endpoints[name] = &sandbox.Endpoint{
			ID: ep.EndpointID, NetworkID: ep.NetworkID, NetworkName: name, Gateway: ep.Gateway, IPAddress: ep.IPAddress,
			GlobalIPv6Address: ep.GlobalIPv6Address, IPv6Gateway: ep.IPv6Gateway,
		}
	}
	return sb
}

// netns returns the path of the network namespace the container's processes live in.
func (s *Service) netns(r *Record, sb *sandbox.Sandbox) (string, error) {
	mode := r.HostConfig.NetworkMode
	switch {
	case mode.IsHost():
		return "", nil
	case mode.IsContainer():
		other, err := s.runningPeer(mode.ConnectedContainer(), "network")
		if err != nil {
			return "", err
		}
		return processNamespace(other.State.Pid, "net"), nil
	case sb == nil:
		return "", nil // the runtime makes it
	}
	return sb.Key, nil
}
