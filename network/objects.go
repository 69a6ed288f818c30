package network

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"time"

	"stated.dev/stated/network/datastore"
)

// The objects below are Docker's documents. Keys that we do not know are kept when an object is written again.

// Labels under which drivers find their options in "generic".
const (
	labelGeneric      = "com.docker.network.generic"
	labelEnableIPv4   = "com.docker.network.enable_ipv4"
	labelEnableIPv6   = "com.docker.network.enable_ipv6"
	labelInternal     = "com.docker.network.internal"
	labelExposedPorts = "com.docker.network.endpoint.exposedports"
	labelPortMap      = "com.docker.network.portmap"
	labelMAC          = "com.docker.network.endpoint.macaddress"
)

// unknown holds the keys of a document that its struct does not have.
type unknown map[string]json.RawMessage

// decode reads data into doc, a pointer to a struct, and returns what doc has no field for.
func decode(data []byte, doc any) (unknown, error) {
	if err := json.Unmarshal(data, doc); err != nil {
		return nil, err
	}
	var rest unknown
	if err := json.Unmarshal(data, &rest); err != nil {
		return nil, err
	}
	t := reflect.TypeOf(doc).Elem()
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" {
			name = t.Field(i).Name
		}
		delete(rest, name)
	}
	if len(rest) == 0 {
		return nil, nil
	}
	return rest, nil
}

// encode writes doc with the keys of rest beside its own.
func encode(doc any, rest unknown) ([]byte, error) {
	data, err := json.Marshal(doc)
	if err != nil || len(rest) == 0 {
		return data, err
	}
	all := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, err
	}
	for k, v := range rest {
		if _, ours := all[k]; !ours {
			all[k] = v
		}
	}
	return json.Marshal(all)
}

// nilText is a string that is written as <nil> when it is empty, and read as empty from that.
type nilText string

// MarshalJSON implements json.Marshaler.
func (t nilText) MarshalJSON() ([]byte, error) {
	if t == "" {
		t = "<nil>"
	}
	return json.Marshal(string(t))
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *nilText) UnmarshalJSON(data []byte) error {
	var s *string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	*t = ""
	if s != nil && *s != "<nil>" {
		*t = nilText(*s)
	}
	return nil
}

// embedded is a document that is written as a string holding JSON.
type embedded[T any] struct{ v T }

// MarshalJSON implements json.Marshaler.
func (e embedded[T]) MarshalJSON() ([]byte, error) {
	inner, err := json.Marshal(e.v)
	if err != nil {
		return nil, err
	}
	return json.Marshal(string(inner))
}

// UnmarshalJSON implements json.Unmarshaler.
func (e *embedded[T]) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	if s == "" {
		return nil
	}
	return json.Unmarshal([]byte(s), &e.v)
}

type networkDocument struct {
	AddrSpace        string                     `json:"addrSpace"`
	Attachable       bool                       `json:"attachable"`
	ConfigFrom       string                     `json:"configFrom"`
	ConfigOnly       bool                       `json:"configOnly"`
	Created          time.Time                  `json:"created"`
	EnableIPv4       *bool                      `json:"enableIPv4,omitempty"`
	EnableIPv6       bool                       `json:"enableIPv6"`
	Generic          map[string]json.RawMessage `json:"generic,omitempty"`
	ID               string                     `json:"id"`
	InDelete         bool                       `json:"inDelete"`
	Ingress          bool                       `json:"ingress"`
	Internal         bool                       `json:"internal"`
	IPAMOptions      map[string]string          `json:"ipamOptions"`
	IPAMType         string                     `json:"ipamType"`
	IPAMV4Config     *embedded[[]ipamConfig]    `json:"ipamV4Config,omitempty"`
	IPAMV4Info       *embedded[[]ipamInfo]      `json:"ipamV4Info,omitempty"`
	IPAMV6Config     *embedded[[]ipamConfig]    `json:"ipamV6Config,omitempty"`
	IPAMV6Info       *embedded[[]ipamInfo]      `json:"ipamV6Info,omitempty"`
	Labels           map[string]string          `json:"labels"`
	LoadBalancerIP   string                     `json:"loadBalancerIP"`
	LoadBalancerMode string                     `json:"loadBalancerMode"`
	Name             string                     `json:"name"`
	NetworkType      string                     `json:"networkType"`
	Persist          bool                       `json:"persist"`
	Scope            string                     `json:"scope"`
	SkipGwAllocIPv4  bool                       `json:"skipGwAllocIPv4"`
	SkipGwAllocIPv6  bool                       `json:"skipGwAllocIPv6"`
}

