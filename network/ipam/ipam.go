// Package ipam hands out address pools and the addresses in them, as Docker's default address management does.
//
// It keeps nothing on disk: the network controller rebuilds its state from networks and endpoints at start. It
// never looks at the machine: the caller says which prefixes the host already routes. One mutex guards everything.
package ipam

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

// Address spaces.
const (
	LocalDefault  = "LocalDefault"
	GlobalDefault = "GlobalDefault"
)

// What requests are refused with. The texts are Docker's.
var (
	ErrPoolOverlap         = errdefs.ErrPermissionDenied.WithMessage("invalid pool request: Pool overlaps with other one on this address space")
	ErrNoMoreSubnets       = errdefs.ErrPermissionDenied.WithMessage("all predefined address pools have been fully subnetted")
	ErrNoAvailableIPs      = errdefs.ErrUnavailable.WithMessage("no available addresses on this pool")
	ErrAddressInUse        = errdefs.ErrPermissionDenied.WithMessage("Address already in use")
	ErrOutOfRange          = errdefs.ErrInvalidArgument.WithMessage("requested address is out of range")
	ErrInvalidPool         = errdefs.ErrInvalidArgument.WithMessage("invalid address pool")
	ErrInvalidSpace        = errdefs.ErrInvalidArgument.WithMessage("invalid address space")
	ErrInvalidSubPool      = errdefs.ErrInvalidArgument.WithMessage("invalid address subpool")
	ErrUnknownPool         = errdefs.ErrInvalidArgument.WithMessage("address space does not contain specified address pool")
	errDefaultPoolTooLarge = errdefs.ErrInvalidArgument.WithMessage("invalid default address pool: its size is not within its base")
)

// Predefined is a range from which pools are cut when a network asks for none in particular.
type Predefined struct {
	Base netip.Prefix
	Size int // prefix length of each pool
}

// LocalPools are Docker's default ranges for networks of one host.
func LocalPools() []Predefined {
	return []Predefined{
		{netip.MustParsePrefix("172.17.0.0/16"), 16},
		{netip.MustParsePrefix("172.18.0.0/16"), 16},
		{netip.MustParsePrefix("172.19.0.0/16"), 16},
		{netip.MustParsePrefix("172.20.0.0/14"), 16},
		{netip.MustParsePrefix("172.24.0.0/14"), 16},
		{netip.MustParsePrefix("172.28.0.0/14"), 16},
		{netip.MustParsePrefix("192.168.0.0/16"), 20},
	}
}

// GlobalPools are Docker's default ranges for networks of many hosts.
func GlobalPools() []Predefined {
	return []Predefined{{netip.MustParsePrefix("10.0.0.0/8"), 24}}
}

// UniqueLocal returns the range of IPv6 pools of an engine: a /48 below fd00::/8 that its id determines.
func UniqueLocal(engineID string) Predefined {
	sum := sha256.Sum256([]byte(engineID))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], sum[:5])
	return Predefined{netip.PrefixFrom(netip.AddrFrom16(a), 48), 64}
}

// Allocator is the state of all pools.
type Allocator struct {
	mu     sync.Mutex // guards everything below
	spaces map[string]*space
}

type space struct {
	predefined []Predefined
	pools      map[netip.Prefix]*pool
}

// pool is one allocated prefix. Its sub-pools share its addresses.
type pool struct {
	prefix   netip.Prefix
	used     addrSet
	retiring map[netip.Addr]chan struct{} // closed when the address is free
	refs     map[netip.Prefix]*subPool    // by sub-pool; the zero prefix stands for the whole
}

type subPool struct {
	refs int
	last netip.Addr // handed out last by serial allocation
}

// New returns an allocator whose local space cuts pools from local, or from Docker's ranges when local is empty.
func New(local []Predefined, engineID string) (*Allocator, error) {
	if len(local) == 0 {
		local = LocalPools()
	}
	for _, p := range local {
		if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
			return nil, errDefaultPoolTooLarge
		}
	}
	local = append(local[:len(local):len(local)], UniqueLocal(engineID))
	return &Allocator{spaces: map[string]*space{
		LocalDefault:  {predefined: local, pools: map[netip.Prefix]*pool{}},
		GlobalDefault: {predefined: GlobalPools(), pools: map[netip.Prefix]*pool{}},
	}}, nil
}

// PoolRequest asks for a pool.
type PoolRequest struct {
	Space string
	// Pool is the prefix wanted; without one the first predefined pool that is free is taken.
	Pool    netip.Prefix
	SubPool netip.Prefix
	V6      bool
	// Avoid lists prefixes that the host routes: no predefined pool may overlap them.
	Avoid []netip.Prefix
}

