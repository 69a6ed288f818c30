package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	apiimages "stated.dev/stated/api/router/images"
	apisystem "stated.dev/stated/api/router/system"
	"stated.dev/stated/daemon/containers"
	"stated.dev/stated/daemon/images"
	"stated.dev/stated/daemon/logs"
	"stated.dev/stated/daemon/runtime/external"
	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/daemon/system"
	"stated.dev/stated/graphdriver/layer"
	"stated.dev/stated/internal/events"
	"stated.dev/stated/internal/pin"
	"stated.dev/stated/network"
	"stated.dev/stated/network/dns"
	"stated.dev/stated/network/driver/bridge"
	"stated.dev/stated/network/ipam"
	"stated.dev/stated/network/sandbox"
	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/plugin"
)

// The types below join subsystems that do not know each other. They translate words and decide nothing.

// imageLayers shows the layer store to the images.
type imageLayers struct{ *layer.Store }

func (l imageLayers) Register(ctx context.Context, tar io.Reader, parent digest.Digest) (images.LayerInfo, error) {
	i, err := l.Store.Register(ctx, tar, parent)
	return layerInfo(i), err
}

func (l imageLayers) Stage(ctx context.Context, tar io.Reader) (images.StagedLayer, error) {
	return l.Store.Stage(ctx, tar)
}

func (l imageLayers) Commit(ctx context.Context, parent digest.Digest, staged ...images.StagedLayer) ([]images.LayerInfo, error) {
	list := make([]*layer.Staged, len(staged))
	for i, st := range staged {
		list[i] = st.(*layer.Staged) // Stage above made it
	}
	infos, err := l.Store.Commit(ctx, parent, list...)
	return layerInfos(infos), err
}

func (l imageLayers) Acquire(chain digest.Digest) (images.LayerInfo, error) {
	i, err := l.Store.Acquire(chain)
	return layerInfo(i), err
}

func (l imageLayers) Layer(chain digest.Digest) (images.LayerInfo, error) {
	i, err := l.Store.Layer(chain)
	return layerInfo(i), err
}

func (l imageLayers) Chain(chain digest.Digest) ([]images.LayerInfo, error) {
	list, err := l.Store.Chain(chain)
	return layerInfos(list), err
}

func layerInfos(list []layer.Info) []images.LayerInfo {
	out := make([]images.LayerInfo, len(list))
	for n, i := range list {
		out[n] = layerInfo(i)
	}
	return out
}

func layerInfo(i layer.Info) images.LayerInfo {
	return images.LayerInfo{ChainID: i.ChainID, DiffID: i.DiffID, Parent: i.Parent, CacheID: i.CacheID, Size: i.Size}
}

// containerLayers shows it to the containers.
type containerLayers struct {
	*layer.Store
	root string // the data root
}

// MountRW says what is missing of a writable layer that cannot be mounted for that.
func (l containerLayers) MountRW(ctx context.Context, id, mountLabel string) (string, error) {
	root, err := l.Store.MountRW(ctx, id, mountLabel)
	if errors.Is(err, layer.ErrRWNotFound) || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %s", err, l.missing(id))
	}
	return root, err
}

// missing says what is to be brought for a container's writable layer, and how.
func (l containerLayers) missing(id string) string {
	record := filepath.Join(l.root, "image", l.DriverName(), "layerdb", "mounts", id)
	bring := func(dir, with string) string {
		return fmt.Sprintf("directory %s is missing; stop the daemon and copy it there from the data root that the container came from, with %s", dir, with)
	}
	home := filepath.Join(l.root, l.DriverName())
	if l.DriverName() == "vfs" {
		home = filepath.Join(home, "dir")
	}
	for _, name := range []string{"mount-id", "init-id"} {
		data, err := os.ReadFile(filepath.Join(record, name))
		if errors.Is(err, fs.ErrNotExist) && name == "mount-id" {
			return bring(record, "the directories of "+home+" that its files mount-id and init-id name")
		}
		if err != nil {
			continue // there may be no init layer
		}
		if _, err := os.Stat(filepath.Join(home, string(data))); errors.Is(err, fs.ErrNotExist) {
			return bring(filepath.Join(home, string(data)), "what names it in "+filepath.Join(home, "l")+", if there is such a directory")
		}
	}
	return fmt.Sprintf("the layers below it have other names on this host, or are missing; stop the daemon, run stated handback --data-root %s, which repairs the names, and start it again", l.root)
}

