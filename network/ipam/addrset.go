package ipam

import (
	"net/netip"
	"sort"
)

// addrSet is a set of addresses of one family, kept as sorted intervals that neither touch nor overlap. It is as
// small for an IPv6 /64 as for an IPv4 /24, and finding the next free address takes one binary search.
type addrSet struct {
	runs []run
}

type run struct{ first, last netip.Addr }

// find returns the position of the first run that ends at or after a.
func (s *addrSet) find(a netip.Addr) int {
	return sort.Search(len(s.runs), func(i int) bool { return s.runs[i].last.Compare(a) >= 0 })
}

func (s *addrSet) has(a netip.Addr) bool {
	i := s.find(a)
	return i < len(s.runs) && s.runs[i].first.Compare(a) <= 0
}

// add reports whether a was absent.
func (s *addrSet) add(a netip.Addr) bool {
	i := s.find(a)
	if i < len(s.runs) && s.runs[i].first.Compare(a) <= 0 {
		return false
	}
	left := i > 0 && s.runs[i-1].last.Next() == a
	right := i < len(s.runs) && a.Next() == s.runs[i].first
	switch {
	case left && right:
		s.runs[i-1].last = s.runs[i].last
		s.runs = append(s.runs[:i], s.runs[i+1:]...)
	case left:
		s.runs[i-1].last = a
	case right:
		s.runs[i].first = a
	default:
		s.runs = append(s.runs, run{})
		copy(s.runs[i+1:], s.runs[i:])
		s.runs[i] = run{a, a}
	}
	return true
}

// remove reports whether a was present.
func (s *addrSet) remove(a netip.Addr) bool {
	i := s.find(a)
	if i >= len(s.runs) || s.runs[i].first.Compare(a) > 0 {
		return false
	}
	r := s.runs[i]
	switch {
	case r.first == a && r.last == a:
		s.runs = append(s.runs[:i], s.runs[i+1:]...)
	case r.first == a:
		s.runs[i].first = a.Next()
	case r.last == a:
		s.runs[i].last = a.Prev()
	default:
		s.runs = append(s.runs, run{})
		copy(s.runs[i+1:], s.runs[i:])
		s.runs[i].last, s.runs[i+1].first = a.Prev(), a.Next()
	}
	return true
}

// nextFree returns the first address in [from, last] that is not in the set.
func (s *addrSet) nextFree(from, last netip.Addr) (netip.Addr, bool) {
	i := s.find(from)
	if i < len(s.runs) && s.runs[i].first.Compare(from) <= 0 {
		from = s.runs[i].last.Next()
	}
	return from, from.IsValid() && from.Compare(last) <= 0
}
