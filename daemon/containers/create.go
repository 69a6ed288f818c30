package containers

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/sys/user"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/daemon/containers/settings"
	"stated.dev/stated/daemon/journal"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
)

// Create makes a container that does not run yet: its writable layer, its volumes and its record. The record and the
// layer's are one journal entry, so that a power cut leaves all of it or nothing.
func (s *Service) Create(ctx context.Context, req api.CreateRequest) (resp container.CreateResponse, err error) {
	resp.Warnings = []string{}
	if req.Config == nil {
		return resp, errdefs.ErrInvalidArgument.WithMessage("config cannot be empty in order to create a container")
	}
	hc := req.HostConfig
	if hc == nil {
		hc = &container.HostConfig{}
	}
	warnings, err := settings.Validate(req.Config, hc, s.cfg.Settings)
	resp.Warnings = append(resp.Warnings, warnings...)
	if err != nil {
		return resp, err
	}
	img, err := s.images.Image(ctx, req.Config.Image)
	if err != nil {
		return resp, err
	}
	if p := req.Platform; p != nil && (p.OS != img.OS || p.Architecture != img.Arch) {
		return resp, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("image with reference %s was found but its platform (%s/%s) does not match the specified platform (%s/%s)",
			req.Config.Image, img.OS, img.Arch, p.OS, p.Architecture))
	}
	if img.Config == nil {
		img.Config = &dockerspec.DockerOCIImageConfig{}
	}
	if err := settings.MergeImage(req.Config, img.Config); err != nil {
		return resp, err
	}
	path, args, err := settings.Command(req.Config)
	if err != nil {
		return resp, err
	}

	ctx = context.WithoutCancel(ctx) // from here on it is whole or undone
	var undo undoList
	defer undo.runOn(&err)
	id := ids.New()
	name, err := s.takeName(req.Name, id)
	if err != nil {
		return resp, err
	}
	undo.add(func() error { s.releaseName(strings.TrimPrefix(name, "/"), id); return nil })
	if len(hc.Links) > 0 {
		return resp, errLinks
	}
	if err := s.resolvePeers(hc); err != nil {
		return resp, err
	}
	settings.Defaults(hc, s.cfg.Settings)
	r, err := s.newRecord(ctx, id, name, path, args, req, hc, img)
	if err != nil {
		return resp, err
	}
	mounts, err := s.planMounts(ctx, r, req.Config.Volumes)
	if err != nil {
		return resp, err
	}
	undo.add(func() error { return mounts.undo(ctx, s, r) })
	defer s.dropClaims(id)
	if err := mounts.create(ctx, s, r); err != nil {
		return resp, err
	}
	if err := fault.Point("containers.create.volumes"); err != nil {
		return resp, err
	}
	c := newContainer(s.cfg.Dir, r)
	if err := s.createLayers(ctx, r, img, mounts.layers); err != nil {
		return resp, err
	}
	undo.add(func() error {
		return s.removeLayers(ctx, r.layers(), func(dirs []string) error {
			return s.journal.Commit(ctx, removed(append(dirs, c.dir))...)
		})
	})
	if err := fault.Point("containers.create.recorded"); err != nil {
		return resp, err
	}
	if err := s.locateImages(ctx, c); err != nil {
		return resp, err
	}
	if err := s.copyUp(ctx, r, mounts); err != nil {
		return resp, err
	}
	s.register(c)
	s.publish(c, events.ActionCreate, nil)
	resp.ID = id
	return resp, nil
}

// createLayers makes the writable layer and those of the images to mount; their records and the container's become
// durable together.
func (s *Service) createLayers(ctx context.Context, r *Record, img Image, images []imageLayer) error {
	return s.createImageLayers(ctx, r, images, func(files []File) error { return s.createLayer(ctx, r, img, files) })
}

