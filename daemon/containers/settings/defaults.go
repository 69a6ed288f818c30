package settings

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/daemon/runtime/sysinfo"
)

// Defaults fills in what a validated create request left out, so that the record says what the container has even when
// the daemon's settings change later. References to other containers ("container:NAME") have been turned into ids.
func Defaults(hc *container.HostConfig, host Host) {
	if hc.RestartPolicy.Name == "" {
		hc.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if hc.NetworkMode == "" || hc.NetworkMode.IsDefault() {
		hc.NetworkMode = network.NetworkBridge
	}
	if hc.Memory > 0 && hc.MemorySwap == 0 {
		hc.MemorySwap = 2 * hc.Memory // as much swap as memory
	}
	if hc.ShmSize == 0 {
		hc.ShmSize = orElse(host.ShmSize, DefaultShmSize)
	}
	if hc.IpcMode.IsEmpty() {
		hc.IpcMode = orElse(host.IpcMode, container.IPCModePrivate)
	}
	if hc.CgroupnsMode.IsEmpty() {
		hc.CgroupnsMode = defaultCgroupns(hc, host)
	}
	if hc.Runtime == "" {
		hc.Runtime = host.DefaultRuntime
	}
	if hc.PidsLimit != nil && *hc.PidsLimit <= 0 {
		hc.PidsLimit = nil // "unlimited" was said, and is what nothing means
	}
	if hc.OomKillDisable == nil {
		hc.OomKillDisable = new(bool)
	}
	defaultSecurity(hc)
}

func defaultCgroupns(hc *container.HostConfig, host Host) container.CgroupnsMode {
	if host.Info.Hierarchy != sysinfo.HierarchyV2 {
		if hc.Privileged {
			return container.CgroupnsModeHost
		}
		return orElse(host.CgroupnsMode, container.CgroupnsModeHost)
	}
	return orElse(host.CgroupnsMode, container.CgroupnsModePrivate)
}

// defaultSecurity sets the hidden paths, and takes labels away from containers that could not use them.
func defaultSecurity(hc *container.HostConfig) {
	// Docker's command line turns this option into empty lists of paths; others may send it as it is.
	before := len(hc.SecurityOpt)
	hc.SecurityOpt = slices.DeleteFunc(hc.SecurityOpt, func(o string) bool { return o == "systempaths=unconfined" })
	if len(hc.SecurityOpt) != before {
		hc.MaskedPaths, hc.ReadonlyPaths = []string{}, []string{}
	}
	if !hc.Privileged {
		if hc.MaskedPaths == nil {
			hc.MaskedPaths = ocispec.DefaultMaskedPaths()
		}
		if hc.ReadonlyPaths == nil {
			hc.ReadonlyPaths = ocispec.DefaultReadonlyPaths()
		}
	}
	labelled := slices.ContainsFunc(hc.SecurityOpt, func(o string) bool {
		key, _, _ := strings.Cut(o, "=")
		return key == "label"
	})
	if !labelled && (hc.IpcMode.IsHost() || hc.PidMode.IsHost() || hc.Privileged) {
		hc.SecurityOpt = append(hc.SecurityOpt, "label=disable")
	}
}

// orElse returns value, or fallback where it is zero.
func orElse[T comparable](value, fallback T) T {
	var zero T
	if value == zero {
		return fallback
	}
	return value
}
