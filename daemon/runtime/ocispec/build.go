package ocispec

import (
	"errors"
	"fmt"
	"maps"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Build returns the runtime specification of a container. The root file system is mounted when it is called, and
// EnsureWorkdir has been called for it.
func Build(in Input) (*specs.Spec, error) {
	if in.Rootfs == "" {
		return nil, fmt.Errorf("container %s has no mounted root file system", in.ID)
	}
	if in.Config == nil || in.HostConfig == nil {
		return nil, errors.New("container " + in.ID + " has no configuration")
	}

	spec := &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: in.Rootfs, Readonly: in.HostConfig.ReadonlyRootfs},
		Hostname:    in.Config.Hostname,
		Annotations: annotations(in),
		Linux: &specs.Linux{
			CgroupsPath: CgroupsPath(in),
			Sysctl:      sysctls(in),
			MountLabel:  in.Security.MountLabel,
		},
	}
	if in.HostConfig.UTSMode.IsHost() {
		spec.Hostname = ""
	} else if in.remapped() {
		spec.Domainname = in.Config.Domainname // the sysctl for it takes the host's root
	}
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = hiddenPaths(in)

	// The seccomp profile depends on the capabilities, so it comes after the process.
	for _, set := range []func(Input, *specs.Spec) error{
		setNamespaces, setProcess, setResources, setDevices, setMounts, setSeccomp,
	} {
		if err := set(in, spec); err != nil {
			return nil, err
		}
	}
	return spec, nil
}

func annotations(in Input) map[string]string {
	if len(in.HostConfig.Annotations)+len(in.Annotations) == 0 {
		return nil
	}
	all := map[string]string{}
	maps.Copy(all, in.HostConfig.Annotations)
	maps.Copy(all, in.Annotations)
	return all
}

// sysctls returns the defaults that are safe and useful, with the user's on top.
func sysctls(in Input) map[string]string {
	set := map[string]string{}
	if in.Config.Domainname != "" && !in.HostConfig.UTSMode.IsHost() && !in.remapped() {
		set["kernel.domainname"] = in.Config.Domainname
	}
	// Network sysctls belong to a network namespace that is the container's own. Docker counts "none" among those.
	if in.HostConfig.NetworkMode.IsPrivate() {
		if in.Host.PingGroupRange && !in.remapped() { // the whole range is not mapped in a user namespace
			set["net.ipv4.ping_group_range"] = "0 2147483647"
		}
		if in.Host.UnprivilegedPortStart {
			set["net.ipv4.ip_unprivileged_port_start"] = "0"
		}
	}
	maps.Copy(set, in.HostConfig.Sysctls)
	return set
}

// hiddenPaths returns the paths to mask and to make read-only. What the record says, even if it is empty, wins over all.
func hiddenPaths(in Input) (masked, readonly []string) {
	masked, readonly = in.HostConfig.MaskedPaths, in.HostConfig.ReadonlyPaths
	if masked == nil && !in.HostConfig.Privileged {
		masked = DefaultMaskedPaths()
	}
	if readonly == nil && !in.HostConfig.Privileged {
		readonly = DefaultReadonlyPaths()
	}
	return masked, readonly
}
