package ocispec

import (
	"errors"
	"fmt"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// setNamespaces decides for each kind of namespace between a new one, one to join, and the host's (no entry).
func setNamespaces(in Input, spec *specs.Spec) error {
	hc := in.HostConfig
	add := func(kind specs.LinuxNamespaceType, path string) {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
	}

	switch {
	case !hc.IpcMode.Valid():
		return fmt.Errorf("invalid IPC mode: %v", hc.IpcMode)
	case !hc.PidMode.Valid():
		return fmt.Errorf("invalid PID mode: %v", hc.PidMode)
	case !hc.UTSMode.Valid():
		return fmt.Errorf("invalid UTS mode: %v", hc.UTSMode)
	case !hc.CgroupnsMode.Valid():
		return fmt.Errorf("invalid cgroup namespace mode: %v", hc.CgroupnsMode)
	case hc.IpcMode.IsContainer() && in.Join.IPC == "":
		return fmt.Errorf("the IPC namespace of container %s to join is not known", hc.IpcMode.Container())
	case hc.PidMode.IsContainer() && in.Join.PID == "":
		return fmt.Errorf("the PID namespace of container %s to join is not known", hc.PidMode.Container())
	case hc.NetworkMode.IsContainer() && in.Join.Net == "" && !in.Config.NetworkDisabled:
		return fmt.Errorf("the network namespace of container %s to join is not known", hc.NetworkMode.ConnectedContainer())
	case in.remapped() && in.Join.Net != "" && in.Join.User == "":
		// The kernel would refuse to mount sysfs and to set network sysctls, and say only "operation not permitted".
		return errors.New("a container with remapped users can join a network namespace only together with the user namespace that owns it")
	}

	add(specs.MountNamespace, "")
	switch {
	case in.Config.NetworkDisabled:
		add(specs.NetworkNamespace, "")
	case !hc.NetworkMode.IsHost():
		add(specs.NetworkNamespace, in.Join.Net)
	}
	if !hc.UTSMode.IsHost() {
		add(specs.UTSNamespace, "")
	}
	switch {
	case hc.PidMode.IsContainer():
		add(specs.PIDNamespace, in.Join.PID)
	case !hc.PidMode.IsHost():
		add(specs.PIDNamespace, "")
	}
	switch {
	case hc.IpcMode.IsContainer():
		add(specs.IPCNamespace, in.Join.IPC)
	case !hc.IpcMode.IsHost():
		add(specs.IPCNamespace, "")
	}
	if in.remapped() {
		// A namespace can be shared only within the user namespace that owns it.
		add(specs.UserNamespace, in.Join.User)
		spec.Linux.UIDMappings = mappings(in.Host.UIDMaps)
		spec.Linux.GIDMappings = mappings(in.Host.GIDMaps)
	}
	if hc.CgroupnsMode.IsPrivate() {
		add(specs.CgroupNamespace, "")
	}
	return nil
}

func mappings(maps []user.IDMap) []specs.LinuxIDMapping {
	out := make([]specs.LinuxIDMapping, 0, len(maps))
	for _, m := range maps {
		out = append(out, specs.LinuxIDMapping{
			ContainerID: uint32(m.ID),
			HostID:      uint32(m.ParentID),
			Size:        uint32(m.Count),
		})
	}
	return out
}
