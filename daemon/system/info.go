package system

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	"stated.dev/stated/api/types"
)

// unknown stands where a version could not be found out.
const unknown = "N/A"

// indexServer is the address of the public registry's index, as clients key their credentials.
const indexServer = "https://index.docker.io/v1/"

// runtimeFeatures is the label under which a runtime's own description is shown.
const runtimeFeatures = "org.opencontainers.runtime-spec.features"

// Info describes the host and the daemon. What a service cannot tell is left empty and becomes a warning: this is the
// page that is looked at when something is wrong.
func (s *Service) Info(ctx context.Context) (types.Info, error) {
	var info types.Info
	v := &info.Info
	s.describeDaemon(v)
	s.describeHost(v)
	s.describeLimits(&info)
	s.describeRuntimes(ctx, v)
	s.askServices(ctx, v)
	return info, ctx.Err()
}

func (s *Service) describeDaemon(v *system.Info) {
	o := &s.o
	v.ID = o.ID
	v.ServerVersion = o.Version
	v.ExperimentalBuild = o.Experimental
	v.Debug = o.Debug
	v.DockerRootDir = o.Root
	v.Labels = slices.Clone(o.Labels)
	if v.Labels == nil {
		v.Labels = []string{}
	}
	v.LiveRestoreEnabled = o.LiveRestore
	v.LoggingDriver = o.LogDriver
	v.CgroupDriver = o.CgroupDriver
	v.Plugins.Log = slices.Clone(o.LogDrivers)
	v.IndexServerAddress = indexServer
	v.RegistryConfig = s.registry
	v.HTTPProxy = withoutPassword(orEnv(o.HTTPProxy, "HTTP_PROXY", "http_proxy"))
	v.HTTPSProxy = withoutPassword(orEnv(o.HTTPSProxy, "HTTPS_PROXY", "https_proxy"))
	v.NoProxy = orEnv(o.NoProxy, "NO_PROXY", "no_proxy")
	v.DefaultAddressPools = o.AddressPools
	v.CDISpecDirs = slices.Clone(o.CDISpecDirs)
	if v.CDISpecDirs == nil {
		v.CDISpecDirs = []string{}
	}
	v.Swarm.LocalNodeState = swarm.LocalNodeStateInactive
	if o.ContainerdAddress != "" {
		v.Containerd = &system.ContainerdInfo{
			Address:    o.ContainerdAddress,
			Namespaces: system.ContainerdNamespaces{Containers: o.ContainerdNamespace},
		}
	}
	for _, address := range o.OpenAddresses {
		v.Warnings = append(v.Warnings, fmt.Sprintf(
			"WARNING: API is accessible on %s without verified clients: whoever can connect has root on this host", address))
	}
}

func (s *Service) describeHost(v *system.Info) {
	v.OSType = runtime.GOOS
	v.Architecture = s.host.machine
	v.KernelVersion = s.host.kernel
	v.OperatingSystem = s.host.os
	v.OSVersion = s.host.osVersion
	v.NCPU = runtime.NumCPU()
	v.MemTotal = s.host.memory
	v.SystemTime = time.Now().Format(time.RFC3339Nano)
	v.NGoroutines = runtime.NumGoroutine()
	if name, err := os.Hostname(); err == nil {
		v.Name = name
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		v.NFd = len(fds)
	}
}

func (s *Service) describeLimits(info *types.Info) {
	h, v := s.o.Host, &info.Info
	h.IPv4ForwardingDisabled = forwardingDisabled(h.IPv4ForwardingDisabled) // the first network turns it on
	v.CgroupVersion = h.CgroupVersion()
	v.MemoryLimit = h.MemoryLimit
	v.SwapLimit = h.SwapLimit
	v.OomKillDisable = h.OomKillDisable
	v.CPUCfsPeriod = h.CPUCfs
	v.CPUCfsQuota = h.CPUCfs
	v.CPUShares = h.CPUShares
	v.CPUSet = h.Cpuset
	v.PidsLimit = h.PidsLimit
	v.IPv4Forwarding = !h.IPv4ForwardingDisabled
	info.KernelMemory = h.KernelMemory
	info.KernelMemoryTCP = h.KernelMemoryTCP
	v.SecurityOptions = s.securityOptions()
	v.Warnings = append(v.Warnings, h.Warnings()...)
	if h.Seccomp && s.o.SeccompProfile != "builtin" {
		v.Warnings = append(v.Warnings, "WARNING: daemon is not using the default seccomp profile")
	}
}