// PoolID names a pool: space/subnet[/subpool].
func PoolID(space string, p, sub netip.Prefix) string {
	id := space + "/" + p.String()
	if sub.IsValid() {
		id += "/" + sub.String()
	}
	return id
}

// ParsePoolID takes a pool id apart.
func ParsePoolID(id string) (space string, p, sub netip.Prefix, err error) {
	f := strings.Split(id, "/")
	if len(f) != 3 && len(f) != 5 {
		return "", p, sub, ErrInvalidPool
	}
	if p, err = netip.ParsePrefix(f[1] + "/" + f[2]); err != nil {
		return "", p, sub, ErrInvalidPool
	}
	if len(f) == 5 {
		if sub, err = netip.ParsePrefix(f[3] + "/" + f[4]); err != nil {
			return "", p, sub, ErrInvalidSubPool
		}
	}
	return f[0], p, sub, nil
}

// RequestPool allocates a pool, or takes a reference on a sub-pool of one.
func (a *Allocator) RequestPool(req PoolRequest) (id string, prefix netip.Prefix, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	sp, ok := a.spaces[req.Space]
	if !ok {
		return "", prefix, ErrInvalidSpace
	}
	if !req.Pool.IsValid() {
		if req.SubPool.IsValid() {
			return "", prefix, ErrInvalidSubPool
		}
		if prefix, err = sp.firstFree(req); err != nil {
			return "", prefix, err
		}
		sp.add(prefix, netip.Prefix{})
		return PoolID(req.Space, prefix, netip.Prefix{}), prefix, nil
	}
	prefix = req.Pool
	switch {
	case prefix != prefix.Masked():
		return "", prefix, ErrInvalidPool
	case req.SubPool.IsValid() && (req.SubPool.Bits() < prefix.Bits() || !prefix.Contains(req.SubPool.Addr())):
		return "", prefix, ErrInvalidSubPool
	}
	sub := req.SubPool.Masked() // the zero prefix stays zero
	if have, ok := sp.pools[prefix]; ok {
		if !sub.IsValid() || have.refs[netip.Prefix{}] != nil || have.overlaps(sub) {
			return "", prefix, ErrPoolOverlap
		}
	} else if sp.overlaps(prefix) {
		return "", prefix, ErrPoolOverlap
	}
	sp.add(prefix, sub)
	return PoolID(req.Space, prefix, sub), prefix, nil
}

func (p *pool) overlaps(sub netip.Prefix) bool {
	for have := range p.refs {
		if have != sub && have.Overlaps(sub) {
			return true
		}
	}
	return false
}

func (s *space) overlaps(p netip.Prefix) bool {
	for have := range s.pools {
		if have.Overlaps(p) {
			return true
		}
	}
	return false
}

func (s *space) add(prefix, sub netip.Prefix) {
	p := s.pools[prefix]
	if p == nil {
		p = &pool{prefix: prefix, retiring: map[netip.Addr]chan struct{}{}, refs: map[netip.Prefix]*subPool{}}
		s.pools[prefix] = p
		if first, last := bounds(prefix); prefix.Addr().Is6() && prefix.Bits() < 127 {
			p.used.add(first) // the subnet-router anycast address
		} else if prefix.Addr().Is4() && prefix.Bits() < 31 {
			p.used.add(first)
			p.used.add(last)
		}
	}
	if p.refs[sub] == nil {
		p.refs[sub] = &subPool{}
	}
	p.refs[sub].refs++
}

// firstFree finds the lowest predefined pool that overlaps nothing. It steps over what is in its way rather than
// trying every candidate.
func (s *space) firstFree(req PoolRequest) (netip.Prefix, error) {
	for _, pre := range s.predefined {
		if pre.Base.Addr().Is6() != req.V6 {
			continue
		}
		_, last := bounds(pre.Base)
		for at := pre.Base.Masked().Addr(); at.IsValid() && at.Compare(last) <= 0; {
			candidate := netip.PrefixFrom(at, pre.Size)
			blocker, blocked := s.blocker(candidate, req.Avoid)
			if !blocked {
				return candidate, nil
			}
			if blocker.Bits() > candidate.Bits() {
				blocker = candidate
			}
			_, end := bounds(blocker)
			at = end.Next()
		}
	}
	return netip.Prefix{}, ErrNoMoreSubnets
}

