package sysinfo

import (
	"bufio"
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/seccomp"
	"github.com/moby/sys/mountinfo"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// Detect looks at the host it runs on. What cannot be read counts as absent. It takes about a millisecond.
func Detect() Info {
	info := Info{
		NumCPU:                runtime.NumCPU(),
		CgroupNamespaces:      exists("/proc/self/ns/cgroup"),
		UserNamespaces:        exists("/proc/self/ns/user"),
		Seccomp:               seccomp.IsEnabled(),
		AppArmor:              readable("/sys/kernel/security/apparmor/profiles"),
		SELinux:               exists("/sys/fs/selinux/enforce"),
		UnprivilegedPortStart: exists("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
		PingGroupRange:        exists("/proc/sys/net/ipv4/ping_group_range"),
		RecursiveReadOnly:     recursiveReadOnly(),
		DeviceMapper:          deviceMapper(),
		Systemd:               isDir("/run/systemd/system"),
	}
	info.IPv4ForwardingDisabled = IPv4ForwardingDisabled()

	if onFilesystem(cgroupRoot, unix.CGROUP2_SUPER_MAGIC) {
		info.Hierarchy = HierarchyV2
		detectV2(&info, cgroupRoot, ownCgroup("/proc/self/cgroup"))
		return info
	}
	info.Hierarchy = HierarchyV1
	if onFilesystem(filepath.Join(cgroupRoot, "unified"), unix.CGROUP2_SUPER_MAGIC) {
		info.Hierarchy = HierarchyHybrid
	}
	if mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup")); err == nil {
		detectV1(&info, controllerMounts(mounts))
	}
	return info
}

// IPv4ForwardingDisabled reads that setting as it is now. The daemon's own networks turn it on, so what Detect found at
// start does not hold for long.
func IPv4ForwardingDisabled() bool { return firstLine("/proc/sys/net/ipv4/ip_forward") != "1" }

// controllerMounts maps each v1 controller to its mount point. Where one is mounted several times the first counts.
func controllerMounts(mounts []*mountinfo.Info) map[string]string {
	at := map[string]string{}
	for _, m := range mounts {
		for opt := range strings.SplitSeq(m.VFSOptions, ",") {
			switch opt {
			case "memory", "cpu", "cpuacct", "cpuset", "blkio", "pids", "devices", "freezer", "hugetlb", "net_cls", "net_prio", "perf_event", "rdma", "misc":
				if at[opt] == "" {
					at[opt] = m.Mountpoint
				}
			}
		}
	}
	return at
}

func detectV1(info *Info, at map[string]string) {
	for name := range at {
		info.Controllers = append(info.Controllers, name)
	}
	slices.Sort(info.Controllers)

	has := func(controller, file string) bool {
		dir, ok := at[controller]
		return ok && exists(filepath.Join(dir, file))
	}
	_, info.MemoryLimit = at["memory"]
	info.SwapLimit = has("memory", "memory.memsw.limit_in_bytes")
	info.MemoryReservation = has("memory", "memory.soft_limit_in_bytes")
	info.MemorySwappiness = has("memory", "memory.swappiness")
	info.OomKillDisable = has("memory", "memory.oom_control")
	info.KernelMemory = has("memory", "memory.kmem.limit_in_bytes")
	info.KernelMemoryTCP = has("memory", "memory.kmem.tcp.limit_in_bytes")

	info.CPUShares = has("cpu", "cpu.shares")
	info.CPUCfs = has("cpu", "cpu.cfs_quota_us")
	info.CPURealtime = has("cpu", "cpu.rt_period_us")

	if dir, ok := at["cpuset"]; ok {
		info.Cpuset = true
		info.Cpus = firstLine(filepath.Join(dir, "cpuset.cpus"))
		info.Mems = firstLine(filepath.Join(dir, "cpuset.mems"))
	}

	info.BlkioWeight = has("blkio", "blkio.weight") || has("blkio", "blkio.bfq.weight")
	info.BlkioWeightDevice = has("blkio", "blkio.weight_device") || has("blkio", "blkio.bfq.weight_device")
	info.BlkioReadBpsDevice = has("blkio", "blkio.throttle.read_bps_device")
	info.BlkioWriteBpsDevice = has("blkio", "blkio.throttle.write_bps_device")
	info.BlkioReadIOpsDevice = has("blkio", "blkio.throttle.read_iops_device")
	info.BlkioWriteIOpsDevice = has("blkio", "blkio.throttle.write_iops_device")

	_, info.PidsLimit = at["pids"]
	_, info.Devices = at["devices"]
}

// detectV2 reads the unified tree below root. own is this process's cgroup: files such as memory.swap.max do not exist
// at the top, so they are looked for there.
func detectV2(info *Info, root, own string) {
	info.Controllers = strings.Fields(firstLine(filepath.Join(root, "cgroup.controllers")))
	slices.Sort(info.Controllers)
	has := func(controller string) bool { return slices.Contains(info.Controllers, controller) }

	if has("memory") {
		info.MemoryLimit = true
		info.MemoryReservation = true
		info.SwapLimit = exists(filepath.Join(root, own, "memory.swap.max"))
	}
	info.CPUShares = has("cpu")
	info.CPUCfs = has("cpu")
	if has("io") {
		info.BlkioWeight = true
		info.BlkioWeightDevice = true
		info.BlkioReadBpsDevice = true
		info.BlkioWriteBpsDevice = true
		info.BlkioReadIOpsDevice = true
		info.BlkioWriteIOpsDevice = true
	}
	if has("cpuset") {
		info.Cpuset = true
		info.Cpus = firstLine(filepath.Join(root, "cpuset.cpus.effective"))
		info.Mems = firstLine(filepath.Join(root, "cpuset.mems.effective"))
	}
	info.PidsLimit = has("pids")
	info.Devices = !userns.RunningInUserNS() // by eBPF, which a user namespace may not load
}

// ownCgroup returns this process's path in the unified tree ("0::/path"), or "" when it has none.
func ownCgroup(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if path, ok := strings.CutPrefix(lines.Text(), "0::"); ok {
			return path
		}
	}
	return ""
}

// recursiveReadOnly asks the kernel for mount_setattr on a descriptor that does not exist: only a kernel that knows the
// call can complain about the descriptor.
func recursiveReadOnly() bool {
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	return err == unix.EBADF
}

func deviceMapper() bool {
	if exists("/dev/mapper/control") || exists("/sys/module/dm_mod") {
		return true
	}
	data, err := os.ReadFile("/proc/devices")
	return err == nil && strings.Contains(string(data), " device-mapper\n")
}

func onFilesystem(path string, magic int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == magic
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func isDir(path string) bool {
	fi, err := os.Lstat(path)
	return err == nil && fi.IsDir()
}

func readable(path string) bool {
	_, err := os.ReadFile(path)
	return err == nil
}

func firstLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSpace(line)
}