func (l containerLayers) CreateRW(ctx context.Context, id string, req containers.LayerRequest) error {
	return l.Store.CreateRW(ctx, id, layer.RWRequest{
		Parent: req.Parent, StorageOpt: req.StorageOpt, MountLabel: req.MountLabel, Bare: req.Bare,
		Commit: func(files []layer.File) error {
			list := make([]containers.File, len(files))
			for i, f := range files {
				list[i] = containers.File{Path: f.Path, Data: f.Data, Mode: f.Mode}
			}
			return req.Commit(list)
		},
	})
}

func (l containerLayers) ParentRW(id string) (digest.Digest, error) {
	info, err := l.Store.RW(id)
	return info.Parent, err
}

func (l containerLayers) RWChanges(ctx context.Context, id string) ([]container.FilesystemChange, error) {
	changes, err := l.Store.RWChanges(ctx, id)
	if err != nil {
		return nil, err
	}
	list := make([]container.FilesystemChange, len(changes))
	for i, c := range changes {
		list[i] = container.FilesystemChange{Kind: container.ChangeType(c.Kind), Path: c.Path}
	}
	return list, nil
}

// usedImages tells the images which containers use them. The containers are opened later than the images.
type usedImages struct{ d *Daemon }

func (u usedImages) UsingImage(id digest.Digest) []images.ContainerUse {
	if u.d.containers == nil {
		return nil
	}
	var list []images.ContainerUse
	for _, c := range u.d.containers.UsingImage(id.String()) {
		list = append(list, images.ContainerUse{ID: c.ID, Name: c.Name, Running: c.Running, Mounted: c.Mounted})
	}
	return list
}

// volumeUsers tells the volumes who uses them. The containers are opened later than the volumes, and until then nobody
// can ask for a removal.
func (d *Daemon) volumeUsers(context.Context) map[string][]string {
	if d.containers == nil {
		return nil
	}
	return d.containers.VolumeUsers()
}

// freezeUsers holds still who uses a volume.
func (d *Daemon) freezeUsers(ctx context.Context, volume string) (volumes.Frozen, error) {
	f, err := d.containers.Freeze(ctx, volume)
	if err != nil {
		return volumes.Frozen{}, err
	}
	return volumes.Frozen{Containers: f.Names, Thaw: f.Thaw}, nil
}

// containerImages shows the images to the containers.
type containerImages struct{ s *images.Service }

func (i containerImages) Image(ctx context.Context, ref string) (containers.Image, error) {
	img, err := i.s.Get(ctx, ref)
	if err != nil {
		return containers.Image{}, err
	}
	return containers.Image{ID: img.ID, ChainID: img.ChainID, OS: img.OS, Arch: img.Architecture, Variant: img.Variant, Config: &img.Config}, nil
}

// containerVolumes shows the volumes to the containers.
type containerVolumes struct{ *volumes.Store }

func volume(v volumes.Volume, err error) (containers.Volume, error) {
	return containers.Volume{Name: v.Name, Driver: v.Driver, Mountpoint: v.Mountpoint}, err
}

func (v containerVolumes) Create(ctx context.Context, req containers.VolumeRequest) (containers.Volume, error) {
	return volume(v.Store.Create(ctx, volumes.CreateRequest{Name: req.Name, Driver: req.Driver, Options: req.Options, Labels: req.Labels, Ref: req.Ref}))
}

func (v containerVolumes) Get(ctx context.Context, name, driver, ref string) (containers.Volume, error) {
	found, err := volume(v.Store.Get(ctx, name, volumes.GetRequest{Driver: driver, Ref: ref}))
	return found, v.explain(name, driver, err)
}

func (v containerVolumes) Claim(ctx context.Context, name, driver, ref string) error {
	return v.explain(name, driver, v.Store.AddRef(ctx, name, ref))
}

// explain adds to Docker's text what exactly is missing of a volume, and what brings it.
func (v containerVolumes) explain(name, driver string, err error) error {
	if !errors.Is(err, volumes.ErrNoSuchVolume) {
		return err
	}
	return fmt.Errorf("%w: %s", err, v.Store.Missing(name, driver))
}

func (v containerVolumes) Remove(ctx context.Context, name string) error {
	return v.Store.Remove(ctx, name, volumes.RemoveRequest{})
}

// containerPins holds what is to be mounted into containers.
type containerPins struct{ *pin.Dir }

