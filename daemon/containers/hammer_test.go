package containers_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/types"
)

// TestHammer lets many clients do all they can to a few containers at once. Afterwards what the service says, what the
// runtime has, what the host holds and what the disk says after a restart are the same.
func TestHammer(t *testing.T) {
	const clients, verbs = 16, 60
	bubble(t, func(b *bench) {
		ctx := b.Context()
		names := []string{"one", "two", "three", "four"}
		policies := []*container.HostConfig{nil, policy("unless-stopped", 0), policy("on-failure", 3), {AutoRemove: true}}
		for i, name := range names {
			b.create(name, policies[i], "wait")
		}
		verb := func(rnd *rand.Rand) error {
			name := names[rnd.IntN(len(names))]
			switch rnd.IntN(13) {
			case 0, 1, 2:
				return b.Start(ctx, name, api.StartRequest{})
			case 3:
				return b.Stop(ctx, name, api.StopRequest{Timeout: seconds(1)})
			case 4:
				return b.Restart(ctx, name, api.StopRequest{Timeout: seconds(1)})
			case 5:
				return b.Kill(ctx, name, "KILL")
			case 6:
				return b.Remove(ctx, name, api.RemoveRequest{Force: true, Volumes: true})
			case 7:
				i := rnd.IntN(len(names))
				hc := policies[i]
				if hc != nil {
					clone := *hc
					hc = &clone
				}
				_, err := b.Service.Create(ctx, request(names[i], hc, "wait"))
				return err
			case 8:
				if err := b.Pause(ctx, name); err != nil {
					return err
				}
				return b.Unpause(ctx, name)
			case 9:
				_, err := b.List(ctx, api.ListRequest{All: true})
				return err
			case 10:
				_, err := b.Inspect(ctx, name, false)
				return err
			case 11:
				return b.Kill(ctx, name, "USR1") // it ends by itself
			}
			stream, _, err := b.Attach(ctx, name, api.AttachRequest{Stream: true, Stdout: true})
			if err == nil {
				err = stream.Close()
			}
			return err
		}
		seed := rand.Uint64()
		b.Logf("seed %d", seed)
		var wg sync.WaitGroup
		for client := range clients {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(seed, uint64(client)))
				for range verbs {
					if err := verb(rnd); err != nil && !allowed(err) {
						b.Errorf("unexpected error: %v", err)
						return
					}
					time.Sleep(time.Duration(rnd.IntN(150)) * time.Millisecond)
				}
			})
		}
		wg.Wait()
		b.after(10 * time.Minute) // restarts that are due

		before := b.model()
		b.again()
		after := b.model()
		if len(before) != len(after) {
			b.Errorf("before a restart: %v, after: %v", before, after)
		}
		for name, state := range before {
			if after[name] != state {
				b.Errorf("%s was %s before the restart and is %s after", name, state, after[name])
			}
			b.ok(b.Remove(ctx, name, api.RemoveRequest{Force: true}))
		}
		synctest.Wait()
		b.nothingHeld()
		list, err := b.rt.List(ctx)
		b.ok(err)
		if len(list) > 0 {
			b.Errorf("tasks are left: %v", list)
		}
	})
}

// allowed are the answers that a client may get when others are at the same container.
func allowed(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsConflict(err) || errors.Is(err, types.ErrNotModified) || errdefs.IsFailedPrecondition(err)
}

// model is each container's state, as the service and the runtime agree on it.
func (b *bench) model() map[string]container.ContainerState {
	b.Helper()
	states := map[string]container.ContainerState{}
	for _, name := range []string{"one", "two", "three", "four"} {
		_, err := b.Inspect(b.Context(), name, false)
		if errdefs.IsNotFound(err) {
			continue
		}
		b.ok(err)
		in := b.state(name)
		states[name] = in.State.Status
	}
	list, err := b.rt.List(b.Context())
	b.ok(err)
	live := 0
	for name, state := range states {
		if state == container.StateRunning || state == container.StatePaused {
			live++
		} else if b.state(name).State.Pid != 0 {
			b.Errorf("%s is %s and has a process", name, state)
		}
	}
	if len(list) != live {
		b.Errorf("the runtime has %d tasks, the service %d: %v", len(list), live, states)
	}
	if held := b.host.held(); len(held) != 2*live {
		b.Errorf("%d live containers hold %v", live, held)
	}
	return states
}
