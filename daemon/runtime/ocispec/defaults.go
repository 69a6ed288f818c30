package ocispec

import (
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultPath is the PATH of containers whose image sets none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultMounts returns the kernel file systems that every Docker container has, in mount order.
func defaultMounts() []specs.Mount {
	m := func(destination, fstype, source, options string) specs.Mount {
		return specs.Mount{Destination: destination, Type: fstype, Source: source, Options: strings.Split(options, ",")}
	}
	return []specs.Mount{
		m("/proc", "proc", "proc", "nosuid,noexec,nodev"),
		m("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
		m("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
		m("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
		m("/sys/fs/cgroup", "cgroup", "cgroup", "ro,nosuid,noexec,nodev"),
		m("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
		m("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777"),
	}
}

// DefaultMaskedPaths lists the files and directories of /proc and /sys that a container does not see. They tell about,
// or let it act on, the host.
func DefaultMaskedPaths() []string {
	masked := []string{
		"/proc/asound",
		"/proc/acpi",
		"/proc/interrupts",
		"/proc/kcore",
		"/proc/keys",
		"/proc/latency_stats",
		"/proc/timer_list",
		"/proc/timer_stats",
		"/proc/sched_debug",
		"/proc/scsi",
		"/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	// These count events that can be timed from inside; one directory for each CPU that has the counters.
	perCPU, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle") // the pattern is well-formed
	for _, dir := range perCPU {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
			masked = append(masked, dir)
		}
	}
	return masked
}

// DefaultReadonlyPaths lists the parts of /proc that a container sees and may not write.
func DefaultReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// defaultDeviceRules returns what a container may do with device numbers before its own devices are added: nothing, but
// for the harmless ones. The runtime adds the rest of its standard set (full, ptmx, pts).
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	char := func(allow bool, major, minor int64) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: "c", Major: &major, Minor: &minor, Access: "rwm"}
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		char(true, 1, 5),     // zero
		char(true, 1, 3),     // null
		char(true, 1, 9),     // urandom
		char(true, 1, 8),     // random
		char(true, 5, 0),     // tty
		char(true, 5, 1),     // console
		char(false, 10, 229), // fuse
	}
}
