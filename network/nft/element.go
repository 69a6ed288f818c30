package nft

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Element is one entry of one set or map of the table. It is comparable: equal elements are the same entry.
type Element struct {
	set     string
	key     string
	data    string // of a map to addresses
	verdict string // of a map to verdicts
}

// id is what an element is found by: a set holds a key once.
type id struct{ set, key string }

func (e Element) id() id { return id{e.set, e.key} }

// Verdicts, as they are written beside the elements so that they can be compared with what the kernel holds.
const (
	verdictAccept    = "accept"
	verdictDrop      = "drop"
	verdictPublished = "published"
)

func (e Element) kernel() nftables.SetElement {
	out := nftables.SetElement{Key: []byte(e.key)}
	switch e.verdict {
	case "":
		if e.data != "" {
			out.Val = []byte(e.data)
		}
		return out
	case verdictAccept:
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictAccept}
	case verdictDrop:
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictDrop}
	default:
		out.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.verdict}
	}
	out.Comment = e.verdict
	return out
}

// Mode says what of a bridge's containers can be reached from outside of it, per address family.
type Mode int

const (
	// ModeNAT lets published ports through that were reached by way of the host's address.
	ModeNAT Mode = iota
	// ModeUnprotected lets everything through.
	ModeUnprotected
	// ModeRouted lets published ports through at the container's own address; nothing is translated.
	ModeRouted
)

// Bridge is what the table must know of one bridge.
type Bridge struct {
	Name       string
	Internal   bool // nothing passes between the bridge and other interfaces
	ICC        bool // containers may talk to each other
	Masq4      bool // what leaves the bridge takes the host's address
	Masq6      bool
	Mode       Mode
	TrustedIfs []string // interfaces whose packets may reach every container directly
}

// Elements returns the bridge's entries.
func (b Bridge) Elements() []Element {
	name, pair := ifName(b.Name), ifName(b.Name)+ifName(b.Name)
	within := verdictAccept
	if !b.ICC {
		within = verdictPublished
	}
	all := []Element{{set: setSame, key: pair}, {set: setPairs, key: pair, verdict: within}}
	for _, trusted := range b.TrustedIfs {
		all = append(all, Element{set: setPairs, key: ifName(trusted) + name, verdict: verdictAccept})
	}
	switch {
	case b.Internal:
		return append(all, Element{set: setFrom, key: name, verdict: verdictDrop}, Element{set: setTo, key: name, verdict: verdictDrop})
	case b.Mode == ModeUnprotected:
		all = append(all, Element{set: setTo, key: name, verdict: verdictAccept})
	default:
		all = append(all, Element{set: setTo, key: name, verdict: verdictPublished})
	}
	if b.Masq4 {
		all = append(all, Element{set: setMasq4, key: name})
	}
	if b.Masq6 {
		all = append(all, Element{set: setMasq6, key: name})
	}
	return all
}

// Publish sends what reaches a port of the host to a container.
type Publish struct {
	Proto    uint8
	HostIP   netip.Addr // unspecified: every address of the host of that family
	HostPort uint16
	To       netip.AddrPort
}

// Elements returns the entry for the port; none for a loopback address, whose packets the port's holder forwards,
// nor between address families.
func (p Publish) Elements() []Element {
	to := p.To.Addr().Unmap()
	host := p.HostIP.Unmap()
	if !host.IsValid() || host.IsLoopback() || host.Is4() != to.Is4() {
		return nil
	}
	data := string(to.AsSlice()) + service(p.To.Port())
	key := proto(p.Proto) + service(p.HostPort)
	set := setDNAT4Any
	switch {
	case host.IsUnspecified() && to.Is6():
		set = setDNAT6Any
	case !host.IsUnspecified() && to.Is4():
		set, key = setDNAT4, string(host.AsSlice())+key
	case !host.IsUnspecified():
		set, key = setDNAT6, string(host.AsSlice())+key
	}
	return []Element{{set: set, key: key, data: data}}
}

// Self lets a container reach itself through a port of the host: its own address twice would be refused as a
// source, so it takes the host's.
type Self struct{ Addr netip.Addr }

// Elements returns the entry for the address.
func (s Self) Elements() []Element {
	addr, set := s.Addr.Unmap(), setSelf4
	if addr.Is6() {
		set = setSelf6
	}
	return []Element{{set: set, key: string(addr.AsSlice()) + string(addr.AsSlice())}}
}

// Open lets a port of a container on a routed bridge be reached at its own address.
type Open struct {
	Proto uint8
	To    netip.AddrPort
}

// Elements returns the entry for the port.
func (o Open) Elements() []Element {
	set, to := setOpen4, o.To.Addr().Unmap()
	if to.Is6() {
		set = setOpen6
	}
	return []Element{{set: set, key: string(to.AsSlice()) + proto(o.Proto) + service(o.To.Port())}}
}

// ifName, proto and service are padded as the kernel lays out keys.
func ifName(name string) string {
	var b [16]byte
	copy(b[:15], name)
	return string(b[:])
}

func proto(p uint8) string { return string([]byte{p, 0, 0, 0}) }

func service(port uint16) string {
	var b [4]byte
	binary.BigEndian.PutUint16(b[:], port)
	return string(b[:])
}

// diff returns what has to be added and deleted to come from have to want. An element whose data changed is both.
func diff(have, want map[id]Element) (add, del []Element) {
	for k, w := range want {
		if h, ok := have[k]; !ok {
			add = append(add, w)
		} else if h != w {
			add, del = append(add, w), append(del, h)
		}
	}
	for k, h := range have {
		if _, ok := want[k]; !ok {
			del = append(del, h)
		}
	}
	return add, del
}