// blocker returns the widest prefix that overlaps candidate.
func (s *space) blocker(candidate netip.Prefix, avoid []netip.Prefix) (found netip.Prefix, blocked bool) {
	consider := func(p netip.Prefix) {
		// A default route is everywhere and says nothing.
		if p.Bits() > 0 && p.Overlaps(candidate) && (!blocked || p.Bits() < found.Bits()) {
			found, blocked = p.Masked(), true
		}
	}
	for p := range s.pools {
		consider(p)
	}
	for _, p := range avoid {
		consider(p)
	}
	return found, blocked
}

// ReleasePool drops a reference; the last one frees the pool and what is allocated in it.
func (a *Allocator) ReleasePool(id string) error {
	name, prefix, sub, err := ParsePoolID(id)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	sp, ok := a.spaces[name]
	if !ok {
		return ErrInvalidSpace
	}
	p := sp.pools[prefix]
	if p == nil || p.refs[sub] == nil {
		return ErrUnknownPool
	}
	if p.refs[sub].refs--; p.refs[sub].refs == 0 {
		delete(p.refs, sub)
	}
	if len(p.refs) == 0 {
		delete(sp.pools, prefix)
		for _, gone := range p.retiring {
			close(gone)
		}
	}
	return nil
}

// RequestAddress allocates want, or the next free address of the pool when want is invalid. An address that is
// being retired is waited for if it was asked for, or if nothing else is left.
func (a *Allocator) RequestAddress(ctx context.Context, id string, want netip.Addr) (netip.Prefix, error) {
	name, prefix, sub, err := ParsePoolID(id)
	if err != nil {
		return netip.Prefix{}, err
	}
	for {
		got, wait, err := a.tryAddress(name, prefix, sub, want)
		if wait == nil {
			return got, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return netip.Prefix{}, fmt.Errorf("wait for an address of pool %s: %w", id, ctx.Err())
		}
	}
}

func (a *Allocator) tryAddress(name string, prefix, sub netip.Prefix, want netip.Addr) (netip.Prefix, <-chan struct{}, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	sp, ok := a.spaces[name]
	if !ok {
		return netip.Prefix{}, nil, ErrInvalidSpace
	}
	p := sp.pools[prefix]
	if p == nil || p.refs[sub] == nil {
		return netip.Prefix{}, nil, ErrUnknownPool
	}
	if want.IsValid() {
		if !prefix.Contains(want) {
			return netip.Prefix{}, nil, ErrOutOfRange
		}
		if wait, ok := p.retiring[want]; ok {
			return netip.Prefix{}, wait, nil
		}
		if !p.used.add(want) {
			return netip.Prefix{}, nil, ErrAddressInUse
		}
		return netip.PrefixFrom(want, prefix.Bits()), nil, nil
	}
	first, last := bounds(prefix)
	if sub.IsValid() {
		first, last = bounds(sub)
	}
	ref := p.refs[sub]
	start := first
	if ref.last.IsValid() {
		start = ref.last.Next()
	}
	at, found := netip.Addr{}, false
	if start.IsValid() {
		at, found = p.used.nextFree(start, last)
	}
	if !found {
		at, found = p.used.nextFree(first, last)
	}
	if found {
		p.used.add(at)
		ref.last = at
		return netip.PrefixFrom(at, prefix.Bits()), nil, nil
	}
	for addr, wait := range p.retiring {
		if addr.Compare(first) >= 0 && addr.Compare(last) <= 0 {
			return netip.Prefix{}, wait, nil
		}
	}
	return netip.Prefix{}, nil, ErrNoAvailableIPs
}

// ReleaseAddress frees an address at once.
func (a *Allocator) ReleaseAddress(id string, addr netip.Addr) error {
	free, err := a.Retire(id, addr)
	if err == nil {
		free()
	}
	return err
}

// Retire keeps an address out of use until free is called: whatever had it may still answer for it.
func (a *Allocator) Retire(id string, addr netip.Addr) (free func(), err error) {
	name, prefix, _, err := ParsePoolID(id)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	sp, ok := a.spaces[name]
	if !ok {
		return nil, ErrInvalidSpace
	}
	p := sp.pools[prefix]
	if p == nil {
		return nil, ErrUnknownPool
	}
	if !p.used.has(addr) || p.retiring[addr] != nil {
		return func() {}, nil // freeing twice is no error
	}
	gone := make(chan struct{})
	p.retiring[addr] = gone
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if p.retiring[addr] != gone {
			return
		}
		delete(p.retiring, addr)
		p.used.remove(addr)
		if sp.pools[prefix] == p { // else the release of the pool has closed it
			close(gone)
		}
	}, nil
}

// bounds returns the first and the last address of p.
func bounds(p netip.Prefix) (first, last netip.Addr) {
	first = p.Masked().Addr()
	b := first.AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ = netip.AddrFromSlice(b) // the length is that of an address
	return first, last
}
