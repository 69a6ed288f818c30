// Package sysinfo finds out what the kernel and the cgroups of this host can do: which limits a container can be
// given, which security modules are on, and what an operator should be warned about.
//
// It only reads. It keeps no state and has no locks: Detect is called once at start and its answer handed around by
// value.
package sysinfo

// Hierarchy says how the host's cgroups are laid out.
type Hierarchy string

const (
	// HierarchyV1 is the legacy layout, one mount a controller.
	HierarchyV1 Hierarchy = "v1"
	// HierarchyHybrid is v1 for the controllers with an empty v2 tree beside it. Limits work as on v1.
	HierarchyHybrid Hierarchy = "hybrid"
	// HierarchyV2 is the unified layout.
	HierarchyV2 Hierarchy = "v2"
)

// Info is what a host can do. The zero value is a host that can do nothing.
type Info struct {
	Hierarchy   Hierarchy
	Controllers []string // usable cgroup controllers, sorted

	MemoryLimit       bool
	SwapLimit         bool
	MemoryReservation bool
	MemorySwappiness  bool
	OomKillDisable    bool
	KernelMemory      bool
	KernelMemoryTCP   bool

	CPUShares   bool
	CPUCfs      bool // quota and period
	CPURealtime bool

	Cpuset bool
	Cpus   string // CPUs that containers may use, as the kernel writes a list: "0-3,8"
	Mems   string // memory nodes, likewise
	NumCPU int    // CPUs this daemon may run on

	BlkioWeight          bool
	BlkioWeightDevice    bool
	BlkioReadBpsDevice   bool
	BlkioWriteBpsDevice  bool
	BlkioReadIOpsDevice  bool
	BlkioWriteIOpsDevice bool

	PidsLimit bool
	Devices   bool // access to devices can be limited

	CgroupNamespaces bool
	UserNamespaces   bool
	Seccomp          bool
	AppArmor         bool
	SELinux          bool

	IPv4ForwardingDisabled bool
	// UnprivilegedPortStart and PingGroupRange say that the network sysctls of those names exist.
	UnprivilegedPortStart bool
	PingGroupRange        bool

	// RecursiveReadOnly says that the kernel can make a mount read-only with all that is mounted below it (5.12).
	RecursiveReadOnly bool
	// DeviceMapper says that /dev/mapper/control answers or its module is loaded.
	DeviceMapper bool
	// Systemd says that systemd is this host's init.
	Systemd bool
}

// CgroupVersion is "1" or "2", as the API reports it. A hybrid host counts as 1, because its limits are set there.
func (i Info) CgroupVersion() string {
	if i.Hierarchy == HierarchyV2 {
		return "2"
	}
	return "1"
}

// DefaultCgroupDriver is "systemd" where systemd runs on a unified hierarchy, else "cgroupfs".
func (i Info) DefaultCgroupDriver() string {
	if i.Systemd && i.Hierarchy == HierarchyV2 {
		return "systemd"
	}
	return "cgroupfs"
}

// Warnings lists, in the words that Docker's clients show, what this host lacks.
func (i Info) Warnings() []string {
	var out []string
	warn := func(missing bool, text string) {
		if missing {
			out = append(out, "WARNING: "+text)
		}
	}
	v2 := i.Hierarchy == HierarchyV2
	warn(!i.MemoryLimit, "No memory limit support")
	warn(!i.SwapLimit, "No swap limit support")
	// Version 2 has neither of these two by design, so a warning would ask for the impossible.
	warn(!v2 && !i.KernelMemoryTCP, "No kernel memory TCP limit support")
	warn(!v2 && !i.OomKillDisable, "No oom kill disable support")
	warn(!i.CPUCfs, "No cpu cfs quota support")
	warn(!i.CPUCfs, "No cpu cfs period support")
	warn(!i.CPUShares, "No cpu shares support")
	warn(!i.Cpuset, "No cpuset support")
	// Version 1 kernels rarely have a weight at all (the CFQ scheduler is gone), so only version 2 is told.
	warn(v2 && !i.BlkioWeight, "No io.weight support")
	warn(v2 && !i.BlkioWeightDevice, "No io.weight (per device) support")
	for _, t := range []struct {
		have   bool
		v1, v2 string
	}{
		{i.BlkioReadBpsDevice, "read_bps_device", "rbps"},
		{i.BlkioWriteBpsDevice, "write_bps_device", "wbps"},
		{i.BlkioReadIOpsDevice, "read_iops_device", "riops"},
		{i.BlkioWriteIOpsDevice, "write_iops_device", "wiops"},
	} {
		if v2 {
			warn(!t.have, "No io.max ("+t.v2+") support")
		} else {
			warn(!t.have, "No blkio throttle."+t.v1+" support")
		}
	}
	warn(i.IPv4ForwardingDisabled, "IPv4 forwarding is disabled")
	return out
}
