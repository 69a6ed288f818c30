package network_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/network"

	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network"
	"stated.dev/stated/network/sandbox"
)

// Everything at once: networks come and go while containers start, move and stop on one that stays. No address is
// given twice, and in the end nothing is left.
func TestConcurrent(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	c := run(t, m)
	base := state(t, m)
	create(t, c, api.CreateRequest{Name: "shared"})
	h := &holder{}
	var mu sync.Mutex
	inUse := map[string]bool{}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			own := fmt.Sprint("own", worker)
			for range 4 {
				if _, _, err := c.Create(ctx, api.CreateRequest{Name: own}); err != nil {
					t.Error(err)
					return
				}
				sb, err := c.Attach(ctx, sandbox.Request{ContainerID: ids.New()}, []sandbox.JoinRequest{
					{Network: "shared", Name: own, DNSNames: []string{own}, Holder: h, Ports: []sandbox.Port{{Proto: "tcp", ContainerPort: 80}}}})
				if err != nil {
					t.Error(err)
					return
				}
				ip := sb.Endpoints["shared"].IPAddress.String()
				mu.Lock()
				if inUse[ip] {
					t.Errorf("%s was given twice", ip)
				}
				inUse[ip] = true
				mu.Unlock()
				if _, err := c.Join(ctx, sandbox.JoinRequest{SandboxID: sb.ID, Network: own, Name: own}); err != nil {
					t.Error(err)
				}
				if _, err := c.Inspect(ctx, "shared", network.InspectRequest{}); err != nil {
					t.Error(err)
				}
				if err := c.Remove(ctx, own); !errdefs.IsPermissionDenied(err) {
					t.Errorf("remove a network in use: %v", err)
				}
				if err := c.Leave(ctx, sb.ID, own); err != nil {
					t.Error(err)
				}
				mu.Lock()
				delete(inUse, ip)
				mu.Unlock()
				if err := c.Release(ctx, sb.ID); err != nil {
					t.Error(err)
				}
				if err := c.Remove(ctx, own); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := c.Remove(ctx, "shared"); err != nil {
		t.Error(err)
	}
	if after := state(t, m); after != base {
		t.Errorf("want:\n%s\ngot:\n%s", base, after)
	}
	if len(h.held) != 0 {
		t.Errorf("ports stay held: %v", h.held)
	}
}
