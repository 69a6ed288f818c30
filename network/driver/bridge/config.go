package bridge

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"stated.dev/stated/network/driver"
	"stated.dev/stated/network/nft"
)

// Options of bridge networks.
const (
	OptName          = "com.docker.network.bridge.name"
	OptDefault       = "com.docker.network.bridge.default_bridge"
	OptICC           = "com.docker.network.bridge.enable_icc"
	OptMasquerade    = "com.docker.network.bridge.enable_ip_masquerade"
	OptBindingIP     = "com.docker.network.bridge.host_binding_ipv4"
	OptGatewayMode4  = "com.docker.network.bridge.gateway_mode_ipv4"
	OptGatewayMode6  = "com.docker.network.bridge.gateway_mode_ipv6"
	OptInhibit4      = "com.docker.network.bridge.inhibit_ipv4"
	OptTrustedIfs    = "com.docker.network.bridge.trusted_host_interfaces"
	OptMTU           = "com.docker.network.driver.mtu"
	OptIfPrefix      = "com.docker.network.container_iface_prefix"
	OptHostIPv4      = "com.docker.network.host_ipv4"
	OptHostIPv6      = "com.docker.network.host_ipv6"
	defaultIfPrefix  = "eth"
	maxInterfaceName = 15
)

// Who made the bridge's interface.
const (
	creatorUnknown = iota
	creatorUs
	creatorUser
)

// document is the record of a bridge network. The names and the order of the keys are Docker's.
type document struct {
	AddressIPv4           text
	AddressIPv6           text `json:",omitempty"`
	BridgeIfaceCreator    int
	BridgeName            string
	ContainerIfacePrefix  string
	DefaultBindingIP      text
	DefaultBridge         bool
	DefaultGatewayIPv4    text
	DefaultGatewayIPv6    text
	EnableICC             bool
	EnableIPMasquerade    bool
	EnableIPv4            *bool `json:",omitempty"`
	EnableIPv6            bool
	GwModeIPv4            string
	GwModeIPv6            string
	HostIP                text
	HostIPv6              text
	ID                    string
	InhibitIPv4           bool
	Internal              bool
	Mtu                   int
	TrustedHostInterfaces string
}

// text is an address or prefix that is written as <nil> when it is not set.
type text string

// MarshalJSON implements json.Marshaler.
func (t text) MarshalJSON() ([]byte, error) {
	if t == "" {
		t = "<nil>"
	}
	return json.Marshal(string(t))
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *text) UnmarshalJSON(data []byte) error {
	var s *string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	*t = ""
	if s != nil && *s != "<nil>" {
		*t = text(*s)
	}
	return nil
}

func (t text) addr() netip.Addr {
	a, _ := netip.ParseAddr(string(t)) // what is no address counts as not set
	return a.Unmap()
}

// parseOptions makes the document of a new network.
func parseOptions(n *driver.Network) (*document, error) {
	enable4 := n.EnableIPv4
	d := &document{
		ID: n.ID, EnableICC: true, EnableIPMasquerade: true, EnableIPv4: &enable4, EnableIPv6: n.EnableIPv6,
		Internal: n.Internal, BridgeIfaceCreator: creatorUnknown,
	}
	for key, value := range n.Options {
		var err error
		switch key {
		case OptName:
			d.BridgeName = value
		case OptDefault:
			d.DefaultBridge, err = boolean(key, value)
		case OptICC:
			d.EnableICC, err = boolean(key, value)
		case OptMasquerade:
			d.EnableIPMasquerade, err = boolean(key, value)
		case OptInhibit4:
			d.InhibitIPv4, err = boolean(key, value)
		case OptMTU:
			d.Mtu, err = strconv.Atoi(value)
			if err != nil {
				err = invalid(key, value, err.Error())
			} else if d.Mtu < 0 {
				err = errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid MTU number: %d", d.Mtu))
			}
		case OptBindingIP:
			d.DefaultBindingIP, err = address(key, value)
		case OptHostIPv4:
			d.HostIP, err = address(key, value)
		case OptHostIPv6:
			d.HostIPv6, err = address(key, value)
		case OptGatewayMode4:
			d.GwModeIPv4, err = gatewayMode(key, value)
		case OptGatewayMode6:
			d.GwModeIPv6, err = gatewayMode(key, value)
		case OptTrustedIfs:
			d.TrustedHostInterfaces = value
		case OptIfPrefix:
			d.ContainerIfacePrefix = value
		}
		if err != nil {
			return nil, err
		}
	}
	if d.BridgeName == "" {
		d.BridgeName = "br-" + n.ID[:12]
	}
	if len(d.BridgeName) > maxInterfaceName || strings.ContainsAny(d.BridgeName, "/ \t\n:") || d.BridgeName == "." || d.BridgeName == ".." {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid bridge name %q", d.BridgeName))
	}
	if (d.GwModeIPv4 == modeIsolated || d.GwModeIPv6 == modeIsolated) && !d.Internal {
		return nil, errdefs.ErrInvalidArgument.WithMessage("gateway mode 'isolated' can only be used for an internal network")
	}
	if len(n.IPv4) > 0 {
		d.AddressIPv4 = text(n.IPv4[0].Gateway.String())
	}
	if len(n.IPv6) > 0 {
		d.AddressIPv6 = text(n.IPv6[0].Gateway.String())
	}
	if d.DefaultBridge && len(n.IPv4) > 0 && n.Options[OptInhibit4] == "true" {
		d.DefaultGatewayIPv4 = text(n.IPv4[0].Gateway.Addr().String())
	}
	return d, nil
}

