package settings_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/containers/settings"
	"stated.dev/stated/daemon/runtime/sysinfo"
)

// able is a host on cgroup v1 that can do everything.
func able() settings.Host {
	return settings.Host{
		Runtimes: []string{"runc", "io.containerd.runc.v2"}, DefaultRuntime: "runc",
		Info: sysinfo.Info{
			Hierarchy: sysinfo.HierarchyV1, MemoryLimit: true, SwapLimit: true, MemoryReservation: true, MemorySwappiness: true,
			OomKillDisable: true, CPUShares: true, CPUCfs: true, CPURealtime: true, Cpuset: true, Cpus: "0-3", Mems: "0", NumCPU: 4,
			BlkioWeight: true, BlkioWeightDevice: true, BlkioReadBpsDevice: true, BlkioWriteBpsDevice: true,
			BlkioReadIOpsDevice: true, BlkioWriteIOpsDevice: true, PidsLimit: true, Devices: true, CgroupNamespaces: true,
		},
	}
}

// request is a create request, and the host it comes to.
type request struct {
	cfg  types.ContainerConfig
	hc   container.HostConfig
	host settings.Host
}

func p[T any](v T) *T { return &v }

func TestValidateRefuses(t *testing.T) {
	for _, tc := range []struct {
		want   string
		change func(*request)
	}{
		// The network mode and what does not go with it.
		{"invalid network mode: invalid container format container:<name|id>", func(r *request) { r.hc.NetworkMode = "container:" }},
		{"invalid network mode: invalid container format container:<name|id>", func(r *request) { r.hc.NetworkMode = "container" }},
		{"conflicting options: hostname and the network mode", func(r *request) { r.hc.NetworkMode, r.cfg.Hostname = "container:x", "h" }},
		{"conflicting options: container type network can't be used with links. This would result in undefined behavior", func(r *request) { r.hc.NetworkMode, r.hc.Links = "container:x", []string{"a:b"} }},
		{"conflicting options: dns and the network mode", func(r *request) {
			r.hc.NetworkMode, r.hc.DNS = "container:x", []netip.Addr{netip.MustParseAddr("1.1.1.1")}
		}},
		{"conflicting options: custom host-to-IP mapping and the network mode", func(r *request) { r.hc.NetworkMode, r.hc.ExtraHosts = "container:x", []string{"a:1.2.3.4"} }},
		{"conflicting options: port publishing and the container type network mode", func(r *request) { r.hc.NetworkMode, r.hc.PublishAllPorts = "container:x", true }},
		{"conflicting options: port publishing and the container type network mode", func(r *request) {
			r.hc.NetworkMode, r.hc.PortBindings = "container:x", network.PortMap{network.MustParsePort("80"): nil}
		}},
		{"conflicting options: port exposing and the container type network mode", func(r *request) {
			r.hc.NetworkMode, r.cfg.ExposedPorts = "container:x", network.PortSet{network.MustParsePort("80"): {}}
		}},
		{"conflicting options: hostname and the UTS mode", func(r *request) { r.hc.UTSMode, r.cfg.Hostname = "host", "h" }},
		{"conflicting options: host type networking can't be used with links. This would result in undefined behavior", func(r *request) { r.hc.NetworkMode, r.hc.Links = "host", []string{"a:b"} }},

		// What belongs to other platforms or schedulers.
		{"invalid isolation (hyperv): linux only supports 'default'", func(r *request) { r.hc.Isolation = "hyperv" }},
		{"invalid option: QoS maximum bandwidth configuration is not supported on linux", func(r *request) { r.hc.IOMaximumBandwidth = 1 }},
		{"invalid option: QoS maximum IOPs configuration is not supported on linux", func(r *request) { r.hc.IOMaximumIOps = 1 }},
		{"kernel does not support CPU real-time scheduler", func(r *request) { r.hc.CPURealtimePeriod, r.host.Info.CPURealtime = 1, false }},
		{"cpu real-time runtime cannot be higher than cpu real-time period", func(r *request) { r.hc.CPURealtimePeriod, r.hc.CPURealtimeRuntime = 1, 2 }},
		{"invalid CPU shares (-1): value must be a positive integer", func(r *request) { r.hc.CPUShares = -1 }},

		// The portable part.
		{"the working directory 'a/b' is invalid, it needs to be an absolute path", func(r *request) { r.cfg.WorkingDir = "a/b" }},
		{"invalid signal: SIGNOTHING", func(r *request) { r.cfg.StopSignal = "SIGNOTHING" }},
		{"invalid signal: 0", func(r *request) { r.cfg.StopSignal = "0" }},
		{"invalid environment variable: =x", func(r *request) { r.cfg.Env = []string{"A=1", "=x"} }},
		{"invalid environment variable: ", func(r *request) { r.cfg.Env = []string{""} }},
		{`invalid hostname "a b": it has a space or a control character`, func(r *request) { r.cfg.Hostname = "a b" }},
		{`invalid hostname "` + strings.Repeat("h", 65) + `": it is longer than 64 bytes`, func(r *request) { r.cfg.Hostname = strings.Repeat("h", 65) }},
		{"Interval in Healthcheck cannot be less than 1ms", func(r *request) { r.cfg.Healthcheck = &container.HealthConfig{Interval: 1} }},
		{"Timeout in Healthcheck cannot be less than 1ms", func(r *request) { r.cfg.Healthcheck = &container.HealthConfig{Timeout: -1} }},
		{"Retries in Healthcheck cannot be negative", func(r *request) { r.cfg.Healthcheck = &container.HealthConfig{Retries: -1} }},
		{"StartPeriod in Healthcheck cannot be less than 1ms", func(r *request) { r.cfg.Healthcheck = &container.HealthConfig{StartPeriod: 1} }},
		{"StartInterval in Healthcheck cannot be less than 1ms", func(r *request) { r.cfg.Healthcheck = &container.HealthConfig{StartInterval: 1} }},

		// The host's part.
		{"can't create 'AutoRemove' container with restart policy", func(r *request) { r.hc.AutoRemove, r.hc.RestartPolicy.Name = true, "always" }},
		{`bad format for add-host: "x"`, func(r *request) { r.hc.ExtraHosts = []string{"x"} }},
		{`invalid IP address in add-host: "999.1.1.1"`, func(r *request) { r.hc.ExtraHosts = []string{"x:999.1.1.1"} }},
		{`invalid port specification: "x"`, func(r *request) {
			r.hc.PortBindings = network.PortMap{network.MustParsePort("80"): {{HostPort: "x"}}}
		}},
		{`invalid port specification: "70000"`, func(r *request) {
			r.hc.PortBindings = network.PortMap{network.MustParsePort("80"): {{HostPort: "70000"}}}
		}},
		{`invalid port specification: ""`, func(r *request) { r.hc.PortBindings = network.PortMap{network.Port{}: nil} }},
		{"invalid restart policy: maximum retry count can only be used with 'on-failure'", func(r *request) {
			r.hc.RestartPolicy = container.RestartPolicy{Name: "always", MaximumRetryCount: 1}
		}},
		{"invalid restart policy: maximum retry count cannot be negative", func(r *request) {
			r.hc.RestartPolicy = container.RestartPolicy{Name: "on-failure", MaximumRetryCount: -1}
		}},
		{"invalid restart policy: unknown policy 'odd'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'", func(r *request) { r.hc.RestartPolicy.Name = "odd" }},
		{`invalid CapAdd: unknown capability: "CAP_X"`, func(r *request) { r.hc.CapAdd = []string{"x"} }},
		{`invalid CapDrop: unknown capability: "CAP_Y"`, func(r *request) { r.hc.CapDrop = []string{"CAP_Y"} }},
		{"invalid Annotations: the empty string is not permitted as an annotation key", func(r *request) { r.hc.Annotations = map[string]string{"": "x"} }},

		// Limits.
		{"Minimum memory limit allowed is 6MB", func(r *request) { r.hc.Memory = 6<<20 - 1 }},
		{"Minimum memory limit allowed is 6MB", func(r *request) { r.hc.Memory = -1 }},
		{"Minimum memoryswap limit should be larger than memory limit, see usage", func(r *request) { r.hc.Memory, r.hc.MemorySwap = 8<<20, 7<<20 }},
		{"You should always set the Memory limit when using Memoryswap limit, see usage", func(r *request) { r.hc.MemorySwap = 7 << 20 }},
		{"Invalid value: 101, valid memory swappiness range is 0-100", func(r *request) { r.hc.MemorySwappiness = p(int64(101)) }},
		{"Minimum memory reservation allowed is 6MB", func(r *request) { r.hc.MemoryReservation = 1 }},
		{"Minimum memory limit can not be less than memory reservation limit, see usage", func(r *request) { r.hc.Memory, r.hc.MemoryReservation = 8<<20, 9<<20 }},
		{"Conflicting options: Nano CPUs and CPU Period cannot both be set", func(r *request) { r.hc.NanoCPUs, r.hc.CPUPeriod = 1e9, 1000 }},
		{"Conflicting options: Nano CPUs and CPU Quota cannot both be set", func(r *request) { r.hc.NanoCPUs, r.hc.CPUQuota = 1e9, 1000 }},
		{"NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted", func(r *request) { r.hc.NanoCPUs, r.host.Info.CPUCfs = 1e9, false }},
		{"range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available", func(r *request) { r.hc.NanoCPUs = 4e9 + 1 }},
		{"range of CPUs is from 0.01 to 4.00, as there are only 4 CPUs available", func(r *request) { r.hc.NanoCPUs = -1 }},
		{"CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)", func(r *request) { r.hc.CPUPeriod = 999 }},
		{"CPU cfs quota can not be less than 1ms (i.e. 1000)", func(r *request) { r.hc.CPUQuota = 999 }},
		{"Requested CPUs are not available - requested 0-4, available: 0-3", func(r *request) { r.hc.CpusetCpus = "0-4" }},
		{"Invalid value x for cpuset cpus: invalid format: x", func(r *request) { r.hc.CpusetCpus = "x" }},
		{"Requested memory nodes are not available - requested 1, available: 0", func(r *request) { r.hc.CpusetMems = "1" }},
		{"Invalid value x for cpuset mems: invalid format: x", func(r *request) { r.hc.CpusetMems = "x" }},
		{"Range of blkio weight is from 10 to 1000", func(r *request) { r.hc.BlkioWeight = 9 }},
		{"invalid device path 'null': it needs to be an absolute path", func(r *request) { r.hc.Devices = []container.DeviceMapping{{PathOnHost: "null"}} }},
		{"invalid device mode: x", func(r *request) {
			r.hc.Devices = []container.DeviceMapping{{PathOnHost: "/dev/null", CgroupPermissions: "x"}}
		}},
		{"invalid device cgroup rule format: 'c 1'", func(r *request) { r.hc.DeviceCgroupRules = []string{"c 1"} }},
		{"invalid ulimit name odd", func(r *request) { r.hc.Ulimits = []*container.Ulimit{{Name: "odd"}} }},
		{"ulimit soft limit must be less than or equal to hard limit: 3 > 2", func(r *request) { r.hc.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 3, Hard: 2}} }},
		{"ulimit soft limit must be less than or equal to hard limit: -1 > 2", func(r *request) { r.hc.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: -1, Hard: 2}} }},
		{"invalid ulimit: it is empty", func(r *request) { r.hc.Ulimits = []*container.Ulimit{nil} }},

		// Namespaces and the rest.
		{"invalid IPC mode: odd", func(r *request) { r.hc.IpcMode = "odd" }},
		{"invalid IPC mode: container:", func(r *request) { r.hc.IpcMode = "container:" }},
		{"invalid PID mode: container:", func(r *request) { r.hc.PidMode = "container:" }},
		{"invalid UTS mode: private", func(r *request) { r.hc.UTSMode = "private" }},
		{"invalid user namespace mode: odd", func(r *request) { r.hc.UsernsMode = "odd" }},
		{"invalid cgroup namespace mode: odd", func(r *request) { r.hc.CgroupnsMode = "odd" }},
		{"SHM size can not be less than 0", func(r *request) { r.hc.ShmSize = -1 }},
		{"Invalid value 1001, range for oom score adj is [-1000, 1000]", func(r *request) { r.hc.OomScoreAdj = 1001 }},
		{"privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged mode", func(r *request) { r.host.Remapped, r.hc.Privileged = true, true }},
		{"cannot share the host's network namespace when user namespaces are enabled", func(r *request) { r.host.Remapped, r.hc.NetworkMode = true, "host" }},
		{"cannot share the host PID namespace when user namespaces are enabled", func(r *request) { r.host.Remapped, r.hc.PidMode = true, "host" }},
		{`cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`, func(r *request) { r.host.SystemdCgroups, r.hc.CgroupParent = true, "/x" }},
		{`cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`, func(r *request) { r.host.SystemdCgroups, r.hc.CgroupParent = true, ".slice" }},
		{"unknown or invalid runtime name: kata", func(r *request) { r.hc.Runtime = "kata" }},
		{"invalid specification: destination can't be '/'", func(r *request) { r.hc.Tmpfs = map[string]string{"//": ""} }},
		{"invalid mount path: 'x' mount path must be absolute", func(r *request) { r.hc.Tmpfs = map[string]string{"x": ""} }},
		{"sysctl 'kernel.hostname' is not allowed", func(r *request) { r.hc.Sysctls = map[string]string{"kernel.hostname": "x"} }},
		{"sysctl 'vm.swappiness' is not allowed", func(r *request) { r.hc.Sysctls = map[string]string{"vm.swappiness": "1"} }},
		{"sysctl 'net.core.somaxconn' is not allowed in the host's network namespace", func(r *request) {
			r.hc.NetworkMode, r.hc.Sysctls = "host", map[string]string{"net.core.somaxconn": "1"}
		}},
		{"sysctl 'net/core/somaxconn' is not allowed in the host's network namespace", func(r *request) {
			r.hc.NetworkMode, r.hc.Sysctls = "host", map[string]string{"net/core/somaxconn": "1"}
		}},
		{"sysctl 'kernel.sem' is not allowed in the host's IPC namespace", func(r *request) { r.hc.IpcMode, r.hc.Sysctls = "host", map[string]string{"kernel.sem": "1"} }},
		{"sysctl 'fs.mqueue.msg_max' is not allowed in the host's IPC namespace", func(r *request) { r.hc.IpcMode, r.hc.Sysctls = "host", map[string]string{"fs.mqueue.msg_max": "1"} }},
		{"sysctl 'kernel.domainname' is not allowed in the host's UTS namespace", func(r *request) { r.hc.UTSMode, r.hc.Sysctls = "host", map[string]string{"kernel.domainname": "x"} }},
	} {
		t.Run(tc.want, func(t *testing.T) {
			r := request{host: able()}
			tc.change(&r)
			_, err := settings.Validate(&r.cfg, &r.hc, r.host)
			if !errdefs.IsInvalidArgument(err) || err.Error() != tc.want {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
	if _, err := settings.Validate(nil, nil, able()); err == nil || err.Error() != "config cannot be empty in order to create a container" {
		t.Errorf("no config: %v", err)
	}
}

func TestValidateAccepts(t *testing.T) {
	for name, change := range map[string]func(*request){
		"nothing":        func(*request) {},
		"no host config": func(*request) {},
		"much": func(r *request) {
			r.cfg.WorkingDir, r.cfg.StopSignal, r.cfg.Env = "/a", "SIGTERM", []string{"A=", "B", "C=D=E"}
			r.cfg.Healthcheck = &container.HealthConfig{Interval: time.Second, Timeout: time.Millisecond}
			r.hc.ExtraHosts = []string{"a:1.2.3.4", "b:::1", "c:host-gateway"}
			r.hc.PortBindings = network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: ""}, {HostPort: "0"}, {HostPort: "8000-8010"}}}
			r.hc.CapAdd, r.hc.CapDrop = []string{"ALL"}, []string{"net_raw"}
			r.hc.Memory, r.hc.MemorySwap, r.hc.MemoryReservation, r.hc.NanoCPUs = 6<<20, -1, 6<<20, 4e9
			r.hc.CPUShares, r.hc.CpusetCpus, r.hc.PidsLimit, r.hc.BlkioWeight = 2, "0-3", p(int64(-1)), 10
			r.hc.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: -1, Hard: -1}, {Name: "core", Soft: 1, Hard: 1}, {Name: "nproc", Soft: 5, Hard: -1}}
			r.hc.Sysctls = map[string]string{"net.core.somaxconn": "1", "kernel.sem": "1 2", "kernel.domainname": "x", "net/ipv4/conf/eth0.1/forwarding": "1"}
			r.hc.Tmpfs = map[string]string{"/run": "size=1m"}
			r.hc.RestartPolicy = container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3}
		},
		"namespaces": func(r *request) {
			r.hc.IpcMode, r.hc.PidMode, r.hc.CgroupnsMode = "shareable", "container:x", "private"
		},
		"host remapping":                   func(r *request) { r.host.Remapped, r.hc.UsernsMode, r.hc.Privileged = true, "host", true },
		"slice":                            func(r *request) { r.host.SystemdCgroups, r.hc.CgroupParent = true, "a.slice" },
		"an old empty policy with a count": func(r *request) { r.hc.RestartPolicy.MaximumRetryCount = 4 },
		"an old swappiness":                func(r *request) { r.hc.MemorySwappiness = p(int64(-1)) },
	} {
		t.Run(name, func(t *testing.T) {
			r := request{host: able()}
			change(&r)
			hc := &r.hc
			if name == "no host config" {
				hc = nil
			}
			warnings, err := settings.Validate(&r.cfg, hc, r.host)
			if err != nil || len(warnings) != 0 {
				t.Errorf("%v, %q", err, warnings)
			}
		})
	}
}

