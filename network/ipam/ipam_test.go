package ipam_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"stated.dev/stated/network/ipam"
)

func newAllocator(t *testing.T, pools ...ipam.Predefined) *ipam.Allocator {
	t.Helper()
	a, err := ipam.New(pools, "engine")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func request(t *testing.T, a *ipam.Allocator, pool, sub string) (string, error) {
	t.Helper()
	req := ipam.PoolRequest{Space: ipam.LocalDefault}
	if pool != "" {
		req.Pool = netip.MustParsePrefix(pool)
	}
	if sub != "" {
		req.SubPool = netip.MustParsePrefix(sub)
	}
	id, _, err := a.RequestPool(req)
	return id, err
}

func mustPool(t *testing.T, a *ipam.Allocator, pool, sub string) string {
	t.Helper()
	id, err := request(t, a, pool, sub)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestDefaultPoolsInOrder(t *testing.T) {
	a := newAllocator(t)
	var got []string
	for {
		_, p, err := a.RequestPool(ipam.PoolRequest{Space: ipam.LocalDefault, Avoid: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("172.21.9.0/24")}})
		if err != nil {
			if !errors.Is(err, ipam.ErrNoMoreSubnets) {
				t.Fatal(err)
			}
			break
		}
		got = append(got, p.String())
	}
	if len(got) != 15-1+16 || got[0] != "172.17.0.0/16" || got[4] != "172.22.0.0/16" || got[len(got)-1] != "192.168.240.0/20" {
		t.Fatalf("%d pools: %v", len(got), got)
	}
	if err := a.ReleasePool("LocalDefault/172.18.0.0/16"); err != nil {
		t.Fatal(err)
	}
	if id, err := request(t, a, "", ""); err != nil || id != "LocalDefault/172.18.0.0/16" {
		t.Fatalf("after a release: %s, %v", id, err)
	}
}

func TestOverlap(t *testing.T) {
	a := newAllocator(t)
	mustPool(t, a, "10.1.0.0/16", "")
	for _, p := range []string{"10.1.0.0/16", "10.1.2.0/24", "10.0.0.0/8"} {
		if _, err := request(t, a, p, ""); !errors.Is(err, ipam.ErrPoolOverlap) {
			t.Errorf("%s: %v", p, err)
		}
	}
	mustPool(t, a, "10.2.0.0/16", "10.2.1.0/24")
	mustPool(t, a, "10.2.0.0/16", "10.2.2.0/24")
	if _, err := request(t, a, "10.2.0.0/16", "10.2.2.128/25"); !errors.Is(err, ipam.ErrPoolOverlap) {
		t.Errorf("overlapping sub-pools: %v", err)
	}
	if _, err := request(t, a, "10.3.0.0/16", "10.4.0.0/24"); !errors.Is(err, ipam.ErrInvalidSubPool) {
		t.Errorf("sub-pool outside: %v", err)
	}
}

// Every address of small pools comes once, in order, and the allocation goes on after the last one.
func TestExhaustive(t *testing.T) {
	ctx := context.Background()
	for bits, want := range map[int]int{24: 254, 28: 14, 29: 6, 30: 2, 31: 2, 32: 1} {
		a := newAllocator(t)
		id := mustPool(t, a, fmt.Sprintf("10.0.0.0/%d", bits), "")
		var last netip.Addr
		for n := range want {
			p, err := a.RequestAddress(ctx, id, netip.Addr{})
			if err != nil {
				t.Fatalf("/%d, address %d: %v", bits, n, err)
			}
			if n > 0 && last.Next() != p.Addr() {
				t.Fatalf("/%d: %v after %v", bits, p, last)
			}
			last = p.Addr()
		}
		if _, err := a.RequestAddress(ctx, id, netip.Addr{}); !errors.Is(err, ipam.ErrNoAvailableIPs) {
			t.Fatalf("/%d, one too many: %v", bits, err)
		}
	}
}

func TestSerialGoesOnAndWraps(t *testing.T) {
	ctx := context.Background()
	a := newAllocator(t)
	id := mustPool(t, a, "10.0.0.0/29", "")
	next := func() string {
		p, err := a.RequestAddress(ctx, id, netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		return p.Addr().String()
	}
	for _, want := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"} {
		if got := next(); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
	if err := a.ReleaseAddress(id, netip.MustParseAddr("10.0.0.1")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.1"} {
		if got := next(); got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
}

func TestChosenAddress(t *testing.T) {
	ctx := context.Background()
	a := newAllocator(t)
	id := mustPool(t, a, "10.0.0.0/24", "10.0.0.128/25")
	five := netip.MustParseAddr("10.0.0.5")
	if _, err := a.RequestAddress(ctx, id, five); err != nil {
		t.Fatal(err)
	}
	if _, err := a.RequestAddress(ctx, id, five); !errors.Is(err, ipam.ErrAddressInUse) {
		t.Fatalf("twice: %v", err)
	}
	if _, err := a.RequestAddress(ctx, id, netip.MustParseAddr("10.0.1.5")); !errors.Is(err, ipam.ErrOutOfRange) {
		t.Fatalf("outside: %v", err)
	}
	p, err := a.RequestAddress(ctx, id, netip.Addr{})
	if err != nil || p.String() != "10.0.0.128/24" {
		t.Fatalf("first of the sub-pool: %v, %v", p, err)
	}
	free, err := a.Retire(id, five)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := a.RequestAddress(ctx, id, five)
		got <- err
	}()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := a.RequestAddress(ended, id, five); !errors.Is(err, context.Canceled) {
		t.Fatalf("a retiring address was given: %v", err)
	}
	free()
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

func TestIPv6(t *testing.T) {
	a := newAllocator(t)
	id, p, err := a.RequestPool(ipam.PoolRequest{Space: ipam.LocalDefault, V6: true})
	if err != nil || p.Bits() != 64 || !netip.MustParsePrefix("fd00::/8").Contains(p.Addr()) {
		t.Fatalf("%v, %v", p, err)
	}
	got, err := a.RequestAddress(context.Background(), id, netip.Addr{})
	if err != nil || got.Addr() != p.Addr().Next() {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestParallelWithoutDuplicates(t *testing.T) {
	a := newAllocator(t)
	id := mustPool(t, a, "10.0.0.0/20", "")
	var mu sync.Mutex
	seen := map[netip.Addr]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 400 {
				p, err := a.RequestAddress(context.Background(), id, netip.Addr{})
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[p.Addr()] {
					t.Errorf("%v was given twice", p)
				}
				seen[p.Addr()] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// Random requests and releases agree with a plain map.
func FuzzAgainstMap(f *testing.F) {
	f.Add([]byte{1, 2, 3, 130, 4, 0, 0, 255})
	f.Fuzz(func(t *testing.T, steps []byte) {
		ctx := context.Background()
		a := newAllocator(t)
		id := mustPool(t, a, "10.0.0.0/26", "")
		used := map[netip.Addr]bool{netip.MustParseAddr("10.0.0.0"): true, netip.MustParseAddr("10.0.0.63"): true}
		for _, s := range steps {
			addr := netip.AddrFrom4([4]byte{10, 0, 0, s & 63})
			switch s >> 6 {
			case 0, 1:
				p, err := a.RequestAddress(ctx, id, netip.Addr{})
				if (err == nil) != (len(used) < 64) {
					t.Fatalf("%d used: %v", len(used), err)
				}
				if err == nil {
					if used[p.Addr()] {
						t.Fatalf("%v given twice", p)
					}
					used[p.Addr()] = true
				}
			case 2:
				_, err := a.RequestAddress(ctx, id, addr)
				if (err == nil) == used[addr] {
					t.Fatalf("%v: %v", addr, err)
				}
				used[addr] = true
			case 3:
				if s&63 == 0 || s&63 == 63 {
					continue
				}
				if err := a.ReleaseAddress(id, addr); err != nil {
					t.Fatal(err)
				}
				delete(used, addr)
			}
		}
	})
}
