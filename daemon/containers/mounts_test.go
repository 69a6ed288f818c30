package containers_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/opencontainers/go-digest"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/daemon/containers"
	"stated.dev/stated/volumes/mountpoint"
)

// mountPoints is what a container's config.v2.json has of its mounts.
func (b *bench) mountPoints(id string) map[string]*mountpoint.MountPoint {
	b.Helper()
	var r struct {
		MountPoints map[string]*mountpoint.MountPoint
	}
	data, err := os.ReadFile(filepath.Join(b.root, "containers", id, "config.v2.json"))
	b.ok(err, json.Unmarshal(data, &r))
	return r.MountPoints
}

func imageAt(target, ref string) mount.Mount {
	return mount.Mount{Type: mount.TypeImage, Source: ref, Target: target}
}

func mounting(list ...mount.Mount) *container.HostConfig { return &container.HostConfig{Mounts: list} }

// TestImageMountNames: the layers have dockerd's names where these are names of files, and are one's own.
func TestImageMountNames(t *testing.T) {
	bubble(t, func(b *bench) {
		long := strings.Repeat("x", 200)
		id := b.create("one", mounting(imageAt("/a", "img:1"), imageAt("/b", "img:1"), imageAt("/c", "a/b:1"), imageAt("/d", long)), "wait")
		hashed := func(destination string) string { return id + "-" + digest.FromString(destination).Encoded() }
		got := map[string]string{}
		for dest, m := range b.mountPoints(id) {
			got[dest] = m.ID
			if m.Spec.Source != digest.FromString("image").String() || m.RW || m.Source == "" {
				b.Errorf("%s: %+v", dest, m)
			}
		}
		if diff := cmp.Diff(map[string]string{"/a": id + "-img:1", "/b": hashed("/b"), "/c": hashed("/c"), "/d": hashed("/d")}, got); diff != "" {
			b.Error(diff)
		}
		if name := b.mountPoints(id)["/a"].Name; name != "img:1" {
			b.Errorf("name %q", name)
		}
		for _, layer := range got {
			if !b.host.layers[layer] || !b.OwnsLayer(layer) {
				b.Errorf("layer %s: made %t, owned %t", layer, b.host.layers[layer], b.OwnsLayer(layer))
			}
		}
		b.ok(b.Remove(b.Context(), id, api.RemoveRequest{}))
		if len(b.host.layers) > 0 {
			b.Errorf("left layers: %v", b.host.layers)
		}
	})
}

func TestImageMountLife(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.create("one", mounting(imageAt("/t", "img:1")), "wait")
		layer := id + "-img:1"
		b.nothingHeld()
		use := []containers.Use{{ID: id, Name: "one", Mounted: false}}
		if diff := cmp.Diff(use, b.UsingImage(digest.FromString("image").String())); diff != "" {
			b.Error(diff)
		}
		mounted := func() {
			b.Helper()
			if !b.host.mounted[layer] || len(b.host.pins) > 0 || b.mountPoints(id)["/t"].ID != layer {
				b.Errorf("held: %v; record %+v", b.host.held(), b.mountPoints(id)["/t"])
			}
		}
		b.start(id)
		mounted()
		b.again()
		b.is(id, container.StateRunning)
		mounted()
		b.ok(b.Restart(b.Context(), id, api.StopRequest{}))
		mounted()
		b.reboot()
		b.nothingHeld()
		b.start(id)
		mounted()

		// Another container takes the mount over, and keeps it.
		other := b.create("two", &container.HostConfig{VolumesFrom: []string{"one"}}, "wait")
		b.host.lie("Image", boom) // for whoever asks for the image that it mounts: it is not needed
		b.ok(b.Remove(b.Context(), id, api.RemoveRequest{Force: true}))
		b.start(other)
		if !b.host.mounted[other+"-img:1"] {
			b.Errorf("held: %v", b.host.held())
		}
		b.ok(b.Remove(b.Context(), other, api.RemoveRequest{Force: true}))
		b.nothingHeld()
		if len(b.host.layers) > 0 {
			b.Errorf("left layers: %v", b.host.layers)
		}
	})
}

