package containers_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/daemon/runtime"
)

// TestEndOnFullDisk: an end that cannot be recorded has happened all the same, and is recorded when that is possible.
func TestEndOnFullDisk(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", nil, "wait")
		waiting, err := b.Wait(b.Context(), id, "")
		b.ok(err)
		b.host.full.Store(true)
		b.rt.End(id, runtime.Exit{Code: 9, At: time.Now()})
		if r := <-waiting; r.StatusCode != 9 {
			b.Errorf("wait says %d", r.StatusCode)
		}
		synctest.Wait()
		b.is(id, container.StateExited)
		b.nothingHeld()
		if err := b.Start(b.Context(), id, api.StartRequest{}); !errors.Is(err, syscall.ENOSPC) {
			b.Errorf("a start on a full disk: %v", err)
		}
		b.nothingHeld()
		if err := b.Rename(b.Context(), id, "two"); !errors.Is(err, syscall.ENOSPC) {
			b.Errorf("a rename on a full disk: %v", err)
		}
		if err := b.Remove(b.Context(), id, api.RemoveRequest{}); !errors.Is(err, syscall.ENOSPC) {
			b.Errorf("a removal on a full disk: %v", err)
		}
		b.host.full.Store(false)
		b.after(2 * time.Minute)
		b.again()
		if in := b.state(id); in.State.Running || in.State.ExitCode != 128 || in.Name != "/one" {
			b.Errorf("after a restart: %+v", in)
		}
		b.ok(b.Remove(b.Context(), id, api.RemoveRequest{}))
	})
}

// TestRestartOnFullDisk: the restart policy goes on trying.
func TestRestartOnFullDisk(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", policy("always", 0), "wait")
		b.host.full.Store(true)
		b.rt.End(id, runtime.Exit{Code: 9, At: time.Now()})
		b.after(5 * time.Minute)
		b.is(id, container.StateRestarting)
		b.host.full.Store(false)
		b.after(2 * time.Minute)
		b.is(id, container.StateRunning)
		b.ok(b.Stop(b.Context(), id, api.StopRequest{}))
		b.nothingHeld()
	})
}

// TestCreateFails fails each step of a create and wants nothing left of it.
func TestCreateFails(t *testing.T) {
	for _, op := range []string{"VolumeCreate", "CreateRW", "Commit", "MountRW"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.host.lie(op, boom)
				hc := &container.HostConfig{Binds: []string{"/anonymous"}}
				_, err := b.Service.Create(b.Context(), request("one", hc, "wait"))
				if !errors.Is(err, errBoom) {
					b.Fatalf("create: %v", err)
				}
				entries, err := os.ReadDir(filepath.Join(b.root, "containers"))
				b.ok(err)
				if len(entries) > 0 || len(b.host.layers) > 0 || len(b.host.users) > 0 {
					b.Errorf("left: %v, layers %v, volumes %v", entries, b.host.layers, b.host.users)
				}
				b.create("one", hc, "wait")
			})
		})
	}
}