// Gateway modes.
const (
	modeNAT         = "nat"
	modeUnprotected = "nat-unprotected"
	modeRouted      = "routed"
	modeIsolated    = "isolated"
)

func gatewayMode(key, value string) (string, error) {
	switch value {
	case modeNAT, modeUnprotected, modeRouted, modeIsolated:
		return value, nil
	}
	return "", invalid(key, value, "unknown gateway mode")
}

func boolean(key, value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil {
		return false, invalid(key, value, err.Error())
	}
	return b, nil
}

func address(key, value string) (text, error) {
	if _, err := netip.ParseAddr(value); err != nil {
		return "", invalid(key, value, "nil ip")
	}
	return text(value), nil
}

func invalid(key, value, why string) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("failed to parse %s value: %v (%s)", key, value, why))
}

// has4 is EnableIPv4, which old documents do not have.
func (d *document) has4() bool { return d.EnableIPv4 == nil || *d.EnableIPv4 }

// mode translates the gateway modes; the stricter of two families wins.
func (d *document) mode() nft.Mode {
	for _, m := range []string{d.GwModeIPv4, d.GwModeIPv6} {
		switch m {
		case modeUnprotected:
			return nft.ModeUnprotected
		case modeRouted:
			return nft.ModeRouted
		}
	}
	return nft.ModeNAT
}

func (d *document) routed(v6 bool) bool {
	if v6 {
		return d.GwModeIPv6 == modeRouted
	}
	return d.GwModeIPv4 == modeRouted
}

// rules returns the bridge's entries in the table.
func (d *document) rules() []nft.Element {
	var trusted []string
	if d.TrustedHostInterfaces != "" {
		trusted = strings.Split(d.TrustedHostInterfaces, ":")
	}
	return nft.Bridge{
		Name: d.BridgeName, Internal: d.Internal, ICC: d.EnableICC, Mode: d.mode(), TrustedIfs: trusted,
		Masq4: d.EnableIPMasquerade && !d.routed(false), Masq6: d.EnableIPMasquerade && !d.routed(true),
	}.Elements()
}

func (d *document) ifPrefix() string {
	if d.ContainerIfacePrefix != "" {
		return d.ContainerIfacePrefix
	}
	return defaultIfPrefix
}

// Records of endpoints.

type endpointDocument struct {
	Addr               text `json:",omitempty"`
	Addrv6             text `json:",omitempty"`
	ContainerConfig    *struct{}
	ExternalConnConfig *externalConfig
	MacAddress         string
	PortMapping        []portDocument
	SrcName            string
	ID                 string `json:"id"`
	NetworkID          string `json:"nid"`
}

type externalConfig struct {
	PortBindings []portDocument
	ExposedPorts []exposedDocument
	NoProxy6To4  bool
}

type exposedDocument struct {
	Proto uint8
	Port  uint16
}

type portDocument struct {
	Proto       uint8
	IP          string
	Port        uint16
	HostIP      string
	HostPort    uint16
	HostPortEnd uint16
}

func newEndpointDocument(n *driver.Network, e *driver.Endpoint) *endpointDocument {
	d := &endpointDocument{ID: e.ID, NetworkID: n.ID, MacAddress: e.MAC.String(), SrcName: e.SrcName}
	if e.IPv4.IsValid() {
		d.Addr = text(e.IPv4.String())
	}
	if e.IPv6.IsValid() {
		d.Addrv6 = text(e.IPv6.String())
	}
	if len(e.Ports)+len(e.Exposed) > 0 {
		d.ExternalConnConfig = &externalConfig{}
		for _, p := range e.Exposed {
			d.ExternalConnConfig.ExposedPorts = append(d.ExternalConnConfig.ExposedPorts, exposedDocument(p))
		}
	}
	for _, p := range e.Ports {
		doc := portDocument{Proto: p.Proto, Port: p.Port, HostIP: p.HostIP.String(), HostPort: p.HostPort, HostPortEnd: p.HostPort}
		d.ExternalConnConfig.PortBindings = append(d.ExternalConnConfig.PortBindings, doc)
		doc.IP = targetIP(e, p).String()
		d.PortMapping = append(d.PortMapping, doc)
	}
	return d
}

// randomMAC returns a locally administered unicast address.
func randomMAC(read func([]byte)) net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	read(mac)
	mac[0] = mac[0]&^1 | 2
	return mac
}

// targetIP is the container's address that a port of the host leads to.
func targetIP(e *driver.Endpoint, p driver.Port) netip.Addr {
	if p.HostIP.Is6() && e.IPv6.IsValid() || !e.IPv4.IsValid() {
		return e.IPv6.Addr()
	}
	return e.IPv4.Addr()
}
