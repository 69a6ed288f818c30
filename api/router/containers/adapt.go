package containers

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"stated.dev/stated/api/route"
)

// endpointSysctls is the driver option of an endpoint that holds the sysctls of its interface.
const endpointSysctls = "com.docker.network.endpoint.sysctls"

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// adapt gives a create request the meaning that it has in an API version: fields that came later are dropped or
// refused, defaults that changed are the old ones, and settings that moved are put where they are now.
func adapt(req *CreateRequest, version string) (warnings []string, err error) {
	before := func(v string) bool { return route.CompareVersions(version, v) < 0 }
	hc := req.HostConfig

	adaptNetworkMode(req)
	if before("1.25") {
		hc.AutoRemove = false // these clients remove the container themselves
	}
	if before("1.40") && hc.IpcMode.IsEmpty() {
		hc.IpcMode = container.IPCModeShareable
	}
	if before("1.42") {
		hc.ConsoleSize = [2]uint{}
	}
	if before("1.43") {
		hc.Annotations = nil
	}
	if before("1.44") {
		if req.Config.Healthcheck != nil {
			req.Config.Healthcheck.StartInterval = 0
		}
		if n := req.Networking.EndpointsConfig; len(n) > 1 {
			return nil, invalid("Container cannot be created with multiple network endpoints: %s",
				strings.Join(slices.Sorted(maps.Keys(n)), ", "))
		}
	}
	if before("1.48") {
		for _, endpoint := range req.Networking.EndpointsConfig {
			endpoint.GwPriority = 0
		}
	}
	for i := range hc.Mounts {
		if err := adaptMount(&hc.Mounts[i], before); err != nil {
			return nil, err
		}
	}
	if hc.PidsLimit != nil && *hc.PidsLimit <= 0 {
		hc.PidsLimit = nil
	}

	if !before("1.48") && volumeDriverIgnored(hc) {
		warnings = append(warnings, "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'. Use '--mount type=volume,volume-driver=...' instead")
	}
	warning, err := adaptMACAddress(req, before)
	if err != nil {
		return nil, err
	}
	if warning != "" {
		warnings = append(warnings, warning)
	}
	warning, err = adaptSysctls(req, before)
	if err != nil {
		return nil, err
	}
	if warning != "" {
		warnings = append(warnings, warning)
	}
	return warnings, nil
}

// adaptNetworkMode names the network that "default" and no word at all stand for.
func adaptNetworkMode(req *CreateRequest) {
	mode := req.HostConfig.NetworkMode
	if mode != "" && !mode.IsDefault() {
		return
	}
	req.HostConfig.NetworkMode = network.NetworkBridge
	endpoints := req.Networking.EndpointsConfig
	if endpoint, found := endpoints[network.NetworkDefault]; found {
		delete(endpoints, network.NetworkDefault)
		endpoints[network.NetworkBridge] = endpoint
	}
}

