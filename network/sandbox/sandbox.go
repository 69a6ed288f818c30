// Package sandbox holds the words between a container and its networks: what a container asks for when it joins
// them and what it got. The network controller and the container service both speak them; neither imports the other.
package sandbox

import (
	"context"
	"net/netip"
)

// Request asks for a network sandbox: a network namespace and what belongs to it.
type Request struct {
	ContainerID string
	// Host says to use the host's network namespace: no namespace is made.
	Host bool
	// NetNS is the path of a network namespace to use, such as that of a process; empty: a new one is made.
	NetNS string
	// DNS, search domains and options that the user set on the container; they win over the host's.
	DNS        []netip.Addr
	DNSSearch  []string
	DNSOptions []string
	Sysctls    map[string]string
}

// Sandbox is what was made.
type Sandbox struct {
	ID  string // 64 hex
	Key string // path of the network namespace, <exec root>/netns/<12 hex>; "/var/run/docker/netns/default" style for host
	// Endpoints by network name.
	Endpoints map[string]*Endpoint
}

// JoinRequest asks for an endpoint on one network and joins it to a sandbox.
type JoinRequest struct {
	SandboxID   string
	ContainerID string
	Network     string // name or id
	Name        string // the container's name, without slash
	Aliases     []string
	DNSNames    []string // every name that resolves to this endpoint, first the one for reverse look-ups
	IPv4, IPv6  netip.Addr
	LinkLocal   []netip.Addr
	MAC         string
	DriverOpts  map[string]string
	Priority    int // of the default gateway: the highest wins
	Ports       []Port
	Exposed     []string // "80/tcp"
	// Holder binds the host ports before rules point at them. Nil when no port is published.
	Holder PortHolder
}

// PortHolder binds host ports; the container's Task is one.
type PortHolder interface {
	HoldPorts(ctx context.Context, endpointID string, ports []Port) ([]Port, error)
	ReleasePorts(ctx context.Context, endpointID string) error
}

// Endpoint is a container's place on one network.
type Endpoint struct {
	ID                  string
	NetworkID           string
	NetworkName         string
	Gateway             netip.Addr
	IPAddress           netip.Addr
	IPPrefixLen         int
	IPv6Gateway         netip.Addr
	GlobalIPv6Address   netip.Addr
	GlobalIPv6PrefixLen int
	MAC                 string
	DNSNames            []string
	Ports               []Port // as bound
	InterfaceName       string // inside the namespace, e.g. eth0
}

// Resolver is what the container's resolv.conf must say and its resolver must serve.
type Resolver struct {
	// Embedded says that resolv.conf points to 127.0.0.11 and DNS must be served in the namespace with Config.
	Embedded   bool
	Config     DNSConfig
	ResolvConf []byte // full text of the file
}

// Port is one published port.
type Port struct {
	Proto         string // "tcp", "udp" or "sctp"
	HostIP        string // address to bind; "" means 0.0.0.0
	HostPort      uint16 // 0: any free port
	HostPortEnd   uint16 // last port of a range to choose from; 0 or HostPort: no range
	ContainerIP   string
	ContainerPort uint16
}

// DNSConfig tells the shim's resolver what to serve.
type DNSConfig struct {
	NetNS     string   // path of the network namespace it listens in
	Zones     []string // zone files (package network/dns), watched and re-read when they are replaced
	Upstreams []Upstream
	Search    []string
	Options   []string
}

// Upstream is an external resolver.
type Upstream struct {
	Addr string // IP address, with ":port" when it is not 53
	// Host says to ask from the host's network namespace: for loopback addresses of the host.
	Host bool
}