func (p containerPins) Below(base, sub string) (string, func() error, error) {
	held, err := p.Dir.Below(base, sub)
	if err != nil {
		return "", nil, err
	}
	return held.Path(), held.Release, nil
}

// pinDir is where they are held.
func pinDir(execRoot string) *pin.Dir { return pin.NewDir(filepath.Join(execRoot, "pins")) }

// containerNetworks shows the networks to the containers.
type containerNetworks struct{ *network.Controller }

// networkBackend serves the networks and, for connect and disconnect, the containers.
type networkBackend struct {
	*network.Controller
	containers *containers.Service
}

func (b networkBackend) Connect(ctx context.Context, ref string, req apinetwork.ConnectRequest) error {
	nw, err := containerNetworks{b.Controller}.Network(ctx, ref)
	if err != nil {
		return err
	}
	return b.containers.Connect(ctx, nw, containers.ConnectRequest{Container: req.Container, Endpoint: req.EndpointConfig})
}

func (b networkBackend) Disconnect(ctx context.Context, ref string, req apinetwork.DisconnectRequest) error {
	nw, err := containerNetworks{b.Controller}.Network(ctx, ref)
	if err != nil {
		return err
	}
	return b.containers.Disconnect(ctx, nw, req.Container, containers.Force(req.Force))
}

// eventSource shows the event bus to the API.
type eventSource struct{ bus *events.Bus }

func (e eventSource) Subscribers() int { return e.bus.Subscribers() }

func (e eventSource) Events(ctx context.Context, req apisystem.EventsRequest) (apisystem.EventStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	sub, err := e.bus.Subscribe(ctx, events.SubscribeRequest{Since: req.Since, Until: req.Until, Filters: req.Filters})
	if err != nil {
		cancel()
		return nil, err
	}
	return subscription{sub, cancel}, nil
}

type subscription struct {
	*events.Subscription
	cancel context.CancelFunc
}

func (s subscription) Close() error {
	s.cancel()
	return nil
}

// systemContainers, systemImages, systemVolumes, systemNetworks and systemGraph show counts and sizes to info and df.
type systemContainers struct{ s *containers.Service }

func (c systemContainers) Counts(context.Context) (system.Counts, error) {
	running, paused, stopped := c.s.Counts()
	return system.Counts{Running: running, Paused: paused, Stopped: stopped}, nil
}

func (c systemContainers) Usage(ctx context.Context) ([]json.RawMessage, error) {
	return c.s.Usage(ctx)
}

type systemGraph struct{ *layer.Store }

func (g systemGraph) Name() string { return g.DriverName() }

func (g systemGraph) Status(context.Context) ([][2]string, error) { return g.DriverStatus(), nil }

type systemVolumes struct {
	s       *volumes.Store
	plugins *plugin.Plugins
}

// Drivers returns the drivers in use. It asks no plug-in: info must not wait for one that hangs.
func (v systemVolumes) Drivers(context.Context) ([]string, error) {
	list := append(v.plugins.Active(), volumes.DefaultDriver)
	slices.Sort(list)
	return list, nil
}

func (v systemVolumes) Usage(ctx context.Context) ([]json.RawMessage, error) {
	list, err := v.s.DiskUsage(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]json.RawMessage, len(list))
	for i, u := range list {
		if out[i], err = json.Marshal(u.API()); err != nil {
			return nil, err
		}
	}
	return out, nil
}

type systemNetworks struct{}

func (systemNetworks) Drivers(context.Context) ([]string, error) {
	return []string{"bridge", "host", "null"}, nil
}

func (systemNetworks) FirewallBackend() string { return "nftables" }

type systemImages struct {
	s      *images.Service
	layers *layer.Store
}

func (i systemImages) Count(context.Context) (int, error) { return i.s.Count(), nil }

func (i systemImages) Usage(ctx context.Context) ([]json.RawMessage, int64, error) {
	list, err := i.s.List(ctx, apiimages.ListRequest{All: true, SharedSize: true})
	if err != nil {
		return nil, 0, err
	}
	out := make([]json.RawMessage, len(list))
	for n := range list {
		if out[n], err = json.Marshal(list[n]); err != nil {
			return nil, 0, err
		}
	}
	var size int64
	for _, l := range i.layers.Layers() {
		size += l.Size
	}
	return out, size, nil
}

