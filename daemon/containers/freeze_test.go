package containers_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/daemon/containers"
	"stated.dev/stated/daemon/runtime"
)

// onData is a container's share of the volume that the tests freeze.
func onData() *container.HostConfig { return &container.HostConfig{Binds: []string{"data:/v"}} }

// stands wants a container's processes to be still, or not.
func (b *bench) stands(id string, still bool) {
	b.Helper()
	if frozen, err := b.rt.Freezer(id).Frozen(); err != nil || frozen != still {
		b.Errorf("container %s is frozen: %v (%v)", id, frozen, err)
	}
}

func (b *bench) freeze(want ...string) *containers.Frozen {
	b.Helper()
	f, err := b.Freeze(b.Context(), "data")
	b.ok(err)
	if !slices.Equal(f.Names, want) {
		b.Errorf("frozen are %q, want %q", f.Names, want)
	}
	return f
}

func (b *bench) thaw(f *containers.Frozen) {
	b.Helper()
	_, err := f.Thaw()
	b.ok(err)
	b.notNoted()
}

// notNoted wants nothing left for the next start to thaw.
func (b *bench) notNoted() {
	b.Helper()
	if left, _ := os.ReadDir(filepath.Join(b.root, "frozen")); len(left) != 0 {
		b.Errorf("still noted as frozen: %v", left)
	}
}

// asked reports whether the runtime was asked for an operation on a container.
func (b *bench) asked(op, id string) bool { return slices.Contains(b.rt.Calls(), op+" "+id) }

// The users of a volume count as paused while they are held still, by the freezer alone. Others are let be, and so are
// those that a user paused, or somebody froze behind the daemon's back.
func TestFreeze(t *testing.T) {
	bubble(t, func(b *bench) {
		web := b.run("web", onData(), "wait")
		other := b.run("other", nil, "wait")
		paused := b.run("paused", onData(), "wait")
		foreign := b.run("foreign", onData(), "wait")
		b.create("created", onData(), "wait")
		b.ok(b.Pause(b.Context(), paused), b.rt.Freezer(foreign).Freeze(b.Context()))
		f := b.freeze("web")
		b.stands(web, true)
		b.stands(other, false)
		b.is(web, container.StatePaused)
		b.is(other, container.StateRunning)
		b.is(foreign, container.StateRunning)
		b.fails(b.Pause(b.Context(), web), errdefs.IsConflict)
		b.thaw(f)
		b.stands(web, false)
		b.stands(foreign, true)
		b.is(web, container.StateRunning)
		b.is(paused, container.StatePaused)
		if b.asked("Pause", web) || b.asked("Resume", web) || b.asked("Resume", paused) {
			t.Errorf("%q", b.rt.Calls())
		}
		b.ok(b.rt.Freezer(foreign).Thaw())
	})
}

// Where the freezer is out of reach the shim pauses.
func TestFreezeThroughTheShim(t *testing.T) {
	bubble(t, func(b *bench) {
		web := b.run("web", onData(), "wait")
		b.rt.Fail("Freezer", errdefs.ErrNotImplemented)
		f := b.freeze("web")
		b.stands(web, false)
		if !b.asked("Pause", web) {
			t.Errorf("%q", b.rt.Calls())
		}
		b.is(web, container.StatePaused)
		b.thaw(f)
		if !b.asked("Resume", web) {
			t.Errorf("%q", b.rt.Calls())
		}
		b.is(web, container.StateRunning)
	})
}

// When one of several cannot be held still none is.
func TestFreezeFails(t *testing.T) {
	for _, op := range []string{"Freezer", "Freeze", "Pause"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(b *bench) {
				one, two := b.run("one", onData(), "wait"), b.run("two", onData(), "wait")
				broken := errors.New("broken")
				if op == "Pause" {
					b.rt.Fail("Freezer", errdefs.ErrNotImplemented)
				}
				b.rt.Fail(op, broken)
				b.fails(func() error { _, err := b.Freeze(b.Context(), "data"); return err }(), func(err error) bool { return errors.Is(err, broken) })
				for _, id := range []string{one, two} {
					b.stands(id, false)
					b.is(id, container.StateRunning)
				}
				b.notNoted()
				b.thaw(b.freeze("one", "two"))
			})
		})
	}
}

// A thaw that fails leaves the container paused in name, too, and a user can try again.
func TestThawFails(t *testing.T) {
	bubble(t, func(b *bench) {
		web := b.run("web", onData(), "wait")
		f := b.freeze("web")
		broken := errors.New("broken")
		b.rt.Fail("Thaw", broken)
		b.rt.Fail("Thaw", broken) // it is tried twice
		if _, err := f.Thaw(); !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
		b.is(web, container.StatePaused)
		b.ok(b.Unpause(b.Context(), web))
		b.stands(web, false)
		b.is(web, container.StateRunning)
	})
}

// What users do to a container that is held still is done, and Thaw takes back nothing of it.
func TestVerbsWhileFrozen(t *testing.T) {
	for name, verb := range map[string]struct {
		do   func(b *bench, id string) error
		then container.ContainerState
	}{
		"unpause": {func(b *bench, id string) error { return b.Unpause(b.Context(), id) }, container.StateRunning},
		"unpause and pause": {func(b *bench, id string) error {
			return errors.Join(b.Unpause(b.Context(), id), b.Pause(b.Context(), id))
		}, container.StatePaused},
		"stop": {func(b *bench, id string) error { return b.Stop(b.Context(), id, api.StopRequest{Timeout: seconds(5)}) }, container.StateExited},
		"kill": {func(b *bench, id string) error { return b.Kill(b.Context(), id, "") }, container.StateExited},
		"restart": {func(b *bench, id string) error {
			return b.Restart(b.Context(), id, api.StopRequest{Timeout: seconds(5)})
		}, container.StateRunning},
		"end": {func(b *bench, id string) error {
			b.rt.End(id, runtime.Exit{Code: 3})
			b.after(0)
			return nil
		}, container.StateExited},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				web := b.run("web", onData(), "wait")
				f := b.freeze("web")
				b.ok(verb.do(b, web))
				b.is(web, verb.then)
				b.thaw(f)
				b.is(web, verb.then)
				b.stands(web, false)
			})
		})
	}
}

// A daemon that is killed while it holds containers still lets them go on at its next start, by whichever way they were
// held. One that cannot go on stays paused in name.
func TestStartThawsWhatWasFrozen(t *testing.T) {
	bubble(t, func(b *bench) {
		frozen := b.run("frozen", onData(), "wait")
		b.freeze("frozen")
		paused := b.run("paused", onData(), "wait")
		b.rt.Fail("Freezer", errdefs.ErrNotImplemented)
		b.freeze("paused")
		users := b.run("users", onData(), "wait")
		b.ok(b.Pause(b.Context(), users))
		b.again()
		for _, id := range []string{frozen, paused} {
			b.is(id, container.StateRunning)
			b.stands(id, false)
		}
		b.is(users, container.StatePaused)
		b.notNoted()

		b.freeze("frozen", "paused")
		b.rt.Fail("Thaw", errors.New("broken"))
		b.again()
		b.ok(b.Unpause(b.Context(), users))
		stuck := 0
		for _, id := range []string{frozen, paused} {
			if b.state(id).State.Status == container.StatePaused {
				stuck++
				b.stands(id, true)
				b.ok(b.Unpause(b.Context(), id))
			}
			b.is(id, container.StateRunning)
			b.stands(id, false)
		}
		if stuck != 1 {
			t.Errorf("%d containers are paused", stuck)
		}
	})
}
