package ocispec

import (
	"fmt"
	"os"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// cfsPeriod is the period, in microseconds, in which a share of CPUs (NanoCPUs) is measured.
const cfsPeriod = 100_000

func setResources(in Input, spec *specs.Spec) error {
	resources, err := Resources(in.HostConfig.Resources)
	if err != nil {
		return err
	}
	spec.Linux.Resources = resources
	return nil
}

// Resources returns the limits of a new container, without its device rules. It looks at the block devices they name.
func Resources(r container.Resources) (*specs.LinuxResources, error) {
	if r.CPUShares < 0 {
		return nil, fmt.Errorf("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	}
	block := &specs.LinuxBlockIO{}
	if r.BlkioWeight != 0 {
		block.Weight = &r.BlkioWeight
	}
	for _, d := range r.BlkioWeightDevice {
		major, minor, err := blockDevice(d.Path)
		if err != nil {
			return nil, err
		}
		weight := d.Weight
		device := specs.LinuxWeightDevice{Weight: &weight}
		device.Major, device.Minor = major, minor
		block.WeightDevice = append(block.WeightDevice, device)
	}
	for _, t := range []struct {
		from []*blkiodev.ThrottleDevice
		to   *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &block.ThrottleReadBpsDevice},
		{r.BlkioDeviceWriteBps, &block.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &block.ThrottleReadIOPSDevice},
		{r.BlkioDeviceWriteIOps, &block.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.from {
			major, minor, err := blockDevice(d.Path)
			if err != nil {
				return nil, err
			}
			device := specs.LinuxThrottleDevice{Rate: d.Rate}
			device.Major, device.Minor = major, minor
			*t.to = append(*t.to, device)
		}
	}
	return &specs.LinuxResources{
		Memory:  memory(r),
		CPU:     cpu(r),
		Pids:    pids(r),
		BlockIO: block,
	}, nil
}

// UpdateResources returns the limits that an update changes in a running container. What the request leaves at zero
// stays as it is.
func UpdateResources(r container.Resources) *specs.LinuxResources {
	r.MemorySwappiness, r.OomKillDisable = nil, nil // an update records neither
	out := &specs.LinuxResources{Memory: memory(r), CPU: cpu(r), Pids: pids(r)}
	if r.MemorySwap < 0 {
		// At creation an unlimited swap is simply no limit. An update has to lift the one that is set.
		if out.Memory == nil {
			out.Memory = &specs.LinuxMemory{}
		}
		out.Memory.Swap = &r.MemorySwap
	}
	if r.BlkioWeight != 0 {
		out.BlockIO = &specs.LinuxBlockIO{Weight: &r.BlkioWeight}
	}
	return out
}

func memory(r container.Resources) *specs.LinuxMemory {
	m := specs.LinuxMemory{}
	if r.Memory > 0 {
		m.Limit = &r.Memory
	}
	if r.MemoryReservation > 0 {
		m.Reservation = &r.MemoryReservation
	}
	if r.MemorySwap > 0 {
		m.Swap = &r.MemorySwap
	}
	if r.MemorySwappiness != nil && *r.MemorySwappiness >= 0 {
		swappiness := uint64(*r.MemorySwappiness)
		m.Swappiness = &swappiness
	}
	m.DisableOOMKiller = r.OomKillDisable
	if m == (specs.LinuxMemory{}) {
		return nil
	}
	return &m
}

func cpu(r container.Resources) *specs.LinuxCPU {
	c := specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CPUShares > 0 {
		shares := uint64(r.CPUShares)
		c.Shares = &shares
	}
	if r.NanoCPUs > 0 {
		period := uint64(cfsPeriod)
		quota := r.NanoCPUs * cfsPeriod / 1e9
		c.Period, c.Quota = &period, &quota
	}
	if r.CPUPeriod != 0 {
		period := uint64(r.CPUPeriod)
		c.Period = &period
	}
	if r.CPUQuota != 0 {
		c.Quota = &r.CPUQuota
	}
	if r.CPURealtimePeriod != 0 {
		period := uint64(r.CPURealtimePeriod)
		c.RealtimePeriod = &period
	}
	if r.CPURealtimeRuntime != 0 {
		c.RealtimeRuntime = &r.CPURealtimeRuntime
	}
	if c == (specs.LinuxCPU{}) {
		return nil
	}
	return &c
}

// pids returns the limit of processes. Zero and below mean none, which the runtime writes as -1; only nil says nothing.
func pids(r container.Resources) *specs.LinuxPids {
	if r.PidsLimit == nil {
		return nil
	}
	limit := *r.PidsLimit
	if limit <= 0 {
		limit = -1
	}
	return &specs.LinuxPids{Limit: &limit}
}

func blockDevice(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev))), nil //nolint:unconvert // 32 bits on mips
}