func TestValidateCompletes(t *testing.T) {
	r := request{host: able()}
	r.cfg.WorkingDir = "/a//b/../c/"
	r.hc.MemorySwappiness = p(int64(-1))
	r.hc.Devices = []container.DeviceMapping{{PathOnHost: "/dev/null"}}
	if _, err := settings.Validate(&r.cfg, &r.hc, r.host); err != nil {
		t.Fatal(err)
	}
	if r.cfg.WorkingDir != "/a/c" || r.hc.MemorySwappiness != nil || r.hc.Runtime != "runc" ||
		r.hc.Devices[0] != (container.DeviceMapping{PathOnHost: "/dev/null", PathInContainer: "/dev/null", CgroupPermissions: "rwm"}) {
		t.Errorf("%q, %v, %q, %+v", r.cfg.WorkingDir, r.hc.MemorySwappiness, r.hc.Runtime, r.hc.Devices)
	}
}

func TestLimitsThatTheHostLacks(t *testing.T) {
	r := request{}
	r.host.Runtimes, r.host.DefaultRuntime = []string{"runc"}, "runc"
	r.host.Info = sysinfo.Info{IPv4ForwardingDisabled: true, NumCPU: 1}
	one := []*blkiodev.ThrottleDevice{{Path: "/dev/null", Rate: 1}}
	r.hc = container.HostConfig{
		CgroupnsMode: "private",
		Mounts:       []mount.Mount{{Type: mount.TypeImage}},
		Resources: container.Resources{
			Memory: 8 << 20, MemorySwap: 9 << 20, MemorySwappiness: p(int64(3)), MemoryReservation: 7 << 20, OomKillDisable: p(true),
			PidsLimit: p(int64(4)), CPUShares: 5, CPUPeriod: 2000, CPUQuota: 3000, CPUPercent: 6, CpusetCpus: "0", CpusetMems: "0",
			BlkioWeight: 10, BlkioWeightDevice: []*blkiodev.WeightDevice{{Path: "/dev/null", Weight: 10}},
			BlkioDeviceReadBps: one, BlkioDeviceWriteBps: one, BlkioDeviceReadIOps: one, BlkioDeviceWriteIOps: one,
		},
	}
	warnings, err := settings.Validate(&r.cfg, &r.hc, r.host)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"Image mount is an experimental feature",
		"Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.",
		"Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.",
		"Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.",
		"Your kernel does not support OomKillDisable. OomKillDisable discarded.",
		"Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
		"Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.",
		"Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.",
		"linux does not support CPU percent. Percent discarded.",
		"Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.",
		"Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
		"Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.",
		"Your kernel does not support BPS Block I/O read limit or the cgroup is not mounted. Block I/O BPS read limit discarded.",
		"Your kernel does not support BPS Block I/O write limit or the cgroup is not mounted. Block I/O BPS write limit discarded.",
		"Your kernel does not support IOPS Block read limit or the cgroup is not mounted. Block I/O IOPS read limit discarded.",
		"Your kernel does not support IOPS Block write limit or the cgroup is not mounted. Block I/O IOPS write limit discarded.",
		"IPv4 forwarding is disabled. Networking will not work.",
		"Your kernel does not support cgroup namespaces.  Cgroup namespace setting discarded.",
	}
	if !slices.Equal(warnings, want) {
		t.Errorf("warnings\n%s\nwant\n%s", strings.Join(warnings, "\n"), strings.Join(want, "\n"))
	}
	left := r.hc.Resources
	if left.Memory != 0 || left.MemorySwap != -1 || left.MemorySwappiness != nil || left.MemoryReservation != 0 || left.OomKillDisable != nil ||
		left.PidsLimit != nil || left.CPUShares != 0 || left.CPUPeriod != 0 || left.CPUQuota != 0 || left.CPUPercent != 0 ||
		left.CpusetCpus != "" || left.CpusetMems != "" || left.BlkioWeight != 0 || len(left.BlkioWeightDevice)+len(left.BlkioDeviceReadBps)+
		len(left.BlkioDeviceWriteBps)+len(left.BlkioDeviceReadIOps)+len(left.BlkioDeviceWriteIOps) != 0 {
		t.Errorf("left %+v", left)
	}
}

