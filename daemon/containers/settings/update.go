package settings

import (
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// ValidateUpdate checks an update request by itself. Limits that this host cannot set are taken out, each with a
// warning.
func ValidateUpdate(up *container.UpdateConfig, host Host) (warnings []string, err error) {
	if err := container.ValidateRestartPolicy(up.RestartPolicy); err != nil {
		return nil, invalid(err.Error())
	}
	if p := up.PidsLimit; p != nil && *p <= 0 {
		up.PidsLimit = new(int64) // zero and all below mean "no limit"
	}
	return checkResources(&up.Resources, host, onUpdate)
}

// ApplyUpdate writes a validated update into a container's host configuration, or leaves it as it is and returns an
// errdefs.ErrConflict that says what does not go together. The caller puts "Cannot update container ID: " before it.
func ApplyUpdate(hc *container.HostConfig, up container.UpdateConfig) error {
	if err := conflicts(hc, up); err != nil {
		return err
	}
	have, want := &hc.Resources, up.Resources
	set(&have.BlkioWeight, want.BlkioWeight)
	set(&have.CPUShares, want.CPUShares)
	set(&have.NanoCPUs, want.NanoCPUs)
	set(&have.CPUPeriod, want.CPUPeriod)
	set(&have.CPUQuota, want.CPUQuota)
	set(&have.CpusetCpus, want.CpusetCpus)
	set(&have.CpusetMems, want.CpusetMems)
	set(&have.Memory, want.Memory)
	set(&have.MemorySwap, want.MemorySwap)
	set(&have.MemoryReservation, want.MemoryReservation)
	set(&have.CPURealtimePeriod, want.CPURealtimePeriod)
	set(&have.CPURealtimeRuntime, want.CPURealtimeRuntime)
	set(&have.PidsLimit, want.PidsLimit)
	if up.RestartPolicy.Name != "" {
		hc.RestartPolicy = up.RestartPolicy
	}
	return nil
}

func conflicts(hc *container.HostConfig, up container.UpdateConfig) error {
	have, want := hc.Resources, up.Resources
	conflict := func(text string) error { return errdefs.ErrConflict.WithMessage(text) }
	switch {
	case want.NanoCPUs > 0 && have.CPUPeriod > 0:
		return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set")
	case want.NanoCPUs > 0 && have.CPUQuota > 0:
		return conflict("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set")
	case want.CPUPeriod > 0 && have.NanoCPUs > 0:
		return conflict("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
	case want.CPUQuota > 0 && have.NanoCPUs > 0:
		return conflict("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")
	case want.Memory != 0 && want.Memory > have.MemorySwap && want.MemorySwap == 0:
		return conflict("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	case hc.AutoRemove && !up.RestartPolicy.IsNone():
		return conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
	}
	return nil
}

// set overwrites what a request names. Zero means "leave it".
func set[T comparable](have *T, want T) {
	var zero T
	if want != zero {
		*have = want
	}
}