// ipamConfig is what the user asked of one pool.
type ipamConfig struct {
	PreferredPool string
	SubPool       string
	Gateway       string
	AuxAddresses  map[string]string
}

// ipamInfo is what was allocated.
type ipamInfo struct {
	IPAMData embedded[ipamData]
	Meta     map[string]string `json:",omitempty"`
	PoolID   string
}

type ipamData struct {
	AddressSpace string
	AuxAddresses map[string]string `json:",omitempty"`
	Gateway      string            `json:",omitempty"`
	Pool         string            `json:",omitempty"`
}

func (i ipamInfo) pool() netip.Prefix {
	p, _ := netip.ParsePrefix(i.IPAMData.v.Pool) // an unset pool is the zero prefix
	return p
}

func (i ipamInfo) gateway() netip.Prefix {
	p, _ := netip.ParsePrefix(i.IPAMData.v.Gateway) // an unset gateway is the zero prefix
	return p
}

func (d *networkDocument) v4() []ipamInfo {
	if d.IPAMV4Info == nil {
		return nil
	}
	return d.IPAMV4Info.v
}

func (d *networkDocument) v6() []ipamInfo {
	if d.IPAMV6Info == nil {
		return nil
	}
	return d.IPAMV6Info.v
}

func (d *networkDocument) hasIPv4() bool { return d.EnableIPv4 == nil || *d.EnableIPv4 }

// options returns the driver options.
func (d *networkDocument) options() map[string]string {
	opts := map[string]string{}
	var loose map[string]any
	if json.Unmarshal(d.Generic[labelGeneric], &loose) == nil { // an odd map counts as empty
		for k, v := range loose {
			opts[k] = fmt.Sprint(v)
		}
	}
	return opts
}

type networkObject struct {
	datastore.Meta
	doc  networkDocument
	rest unknown
}

func (o *networkObject) Key() []string          { return []string{"network", o.doc.ID} }
func (o *networkObject) KeyPrefix() []string    { return []string{"network"} }
func (o *networkObject) Value() ([]byte, error) { return encode(o.doc, o.rest) }
func (o *networkObject) Skip() bool             { return !o.doc.Persist }

func (o *networkObject) SetValue(data []byte) (err error) {
	o.doc = networkDocument{}
	if o.rest, err = decode(data, &o.doc); err != nil {
		return err
	}
	if o.doc.Scope == "" {
		o.doc.Scope = datastore.ScopeLocal
	}
	if o.doc.ID == "" || o.doc.Name == "" {
		return fmt.Errorf("network without id or name")
	}
	return nil
}

type endpointDocument struct {
	DisableIPv6       bool                       `json:"disableIPv6"`
	DisableResolution bool                       `json:"disableResolution"`
	DNSNames          []string                   `json:"dnsNames"`
	Iface             *ifaceDocument             `json:"ep_iface,omitempty"`
	ExposedPorts      []protoPort                `json:"exposed_ports"`
	Generic           map[string]json.RawMessage `json:"generic"`
	ID                string                     `json:"id"`
	IngressPorts      []json.RawMessage          `json:"ingressPorts"`
	JoinInfo          *joinDocument              `json:"joinInfo"`
	LoadBalancer      bool                       `json:"loadBalancer"`
	Name              string                     `json:"name"`
	Sandbox           string                     `json:"sandbox"`
	SvcAliases        []string                   `json:"svcAliases"`
	SvcID             string                     `json:"svcID"`
	SvcName           string                     `json:"svcName"`
	VirtualIP         nilText                    `json:"virtualIP"`
}

type ifaceDocument struct {
	Addr               nilText           `json:"addr,omitempty"`
	AddrV6             nilText           `json:"addrv6,omitempty"`
	CreatedInContainer bool              `json:"createdInContainer"`
	DstName            string            `json:"dstName"`
	DstPrefix          string            `json:"dstPrefix"`
	LinkLocal          []string          `json:"llAddrs,omitempty"`
	MAC                string            `json:"mac,omitempty"`
	Routes             []json.RawMessage `json:"routes"`
	SrcName            string            `json:"srcName"`
	V4PoolID           string            `json:"v4PoolID"`
	V6PoolID           string            `json:"v6PoolID"`
}