func TestWarnings(t *testing.T) {
	for want, change := range map[string]func(*request){
		"Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.":               func(r *request) { r.hc.Memory, r.host.Info.SwapLimit = 8<<20, false },
		"OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.": func(r *request) { r.hc.OomKillDisable = p(true) },
		"Published ports are discarded when using host network mode": func(r *request) {
			r.hc.NetworkMode, r.hc.PortBindings = "host", network.PortMap{network.MustParsePort("80"): nil}
		},
	} {
		r := request{host: able()}
		change(&r)
		if got, err := settings.Validate(&r.cfg, &r.hc, r.host); err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	// A remark about forwarding is of no use to a container that needs none.
	r := request{host: able()}
	r.host.Info.IPv4ForwardingDisabled, r.hc.NetworkMode = true, "none"
	if got, err := settings.Validate(&r.cfg, &r.hc, r.host); err != nil || len(got) != 0 {
		t.Errorf("%q, %v", got, err)
	}
}

func FuzzValidate(f *testing.F) {
	f.Add("net.core.somaxconn", "1.2.3.4", "c 1:3 rwm", "0-1", "nofile", "/dev/null", "rwm", "80-90")
	f.Add("a/b.c", "host-gateway", "", "", "", "", "", "")
	f.Fuzz(func(t *testing.T, sysctl, host, rule, cpus, ulimit, device, mode, port string) {
		r := request{host: able()}
		r.hc.Sysctls = map[string]string{sysctl: "1"}
		r.hc.ExtraHosts = []string{host}
		r.hc.DeviceCgroupRules = []string{rule}
		r.hc.CpusetCpus = cpus
		r.hc.Ulimits = []*container.Ulimit{{Name: ulimit}}
		r.hc.Devices = []container.DeviceMapping{{PathOnHost: device, CgroupPermissions: mode}}
		r.hc.PortBindings = network.PortMap{network.MustParsePort("80"): {{HostPort: port}}}
		if _, err := settings.Validate(&r.cfg, &r.hc, r.host); err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("an error of another class: %v", err)
		}
	})
}
