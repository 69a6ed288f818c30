package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"io"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"

	apiimages "stated.dev/stated/api/router/images"
	apisystem "stated.dev/stated/api/router/system"
	"stated.dev/stated/daemon/containers"
	"stated.dev/stated/daemon/images"
	"stated.dev/stated/daemon/logs"
	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/daemon/system"
	"stated.dev/stated/graphdriver/layer"
	"stated.dev/stated/internal/events"
	"stated.dev/stated/network"
	"stated.dev/stated/volumes"
)

// The types below join subsystems that do not know each other. They translate words and decide nothing.

// imageLayers shows the layer store to the images.
type imageLayers struct{ *layer.Store }

func (l imageLayers) Register(ctx context.Context, tar io.Reader, parent digest.Digest) (images.LayerInfo, error) {
	i, err := l.Store.Register(ctx, tar, parent)
	return layerInfo(i), err
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
	out := make([]images.LayerInfo, len(list))
	for n, i := range list {
		out[n] = layerInfo(i)
	}
	return out, err
}

func layerInfo(i layer.Info) images.LayerInfo {
	return images.LayerInfo{ChainID: i.ChainID, DiffID: i.DiffID, Parent: i.Parent, CacheID: i.CacheID, Size: i.Size}
}

// containerLayers shows it to the containers.
type containerLayers struct{ *layer.Store }

func (l containerLayers) CreateRW(ctx context.Context, id string, req containers.LayerRequest) error {
	return l.Store.CreateRW(ctx, id, layer.RWRequest{
		Parent: req.Parent, StorageOpt: req.StorageOpt, MountLabel: req.MountLabel,
		Commit: func(files []layer.File) error {
			list := make([]containers.File, len(files))
			for i, f := range files {
				list[i] = containers.File{Path: f.Path, Data: f.Data, Mode: f.Mode}
			}
			return req.Commit(list)
		},
	})
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
		list = append(list, images.ContainerUse{ID: c.ID, Name: c.Name, Running: c.Running})
	}
	return list
}

// containerImages shows the images to the containers.
type containerImages struct{ s *images.Service }

func (i containerImages) Image(ctx context.Context, ref string) (containers.Image, error) {
	img, err := i.s.Get(ctx, ref)
	if err != nil {
		return containers.Image{}, err
	}
	return containers.Image{ID: img.ID, ChainID: img.ChainID, OS: img.OS, Arch: img.Architecture, Variant: img.Variant, Config: &img.Config.Config}, nil
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
	return volume(v.Store.Get(ctx, name, volumes.GetRequest{Driver: driver, Ref: ref}))
}

func (v containerVolumes) Claim(ctx context.Context, name, _, ref string) error {
	return v.Store.AddRef(ctx, name, ref)
}

func (v containerVolumes) Remove(ctx context.Context, name string) error {
	return v.Store.Remove(ctx, name, volumes.RemoveRequest{})
}

// containerNetworks shows the networks to the containers.
type containerNetworks struct{ *network.Controller }

// networkBackend serves the networks and, for connect and disconnect, the containers.
type networkBackend struct {
	*network.Controller
	containers *containers.Service
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

type systemVolumes struct{ s *volumes.Store }

func (v systemVolumes) Drivers(context.Context) ([]string, error) {
	return []string{volumes.DefaultDriver}, nil
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
		ID: d.engineID, Version: d.cfg.Version, Root: d.cfg.Root, Debug: d.cfg.Debug, Experimental: d.cfg.Experimental,
		LiveRestore: d.cfg.liveRestore(), NoNewPrivileges: d.cfg.NoNewPrivileges, PrivateCgroupns: d.host.CgroupVersion() == "2",
		Labels: d.cfg.Labels, LogDriver: d.cfg.LogDriver, LogDrivers: []string{logs.JSONFile, logs.Local, logs.None},
		CgroupDriver: d.cgroupDriver(), SeccompProfile: cmp.Or(d.cfg.SeccompProfile, ocispec.SeccompBuiltin), InitPath: d.cfg.InitPath,
		Runtimes: map[string]system.Runtime{"runc": {Path: d.cfg.RuncPath}, "io.containerd.runc.v2": {Path: d.cfg.RuncPath}}, DefaultRuntime: "runc",
		RegistryMirrors: d.cfg.RegistryMirrors, InsecureRegistries: d.cfg.Insecure,
		Host: d.host, Log: d.log,
		Containers: systemContainers{d.containers}, Images: systemImages{d.images, d.layers}, Volumes: systemVolumes{d.volumes},
		Networks: systemNetworks{}, Graph: systemGraph{d.layers}, Events: eventSource{d.events},
	}
}