func (s *Service) createLayer(ctx context.Context, r *Record, img Image, others []File) error {
	return s.layers.CreateRW(ctx, r.ID, LayerRequest{
		Parent: img.ChainID, StorageOpt: r.HostConfig.StorageOpt, MountLabel: r.MountLabel,
		Commit: func(files []File) error {
			changes, err := s.recordFiles(r)
			if err != nil {
				return err
			}
			changes = append(changes, written(append(files, others...))...)
			dir := filepath.Join(s.cfg.Dir, r.ID)
			if err := s.makeContainerDir(dir); err != nil {
				return err
			}
			if err := s.journal.Commit(ctx, changes...); err != nil {
				removeUnrecorded(dir)
				return err
			}
			return nil
		},
	})
}

func written(files []File) []journal.Change {
	changes := make([]journal.Change, len(files))
	for i, f := range files {
		changes[i] = journal.Change{Path: f.Path, Data: f.Data, Mode: f.Mode}
	}
	return changes
}

func removed(dirs []string) []journal.Change {
	changes := make([]journal.Change, len(dirs))
	for i, d := range dirs {
		changes[i] = journal.Change{Path: d, Remove: true}
	}
	return changes
}

// makeContainerDir makes a container's directory as Docker has it, without documents yet.
func (s *Service) makeContainerDir(dir string) error {
	if err := s.passableDir(dir); err != nil {
		return err
	}
	return user.MkdirAndChown(filepath.Join(dir, "checkpoints"), 0o700, os.Getuid(), os.Getgid())
}

// removeUnrecorded takes a directory of makeContainerDir away when nothing was put into it: a create ended before its
// record. It reports whether it did.
func removeUnrecorded(dir string) bool {
	if _, err := os.Lstat(filepath.Join(dir, configFile)); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_ = os.Remove(filepath.Join(dir, "checkpoints")) // fails when it is not empty, and so does the next
	return os.Remove(dir) == nil
}

// takeName reserves the wanted name, or a random one.
func (s *Service) takeName(want, id string) (string, error) {
	if want != "" {
		name, err := settings.CheckName(want)
		if err != nil {
			return "", err
		}
		return name, s.reserve(strings.TrimPrefix(name, "/"), id)
	}
	for attempt := range settings.NameAttempts {
		name := settings.RandomName(attempt)
		if s.reserve(name, id) == nil {
			return "/" + name, nil
		}
	}
	return "/" + ids.Short(id), s.reserve(ids.Short(id), id)
}

