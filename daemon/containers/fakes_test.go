package containers_test

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/daemon/containers"
	"stated.dev/stated/daemon/journal"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/sandbox"
)

// host is everything below the service that outlives a daemon: layers, volumes and networks, in memory. Any of its
// operations can be told to fail or to wait.
type host struct {
	root string

	mu        sync.Mutex // guards what is below
	lies      map[string]func() error
	layers    map[string]bool
	mounted   map[string]bool
	users     map[string]map[string]bool // volume -> containers
	mounts    map[string]bool            // "volume/mount id"
	pins      map[string]bool            // paths
	sandboxes map[string]string          // id -> container
	active    map[string]string          // what the last Restore was told
	attached  sandbox.Request            // the last one
	events    []string

	full atomic.Bool // no record can be written
}

func newHost(root string) *host {
	return &host{root: root, lies: map[string]func() error{}, layers: map[string]bool{}, mounted: map[string]bool{},
		users: map[string]map[string]bool{}, mounts: map[string]bool{}, pins: map[string]bool{}, sandboxes: map[string]string{}}
}

// lie makes the next operation of this name call f before anything else, and fail when that does.
func (h *host) lie(op string, f func() error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lies[op] = f
}

// begin runs the lie about an operation, if there is one.
func (h *host) begin(op string) error {
	h.mu.Lock()
	lie := h.lies[op]
	delete(h.lies, op)
	h.mu.Unlock()
	if lie == nil {
		return nil
	}
	return lie()
}

// do runs an operation with h.mu held, after the lie about it.
func (h *host) do(op string, f func() error) error {
	if err := h.begin(op); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return f()
}

// held lists what containers hold.
func (h *host) held() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []string
	for id := range h.mounted {
		list = append(list, "layer "+id)
	}
	for m := range h.mounts {
		list = append(list, "volume mount "+m)
	}
	for path := range h.pins {
		list = append(list, "pin "+path)
	}
	for id, c := range h.sandboxes {
		list = append(list, "sandbox "+ids.Short(id)+" of "+ids.Short(c))
	}
	slices.Sort(list)
	return list
}

// told lists the events since the last call.
func (h *host) told() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.events
	h.events = nil
	return list
}

// Publish implements containers.Publisher.
func (h *host) Publish(typ events.Type, action events.Action, _ string, _ map[string]string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if typ == events.ContainerEventType {
		h.events = append(h.events, string(action))
	}
}

// lyingJournal is a journal whose disk may be full.
type lyingJournal struct {
	*journal.Journal
	*host
}

func (j lyingJournal) Commit(ctx context.Context, changes ...journal.Change) error {
	if j.full.Load() {
		return syscall.ENOSPC
	}
	if err := j.begin("Commit"); err != nil {
		return err
	}
	return j.Journal.Commit(ctx, changes...)
}

// Image implements containers.Images.
func (h *host) Image(context.Context, string) (containers.Image, error) {
	return containers.Image{ID: digest.FromString("image"), ChainID: digest.FromString("chain"), OS: "linux", Arch: "amd64"}, h.begin("Image")
}

type fakeLayers struct{ *host }

func (l fakeLayers) DriverName() string { return "fake" }

func (l fakeLayers) record(id string) string { return filepath.Join(l.root, "layerdb", id) }

func (l fakeLayers) CreateRW(_ context.Context, id string, req containers.LayerRequest) error {
	if err := l.begin("CreateRW"); err != nil {
		return err
	}
	if err := req.Commit([]containers.File{{Path: filepath.Join(l.record(id), "mount-id"), Data: []byte(id), Mode: 0o644}}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.layers[id] = true
	return nil
}

func (l fakeLayers) MountRW(_ context.Context, id, _ string) (string, error) {
	dir := filepath.Join(l.root, "merged", id)
	return dir, l.do("MountRW", func() error {
		if !l.layers[id] {
			return fmt.Errorf("layer of %s: %w", id, errdefs.ErrNotFound)
		}
		if l.mounted[id] {
			return fmt.Errorf("layer of %s is mounted twice", id)
		}
		l.mounted[id] = true
		return os.MkdirAll(dir, 0o755)
	})
}

func (l fakeLayers) UnmountRW(_ context.Context, id string) error {
	return l.do("UnmountRW", func() error {
		delete(l.mounted, id)
		return nil
	})
}

func (l fakeLayers) MountedRW(id string) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return filepath.Join(l.root, "merged", id), l.mounted[id]
}