// securityOptions lists what protects the host from containers, in the order that Docker lists it.
func (s *Service) securityOptions() []string {
	options := []string{}
	for _, o := range []struct {
		on   bool
		text string
	}{
		{s.o.Host.AppArmor, "name=apparmor"},
		{s.o.Host.Seccomp, "name=seccomp,profile=" + s.o.SeccompProfile},
		{s.o.Host.SELinux, "name=selinux"},
		{s.o.UserRemap, "name=userns"},
		{s.o.Host.CgroupNamespaces && s.o.PrivateCgroupns, "name=cgroupns"},
		{s.o.NoNewPrivileges, "name=no-new-privileges"},
	} {
		if o.on {
			options = append(options, o.text)
		}
	}
	return options
}

func (s *Service) describeRuntimes(ctx context.Context, v *system.Info) {
	v.DefaultRuntime = s.o.DefaultRuntime
	v.Runtimes = map[string]system.RuntimeWithStatus{}
	for name, r := range s.o.Runtimes {
		entry := system.RuntimeWithStatus{Runtime: system.Runtime{Path: r.Path, Args: r.Args}}
		if about, err := s.runtimes[name].ask(ctx); err == nil && about.features != "" {
			entry.Status = map[string]string{runtimeFeatures: about.features}
		}
		v.Runtimes[name] = entry
	}
	v.InitBinary = s.o.InitPath
	v.RuncCommit.ID, v.InitCommit.ID, v.ContainerdCommit.ID = unknown, unknown, unknown
	if t := s.runtimes[s.o.DefaultRuntime]; t != nil {
		if about, err := t.ask(ctx); err == nil {
			v.RuncCommit.ID = about.commit
		} else {
			v.Warnings = append(v.Warnings, fmt.Sprintf("WARNING: default runtime %s does not answer: %v", s.o.DefaultRuntime, err))
		}
	}
	if about, err := s.init.ask(ctx); err == nil {
		v.InitCommit.ID = about.commit
	}
	if s.containerd != "" {
		v.ContainerdCommit.ID = s.containerd
	}
}

// askServices asks each service for its share. One that fails takes nothing from the others.
func (s *Service) askServices(ctx context.Context, v *system.Info) {
	warn := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			v.Warnings = append(v.Warnings, fmt.Sprintf("WARNING: %s: %v", what, err))
		}
	}
	var err error
	var counts Counts
	counts, err = s.o.Containers.Counts(ctx)
	warn("count containers", err)
	v.ContainersRunning, v.ContainersPaused, v.ContainersStopped = counts.Running, counts.Paused, counts.Stopped
	v.Containers = counts.Running + counts.Paused + counts.Stopped

	v.Images, err = s.o.Images.Count(ctx)
	warn("count images", err)

	v.Driver = s.o.Graph.Name()
	v.DriverStatus, err = s.o.Graph.Status(ctx)
	warn("storage driver", err)

	v.Plugins.Volume, err = s.o.Volumes.Drivers(ctx)
	warn("volume drivers", err)
	v.Plugins.Network, err = s.o.Networks.Drivers(ctx)
	warn("network drivers", err)
	if backend := s.o.Networks.FirewallBackend(); backend != "" {
		v.FirewallBackend = &system.FirewallInfo{Driver: backend}
	}
	v.NEventsListener = s.o.Events.Subscribers()
}

// orEnv returns value, or the first of the environment's variables that is set.
func orEnv(value string, names ...string) string {
	for _, name := range names {
		if value == "" {
			value = os.Getenv(name)
		}
	}
	return value
}

// withoutPassword hides the credentials in a proxy's address.
func withoutPassword(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.User == nil {
		return address
	}
	u.User = url.UserPassword("xxxxx", "xxxxx")
	return u.String()
}
