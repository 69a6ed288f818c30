package containers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"stated.dev/stated/api/types"
	"stated.dev/stated/volumes/mountpoint"
)

// Names of the two documents in a container's directory, as Docker has them.
const (
	configFile     = "config.v2.json"
	hostConfigFile = "hostconfig.json"
)

// Record is one container as config.v2.json and hostconfig.json keep it (Docker 28). A Record that others can see is
// never changed: who wants to change one clones it, changes the clone and commits that.
type Record struct {
	StreamConfig           struct{}
	State                  State
	ID                     string
	Created                time.Time
	Managed                bool
	Path                   string
	Args                   []string
	Config                 *types.ContainerConfig
	Image                  string // image id
	ImageManifest          *ocispec.Descriptor
	NetworkSettings        *NetworkSettings
	LogPath                string
	Name                   string // with a leading slash
	Driver                 string
	OS                     string
	ImagePlatform          *ocispec.Platform `json:",omitempty"`
	RestartCount           int
	HasBeenStartedBefore   bool
	HasBeenManuallyStopped bool
	MountPoints            map[string]*mountpoint.MountPoint
	SecretReferences       json.RawMessage
	ConfigReferences       json.RawMessage
	MountLabel             string
	ProcessLabel           string
	AppArmorProfile        string
	SeccompProfile         string
	NoNewPrivileges        bool
	WritableCgroups        *bool
	HostnamePath           string
	HostsPath              string
	ShmPath                string
	ResolvConfPath         string
	LocalLogCacheMeta      struct{ HaveNotifyEnabled bool }

	// HostConfig is the other document.
	HostConfig *container.HostConfig `json:"-"`

	// unknown and hostUnknown are fields of the two documents that we do not know; they are kept when rewriting.
	unknown, hostUnknown map[string]json.RawMessage
}

// State is the part of the record that says what the container does.
type State struct {
	Running           bool
	Paused            bool
	Restarting        bool
	OOMKilled         bool
	RemovalInProgress bool `json:",omitempty"` // written by older dockerds; read as Dead
	Dead              bool
	Pid               int
	ExitCode          int
	Error             string
	StartedAt         time.Time
	FinishedAt        time.Time
	Health            *container.Health
}

// NetworkSettings is the network part of the record.
type NetworkSettings struct {
	Bridge                 string
	SandboxID              string
	SandboxKey             string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	Networks               map[string]*EndpointSettings
	Service                json.RawMessage
	Ports                  network.PortMap
	SecondaryIPAddresses   json.RawMessage
	SecondaryIPv6Addresses json.RawMessage
	HasSwarmEndpoint       bool
}

// EndpointSettings is one network of a container in the record: the wire type and what only the file has.
type EndpointSettings struct {
	network.EndpointSettings
	IPAMOperational   bool
	DesiredMacAddress string
}

// clone returns a record that may be changed without r's readers seeing it.
func (r *Record) clone() *Record {
	c := *r
	if r.NetworkSettings != nil {
		ns := *r.NetworkSettings
		ns.Networks = make(map[string]*EndpointSettings, len(r.NetworkSettings.Networks))
		for name, ep := range r.NetworkSettings.Networks {
			e := *ep
			e.EndpointSettings = *ep.EndpointSettings.Copy()
			ns.Networks[name] = &e
		}
		ns.Ports = maps.Clone(ns.Ports)
		c.NetworkSettings = &ns
	}
	c.MountPoints = make(map[string]*mountpoint.MountPoint, len(r.MountPoints))
	for dest, m := range r.MountPoints {
		copied := *m
		c.MountPoints[dest] = &copied
	}
	if r.State.Health != nil {
		h := *r.State.Health
		h.Log = slices.Clone(h.Log)
		c.State.Health = &h
	}
	if r.HostConfig != nil {
		hc := *r.HostConfig
		c.HostConfig = &hc
	}
	return &c
}

// name is the container's name without the slash.
func (r *Record) name() string { return strings.TrimPrefix(r.Name, "/") }