func (l fakeLayers) RemoveRW(_ context.Context, id string, commit func([]string) error) error {
	err := l.do("RemoveRW", func() error {
		if !l.layers[id] {
			return fmt.Errorf("layer of %s: %w", id, errdefs.ErrNotFound)
		}
		if l.mounted[id] {
			return fmt.Errorf("layer of %s is mounted: %w", id, errdefs.ErrFailedPrecondition)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := commit([]string{l.record(id)}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.layers, id)
	return nil
}

func (l fakeLayers) ParentRW(id string) (digest.Digest, error) {
	return digest.FromString("chain"), l.do("ParentRW", func() error {
		if !l.layers[id] {
			return fmt.Errorf("layer of %s: %w", id, errdefs.ErrNotFound)
		}
		return nil
	})
}

func (l fakeLayers) RWMetadata(string) (map[string]string, error) { return map[string]string{}, nil }
func (l fakeLayers) RWSize(context.Context, string) (rw, total int64, err error) {
	return 0, 0, nil
}
func (l fakeLayers) RWChanges(context.Context, string) ([]container.FilesystemChange, error) {
	return nil, nil
}

type fakeVolumes struct{ *host }

func (v fakeVolumes) Create(_ context.Context, req containers.VolumeRequest) (containers.Volume, error) {
	name := req.Name
	if name == "" {
		name = ids.New()
	}
	return containers.Volume{Name: name, Driver: "local", Mountpoint: v.path(name)}, v.do("VolumeCreate", func() error {
		if v.users[name] == nil {
			v.users[name] = map[string]bool{}
		}
		v.users[name][req.Ref] = true
		return os.MkdirAll(v.path(name), 0o755)
	})
}

func (v fakeVolumes) path(name string) string { return filepath.Join(v.root, "volumes", name) }

func (v fakeVolumes) Get(_ context.Context, name, _, ref string) (containers.Volume, error) {
	return containers.Volume{Name: name, Driver: "local", Mountpoint: v.path(name)}, v.do("VolumeGet", func() error {
		if v.users[name] == nil {
			return fmt.Errorf("volume %s: %w", name, errdefs.ErrNotFound)
		}
		if ref != "" {
			v.users[name][ref] = true
		}
		return nil
	})
}

func (v fakeVolumes) Claim(ctx context.Context, name, driver, ref string) error {
	_, err := v.Get(ctx, name, driver, ref)
	return err
}

func (v fakeVolumes) Mount(_ context.Context, name, mountID string) (string, error) {
	return v.path(name), v.do("VolumeMount", func() error {
		v.mounts[name+"/"+mountID] = true
		return nil
	})
}

func (v fakeVolumes) Unmount(_ context.Context, name, mountID string) error {
	return v.do("VolumeUnmount", func() error {
		delete(v.mounts, name+"/"+mountID)
		return nil
	})
}

func (v fakeVolumes) LiveRestore(_ context.Context, name, mountID string) error {
	return v.do("VolumeLiveRestore", func() error {
		v.mounts[name+"/"+mountID] = true
		return nil
	})
}

func (v fakeVolumes) CopyUp(context.Context, string, string, []string) error {
	return v.do("CopyUp", nothing)
}

func nothing() error { return nil }

func (v fakeVolumes) Release(_ context.Context, name, ref string) error {
	return v.do("VolumeRelease", func() error {
		delete(v.users[name], ref)
		return nil
	})
}

func (v fakeVolumes) Remove(_ context.Context, name string) error {
	return v.do("VolumeRemove", func() error {
		if len(v.users[name]) > 0 {
			return fmt.Errorf("volume %s is in use: %w", name, errdefs.ErrConflict)
		}
		delete(v.users, name)
		return os.RemoveAll(v.path(name))
	})
}

type fakePins struct{ *host }

func (p fakePins) Below(base, sub string) (string, func() error, error) {
	path := filepath.Join(base, sub)
	return path, func() error {
			return p.do("Release", func() error {
				delete(p.pins, path)
				return nil
			})
		}, p.do("Pin", func() error {
			p.pins[path] = true
			return nil
		})
}

func (p fakePins) Clear() error {
	return p.do("ClearPins", func() error {
		clear(p.pins)
		return nil
	})
}

type fakeNetworks struct{ *host }

func (n fakeNetworks) Network(_ context.Context, ref string) (containers.Network, error) {
	return containers.Network{ID: digest.FromString("bridge").Encoded(), Name: "bridge", Driver: "bridge", Default: true}, nil
}

func (n fakeNetworks) CheckEndpoint(string, ...netip.Addr) error { return nil }

func (n fakeNetworks) Attach(_ context.Context, req sandbox.Request, _ []sandbox.JoinRequest) (*sandbox.Sandbox, error) {
	sb := &sandbox.Sandbox{ID: ids.New(), Key: "/run/netns/fake"}
	return sb, n.do("Attach", func() error {
		n.sandboxes[sb.ID], n.attached = req.ContainerID, req
		return nil
	})
}

func (n fakeNetworks) Join(context.Context, sandbox.JoinRequest) (*sandbox.Endpoint, error) {
	return &sandbox.Endpoint{ID: ids.New()}, n.do("Join", nothing)
}

func (n fakeNetworks) Leave(context.Context, string, string) error { return n.do("Leave", nothing) }

func (n fakeNetworks) Resolver(context.Context, string) (sandbox.Resolver, error) {
	return sandbox.Resolver{ResolvConf: []byte("nameserver 192.0.2.1\n")}, n.do("Resolver", nothing)
}

func (n fakeNetworks) Release(_ context.Context, id string) error {
	return n.do("Release", func() error {
		delete(n.sandboxes, id)
		return nil
	})
}

func (n fakeNetworks) Restore(_ context.Context, active map[string]string, _ func(string) sandbox.PortHolder) error {
	return n.do("Restore", func() error {
		n.active = maps.Clone(active)
		maps.DeleteFunc(n.sandboxes, func(id, _ string) bool { return active[id] == "" })
		return nil
	})
}

// hold returns a lie that makes an operation wait until the returned function is called.
func hold() (lie func() error, release func()) {
	until := make(chan struct{})
	return func() error {
		<-until
		return nil
	}, func() { close(until) }
}