// resolvePeers turns "container:NAME" modes into ids, so that a rename of the other container does no harm.
func (s *Service) resolvePeers(hc *container.HostConfig) error {
	resolve := func(ref string) (string, error) {
		c, err := s.lookup(ref)
		if err != nil {
			return "", errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
		return "container:" + c.id, nil
	}
	var err error
	if hc.NetworkMode.IsContainer() {
		// One that is not there is looked up again when the container starts.
		if mode, err := resolve(hc.NetworkMode.ConnectedContainer()); err == nil {
			hc.NetworkMode = container.NetworkMode(mode)
		}
	}
	if hc.PidMode.IsContainer() {
		var mode string
		if mode, err = resolve(hc.PidMode.Container()); err == nil {
			hc.PidMode = container.PidMode(mode)
		}
	}
	if err == nil && hc.IpcMode.IsContainer() {
		var mode string
		if mode, err = resolve(hc.IpcMode.Container()); err == nil {
			hc.IpcMode = container.IpcMode(mode)
		}
	}
	return err
}

// newRecord fills in the record of a new container.
func (s *Service) newRecord(ctx context.Context, id, name, path string, args []string, req api.CreateRequest, hc *container.HostConfig, img Image) (*Record, error) {
	dir := filepath.Join(s.cfg.Dir, id)
	r := &Record{
		ID: id, Name: name, Created: time.Now().UTC(), Path: path, Args: args, Config: req.Config, HostConfig: hc,
		Image: img.ID.String(), Driver: s.layers.DriverName(), OS: cmp.Or(img.OS, "linux"),
		ImagePlatform:    &ocispec.Platform{OS: img.OS, Architecture: img.Arch, Variant: img.Variant},
		SecretReferences: json.RawMessage("null"), ConfigReferences: json.RawMessage("null"),
		HostnamePath: filepath.Join(dir, "hostname"), HostsPath: filepath.Join(dir, "hosts"), ResolvConfPath: filepath.Join(dir, "resolv.conf"),
		NetworkSettings: &NetworkSettings{
			Service: json.RawMessage("null"), SecondaryIPAddresses: json.RawMessage("null"), SecondaryIPv6Addresses: json.RawMessage("null"),
			Networks: map[string]*EndpointSettings{},
		},
	}
	if r.Args == nil {
		r.Args = []string{}
	}
	if err := setHostname(r); err != nil {
		return nil, err
	}
	security, err := settings.ParseSecurityOpt(hc.SecurityOpt, s.cfg.Settings)
	if err != nil {
		return nil, err
	}
	r.ProcessLabel, r.MountLabel, r.AppArmorProfile = security.ProcessLabel, security.MountLabel, security.AppArmorProfile
	r.SeccompProfile, r.NoNewPrivileges, r.WritableCgroups = security.SeccompProfile, security.NoNewPrivileges, security.WritableCgroups
	if err := s.defaultLog(r); err != nil {
		return nil, err
	}
	r.LogPath = ""
	if hc.LogConfig.Type == "json-file" {
		r.LogPath = logPath(dir, id, hc.LogConfig.Type)
	}
	if needsShm(r) {
		r.ShmPath = filepath.Join(dir, "mounts", "shm")
	}
	return r, s.setNetworks(ctx, r, req.Networking)
}

// setHostname gives a container without a host name one: its short id, or the host's where it shares that namespace.
func setHostname(r *Record) error {
	if r.Config.Hostname != "" {
		return nil
	}
	if r.HostConfig.NetworkMode.IsHost() || r.HostConfig.UTSMode.IsHost() {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("read the host's name: %w", err)
		}
		r.Config.Hostname, r.Config.Domainname, _ = strings.Cut(host, ".")
		return nil
	}
	if r.HostConfig.NetworkMode.IsContainer() {
		return nil
	}
	r.Config.Hostname = ids.Short(r.ID)
	return nil
}

// setNetworks writes the wanted networks into the record, under their names. A network that does not exist yet is
// kept under the name the user wrote: the start looks again.
func (s *Service) setNetworks(ctx context.Context, r *Record, wanted *network.NetworkingConfig) error {
	mode := r.HostConfig.NetworkMode
	if mode.IsContainer() || r.Config.NetworkDisabled {
		return nil
	}
	main := string(mode)
	if main == "" || main == "default" {
		main = network.NetworkBridge
	}
	endpoints := map[string]*network.EndpointSettings{}
	if wanted != nil {
		for name, ep := range wanted.EndpointsConfig {
			if name == "default" {
				name = network.NetworkBridge
			}
			endpoints[name] = ep
		}
	}
	mainKey, err := s.networkKey(ctx, main)
	if err != nil {
		return err
	}
	found := false
	for ref, ep := range endpoints {
		key, err := s.networkKey(ctx, ref)
		if err != nil {
			return err
		}
		e := &EndpointSettings{}
		if err := s.checkEndpoint(ref, ep); err != nil {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid config for network %s: %s", key.Name, err))
		}
		if ep != nil {
			e.EndpointSettings = *ep.Copy()
			if len(ep.MacAddress) > 0 {
				e.DesiredMacAddress = ep.MacAddress.String()
			}
		}
		e.NetworkID = key.ID
		if key.Name == mainKey.Name {
			found = true
		}
		r.NetworkSettings.set(key.Name, e)
	}
	if !found {
		r.NetworkSettings.set(mainKey.Name, &EndpointSettings{EndpointSettings: network.EndpointSettings{NetworkID: mainKey.ID}})
	}
	if mac := r.Config.MacAddress; mac != "" {
		r.NetworkSettings.Networks[mainKey.Name].DesiredMacAddress = mac
	}
	return nil
}

