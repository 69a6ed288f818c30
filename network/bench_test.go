package network_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	api "github.com/moby/moby/api/types/network"
	bolt "go.etcd.io/bbolt"

	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network"
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

// BenchmarkOpen10000 reads a store with ten thousand endpoints, each in a sandbox of its own.
func BenchmarkOpen10000(b *testing.B) {
	m := newMachine(b)
	c, _ := m.start(b, nil)
	id := create(b, c, api.CreateRequest{Name: "big", IPAM: &api.IPAM{Config: []api.IPAMConfig{{Subnet: netip.MustParsePrefix("10.128.0.0/16")}}}})
	if err := c.Close(); err != nil {
		b.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(m.opts.DataDir, "local-kv.db"), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		b.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		put := func(key, value string) error {
			return tx.Bucket([]byte("libnetwork")).Put([]byte("docker/network/v1.0/"+key), append(make([]byte, 8), value...))
		}
		for i := range 10000 {
			ip := netip.AddrFrom4([4]byte{10, 128, byte(i / 250), byte(i%250 + 2)})
			e, s := ids.New(), ids.New()
			err := errors.Join(
				put("endpoint/"+id+"/"+e+"/", fmt.Sprintf(`{"id":%q,"name":"c%d","sandbox":%q,"dnsNames":["c%d"],"ep_iface":{"addr":"%s/16","dstPrefix":"eth","mac":"02:00:00:00:00:01","v4PoolID":"LocalDefault/10.128.0.0/16"},"generic":{}}`, e, i, s, i, ip)),
				put("sandbox/"+s+"/", fmt.Sprintf(`{"ID":%q,"Cid":"c","Eps":[{"Eid":%q,"Nid":%q}],"EpPriority":{},"ExtDNS2":null}`, s, e, id)),
				put("bridge-endpoint/"+e+"/", fmt.Sprintf(`{"id":%q,"nid":%q}`, e, id)))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		c, err := network.Open(context.Background(), m.opts)
		if err != nil {
			b.Fatal(err)
		}
		if n := len(c.Problems()); n > 0 {
			b.Fatalf("%d problems: %v", n, c.Problems()[0])
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
