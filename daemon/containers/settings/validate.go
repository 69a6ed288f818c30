package settings

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/sys/signal"

	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/runtime/ocispec"
)

// Validate checks a create request. Before it is called the request's host configuration is as the client sent it;
// afterwards Defaults fills it in. Limits that this host cannot set are taken out of hc, each with a warning; the working
// directory in cfg is cleaned.
func Validate(cfg *types.ContainerConfig, hc *container.HostConfig, host Host) (warnings []string, err error) {
	if cfg == nil {
		return nil, invalid("config cannot be empty in order to create a container")
	}
	if hc == nil {
		hc = &container.HostConfig{}
	}
	for _, check := range []func() error{
		func() error { return checkNetworkMode(cfg, hc) },
		func() error { return checkScheduling(hc, host) },
		func() error { return checkConfig(cfg) },
		func() error { return checkHostConfig(hc) },
	} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	for _, m := range hc.Mounts {
		if m.Type == mount.TypeImage {
			warnings = append(warnings, "Image mount is an experimental feature")
		}
	}
	more, err := checkResources(&hc.Resources, host, onCreate)
	warnings = append(warnings, more...)
	if err != nil {
		return warnings, err
	}
	more, err = checkModes(hc, host)
	return append(warnings, more...), err
}

// checkNetworkMode finds settings that make no sense without a network namespace of the container's own.
func checkNetworkMode(cfg *types.ContainerConfig, hc *container.HostConfig) error {
	mode := hc.NetworkMode
	if mode == "container" || mode.IsContainer() {
		switch {
		case mode.ConnectedContainer() == "":
			return invalid("invalid network mode: invalid container format container:<name|id>")
		case cfg.Hostname != "":
			return invalid("conflicting options: hostname and the network mode")
		case len(hc.Links) > 0:
			return invalid("conflicting options: container type network can't be used with links. This would result in undefined behavior")
		case len(hc.DNS) > 0:
			return invalid("conflicting options: dns and the network mode")
		case len(hc.ExtraHosts) > 0:
			return invalid("conflicting options: custom host-to-IP mapping and the network mode")
		case len(hc.PortBindings) > 0 || hc.PublishAllPorts:
			return invalid("conflicting options: port publishing and the container type network mode")
		case len(cfg.ExposedPorts) > 0:
			return invalid("conflicting options: port exposing and the container type network mode")
		}
	}
	if hc.UTSMode.IsHost() && cfg.Hostname != "" {
		return invalid("conflicting options: hostname and the UTS mode")
	}
	if mode.IsHost() && len(hc.Links) > 0 {
		return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	}
	return nil
}

// checkScheduling refuses what only other platforms, or kernels with a real-time scheduler, have.
func checkScheduling(hc *container.HostConfig, host Host) error {
	r := hc.Resources
	switch {
	case !hc.Isolation.IsValid():
		return invalid(fmt.Sprintf("invalid isolation (%s): linux only supports 'default'", hc.Isolation))
	case r.IOMaximumBandwidth != 0:
		return invalid("invalid option: QoS maximum bandwidth configuration is not supported on linux")
	case r.IOMaximumIOps != 0:
		return invalid("invalid option: QoS maximum IOPs configuration is not supported on linux")
	case (r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0) && !host.Info.CPURealtime:
		return invalid("kernel does not support CPU real-time scheduler")
	case r.CPURealtimePeriod != 0 && r.CPURealtimeRuntime > r.CPURealtimePeriod:
		return invalid("cpu real-time runtime cannot be higher than cpu real-time period")
	case r.CPUShares < 0:
		return invalid(fmt.Sprintf("invalid CPU shares (%d): value must be a positive integer", r.CPUShares))
	}
	return nil
}

// checkConfig checks the portable part of a request.
func checkConfig(cfg *types.ContainerConfig) error {
	if dir := cfg.WorkingDir; dir != "" {
		if !path.IsAbs(dir) {
			return invalid(fmt.Sprintf("the working directory '%s' is invalid, it needs to be an absolute path", dir))
		}
		cfg.WorkingDir = path.Clean(dir)
	}
	if cfg.StopSignal != "" {
		if _, err := signal.ParseSignal(cfg.StopSignal); err != nil {
			return invalid(err.Error())
		}
	}
	for _, kv := range cfg.Env {
		if key, _, _ := strings.Cut(kv, "="); key == "" {
			return invalid("invalid environment variable: " + kv)
		}
	}
	if err := checkHostname(cfg.Hostname); err != nil {
		return err
	}
	return checkHealth(cfg.Healthcheck)
}

// maxHostname is the kernel's limit (__NEW_UTS_LEN), in bytes.
const maxHostname = 64

// checkHostname refuses what the kernel would, and what would break the files that hold the name, at creation instead
// of at every start.
func checkHostname(name string) error {
	if len(name) > maxHostname {
		return invalid(fmt.Sprintf("invalid hostname %q: it is longer than %d bytes", name, maxHostname))
	}
	for _, r := range name {
		if r <= ' ' || r == 0x7f {
			return invalid(fmt.Sprintf("invalid hostname %q: it has a space or a control character", name))
		}
	}
	return nil
}

func checkHealth(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	const least = container.MinimumDuration
	switch {
	case h.Interval != 0 && h.Interval < least:
		return invalid(fmt.Sprintf("Interval in Healthcheck cannot be less than %s", least))
	case h.Timeout != 0 && h.Timeout < least:
		return invalid(fmt.Sprintf("Timeout in Healthcheck cannot be less than %s", least))
	case h.Retries < 0:
		return invalid("Retries in Healthcheck cannot be negative")
	case h.StartPeriod != 0 && h.StartPeriod < least:
		return invalid(fmt.Sprintf("StartPeriod in Healthcheck cannot be less than %s", least))
	case h.StartInterval != 0 && h.StartInterval < least:
		return invalid(fmt.Sprintf("StartInterval in Healthcheck cannot be less than %s", least))
	}
	return nil
}

