package ocispec

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Mount propagations that Docker knows.
const (
	propagationShared  = "shared"
	propagationRShared = "rshared"
	propagationSlave   = "slave"
	propagationRSlave  = "rslave"
	propagationPrivate = "rprivate" // what a mount gets that asks for none
)

// setMounts lays out the container's mounts: the kernel's file systems, the init, then the container's own.
func setMounts(in Input, spec *specs.Spec) error {
	own := in.Mounts
	if in.ShmPath != "" && !in.HostConfig.IpcMode.IsNone() && !mountsOver(own, "/dev/shm") {
		own = append(slices.Clone(own), Mount{
			Source: in.ShmPath, Destination: "/dev/shm", Writable: true, Propagation: propagationPrivate,
		})
	}

	for _, m := range defaultMounts() {
		switch {
		case mountsOver(own, m.Destination):
			continue
		case mountsOver(own, "/dev") && strings.HasPrefix(m.Destination, "/dev/"):
			continue
		case m.Destination == "/dev/shm" && in.HostConfig.IpcMode.IsNone():
			continue
		case m.Destination == "/dev/shm":
			m.Options = append(m.Options, "size="+strconv.FormatInt(in.HostConfig.ShmSize, 10))
		}
		spec.Mounts = append(spec.Mounts, m)
	}
	if in.hasInit() {
		if in.Host.InitPath == "" {
			return errors.New("the container asks for an init process and the daemon has no init binary")
		}
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: InitDestination, Type: "bind", Source: in.Host.InitPath, Options: []string{"bind", "ro"},
		})
	}
	for _, m := range own {
		var made specs.Mount
		var err error
		if m.Source == TmpfsSource {
			made, err = tmpfsMount(m)
		} else {
			made, err = bindMount(in, m, spec.Linux)
		}
		if err != nil {
			return err
		}
		spec.Mounts = append(spec.Mounts, made)
	}
	return adjustReadOnly(in, own, spec)
}

// adjustReadOnly makes the kernel's mounts read-only or writable as --read-only, --privileged and writable-cgroups ask.
func adjustReadOnly(in Input, own []Mount, spec *specs.Spec) error {
	writableCgroups := in.HostConfig.Privileged
	if asked := in.Security.WritableCgroups; asked != nil {
		if len(in.Host.UIDMaps) > 0 {
			return errors.New("option WritableCgroups conflicts with user namespaces and rootless mode")
		}
		writableCgroups = *asked
	}
	if len(in.Host.UIDMaps) > 0 {
		// The runtime cannot remount it read-only from within a user namespace.
		writableCgroups = true
	}

	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if spec.Root.Readonly && !mountsOver(own, m.Destination) && !staysWritable(m.Destination) && !slices.Contains(m.Options, "ro") {
			m.Options = append(m.Options, "ro")
		}
		if in.HostConfig.Privileged && m.Destination == "/sys" || writableCgroups && m.Type == "cgroup" {
			m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "ro" })
		}
	}
	return nil
}

// staysWritable names the kernel mounts that --read-only leaves alone: programs cannot run without them.
func staysWritable(destination string) bool {
	switch destination {
	case "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue":
		return true
	}
	return false
}

func mountsOver(mounts []Mount, destination string) bool {
	return slices.ContainsFunc(mounts, func(m Mount) bool { return m.Destination == destination })
}

func tmpfsMount(m Mount) (specs.Mount, error) {
	options := []string{"noexec", "nosuid", "nodev", propagationPrivate}
	if m.Data != "" {
		options = append(options, strings.Split(m.Data, ",")...)
	}
	// The last of "exec" and "noexec" (and so on) stays; what a tmpfs does not know is an error.
	merged, err := mount.MergeTmpfsOptions(options)
	if err != nil {
		return specs.Mount{}, fmt.Errorf("tmpfs at %s: %w", m.Destination, err)
	}
	return specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: TmpfsSource, Options: merged}, nil
}

func bindMount(in Input, m Mount, linux *specs.Linux) (specs.Mount, error) {
	options := []string{"rbind"}
	if m.NonRecursive {
		options[0] = "bind"
	}
	if !m.Writable {
		option, err := readOnlyOption(in, m)
		if err != nil {
			return specs.Mount{}, err
		}
		options = append(options, option)
	}
	if m.Propagation != "" {
		if err := propagate(in, m, linux); err != nil {
			return specs.Mount{}, err
		}
		options = append(options, m.Propagation)
	}
	if len(in.Host.UIDMaps) > 0 {
		locked, err := lockedFlags(m.Source)
		if err != nil {
			return specs.Mount{}, err
		}
		options = append(options, locked...)
	}
	return specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Source, Options: options}, nil
}

// readOnlyOption chooses between a read-only mount and one that is so with all that is mounted below it.
func readOnlyOption(in Input, m Mount) (string, error) {
	switch {
	case m.ReadOnlyNonRecursive && m.ReadOnlyForceRecursive:
		return "", errors.New("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
	case m.ReadOnlyForceRecursive && !in.Host.RecursiveReadOnly:
		return "", fmt.Errorf("mount %s: rro is not supported by this kernel or the OCI runtime", m.Destination)
	case m.ReadOnlyNonRecursive || !in.Host.RecursiveReadOnly:
		return "ro", nil
	}
	return "rro", nil
}
