package settings

import (
	"fmt"
	"path"
	"strings"

	"github.com/moby/moby/api/types/container"

	"stated.dev/stated/daemon/runtime/ocispec"
)

// leastMemory is the smallest limit that leaves the runtime enough to start a process.
const leastMemory = 6 << 20

// occasion says for which request resources are checked.
type occasion int

const (
	onCreate occasion = iota
	onUpdate
)

// checkResources checks limits against each other and against what the host can do. What it cannot do is taken out,
// with a warning.
func checkResources(r *container.Resources, host Host, when occasion) (warnings []string, err error) {
	for _, check := range []func(*container.Resources, Host, occasion) ([]string, error){
		checkMemory, checkPids, checkCPU, checkCpuset, checkBlockIO, checkDevices, checkUlimits,
	} {
		more, err := check(r, host, when)
		warnings = append(warnings, more...)
		if err != nil {
			return warnings, err
		}
	}
	return warnings, nil
}

func checkMemory(r *container.Resources, host Host, when occasion) (warnings []string, err error) {
	warn := func(text string) { warnings = append(warnings, text) }
	if s := r.MemorySwappiness; s != nil && *s == -1 {
		r.MemorySwappiness = nil // old clients send -1 for "not set"
	}

	if r.Memory != 0 && r.Memory < leastMemory {
		return nil, invalid("Minimum memory limit allowed is 6MB")
	}
	if r.Memory > 0 && !host.Info.MemoryLimit {
		warn("Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.")
		r.Memory, r.MemorySwap = 0, -1
	}
	if r.Memory > 0 && r.MemorySwap != -1 && !host.Info.SwapLimit {
		warn("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
		r.MemorySwap = -1
	}
	if r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory {
		return warnings, invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if r.Memory == 0 && r.MemorySwap > 0 && when == onCreate {
		return warnings, invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	if r.MemorySwappiness != nil && !host.Info.MemorySwappiness {
		warn("Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
		r.MemorySwappiness = nil
	}
	if s := r.MemorySwappiness; s != nil && (*s < 0 || *s > 100) {
		return warnings, invalid(fmt.Sprintf("Invalid value: %v, valid memory swappiness range is 0-100", *s))
	}
	if r.MemoryReservation > 0 && !host.Info.MemoryReservation {
		warn("Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.")
		r.MemoryReservation = 0
	}
	if r.MemoryReservation > 0 && r.MemoryReservation < leastMemory {
		return warnings, invalid("Minimum memory reservation allowed is 6MB")
	}
	if r.Memory > 0 && r.MemoryReservation > 0 && r.Memory < r.MemoryReservation {
		return warnings, invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	}

	if r.OomKillDisable != nil && !host.Info.OomKillDisable {
		if *r.OomKillDisable { // who did not ask for it need not hear that it is missing
			warn("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		}
		r.OomKillDisable = nil
	}
	if r.OomKillDisable != nil && *r.OomKillDisable && r.Memory == 0 {
		warn("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	return warnings, nil
}

func checkPids(r *container.Resources, host Host, _ occasion) (warnings []string, err error) {
	if r.PidsLimit != nil && !host.Info.PidsLimit {
		if *r.PidsLimit > 0 {
			warnings = append(warnings, "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.")
		}
		r.PidsLimit = nil
	}
	return warnings, nil
}

func checkCPU(r *container.Resources, host Host, _ occasion) (warnings []string, err error) {
	switch cpus := int64(host.Info.NumCPU); {
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return nil, invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return nil, invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.NanoCPUs > 0 && !host.Info.CPUCfs:
		return nil, invalid("NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted")
	case r.NanoCPUs < 0 || r.NanoCPUs > cpus*1e9:
		return nil, invalid(fmt.Sprintf("range of CPUs is from 0.01 to %[1]d.00, as there are only %[1]d CPUs available", cpus))
	}
	if r.CPUShares > 0 && !host.Info.CPUShares {
		warnings = append(warnings, "Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.")
		r.CPUShares = 0
	}
	if (r.CPUPeriod != 0 || r.CPUQuota != 0) && !host.Info.CPUCfs {
		warnings = append(warnings, "Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
		r.CPUPeriod, r.CPUQuota = 0, 0
	}
	if r.CPUPeriod != 0 && (r.CPUPeriod < 1_000 || r.CPUPeriod > 1_000_000) {
		return warnings, invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	}
	if r.CPUQuota > 0 && r.CPUQuota < 1_000 {
		return warnings, invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	if r.CPUPercent > 0 {
		warnings = append(warnings, "linux does not support CPU percent. Percent discarded.")
		r.CPUPercent = 0
	}
	return warnings, nil
}

func checkCpuset(r *container.Resources, host Host, _ occasion) (warnings []string, err error) {
	if (r.CpusetCpus != "" || r.CpusetMems != "") && !host.Info.Cpuset {
		warnings = append(warnings, "Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.")
		r.CpusetCpus, r.CpusetMems = "", ""
	}
	if ok, err := host.Info.CpusAvailable(r.CpusetCpus); err != nil {
		return warnings, invalid(fmt.Sprintf("Invalid value %s for cpuset cpus: %v", r.CpusetCpus, err))
	} else if !ok {
		return warnings, invalid(fmt.Sprintf("Requested CPUs are not available - requested %s, available: %s", r.CpusetCpus, host.Info.Cpus))
	}
	if ok, err := host.Info.MemsAvailable(r.CpusetMems); err != nil {
		return warnings, invalid(fmt.Sprintf("Invalid value %s for cpuset mems: %v", r.CpusetMems, err))
	} else if !ok {
		return warnings, invalid(fmt.Sprintf("Requested memory nodes are not available - requested %s, available: %s", r.CpusetMems, host.Info.Mems))
	}
	return warnings, nil
}

func checkBlockIO(r *container.Resources, host Host, _ occasion) (warnings []string, err error) {
	warn := func(what, discarded string) {
		warnings = append(warnings, "Your kernel does not support "+what+" or the cgroup is not mounted. "+discarded+" discarded.")
	}
	if r.BlkioWeight > 0 && !host.Info.BlkioWeight {
		warn("Block I/O weight", "Weight")
		r.BlkioWeight = 0
	}
	if r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000) {
		return warnings, invalid("Range of blkio weight is from 10 to 1000")
	}
	if r.IOMaximumBandwidth != 0 || r.IOMaximumIOps != 0 {
		return warnings, invalid("Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps")
	}
	if len(r.BlkioWeightDevice) > 0 && !host.Info.BlkioWeightDevice {
		warn("Block I/O weight_device", "Weight-device")
		r.BlkioWeightDevice = r.BlkioWeightDevice[:0]
	}
	if len(r.BlkioDeviceReadBps) > 0 && !host.Info.BlkioReadBpsDevice {
		warn("BPS Block I/O read limit", "Block I/O BPS read limit")
		r.BlkioDeviceReadBps = r.BlkioDeviceReadBps[:0]
	}
	if len(r.BlkioDeviceWriteBps) > 0 && !host.Info.BlkioWriteBpsDevice {
		warn("BPS Block I/O write limit", "Block I/O BPS write limit")
		r.BlkioDeviceWriteBps = r.BlkioDeviceWriteBps[:0]
	}
	if len(r.BlkioDeviceReadIOps) > 0 && !host.Info.BlkioReadIOpsDevice {
		warn("IOPS Block read limit", "Block I/O IOPS read limit")
		r.BlkioDeviceReadIOps = r.BlkioDeviceReadIOps[:0]
	}
	if len(r.BlkioDeviceWriteIOps) > 0 && !host.Info.BlkioWriteIOpsDevice {
		warn("IOPS Block write limit", "Block I/O IOPS write limit")
		r.BlkioDeviceWriteIOps = r.BlkioDeviceWriteIOps[:0]
	}
	return warnings, nil
}

// checkDevices checks the form of device mappings and rules, and completes the mappings as the command line does.
func checkDevices(r *container.Resources, _ Host, _ occasion) ([]string, error) {
	for i := range r.Devices {
		d := &r.Devices[i]
		if d.PathInContainer == "" {
			d.PathInContainer = d.PathOnHost
		}
		if d.CgroupPermissions == "" {
			d.CgroupPermissions = "rwm"
		}
		for _, p := range []string{d.PathOnHost, d.PathInContainer} {
			if !path.IsAbs(p) {
				return nil, invalid(fmt.Sprintf("invalid device path '%s': it needs to be an absolute path", p))
			}
		}
		if strings.Trim(d.CgroupPermissions, "rwm") != "" || len(d.CgroupPermissions) > 3 {
			return nil, invalid("invalid device mode: " + d.CgroupPermissions)
		}
	}
	for _, rule := range r.DeviceCgroupRules {
		if _, err := ocispec.ParseDeviceRule(rule); err != nil {
			return nil, invalid(err.Error())
		}
	}
	return nil, nil
}

func checkUlimits(r *container.Resources, _ Host, _ occasion) ([]string, error) {
	for _, u := range r.Ulimits {
		if u == nil {
			return nil, invalid("invalid ulimit: it is empty")
		}
		if _, err := u.GetRlimit(); err != nil {
			return nil, invalid(err.Error())
		}
		// -1 is "unlimited".
		if u.Hard != -1 && (u.Soft == -1 || u.Soft > u.Hard) {
			return nil, invalid(fmt.Sprintf("ulimit soft limit must be less than or equal to hard limit: %d > %d", u.Soft, u.Hard))
		}
	}
	return nil, nil
}
