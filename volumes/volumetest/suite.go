// Package volumetest holds what every volume driver must pass, and a driver in memory that can lie.
package volumetest

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"stated.dev/stated/volumes"
)

// Harness makes drivers for Run.
type Harness struct {
	// New returns a driver that has not been started and has no volumes.
	New func(t *testing.T) volumes.Driver
	// Reopen returns another driver on the same volumes, as after a restart of the daemon. Nil: the driver keeps nothing.
	Reopen func(t *testing.T, old volumes.Driver) volumes.Driver
	// Options are valid ones for a new volume; nil is a valid choice.
	Options map[string]string
}

// Run checks a driver against the contract of volumes.Driver.
func Run(t *testing.T, h Harness) {
	start := func(t *testing.T) volumes.Driver {
		t.Helper()
		d := h.New(t)
		if err := d.Start(t.Context()); err != nil {
			t.Fatalf("Start: %v", err)
		}
		return d
	}
	t.Run("unknown", func(t *testing.T) { unknown(t, start(t)) })
	t.Run("stage and publish", func(t *testing.T) { publish(t, start(t), h.Options) })
	t.Run("discard", func(t *testing.T) { discard(t, start(t), h.Options) })
	t.Run("remove", func(t *testing.T) { remove(t, start(t), h.Options) })
	t.Run("remove by token", func(t *testing.T) { removeByToken(t, start(t), h.Options) })
	t.Run("mount by id", func(t *testing.T) { mountByID(t, start(t), h.Options) })
	t.Run("live restore", func(t *testing.T) { liveRestore(t, start(t), h.Options) })
	t.Run("side by side", func(t *testing.T) { sideBySide(t, start(t), h.Options) })
	if h.Reopen != nil {
		t.Run("reopen", func(t *testing.T) {
			d := start(t)
			create(t, d, "kept", h.Options)
			again := h.Reopen(t, d)
			if err := again.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := names(t, again); !slices.Equal(got, []string{"kept"}) {
				t.Errorf("after a restart it lists %q", got)
			}
			mount(t, again, "kept", "a")
			unmount(t, again, "kept", "a")
		})
	}
}

func create(t *testing.T, d volumes.Driver, name string, options map[string]string) volumes.Info {
	t.Helper()
	staged, err := d.Stage(t.Context(), name, options)
	if err != nil {
		t.Fatalf("Stage(%q): %v", name, err)
	}
	info, err := staged.Publish(t.Context())
	if err != nil {
		t.Fatalf("Publish(%q): %v", name, err)
	}
	return info
}

func names(t *testing.T, d volumes.Driver) []string {
	t.Helper()
	list, err := d.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	var names []string
	for _, info := range list {
		names = append(names, info.Name)
	}
	slices.Sort(names)
	return names
}

func mount(t *testing.T, d volumes.Driver, name, id string) string {
	t.Helper()
	path, err := d.Mount(t.Context(), name, id)
	if err != nil {
		t.Fatalf("Mount(%q, %q): %v", name, id, err)
	}
	if path == "" {
		t.Fatalf("Mount(%q, %q) returns no path", name, id)
	}
	t.Cleanup(func() { _ = d.Unmount(context.Background(), name, id) }) // it may be unmounted, or gone
	return path
}

func unmount(t *testing.T, d volumes.Driver, name, id string) {
	t.Helper()
	if err := d.Unmount(t.Context(), name, id); err != nil {
		t.Fatalf("Unmount(%q, %q): %v", name, id, err)
	}
}

func wantNotFound(t *testing.T, call string, err error) {
	t.Helper()
	if !errdefs.IsNotFound(err) {
		t.Errorf("%s of an unknown volume: %v, want not found", call, err)
	}
}

func unknown(t *testing.T, d volumes.Driver) {
	if got := names(t, d); len(got) != 0 {
		t.Fatalf("a new driver lists %q", got)
	}
	_, err := d.Get(t.Context(), "nope")
	wantNotFound(t, "Get", err)
	_, err = d.Mount(t.Context(), "nope", "a")
	wantNotFound(t, "Mount", err)
	_, err = d.PrepareRemove(t.Context(), "nope")
	wantNotFound(t, "PrepareRemove", err)
	wantNotFound(t, "Remove", d.Remove(t.Context(), "nope", ""))
	if err := d.Unmount(t.Context(), "nope", "a"); err != nil {
		t.Errorf("Unmount of an unknown volume: %v, want nil", err)
	}
}

