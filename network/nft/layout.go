// Package nft keeps one nftables table in step with a wish. The table's chains and rules never change; what differs
// from one container to the next is in sets and maps, so that a container is a few elements more or less.
//
// Computing elements and differences is pure; Table is the only part that speaks to the kernel. It never touches
// another table, and sets no policy: packets that are not ours pass as if the table were not there.
package nft

import (
	"crypto/sha256"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Names of sets and maps. "Pairs", "to" and "from" decide on forwarded packets by (input, output) interface, by
// output and by input. "Same" holds each bridge with itself.
const (
	setPairs    = "pairs"
	setTo       = "to"
	setFrom     = "from"
	setSame     = "same"
	setSelf4    = "self4"
	setSelf6    = "self6"
	setMasq4    = "masq4"
	setMasq6    = "masq6"
	setOpen4    = "open4"
	setOpen6    = "open6"
	setDNAT4    = "dnat4"
	setDNAT4Any = "dnat4-any"
	setDNAT6    = "dnat6"
	setDNAT6Any = "dnat6-any"
)

// Chains that verdict maps lead to.
const (
	chainPublished = "published" // only what was addressed to a published port, or to an open one
	chainRedirect  = "redirect"
)

// The reading of registers: the sixteen bytes of register 1 can be addressed as four of four bytes each.
const (
	reg1    = 1
	reg2    = 2
	reg32_0 = 8
)

// A rule's expressions are small parts; each returns what nft prints for the comment beside it.

func load(key expr.MetaKey, reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }

func equal(reg uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

func lookup(set string, reg uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: set}
}

func lookupTo(set string, reg, dest uint32) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: set, DestRegister: dest, IsDestRegSet: true}
}

func verdict(kind expr.VerdictKind, chain string) expr.Any {
	return &expr.Verdict{Kind: kind, Chain: chain}
}

// network loads bytes of the IP header, transport of the header behind it.
func network(offset, length, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func transport(offset, length, reg uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

func family(f byte) []expr.Any {
	return []expr.Any{load(expr.MetaKeyNFPROTO, reg1), equal(reg1, []byte{f})}
}

// flags matches when one of bits is set in a connection tracking word.
func flags(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

func rule(parts ...any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		switch p := p.(type) {
		case expr.Any:
			all = append(all, p)
		case []expr.Any:
			all = append(all, p...)
		}
	}
	return all
}

const (
	ctEstablished = expr.CtStateBitESTABLISHED
	ctRelated     = expr.CtStateBitRELATED
	ctDNAT        = 1 << 5 // IPS_DST_NAT
	rtnLocal      = unix.RTN_LOCAL
)

type chainLayout struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    [][]expr.Any
}

// portKey loads protocol and destination port behind reg32, and returns the parts.
func portKey(at uint32) []expr.Any {
	return []expr.Any{load(expr.MetaKeyL4PROTO, at), transport(2, 2, at+1)}
}

func dnat(fam byte, set string, addrOffset, addrLen uint32) []expr.Any {
	parts := family(fam)
	next := uint32(reg32_0)
	if addrLen > 0 { // the address of the host is part of the key
		parts = append(parts, network(addrOffset, addrLen, reg1))
		next += addrLen / 4
	}
	portReg := uint32(reg32_0 + 1) // behind an IPv4 address in the map's data
	if fam == unix.NFPROTO_IPV6 {
		portReg = reg32_0 + 4
	}
	parts = append(parts, portKey(next)...)
	return append(parts, lookupTo(set, reg1, reg1),
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(fam), RegAddrMin: reg1, RegProtoMin: portReg, Specified: true})
}

func open(fam byte, set string, addrOffset, addrLen uint32) []expr.Any {
	return rule(family(fam), network(addrOffset, addrLen, reg1), portKey(reg32_0+addrLen/4), lookup(set, reg1), verdict(expr.VerdictAccept, ""))
}