type joinDocument struct {
	StaticRoutes          []json.RawMessage
	DisableGatewayService bool    `json:"disableGatewayService"`
	Gateway               nilText `json:"gw,omitempty"`
	Gateway6              nilText `json:"gw6,omitempty"`
}

type protoPort struct {
	Proto uint8
	Port  uint16
}

type portBinding struct {
	Proto       uint8
	IP          string
	Port        uint16
	HostIP      string
	HostPort    uint16
	HostPortEnd uint16
}

type endpointObject struct {
	datastore.Meta
	network string
	persist bool
	doc     endpointDocument
	rest    unknown
}

func (o *endpointObject) Key() []string          { return []string{"endpoint", o.network, o.doc.ID} }
func (o *endpointObject) KeyPrefix() []string    { return []string{"endpoint", o.network} }
func (o *endpointObject) Value() ([]byte, error) { return encode(o.doc, o.rest) }
func (o *endpointObject) Skip() bool             { return !o.persist }

// legacy are keys of endpoints that Docker up to 25 wrote.
type legacyNames struct {
	Anonymous bool     `json:"anonymous"`
	Aliases   []string `json:"myAliases"`
}

func (o *endpointObject) SetValue(data []byte) (err error) {
	o.doc = endpointDocument{}
	if o.rest, err = decode(data, &o.doc); err != nil {
		return err
	}
	if o.doc.ID == "" {
		return fmt.Errorf("endpoint without id")
	}
	if o.doc.DNSNames == nil {
		var old legacyNames
		if err := json.Unmarshal(data, &old); err != nil {
			return err
		}
		if !old.Anonymous {
			o.doc.DNSNames = append(o.doc.DNSNames, o.doc.Name)
		}
		o.doc.DNSNames = append(o.doc.DNSNames, old.Aliases...)
	}
	for _, old := range []string{"anonymous", "myAliases", "locator"} {
		delete(o.rest, old)
	}
	return nil
}

func (d *endpointDocument) mac() net.HardwareAddr {
	if d.Iface == nil {
		return nil
	}
	mac, _ := net.ParseMAC(d.Iface.MAC) // an unset address is nil
	return mac
}

func (d *endpointDocument) addr4() netip.Prefix {
	if d.Iface == nil {
		return netip.Prefix{}
	}
	p, _ := netip.ParsePrefix(string(d.Iface.Addr)) // an unset address is the zero prefix
	return p
}

func (d *endpointDocument) addr6() netip.Prefix {
	if d.Iface == nil {
		return netip.Prefix{}
	}
	p, _ := netip.ParsePrefix(string(d.Iface.AddrV6)) // an unset address is the zero prefix
	return p
}

type sandboxDocument struct {
	ID         string
	Cid        string
	Eps        []sandboxEndpoint
	EpPriority map[string]int
	ExtDNS2    []externalDNS
}

type sandboxEndpoint struct{ Eid, Nid string }

type externalDNS struct {
	IPStr        string
	HostLoopback bool
}

type sandboxObject struct {
	datastore.Meta
	doc  sandboxDocument
	rest unknown
}

func (o *sandboxObject) Key() []string          { return []string{"sandbox", o.doc.ID} }
func (o *sandboxObject) KeyPrefix() []string    { return []string{"sandbox"} }
func (o *sandboxObject) Value() ([]byte, error) { return encode(o.doc, o.rest) }

func (o *sandboxObject) SetValue(data []byte) (err error) {
	o.doc = sandboxDocument{}
	if o.rest, err = decode(data, &o.doc); err != nil {
		return err
	}
	if o.doc.ID == "" {
		return fmt.Errorf("sandbox without id")
	}
	var old []string
	if raw, ok := o.rest["ExtDNS"]; ok && json.Unmarshal(raw, &old) == nil && o.doc.ExtDNS2 == nil {
		for _, ip := range old {
			o.doc.ExtDNS2 = append(o.doc.ExtDNS2, externalDNS{IPStr: ip})
		}
	}
	delete(o.rest, "ExtDNS")
	return nil
}

// countValue is the document that keeps older daemons able to delete a network; nobody counts by it any more.
var countValue = []byte(`{"Count":0}`)