// errLinks refuses what would otherwise be silently without effect.
var errLinks = errdefs.ErrNotImplemented.WithMessage("legacy container links are not supported by stated: connect both containers to a user-defined network instead")

// checkEndpoint says what is wrong with what a user wants of a network.
func (s *Service) checkEndpoint(ref string, ep *network.EndpointSettings) error {
	switch {
	case ep == nil:
		return nil
	case len(ep.Links) > 0:
		return errLinks
	case ep.IPAMConfig == nil:
		return nil
	}
	return s.networks.CheckEndpoint(ref, ep.IPAMConfig.IPv4Address, ep.IPAMConfig.IPv6Address)
}

func (s *Service) networkKey(ctx context.Context, ref string) (Network, error) {
	nw, err := s.networks.Network(ctx, ref)
	if errdefs.IsNotFound(err) {
		return Network{Name: ref}, nil
	}
	return nw, err
}

// Rename gives a container another name.
func (s *Service) Rename(ctx context.Context, ref, name string) error {
	if name == "" || ref == "" {
		return errdefs.ErrInvalidArgument.WithMessage("Neither old nor new names may be empty")
	}
	c, err := s.lookup(ref)
	if err != nil {
		return err
	}
	full, err := settings.CheckName(name)
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage("Error when allocating new name: " + strings.Replace(err.Error(), "("+name+")", "(/"+strings.TrimPrefix(name, "/")+")", 1))
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	old := c.rec()
	if old.Name == full {
		return errdefs.ErrInvalidArgument.WithMessage("Renaming a container with the same name as its current name")
	}
	if err := s.reserve(strings.TrimPrefix(full, "/"), c.id); err != nil {
		return errdefs.ErrConflict.WithMessage("Error when allocating new name: " + err.Error())
	}
	if _, err := s.commit(ctx, c, func(r *Record) { r.Name = full }); err != nil {
		s.releaseName(strings.TrimPrefix(full, "/"), c.id)
		return err
	}
	s.releaseName(old.name(), c.id)
	s.publish(c, events.ActionRename, map[string]string{"oldName": old.Name})
	return nil
}

// Update changes limits and the restart policy of a container, at once where it runs.
func (s *Service) Update(ctx context.Context, ref string, up container.UpdateConfig) (container.UpdateResponse, error) {
	var resp container.UpdateResponse
	warnings, err := settings.ValidateUpdate(&up, s.cfg.Settings)
	if err != nil {
		return resp, err
	}
	resp.Warnings = warnings
	c, err := s.lookup(ref)
	if err != nil {
		return resp, err
	}
	if err := c.lock(ctx); err != nil {
		return resp, err
	}
	defer c.unlock()
	rec := c.rec()
	if rec.State.Dead {
		return resp, errdefs.ErrConflict.WithMessage(fmt.Sprintf("Cannot update container %s: container is marked for removal and cannot be \"update\"", c.id))
	}
	next := rec.clone()
	if err := settings.ApplyUpdate(next.HostConfig, up); err != nil {
		return resp, fmt.Errorf("Cannot update container %s: %w", c.id, err) //nolint:staticcheck // Docker's text
	}
	if r := c.live(); r != nil {
		if err := s.updateTask(ctx, r, next.HostConfig.Resources); err != nil {
			return resp, fmt.Errorf("Cannot update container %s: %w", c.id, err) //nolint:staticcheck // Docker's text
		}
	}
	if _, err := s.commit(ctx, c, func(r *Record) { r.HostConfig = next.HostConfig }); err != nil {
		return resp, err
	}
	s.publish(c, events.ActionUpdate, nil)
	return resp, nil
}