func (d *Daemon) systemOptions() system.Options {
	return system.Options{
		ID: d.engineID, Version: d.cfg.Version, Root: d.cfg.Root, UserRemap: d.cfg.remap.on(), Debug: d.cfg.Debug, Experimental: d.cfg.Experimental,
		LiveRestore: d.cfg.liveRestore(), NoNewPrivileges: d.cfg.NoNewPrivileges, PrivateCgroupns: d.host.CgroupVersion() == "2",
		Labels: d.cfg.Labels, LogDriver: d.cfg.LogDriver, LogDrivers: []string{logs.JSONFile, logs.Local}, OpenAddresses: d.openAddresses(),
		CgroupDriver: d.cgroupDriver(), SeccompProfile: cmp.Or(d.cfg.SeccompProfile, ocispec.SeccompBuiltin), InitPath: d.cfg.InitPath,
		Runtimes: map[string]system.Runtime{"runc": {Path: d.cfg.RuncPath}, "io.containerd.runc.v2": {Path: d.cfg.RuncPath}}, DefaultRuntime: "runc",
		RegistryMirrors: d.cfg.RegistryMirrors, InsecureRegistries: d.cfg.Insecure,
		Host: d.host, Log: d.log, ContainerdAddress: d.cfg.Containerd, ContainerdNamespace: external.Namespace,
		Containers: systemContainers{d.containers}, Images: systemImages{d.images, d.layers}, Volumes: systemVolumes{d.volumes, d.plugins},
		Networks: systemNetworks{}, Graph: systemGraph{d.layers}, Events: eventSource{d.events},
	}
}

func (n containerNetworks) Network(ctx context.Context, ref string) (containers.Network, error) {
	nw, err := n.Controller.Inspect(ctx, ref, network.InspectRequest{})
	if err != nil {
		return containers.Network{}, err
	}
	return containers.Network{ID: nw.ID, Name: nw.Name, Driver: nw.Driver, Default: nw.Options[bridge.OptDefault] == "true"}, nil
}

func (n containerNetworks) Restore(ctx context.Context, active map[string]string, holder func(string) sandbox.PortHolder) error {
	_, err := n.Controller.Restore(ctx, active, holder)
	return err
}

// networkOptions translates the configuration for the network controller.
func (d *Daemon) networkOptions() (network.Options, error) {
	o := network.Options{
		DataDir: filepath.Join(d.cfg.Root, "network", "files"), StateDir: d.statePath("network"), ExecRoot: d.cfg.ExecRoot, EngineID: d.engineID,
		DefaultBridge: network.DefaultBridge{Name: d.cfg.Bridge, MTU: d.cfg.MTU},
		Events:        d.events, Zones: zoneWriter{}, DNSSearch: d.cfg.DNSSearch, DNSOptions: d.cfg.DNSOptions,
	}
	if d.cfg.BIP != "" {
		prefix, err := netip.ParsePrefix(d.cfg.BIP)
		if err != nil {
			return o, fmt.Errorf("--bip %s: want an address with a prefix length, like 172.30.0.1/16", d.cfg.BIP)
		}
		o.DefaultBridge.BIP = prefix
	}
	for _, text := range d.cfg.DNS {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return o, fmt.Errorf("--dns %s: not an IP address", text)
		}
		o.DNS = append(o.DNS, addr)
	}
	for _, p := range d.cfg.AddressPools {
		base, err := netip.ParsePrefix(p.Base)
		if err != nil || p.Size < base.Bits() || p.Size > base.Addr().BitLen() {
			return o, fmt.Errorf("--default-address-pool base=%s,size=%d: want a prefix, and a size between its length and the address's", p.Base, p.Size)
		}
		o.DefaultAddressPools = append(o.DefaultAddressPools, ipam.Predefined{Base: base, Size: p.Size})
	}
	return o, nil
}

// zoneWriter writes the names of networks for the resolvers in the shims.
type zoneWriter struct{}

func (zoneWriter) WriteZone(path string, z network.Zone) error {
	return dns.WriteZone(path, dns.Zone{Records: z.Records, Reverse: z.Reverse})
}

func (zoneWriter) RemoveZone(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// openAddresses are the TCP addresses that are served without verified clients.
func (d *Daemon) openAddresses() []string {
	var list []string
	for _, h := range d.cfg.Hosts {
		if strings.HasPrefix(h, "tcp://") && !d.cfg.TLSVerify {
			list = append(list, h)
		}
	}
	return list
}
