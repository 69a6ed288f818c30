package containers

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"stated.dev/stated/api/types"
)

// inspection is the answer of GET /containers/{id}/json in API 1.51.
type inspection struct {
	ID              string `json:"Id"`
	Created         string
	Path            string
	Args            []string
	State           *container.State
	Image           string
	ResolvConfPath  string
	HostnamePath    string
	HostsPath       string
	LogPath         string
	Name            string
	RestartCount    int
	Driver          string
	Platform        string
	MountLabel      string
	ProcessLabel    string
	AppArmorProfile string
	ExecIDs         []string
	HostConfig      *container.HostConfig
	GraphDriver     storage.DriverData
	SizeRw          *int64 `json:",omitempty"`
	SizeRootFs      *int64 `json:",omitempty"`
	Mounts          []container.MountPoint
	Config          *types.ContainerConfig
	NetworkSettings *inspectedNetwork
	ImageManifest   any `json:"ImageManifestDescriptor,omitempty"`
}

// inspectedNetwork is the network part. Its first and last fields repeat the default bridge's endpoint, as clients of
// this API version expect.
type inspectedNetwork struct {
	Bridge                 string
	SandboxID              string
	SandboxKey             string
	Ports                  network.PortMap
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   json.RawMessage
	SecondaryIPv6Addresses json.RawMessage
	EndpointID             string
	Gateway                netip.Addr
	GlobalIPv6Address      netip.Addr
	GlobalIPv6PrefixLen    int
	IPAddress              netip.Addr
	IPPrefixLen            int
	IPv6Gateway            netip.Addr
	MacAddress             network.HardwareAddr
	Networks               map[string]*network.EndpointSettings
}

// Inspect describes one container.
func (s *Service) Inspect(ctx context.Context, ref string, size bool) (json.RawMessage, error) {
	c, err := s.lookup(ref)
	if err != nil {
		return nil, err
	}
	r := c.rec()
	c.mu.Lock()
	cached, drops := c.inspected, c.drops
	execIDs := slices.Clone(c.execIDs)
	c.mu.Unlock()
	if cached != nil && !size {
		return cached, nil
	}
	in := inspect(r)
	in.ExecIDs = s.runningExecs(execIDs)
	s.resolveSources(ctx, in.Mounts)
	in.GraphDriver = storage.DriverData{Name: r.Driver}
	if in.GraphDriver.Data, err = s.layers.RWMetadata(c.id); err != nil {
		in.GraphDriver.Data = map[string]string{} // a container whose layer is broken can be inspected all the same
	}
	if size {
		if rw, total, err := s.layers.RWSize(ctx, c.id); err == nil {
			in.SizeRw, in.SizeRootFs = &rw, &total
		}
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(in); err != nil {
		return nil, err
	}
	if !size {
		c.mu.Lock()
		if c.record.Load() == r && c.drops == drops { // the execs count, too
			c.inspected = buf.Bytes()
		}
		c.mu.Unlock()
	}
	return buf.Bytes(), nil
}

// resolveSources fills in the paths of volumes that the record names without one, as those of VOLUME entries. A plug-in
// is not asked: it may be slow.
func (s *Service) resolveSources(ctx context.Context, mounts []container.MountPoint) {
	for i := range mounts {
		m := &mounts[i]
		if m.Name == "" || m.Source != "" || m.Driver != "local" {
			continue
		}
		if v, err := s.volumes.Get(ctx, m.Name, m.Driver, ""); err == nil { // a missing volume has no path
			m.Source = v.Mountpoint
		}
	}
}

// runningExecs keeps the ids of execs that run or will; it is nil when there are none, as Docker's.
func (s *Service) runningExecs(list []string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var live []string
	for _, id := range list {
		if e := s.execs[id]; e != nil {
			e.mu.Lock()
			if e.exitCode == nil {
				live = append(live, id)
			}
			e.mu.Unlock()
		}
	}
	return live
}

func inspect(r *Record) *inspection {
	ns := r.NetworkSettings
	in := &inspection{
		ID: r.ID, Created: r.Created.Format(time.RFC3339Nano), Path: r.Path, Args: r.Args, State: inspectState(&r.State),
		Image: r.Image, ResolvConfPath: r.ResolvConfPath, HostnamePath: r.HostnamePath, HostsPath: r.HostsPath, LogPath: r.LogPath,
		Name: r.Name, RestartCount: r.RestartCount, Driver: r.Driver, Platform: r.OS, MountLabel: r.MountLabel,
		ProcessLabel: r.ProcessLabel, AppArmorProfile: r.AppArmorProfile, HostConfig: r.HostConfig, Mounts: mountsOf(r), Config: r.Config,
		NetworkSettings: &inspectedNetwork{
			Bridge: ns.Bridge, SandboxID: ns.SandboxID, SandboxKey: ns.SandboxKey, Ports: ns.Ports, HairpinMode: ns.HairpinMode,
			LinkLocalIPv6Address: ns.LinkLocalIPv6Address, LinkLocalIPv6PrefixLen: ns.LinkLocalIPv6PrefixLen,
			SecondaryIPAddresses: json.RawMessage("null"), SecondaryIPv6Addresses: json.RawMessage("null"),
			Networks: map[string]*network.EndpointSettings{},
		},
	}
	if r.ImageManifest != nil {
		in.ImageManifest = r.ImageManifest
	}
	if in.NetworkSettings.Ports == nil {
		in.NetworkSettings.Ports = network.PortMap{}
	}
	for name, ep := range ns.Networks {
		in.NetworkSettings.Networks[name] = &ep.EndpointSettings
		if name == network.NetworkBridge {
			n := in.NetworkSettings
			n.EndpointID, n.Gateway, n.IPAddress, n.IPPrefixLen = ep.EndpointID, ep.Gateway, ep.IPAddress, ep.IPPrefixLen
			n.GlobalIPv6Address, n.GlobalIPv6PrefixLen, n.IPv6Gateway = ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen, ep.IPv6Gateway
			n.MacAddress = ep.MacAddress
		}
	}
	cfg := *in.Config
	in.Config = &cfg
	if cfg.Labels == nil {
		cfg.Labels = map[string]string{}
	}
	if ep := ns.Networks[r.HostConfig.NetworkMode.NetworkName()]; ep != nil && cfg.MacAddress == "" {
		cfg.MacAddress = ep.DesiredMacAddress // where clients looked for it before it belonged to a network
	}
	return in
}

func inspectState(st *State) *container.State {
	health := st.Health
	if health != nil && health.Log == nil {
		h := *health
		h.Log = []*container.HealthcheckResult{}
		health = &h
	}
	return &container.State{
		Status: st.status(), Running: st.Running, Paused: st.Paused, Restarting: st.Restarting, OOMKilled: st.OOMKilled, Dead: st.Dead,
		Pid: st.Pid, ExitCode: st.ExitCode, Error: st.Error,
		StartedAt: st.StartedAt.Format(time.RFC3339Nano), FinishedAt: st.FinishedAt.Format(time.RFC3339Nano), Health: health,
	}
}