// layout lists the chains that never change.
func layout() []chainLayout {
	local := []expr.Any{&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true}, equal(reg1, binaryutil.NativeEndian.PutUint32(rtnLocal))}
	ifPair := []expr.Any{load(expr.MetaKeyIIFNAME, reg1), load(expr.MetaKeyOIFNAME, reg2)}
	// A loopback address is served by the forwarder that holds the port: its packets never leave the host.
	loopback4 := rule(family(unix.NFPROTO_IPV4), network(16, 1, reg1), equal(reg1, []byte{127}), verdict(expr.VerdictReturn, ""))
	redirect := rule(local, verdict(expr.VerdictJump, chainRedirect))
	return []chainLayout{
		{name: chainRedirect, rules: [][]expr.Any{
			dnat(unix.NFPROTO_IPV4, setDNAT4, 16, 4),
			dnat(unix.NFPROTO_IPV4, setDNAT4Any, 0, 0),
			dnat(unix.NFPROTO_IPV6, setDNAT6, 24, 16),
			dnat(unix.NFPROTO_IPV6, setDNAT6Any, 0, 0),
		}},
		{name: chainPublished, rules: [][]expr.Any{
			rule(flags(expr.CtKeySTATUS, ctDNAT), verdict(expr.VerdictAccept, "")),
			open(unix.NFPROTO_IPV4, setOpen4, 16, 4),
			open(unix.NFPROTO_IPV6, setOpen6, 24, 16),
			rule(verdict(expr.VerdictDrop, "")),
		}},
		{name: "prerouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: nftables.ChainPriorityNATDest, rules: [][]expr.Any{redirect}},
		{name: "output", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityNATDest, rules: [][]expr.Any{loopback4, redirect}},
		{name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: nftables.ChainPriorityNATSource, rules: [][]expr.Any{
			// Hairpin: a container that reaches a neighbour, or itself, through a published port must be answered by
			// way of the host. Where bridged packets are translated, the input interface is not known here.
			rule(family(unix.NFPROTO_IPV4), network(12, 4, reg1), network(16, 4, reg32_0+1), lookup(setSelf4, reg1), &expr.Masq{}),
			rule(family(unix.NFPROTO_IPV6), network(8, 16, reg1), network(24, 16, reg2), lookup(setSelf6, reg1), &expr.Masq{}),
			rule(ifPair, lookup(setSame, reg1), flags(expr.CtKeySTATUS, ctDNAT), &expr.Masq{}),
			rule(ifPair, lookup(setSame, reg1), verdict(expr.VerdictReturn, "")),
			rule(family(unix.NFPROTO_IPV4), load(expr.MetaKeyIIFNAME, reg1), lookup(setMasq4, reg1), &expr.Masq{}),
			rule(family(unix.NFPROTO_IPV6), load(expr.MetaKeyIIFNAME, reg1), lookup(setMasq6, reg1), &expr.Masq{}),
		}},
		{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: nftables.ChainPriorityFilter, rules: [][]expr.Any{
			rule(flags(expr.CtKeySTATE, ctEstablished|ctRelated), verdict(expr.VerdictAccept, "")),
			rule(ifPair, lookupTo(setPairs, reg1, 0)),
			rule(load(expr.MetaKeyIIFNAME, reg1), lookupTo(setFrom, reg1, 0)),
			rule(load(expr.MetaKeyOIFNAME, reg1), lookupTo(setTo, reg1, 0)),
		}},
	}
}

// sets lists the sets and maps, empty.
func sets(t *nftables.Table) []*nftables.Set {
	ifPair := nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)
	port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	key4 := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	key6 := nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService)
	to4 := nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	to6 := nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeInetService)
	order := func(key nftables.SetDatatype) binaryutil.ByteOrder {
		if key == nftables.TypeIFName {
			return binaryutil.NativeEndian // else nft prints the name backwards
		}
		return nil
	}
	set := func(name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: key, KeyByteOrder: order(key)}
	}
	mapTo := func(name string, key, data nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, Name: name, KeyType: key, DataType: data, IsMap: true, KeyByteOrder: order(key)}
	}
	return []*nftables.Set{
		mapTo(setPairs, ifPair, nftables.TypeVerdict),
		mapTo(setTo, nftables.TypeIFName, nftables.TypeVerdict),
		mapTo(setFrom, nftables.TypeIFName, nftables.TypeVerdict),
		set(setSame, ifPair),
		set(setSelf4, nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeIPAddr)),
		set(setSelf6, nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeIP6Addr)),
		set(setMasq4, nftables.TypeIFName),
		set(setMasq6, nftables.TypeIFName),
		set(setOpen4, key4),
		set(setOpen6, key6),
		mapTo(setDNAT4, key4, to4),
		mapTo(setDNAT4Any, port, to4),
		mapTo(setDNAT6, key6, to6),
		mapTo(setDNAT6Any, port, to6),
	}
}

// layoutMark is the name of an empty chain that tells which layout a table has.
func layoutMark() string {
	h := sha256.New()
	for _, c := range layout() {
		fmt.Fprintf(h, "%s %s;", c.name, c.kind)
		for _, r := range c.rules {
			for _, e := range r {
				fmt.Fprintf(h, "%T%+v,", e, e)
			}
		}
	}
	for _, s := range sets(&nftables.Table{}) {
		fmt.Fprintf(h, "%s %s %s;", s.Name, s.KeyType.Name, s.DataType.Name)
	}
	return fmt.Sprintf("layout-%x", h.Sum(nil)[:6])
}