func adaptMount(m *mount.Mount, before func(string) bool) error {
	if bind := m.BindOptions; bind != nil {
		if before("1.40") {
			bind.NonRecursive = false
		}
		if before("1.42") {
			bind.CreateMountpoint = false
		}
		if before("1.44") && m.Type == mount.TypeBind && bind.ReadOnlyForceRecursive {
			return invalid("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
		}
	}
	if m.VolumeOptions != nil && m.Type != mount.TypeVolume {
		if !before("1.42") {
			return invalid("VolumeOptions must not be specified on mount type %q", m.Type)
		}
		m.VolumeOptions = nil
	}
	if m.BindOptions != nil && m.Type != mount.TypeBind && !before("1.42") {
		return invalid("BindOptions must not be specified on mount type %q", m.Type)
	}
	if m.TmpfsOptions != nil && m.Type != mount.TypeTmpfs {
		if !before("1.42") {
			return invalid("TmpfsOptions must not be specified on mount type %q", m.Type)
		}
		m.TmpfsOptions = nil
	}
	if m.VolumeOptions != nil && m.VolumeOptions.Subpath != "" && before("1.45") {
		return invalid("VolumeOptions.Subpath needs API v1.45 or newer")
	}
	if m.Type == mount.TypeImage && before("1.48") {
		return invalid(`Mount type "Image" needs API v1.48 or newer`)
	}
	return nil
}

// volumeDriverIgnored reports whether the container-wide driver does not reach one of the volumes.
func volumeDriverIgnored(hc *container.HostConfig) bool {
	return hc.VolumeDriver != "" && slices.ContainsFunc(hc.Mounts, func(m mount.Mount) bool {
		o := m.VolumeOptions
		return m.Type == mount.TypeVolume && (o == nil || o.DriverConfig == nil || o.DriverConfig.Name == "")
	})
}

// adaptMACAddress moves the container-wide address, which 1.44 replaced, to the endpoint it is meant for.
func adaptMACAddress(req *CreateRequest, before func(string) bool) (warning string, err error) {
	text := req.Config.MacAddress
	if text == "" {
		if before("1.44") {
			for _, endpoint := range req.Networking.EndpointsConfig {
				endpoint.MacAddress = nil // such a client cannot mean it
			}
		}
		return "", nil
	}
	address, err := net.ParseMAC(text)
	if err != nil {
		return "", invalid("invalid MAC address: %s", text)
	}
	mode := req.HostConfig.NetworkMode
	attached := mode.IsBridge() || mode.IsUserDefined()
	if before("1.44") {
		if !attached {
			return "", invalid("conflicting options: mac-address and the network mode")
		}
		endpoint, err := mainEndpoint(req, before)
		if err != nil {
			return "", err
		}
		endpoint.MacAddress = network.HardwareAddr(address)
		return "", nil
	}
	if attached {
		endpoint, err := mainEndpoint(req, before)
		if err != nil {
			return "", fmt.Errorf("unable to migrate container-wide MAC address to a specific network: %w", err)
		}
		if len(endpoint.MacAddress) > 0 && !bytes.Equal(endpoint.MacAddress, address) {
			return "", invalid("the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty")
		}
		endpoint.MacAddress = network.HardwareAddr(address)
	}
	req.Config.MacAddress = ""
	return "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead.", nil
}

// adaptSysctls moves sysctls of the first interface to the endpoint that becomes it. Since 1.48 clients have to.
func adaptSysctls(req *CreateRequest, before func(string) bool) (warning string, err error) {
	if !req.HostConfig.NetworkMode.IsPrivate() {
		return "", nil
	}
	var endpoint *network.EndpointSettings
	var moved, options []string
	for _, name := range slices.Sorted(maps.Keys(req.HostConfig.Sysctls)) {
		part := strings.SplitN(name, ".", 5)
		if len(part) < 5 || part[0] != "net" || !strings.HasPrefix(part[3], "eth") {
			continue
		}
		if !before("1.48") {
			return "", invalid("interface specific sysctl setting %q must be supplied using driver option '%s'", name, endpointSysctls)
		}
		if endpoint == nil {
			if endpoint, err = mainEndpoint(req, before); err != nil {
				return "", fmt.Errorf("unable to find a network for sysctl %s: %w", name, err)
			}
		}
		if part[3] != "eth0" {
			return "", invalid("unable to determine network endpoint for sysctl %s, use driver option '%s' to set per-interface sysctls", name, endpointSysctls)
		}
		moved = append(moved, name)
		options = append(options, fmt.Sprintf("net.%s.%s.IFNAME.%s=%s", part[1], part[2], part[4], req.HostConfig.Sysctls[name]))
	}
	if endpoint == nil {
		return "", nil
	}
	option := strings.Join(options, ",")
	warning = fmt.Sprintf("Migrated sysctl %q to DriverOpts{%q:%q}.", strings.Join(moved, ","), endpointSysctls, option)
	if own := endpoint.DriverOpts[endpointSysctls]; own != "" {
		option += "," + own // the last one counts
	}
	if endpoint.DriverOpts == nil {
		endpoint.DriverOpts = map[string]string{}
	}
	endpoint.DriverOpts[endpointSysctls] = option
	for _, name := range moved {
		delete(req.HostConfig.Sysctls, name)
	}
	return warning, nil
}

// mainEndpoint returns the settings of the network that the network mode names, and adds them where no network is
// configured. The mode and the keys may name one network by name, id or prefix; which one is meant is only certain
// when they are written alike, or when the version allows for one network only.
func mainEndpoint(req *CreateRequest, before func(string) bool) (*network.EndpointSettings, error) {
	endpoints := req.Networking.EndpointsConfig
	name := req.HostConfig.NetworkMode.NetworkName()
	if len(endpoints) == 0 {
		endpoints[name] = new(network.EndpointSettings)
	}
	if before("1.44") {
		for _, endpoint := range endpoints {
			return endpoint, nil
		}
	}
	endpoint, found := endpoints[name]
	if !found {
		return nil, invalid("HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks")
	}
	return endpoint, nil
}