// encode returns the two documents.
func (r *Record) encode() (config, host []byte, err error) {
	if config, err = encodeDocument(r, r.unknown); err != nil {
		return nil, nil, fmt.Errorf("encode %s of container %s: %w", configFile, r.ID, err)
	}
	if host, err = encodeDocument(r.HostConfig, r.hostUnknown); err != nil {
		return nil, nil, fmt.Errorf("encode %s of container %s: %w", hostConfigFile, r.ID, err)
	}
	return config, host, nil
}

// encodeDocument writes v as one line, followed by the fields we do not know.
func encodeDocument(v any, unknown map[string]json.RawMessage) ([]byte, error) {
	var buf bytes.Buffer
	if err := json.NewEncoder(&buf).Encode(v); err != nil {
		return nil, err
	}
	if len(unknown) == 0 {
		return buf.Bytes(), nil
	}
	out := bytes.TrimSuffix(bytes.TrimSpace(buf.Bytes()), []byte("}"))
	for _, key := range slices.Sorted(maps.Keys(unknown)) {
		name, err := json.Marshal(key)
		if err != nil {
			return nil, err
		}
		out = append(out, ',')
		out = append(append(append(out, name...), ':'), unknown[key]...)
	}
	return append(out, '}', '\n'), nil
}

// decodeRecord reads the two documents of the container stored in the directory named id. A missing hostconfig.json
// (host == nil) is an empty document.
func decodeRecord(id string, config, host []byte) (*Record, error) {
	r := &Record{HostConfig: &container.HostConfig{}}
	if err := json.Unmarshal(config, r); err != nil {
		return nil, fmt.Errorf("read %s: %w", configFile, err)
	}
	if r.ID != id {
		return nil, fmt.Errorf("Container %s is stored at %s", r.ID, id) //nolint:staticcheck // Docker's text
	}
	if host != nil {
		if err := json.Unmarshal(host, r.HostConfig); err != nil {
			return nil, fmt.Errorf("read %s: %w", hostConfigFile, err)
		}
	}
	r.unknown = unknownFields(config, recordFields)
	r.hostUnknown = unknownFields(host, hostConfigFields)
	r.migrate()
	return r, nil
}

// migrate brings older forms to the present one, as dockerd does at its start.
func (r *Record) migrate() {
	if r.Config == nil {
		r.Config = &types.ContainerConfig{}
	}
	if r.NetworkSettings == nil {
		r.NetworkSettings = &NetworkSettings{}
	}
	if r.State.RemovalInProgress {
		r.State.RemovalInProgress, r.State.Dead = false, true
	}
	if r.HostConfig.RestartPolicy.Name == "" {
		r.HostConfig.RestartPolicy = container.RestartPolicy{Name: container.RestartPolicyDisabled}
	}
	if r.HostConfig.NetworkMode == "default" {
		r.HostConfig.NetworkMode = network.NetworkBridge
		if ep, ok := r.NetworkSettings.Networks["default"]; ok {
			delete(r.NetworkSettings.Networks, "default")
			r.NetworkSettings.Networks[network.NetworkBridge] = ep
		}
	}
	if v, ok := r.HostConfig.LogConfig.Config["fluentd-async-connect"]; ok {
		delete(r.HostConfig.LogConfig.Config, "fluentd-async-connect")
		if _, set := r.HostConfig.LogConfig.Config["fluentd-async"]; !set {
			r.HostConfig.LogConfig.Config["fluentd-async"] = v
		}
	}
	for name, ep := range r.NetworkSettings.Networks {
		if ep == nil {
			r.NetworkSettings.Networks[name] = &EndpointSettings{}
		}
	}
	for dest, m := range r.MountPoints {
		if m == nil {
			delete(r.MountPoints, dest)
			continue
		}
		if m.Destination == "" {
			m.Destination = dest
		}
	}
}

var (
	recordFields     = jsonNames(reflect.TypeFor[Record]())
	hostConfigFields = jsonNames(reflect.TypeFor[container.HostConfig]())
)

// jsonNames lists the JSON names of a struct's fields, embedded ones included, as written and in lower case.
func jsonNames(t reflect.Type) map[string]bool {
	names := map[string]bool{}
	for _, f := range reflect.VisibleFields(t) {
		if !f.IsExported() || (f.Anonymous && f.Type.Kind() == reflect.Struct) {
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		names[name], names[strings.ToLower(name)] = true, true
	}
	return names
}