// TestImageMountOfDockerd: dockerd has names for layers that are none here, and that it does not find again itself.
func TestImageMountOfDockerd(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.create("one", mounting(imageAt("/t", "img:1")), "wait")
		b.end()
		b.edit(id, `"ID":"`+id+`-img:1"`, `"ID":"`+id+`-a/b:1"`)
		delete(b.host.layers, id+"-img:1")
		b.begin()
		b.start(id)
		if got := b.mountPoints(id)["/t"].ID; got != id+"-img:1" || !b.host.mounted[got] {
			b.Errorf("layer %s; held %v", got, b.host.held())
		}
		b.ok(b.Remove(b.Context(), id, api.RemoveRequest{Force: true}))
		b.nothingHeld()
	})
}

// TestImageMountFails fails each step of a create and wants nothing left.
func TestImageMountFails(t *testing.T) {
	for _, op := range []string{"Image", "CreateRW", "MountRW", "UnmountRW", "Commit"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.host.lie(op, boom)
				if _, err := b.Service.Create(b.Context(), request("one", mounting(imageAt("/t", "img:1")), "wait")); err == nil {
					b.Fatal("it was created")
				}
				if op != "UnmountRW" { // then it stays mounted, until the start of the next daemon
					b.nothingHeld()
					if len(b.host.layers) > 0 {
						b.Errorf("left layers: %v", b.host.layers)
					}
				}
			})
		})
	}
}

// TestSubpath: what a mount shows is held while the container starts, and the record has the volume's own path.
func TestSubpath(t *testing.T) {
	bubble(t, func(b *bench) {
		part := mount.Mount{Type: mount.TypeVolume, Source: "data", Target: "/t", VolumeOptions: &mount.VolumeOptions{Subpath: "a/b"}}
		id := b.create("one", mounting(part), "wait")
		created := make(chan struct{})
		b.rt.Hold("Create", created)
		started := make(chan error)
		go func() { started <- b.Start(b.Context(), id, api.StartRequest{}) }()
		synctest.Wait()
		volume := filepath.Join(b.root, "volumes", "data")
		if diff := cmp.Diff(map[string]bool{filepath.Join(volume, "a/b"): true}, b.host.pins); diff != "" {
			b.Error(diff)
		}
		close(created)
		b.ok(<-started)
		if len(b.host.pins) > 0 {
			b.Errorf("left: %v", b.host.pins)
		}
		if m := b.mountPoints(id)["/t"]; m.Source != volume || m.ID == "" {
			b.Errorf("%+v", m)
		}
	})
}

// TestLeftPins: a daemon that was killed in a start leaves pins; the next one takes them away.
func TestLeftPins(t *testing.T) {
	bubble(t, func(b *bench) {
		b.end()
		b.host.pins["left"] = true
		b.begin()
		b.nothingHeld()
	})
}

// TestSocketDuringShutdown: a daemon that ends has no socket any more; nobody may make a directory of that name.
func TestSocketDuringShutdown(t *testing.T) {
	bubble(t, func(b *bench) {
		socket := filepath.Join(b.root, "api.sock")
		id := b.create("one", &container.HostConfig{Binds: []string{socket + ":/api.sock"}}, "wait")
		b.ok(b.Close())
		err := b.Start(b.Context(), id, api.StartRequest{})
		if err == nil || err.Error() != `Could not mount "`+socket+`" to container while the daemon is shutting down` {
			b.Errorf("start: %v", err)
		}
		if _, err := os.Lstat(socket); !os.IsNotExist(err) {
			b.Errorf("something is there: %v", err)
		}
	})
}

// TestReadOnlyConflicts: what contradicts itself is accepted by create and refused by start, as with Docker.
func TestReadOnlyConflicts(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.create("one", mounting(mount.Mount{Type: mount.TypeBind, Source: b.root, Target: "/t", BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}}), "wait")
		err := b.Start(b.Context(), id, api.StartRequest{})
		if err == nil || err.Error() != "mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive" || errdefs.IsInvalidArgument(err) {
			b.Errorf("start: %v", err)
		}
		b.nothingHeld()
	})
}