func publish(t *testing.T, d volumes.Driver, options map[string]string) {
	staged, err := d.Stage(t.Context(), "one", options)
	if err != nil {
		t.Fatal(err)
	}
	if d.Traits().Owned {
		if got := names(t, d); len(got) != 0 {
			t.Errorf("staged but not published, it lists %q", got)
		}
	}
	info, err := staged.Publish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, err := d.Get(t.Context(), "one")
	if err != nil || got.Name != "one" || got.Mountpoint != info.Mountpoint || !got.CreatedAt.Equal(info.CreatedAt) {
		t.Errorf("Publish says %+v, Get says %+v, %v", info, got, err)
	}
	if list := names(t, d); !slices.Equal(list, []string{"one"}) {
		t.Errorf("it lists %q", list)
	}
	if err := d.Sync(t.Context()); err != nil {
		t.Error(err)
	}
}

func discard(t *testing.T, d volumes.Driver, options map[string]string) {
	staged, err := d.Stage(t.Context(), "one", options)
	if err != nil {
		t.Fatal(err)
	}
	if err := staged.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = d.Get(t.Context(), "one")
	wantNotFound(t, "Get", err)
	create(t, d, "one", options)
}

func remove(t *testing.T, d volumes.Driver, options map[string]string) {
	create(t, d, "one", options)
	create(t, d, "two", options)
	token, err := d.PrepareRemove(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(t.Context(), "one"); err != nil {
		t.Errorf("prepared to be removed, it is gone: %v", err)
	}
	if err := d.Remove(t.Context(), "one", token); err != nil {
		t.Fatal(err)
	}
	_, err = d.Get(t.Context(), "one")
	wantNotFound(t, "Get", err)
	if list := names(t, d); !slices.Equal(list, []string{"two"}) {
		t.Errorf("it lists %q", list)
	}
	create(t, d, "one", options)
}

func removeByToken(t *testing.T, d volumes.Driver, options map[string]string) {
	create(t, d, "one", options)
	token, err := d.PrepareRemove(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	if token == "" {
		return // the driver cannot tell volumes of one name apart
	}
	if err := d.Remove(t.Context(), "one", token); err != nil {
		t.Fatal(err)
	}
	create(t, d, "one", options)
	if err := d.Remove(t.Context(), "one", token); err != nil {
		t.Errorf("Remove with the token of a predecessor: %v", err)
	}
	if _, err := d.Get(t.Context(), "one"); err != nil {
		t.Errorf("the token of a predecessor removed the volume: %v", err)
	}
}

func mountByID(t *testing.T, d volumes.Driver, options map[string]string) {
	create(t, d, "one", options)
	first := mount(t, d, "one", "a")
	for _, id := range []string{"a", "b", "a"} {
		if again := mount(t, d, "one", id); again != first {
			t.Errorf("mounted at %s and at %s", first, again)
		}
	}
	for _, id := range []string{"unknown", "a", "a", "a"} {
		unmount(t, d, "one", id)
	}
	// "b" still uses it, however often "a" was mounted and unmounted.
	if again := mount(t, d, "one", "b"); again != first {
		t.Errorf("mounted at %s and at %s", first, again)
	}
	unmount(t, d, "one", "b")
	if _, err := d.PrepareRemove(t.Context(), "one"); err != nil {
		t.Errorf("nobody uses it any more, but it cannot be removed: %v", err)
	}
}

func liveRestore(t *testing.T, d volumes.Driver, options map[string]string) {
	create(t, d, "one", options)
	mount(t, d, "one", "a")
	if err := d.LiveRestore(t.Context(), "one", "a"); err != nil {
		t.Fatal(err)
	}
	unmount(t, d, "one", "a")
	unmount(t, d, "one", "a")
	if _, err := d.PrepareRemove(t.Context(), "one"); err != nil {
		t.Errorf("restored twice under one id and unmounted, it cannot be removed: %v", err)
	}
}

func sideBySide(t *testing.T, d volumes.Driver, options map[string]string) {
	t.Run("group", func(t *testing.T) {
		for i := range 8 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				name := fmt.Sprintf("volume%d", i)
				for range 5 {
					create(t, d, name, options)
					mount(t, d, name, "a")
					unmount(t, d, name, "a")
					token, err := d.PrepareRemove(t.Context(), name)
					if err != nil {
						t.Fatal(err)
					}
					if err := d.Remove(t.Context(), name, token); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	})
	if got := names(t, d); len(got) != 0 {
		t.Errorf("left over: %q", got)
	}
}