// checkHostConfig checks the host's part of a request, but for resources and namespaces.
func checkHostConfig(hc *container.HostConfig) error {
	if hc.AutoRemove && !hc.RestartPolicy.IsNone() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	for _, entry := range hc.ExtraHosts {
		if err := checkExtraHost(entry); err != nil {
			return err
		}
	}
	if err := checkPortBindings(hc.PortBindings); err != nil {
		return err
	}
	if err := container.ValidateRestartPolicy(hc.RestartPolicy); err != nil {
		return invalid(err.Error())
	}
	if _, err := ocispec.NormalizeCapabilities(hc.CapAdd); err != nil {
		return fmt.Errorf("invalid CapAdd: %w", err)
	}
	if _, err := ocispec.NormalizeCapabilities(hc.CapDrop); err != nil {
		return fmt.Errorf("invalid CapDrop: %w", err)
	}
	if _, ok := hc.Annotations[""]; ok {
		return invalid("invalid Annotations: the empty string is not permitted as an annotation key")
	}
	return nil
}

// checkExtraHost checks one NAME:IP of --add-host. The address may be IPv6, without brackets, or
// "host-gateway".
func checkExtraHost(entry string) error {
	name, ip, ok := strings.Cut(entry, ":")
	if !ok || name == "" {
		return invalid(fmt.Sprintf("bad format for add-host: %q", entry))
	}
	if ip == "host-gateway" {
		return nil
	}
	if addr, err := netip.ParseAddr(strings.TrimSpace(ip)); err != nil || addr.Zone() != "" {
		return invalid(fmt.Sprintf("invalid IP address in add-host: %q", ip))
	}
	return nil
}

func checkPortBindings(ports network.PortMap) error {
	for port, bindings := range ports {
		if port.IsZero() {
			return invalid(`invalid port specification: ""`)
		}
		for _, b := range bindings {
			if b.HostPort == "" {
				continue
			}
			// A host port is a number or a range, with no protocol; 0 lets the daemon choose.
			if _, err := network.ParsePortRange(b.HostPort); err != nil {
				return invalid(fmt.Sprintf("invalid port specification: %q", b.HostPort))
			}
		}
	}
	return nil
}

// checkModes checks namespaces, runtime and the like. It sets the runtime's name where the request has none.
func checkModes(hc *container.HostConfig, host Host) (warnings []string, err error) {
	switch {
	case !hc.IpcMode.Valid() || hc.IpcMode == "container:":
		return nil, invalid(fmt.Sprintf("invalid IPC mode: %v", hc.IpcMode))
	case !hc.PidMode.Valid():
		return nil, invalid(fmt.Sprintf("invalid PID mode: %v", hc.PidMode))
	case hc.ShmSize < 0:
		return nil, invalid("SHM size can not be less than 0")
	case !hc.UTSMode.Valid():
		return nil, invalid(fmt.Sprintf("invalid UTS mode: %v", hc.UTSMode))
	case !hc.UsernsMode.Valid() && hc.UsernsMode != "private":
		return nil, invalid(fmt.Sprintf("invalid user namespace mode: %v", hc.UsernsMode))
	case hc.OomScoreAdj < -1000 || hc.OomScoreAdj > 1000:
		return nil, invalid(fmt.Sprintf("Invalid value %d, range for oom score adj is [-1000, 1000]", hc.OomScoreAdj))
	}
	if host.Info.IPv4ForwardingDisabled && !hc.NetworkMode.IsHost() && !hc.NetworkMode.IsNone() {
		warnings = append(warnings, "IPv4 forwarding is disabled. Networking will not work.")
	}
	if hc.NetworkMode.IsHost() && len(hc.PortBindings) > 0 {
		warnings = append(warnings, "Published ports are discarded when using host network mode")
	}
	if host.Remapped && hc.UsernsMode.IsPrivate() {
		switch {
		case hc.Privileged:
			return warnings, invalid("privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode")
		case hc.NetworkMode.IsHost():
			return warnings, invalid("cannot share the host's network namespace when user namespaces are enabled")
		case hc.PidMode.IsHost():
			return warnings, invalid("cannot share the host PID namespace when user namespaces are enabled")
		}
	}
	if host.SystemdCgroups && hc.CgroupParent != "" && !isSlice(hc.CgroupParent) {
		return warnings, invalid(`cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`)
	}
	if hc.Runtime == "" {
		hc.Runtime = host.DefaultRuntime
	}
	if !slices.Contains(host.Runtimes, hc.Runtime) {
		return warnings, invalid("unknown or invalid runtime name: " + hc.Runtime)
	}
	for destination := range hc.Tmpfs {
		switch clean := path.Clean(strings.ReplaceAll(destination, `\`, `/`)); {
		case clean == "/":
			return warnings, invalid("invalid specification: destination can't be '/'")
		case !path.IsAbs(clean):
			return warnings, invalid(fmt.Sprintf("invalid mount path: '%s' mount path must be absolute", destination))
		}
	}
	if !hc.CgroupnsMode.Valid() {
		return warnings, invalid(fmt.Sprintf("invalid cgroup namespace mode: %v", hc.CgroupnsMode))
	}
	if hc.CgroupnsMode.IsPrivate() && !host.Info.CgroupNamespaces {
		warnings = append(warnings, "Your kernel does not support cgroup namespaces.  Cgroup namespace setting discarded.")
	}
	return warnings, checkSysctls(hc)
}

// isSlice says whether a name has the form of a systemd slice.
func isSlice(name string) bool {
	return len(name) > len(".slice") && strings.HasSuffix(name, ".slice")
}
