package network_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	api "github.com/moby/moby/api/types/network"

	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/sandbox"
)

func BenchmarkCreateRemove(b *testing.B) {
	m := newMachine(b)
	c := run(b, m)
	ctx := context.Background()
	for b.Loop() {
		id := create(b, c, api.CreateRequest{Name: "bench"})
		if err := c.Remove(ctx, id); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreateRemove8(b *testing.B) {
	m := newMachine(b)
	c := run(b, m)
	ctx := context.Background()
	var n atomic.Int64
	b.SetParallelism(4) // of two processors
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			id, _, err := c.Create(ctx, api.CreateRequest{Name: fmt.Sprint("bench", n.Add(1))})
			if err == nil {
				err = c.Remove(ctx, id)
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkAttachRelease(b *testing.B) {
	m := newMachine(b)
	c := run(b, m)
	create(b, c, api.CreateRequest{Name: "bench"})
	h := &holder{}
	ctx := context.Background()
	for b.Loop() {
		sb, err := c.Attach(ctx, sandbox.Request{ContainerID: ids.New()}, []sandbox.JoinRequest{{Network: "bench", Name: "c", Holder: h, Ports: []sandbox.Port{{ContainerPort: 80}}}})
		if err == nil {
			err = c.Release(ctx, sb.ID)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	m := newMachine(b)
	c := run(b, m)
	create(b, c, api.CreateRequest{Name: "bench"})
	ctx := context.Background()
	for b.Loop() {
		sb, err := c.Attach(ctx, sandbox.Request{ContainerID: ids.New()}, []sandbox.JoinRequest{{Network: "bench", Name: "c"}})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := c.Release(ctx, sb.ID); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// A start with 50 networks, whose bridges and rules are as they should be.
func BenchmarkStart50(b *testing.B) {
	m := newMachine(b)
	c, _ := m.start(b, nil)
	for i := range 50 {
		create(b, c, api.CreateRequest{Name: fmt.Sprint("n", i), Options: nil, IPAM: subnet(i)})
	}
	if err := c.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c, _ := m.start(b, nil)
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func subnet(i int) *api.IPAM {
	return &api.IPAM{Config: []api.IPAMConfig{{Subnet: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24)}}}
}
