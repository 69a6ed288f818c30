// Package driver is the contract between the network controller and what makes networks in the kernel.
//
// The controller owns names, addresses, records and their order on disk; a driver owns interfaces and rules. A
// driver keeps its own document for each network and endpoint, but never writes it: it fills Record, and the
// controller stores that with its own objects in one transaction. Plan methods touch nothing outside of the
// process; what they decide is in Record, so that the kernel's state can be made from records alone (Sync).
//
// Every method may be called at once for different networks. For one endpoint the controller calls one at a time.
package driver

import (
	"context"
	"net"
	"net/netip"
)

// Driver makes networks of one type.
type Driver interface {
	// Type is the name by which users ask for the driver.
	Type() string
	Traits() Traits

	// PlanNetwork checks the options of a new network and fills Record and Options.
	PlanNetwork(ctx context.Context, n *Network) error
	// CreateNetwork makes a planned network in the kernel. What a failed call left behind is removed by DeleteNetwork.
	CreateNetwork(ctx context.Context, n *Network) error
	// DeleteNetwork removes it and returns when its name and addresses can be used again. A network that is not
	// there is no error.
	DeleteNetwork(ctx context.Context, n *Network) error

	// PlanEndpoint fills MAC and SrcName, unless they are set, and Record.
	PlanEndpoint(ctx context.Context, n *Network, e *Endpoint) error
	// Join makes an endpoint's interface in a namespace.
	Join(ctx context.Context, a Attachment) error
	// Publish lets the published ports of endpoints through, all or none.
	Publish(ctx context.Context, a []Attachment) error
	// Leave undoes Join and Publish as far as others can notice, and returns a channel that is closed when the
	// interfaces are gone, so that their addresses can be used again. Endpoints that never joined are no error.
	Leave(ctx context.Context, a []Attachment) (<-chan struct{}, error)

	// Sync makes the kernel hold exactly these networks and attachments, after a start or a reboot. It removes what
	// the engine made earlier and is not listed. The map says which networks could not be made, by id.
	Sync(ctx context.Context, networks []*Network, attachments []Attachment) (map[string]error, error)
	Close() error
}

// Traits tell the controller what a driver's networks need.
type Traits struct {
	// Single says that there can be only one network of the type, made by the daemon.
	Single bool
	// Addresses says that networks have pools and endpoints have addresses.
	Addresses bool
	// Publishes says that ports of the host can lead to endpoints.
	Publishes bool
	// Host says that containers stay in the host's network namespace.
	Host bool
}

// Network is what a driver is told of a network.
type Network struct {
	ID                     string
	Name                   string
	Options                map[string]string // the driver options as the user gave them
	Internal               bool
	EnableIPv4, EnableIPv6 bool
	IPv4, IPv6             []Subnet
	// RecordKey and Record are the driver's document and the parts of its key; nil when it keeps none.
	RecordKey []string
	Record    []byte
}

// Subnet is a pool and the gateway's address in it.
type Subnet struct {
	Pool    netip.Prefix
	Gateway netip.Prefix
}

// Endpoint is what a driver is told of an endpoint.
type Endpoint struct {
	ID         string
	MAC        net.HardwareAddr // chosen by the user, or filled by PlanEndpoint
	IPv4, IPv6 netip.Prefix
	LinkLocal  []netip.Prefix
	Options    map[string]string
	// SrcName is the name that Docker's records give the container's interface before it is moved.
	SrcName string
	// Ports are bound on the host.
	Ports     []Port
	Exposed   []ProtoPort
	RecordKey []string
	Record    []byte
}

// ProtoPort is a port of a container. Proto is the number of the IP protocol.
type ProtoPort struct {
	Proto uint8
	Port  uint16
}

// Port is a port of the host that leads to one of a container.
type Port struct {
	ProtoPort
	HostIP   netip.Addr
	HostPort uint16
}

// Attachment places an endpoint into a namespace.
type Attachment struct {
	Network  *Network
	Endpoint *Endpoint
	NetNS    string // path; empty when the namespace is the host's
	IfName   string
}
