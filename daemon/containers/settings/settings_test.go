package settings_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	ocispecv1 "github.com/opencontainers/image-spec/specs-go/v1"

	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/containers/settings"
	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/daemon/runtime/sysinfo"
)

func TestDefaults(t *testing.T) {
	v2 := able()
	v2.Info.Hierarchy = sysinfo.HierarchyV2
	strict := able()
	strict.ShmSize, strict.IpcMode, strict.CgroupnsMode = 5, "shareable", "private"

	plain := container.HostConfig{
		RestartPolicy: container.RestartPolicy{Name: "no"}, NetworkMode: "bridge", ShmSize: 64 << 20, IpcMode: "private",
		CgroupnsMode: "host", Runtime: "runc", MaskedPaths: ocispec.DefaultMaskedPaths(), ReadonlyPaths: ocispec.DefaultReadonlyPaths(),
		Resources: container.Resources{OomKillDisable: p(false)},
	}
	with := func(change func(*container.HostConfig)) container.HostConfig {
		hc := plain
		change(&hc)
		return hc
	}
	for _, tc := range []struct {
		name string
		host settings.Host
		hc   container.HostConfig
		want container.HostConfig
	}{
		{"nothing", able(), container.HostConfig{}, plain},
		{"default network", able(), container.HostConfig{NetworkMode: "default"}, plain},
		{"own network", able(), container.HostConfig{NetworkMode: "mine"}, with(func(hc *container.HostConfig) { hc.NetworkMode = "mine" })},
		{"cgroup v2", v2, container.HostConfig{}, with(func(hc *container.HostConfig) { hc.CgroupnsMode = "private" })},
		{"the daemon's", strict, container.HostConfig{}, with(func(hc *container.HostConfig) { hc.ShmSize, hc.IpcMode, hc.CgroupnsMode = 5, "shareable", "private" })},
		{"own", strict, container.HostConfig{ShmSize: 6, IpcMode: "none", CgroupnsMode: "host"}, with(func(hc *container.HostConfig) { hc.ShmSize, hc.IpcMode = 6, "none" })},
		{"memory", able(), container.HostConfig{Resources: container.Resources{Memory: 10}}, with(func(hc *container.HostConfig) { hc.Memory, hc.MemorySwap = 10, 20 })},
		{"memory without swap", able(), container.HostConfig{Resources: container.Resources{Memory: 10, MemorySwap: -1}}, with(func(hc *container.HostConfig) { hc.Memory, hc.MemorySwap = 10, -1 })},
		{"no pids limit", able(), container.HostConfig{Resources: container.Resources{PidsLimit: p(int64(-1))}}, plain},
		{"privileged", strict, container.HostConfig{Privileged: true}, with(func(hc *container.HostConfig) {
			hc.Privileged, hc.ShmSize, hc.IpcMode, hc.MaskedPaths, hc.ReadonlyPaths, hc.SecurityOpt = true, 5, "shareable", nil, nil, []string{"label=disable"}
		})},
		{"privileged on cgroup v2", v2, container.HostConfig{Privileged: true}, with(func(hc *container.HostConfig) {
			hc.Privileged, hc.CgroupnsMode, hc.MaskedPaths, hc.ReadonlyPaths, hc.SecurityOpt = true, "private", nil, nil, []string{"label=disable"}
		})},
		{"host's pids", able(), container.HostConfig{PidMode: "host"}, with(func(hc *container.HostConfig) { hc.PidMode, hc.SecurityOpt = "host", []string{"label=disable"} })},
		{"own label", able(), container.HostConfig{PidMode: "host", SecurityOpt: []string{"label=type:x"}}, with(func(hc *container.HostConfig) { hc.PidMode, hc.SecurityOpt = "host", []string{"label=type:x"} })},
		{"open system paths", able(), container.HostConfig{SecurityOpt: []string{"systempaths=unconfined", "no-new-privileges"}}, with(func(hc *container.HostConfig) {
			hc.MaskedPaths, hc.ReadonlyPaths, hc.SecurityOpt = []string{}, []string{}, []string{"no-new-privileges"}
		})},
		{"own paths", able(), container.HostConfig{MaskedPaths: []string{}, ReadonlyPaths: []string{"/x"}}, with(func(hc *container.HostConfig) { hc.MaskedPaths, hc.ReadonlyPaths = []string{}, []string{"/x"} })},
	} {
		t.Run(tc.name, func(t *testing.T) {
			settings.Defaults(&tc.hc, tc.host)
			if diff := cmp.Diff(tc.want, tc.hc, cmpopts.EquateComparable(network.Port{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			again := tc.hc
			settings.Defaults(&again, tc.host)
			if diff := cmp.Diff(tc.hc, again); diff != "" {
				t.Errorf("twice is not as once:\n%s", diff)
			}
		})
	}
}

func TestParseSecurityOpt(t *testing.T) {
	guarded := able()
	guarded.NoNewPrivileges = true
	for _, tc := range []struct {
		options []string
		host    settings.Host
		want    ocispec.Security
		err     string
	}{
		{nil, able(), ocispec.Security{}, ""},
		{nil, guarded, ocispec.Security{NoNewPrivileges: true}, ""},
		{[]string{"no-new-privileges"}, able(), ocispec.Security{NoNewPrivileges: true}, ""},
		{[]string{"no-new-privileges=false"}, guarded, ocispec.Security{}, ""},
		{[]string{"no-new-privileges:true"}, able(), ocispec.Security{NoNewPrivileges: true}, ""},
		{[]string{"seccomp=unconfined", "apparmor=mine"}, able(), ocispec.Security{SeccompProfile: "unconfined", AppArmorProfile: "mine"}, ""},
		{[]string{"seccomp:unconfined"}, able(), ocispec.Security{SeccompProfile: "unconfined"}, ""},
		{[]string{`seccomp={"defaultAction":"x=y"}`}, able(), ocispec.Security{SeccompProfile: `{"defaultAction":"x=y"}`}, ""},
		{[]string{"writable-cgroups"}, able(), ocispec.Security{WritableCgroups: p(true)}, ""},
		{[]string{"writable-cgroups=false"}, able(), ocispec.Security{WritableCgroups: p(false)}, ""},
		{[]string{"label=disable", "disable"}, able(), ocispec.Security{}, ""},
		{[]string{"odd"}, able(), ocispec.Security{}, `invalid --security-opt 1: "odd"`},
		{[]string{"odd=x"}, able(), ocispec.Security{}, `invalid --security-opt 2: "odd=x"`},
		{[]string{"no-new-privileges=perhaps"}, able(), ocispec.Security{}, `invalid --security-opt 2: "no-new-privileges=perhaps"`},
		{[]string{"writable-cgroups=perhaps"}, able(), ocispec.Security{}, `invalid --security-opt 2: "writable-cgroups=perhaps"`},
	} {
		got, err := settings.ParseSecurityOpt(tc.options, tc.host)
		if tc.err != "" {
			if !errdefs.IsInvalidArgument(err) || err.Error() != tc.err {
				t.Errorf("%q: %v, want %s", tc.options, err, tc.err)
			}
			continue
		}
		got.MountLabel, got.ProcessLabel = "", "" // those are the kernel's, where it has SELinux
		if err != nil || !cmp.Equal(got, tc.want) {
			t.Errorf("%q: %v\n%s", tc.options, err, cmp.Diff(tc.want, got))
		}
	}
}

func image() *dockerspec.DockerOCIImageConfig {
	return &dockerspec.DockerOCIImageConfig{
		ImageConfig: ocispecv1.ImageConfig{
			User: "img", ExposedPorts: map[string]struct{}{"80/tcp": {}, "90-91/udp": {}}, Env: []string{"PATH=/img", "A=img"},
			Entrypoint: []string{"/entry"}, Cmd: []string{"cmd", "arg"}, Volumes: map[string]struct{}{"/vol": {}},
			WorkingDir: "/img", Labels: map[string]string{"l": "img", "m": "img"}, StopSignal: "SIGINT",
		},
		DockerOCIImageConfigExt: dockerspec.DockerOCIImageConfigExt{
			Healthcheck: &dockerspec.HealthcheckConfig{Test: []string{"CMD", "x"}, Interval: 5, Retries: 3},
			Shell:       []string{"/bin/ash"},
		},
	}
}

func TestMergeImage(t *testing.T) {
	ports := func(list ...string) network.PortSet {
		set := network.PortSet{}
		for _, text := range list {
			set[network.MustParsePort(text)] = struct{}{}
		}
		return set
	}
	config := func(c container.Config) types.ContainerConfig { return types.ContainerConfig{Config: c} }
	for _, tc := range []struct {
		name      string
		cfg, want types.ContainerConfig
	}{
		{"nothing", types.ContainerConfig{}, config(container.Config{
			User: "img", ExposedPorts: ports("80/tcp", "90/udp", "91/udp"), Env: []string{"PATH=/img", "A=img"}, Entrypoint: []string{"/entry"},
			Cmd: []string{"cmd", "arg"}, Volumes: map[string]struct{}{"/vol": {}}, WorkingDir: "/img", Labels: map[string]string{"l": "img", "m": "img"},
			StopSignal: "SIGINT", Shell: []string{"/bin/ash"}, Healthcheck: &container.HealthConfig{Test: []string{"CMD", "x"}, Interval: 5, Retries: 3},
		})},
		{"all", config(container.Config{
			User: "me", ExposedPorts: ports("1"), Env: []string{"A=me", "B=me"}, Cmd: []string{"mine"}, Volumes: map[string]struct{}{"/me": {}},
			WorkingDir: "/me", Labels: map[string]string{"l": "me"}, StopSignal: "SIGQUIT", Shell: []string{"sh"},
			Healthcheck: &container.HealthConfig{Interval: 7},
		}), config(container.Config{
			User: "me", ExposedPorts: ports("1", "80/tcp", "90/udp", "91/udp"), Env: []string{"A=me", "B=me", "PATH=/img"}, Entrypoint: []string{"/entry"},
			Cmd: []string{"mine"}, Volumes: map[string]struct{}{"/me": {}, "/vol": {}}, WorkingDir: "/me", Labels: map[string]string{"l": "me", "m": "img"},
			StopSignal: "SIGQUIT", Shell: []string{"sh"}, Healthcheck: &container.HealthConfig{Test: []string{"CMD", "x"}, Interval: 7, Retries: 3},
		})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := image()
			if err := settings.MergeImage(&tc.cfg, img); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, tc.cfg, cmpopts.EquateComparable(network.Port{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			// What is merged belongs to the container alone.
			tc.cfg.Env[len(tc.cfg.Env)-1] = "changed"
			tc.cfg.Labels["m"], tc.cfg.Volumes["/new"], tc.cfg.Healthcheck.Test[0], tc.cfg.Cmd[0] = "changed", struct{}{}, "changed", "changed"
			if diff := cmp.Diff(image(), img); diff != "" {
				t.Errorf("the image changed:\n%s", diff)
			}
		})
	}

	empty := config(container.Config{Env: []string{}, Volumes: map[string]struct{}{}})
	if err := settings.MergeImage(&empty, &dockerspec.DockerOCIImageConfig{}); err != nil || empty.Env != nil || empty.Volumes != nil || empty.Labels == nil {
		t.Errorf("%v, empty with empty: %#v", err, empty)
	}

	bad := image()
	bad.ExposedPorts = map[string]struct{}{"x": {}}
	if err := settings.MergeImage(&types.ContainerConfig{}, bad); err == nil || err.Error() != `invalid port specification: "x"` {
		t.Errorf("bad port: %v", err)
	}
	if err := settings.MergeImage(&types.ContainerConfig{}, nil); err != nil {
		t.Errorf("no image: %v", err)
	}
}

func TestEntrypointAndCommand(t *testing.T) {
	for _, tc := range []struct {
		name                 string
		entry, cmd           []string
		imageEntry, imageCmd []string
		want                 string
		err                  string
	}{
		{"image's", nil, nil, []string{"e"}, []string{"c"}, "e c", ""},
		{"own command", nil, []string{"x"}, []string{"e"}, []string{"c"}, "e x", ""},
		{"own entrypoint drops the image's command", []string{"x"}, nil, []string{"e"}, []string{"c"}, "x", ""},
		{"both own", []string{"x"}, []string{"y"}, []string{"e"}, []string{"c"}, "x y", ""},
		{"reset by an empty string", []string{""}, []string{"y"}, []string{"e"}, []string{"c"}, "y", ""},
		{"reset by an empty string with nothing left", []string{""}, nil, []string{"e"}, []string{"c"}, "", "no command specified"},
		{"reset by an empty list", []string{}, nil, []string{"e"}, []string{"c"}, "c", ""},
		{"nothing at all", nil, nil, nil, nil, "", "no command specified"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := types.ContainerConfig{Config: container.Config{Entrypoint: tc.entry, Cmd: tc.cmd}}
			img := &dockerspec.DockerOCIImageConfig{ImageConfig: ocispecv1.ImageConfig{Entrypoint: tc.imageEntry, Cmd: tc.imageCmd}}
			if err := settings.MergeImage(&cfg, img); err != nil {
				t.Fatal(err)
			}
			path, args, err := settings.Command(&cfg)
			if tc.err != "" {
				if !errdefs.IsInvalidArgument(err) || err.Error() != tc.err {
					t.Errorf("got %v", err)
				}
				return
			}
			if got := strings.Join(append([]string{path}, args...), " "); err != nil || got != tc.want {
				t.Errorf("%q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

func TestUpdate(t *testing.T) {
	for _, tc := range []struct {
		name     string
		have, up container.Resources
		policy   container.RestartPolicyMode
		auto     bool
		want     container.Resources
		err      string
	}{
		{name: "nothing", have: container.Resources{Memory: 8}, want: container.Resources{Memory: 8}},
		{name: "each",
			have: container.Resources{MemorySwap: 100, PidsLimit: p(int64(1)), CpusetMems: "0"},
			up:   container.Resources{Memory: 50, MemoryReservation: 20, CPUShares: 3, CpusetCpus: "1", PidsLimit: p(int64(0)), BlkioWeight: 30, CPUQuota: 4000, CPUPeriod: 5000},
			want: container.Resources{Memory: 50, MemorySwap: 100, MemoryReservation: 20, CPUShares: 3, CpusetCpus: "1", CpusetMems: "0", PidsLimit: p(int64(0)), BlkioWeight: 30, CPUQuota: 4000, CPUPeriod: 5000}},
		{name: "memory with swap", have: container.Resources{Memory: 5, MemorySwap: 10}, up: container.Resources{Memory: 20, MemorySwap: -1}, want: container.Resources{Memory: 20, MemorySwap: -1}},
		{name: "memory above swap", have: container.Resources{Memory: 5, MemorySwap: 10}, up: container.Resources{Memory: 20},
			err: "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"},
		{name: "cpus after period", have: container.Resources{CPUPeriod: 1}, up: container.Resources{NanoCPUs: 1}, err: "Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set"},
		{name: "cpus after quota", have: container.Resources{CPUQuota: 1}, up: container.Resources{NanoCPUs: 1}, err: "Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set"},
		{name: "period after cpus", have: container.Resources{NanoCPUs: 1}, up: container.Resources{CPUPeriod: 1}, err: "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set"},
		{name: "quota after cpus", have: container.Resources{NanoCPUs: 1}, up: container.Resources{CPUQuota: 1}, err: "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set"},
		{name: "restart of a short-lived one", auto: true, policy: "always", err: "Restart policy cannot be updated because AutoRemove is enabled for the container"},
		{name: "no restart of a short-lived one", auto: true, policy: "no"},
		{name: "restart", policy: "always"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hc := container.HostConfig{Resources: tc.have, AutoRemove: tc.auto}
			before := hc
			err := settings.ApplyUpdate(&hc, container.UpdateConfig{Resources: tc.up, RestartPolicy: container.RestartPolicy{Name: tc.policy}})
			if tc.err != "" {
				if !errdefs.IsConflict(err) || err.Error() != tc.err {
					t.Errorf("got %v", err)
				}
				if diff := cmp.Diff(before, hc); diff != "" {
					t.Errorf("refused and changed:\n%s", diff)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, hc.Resources); diff != "" || hc.RestartPolicy.Name != tc.policy {
				t.Errorf("policy %q, (-want +got)\n%s", hc.RestartPolicy.Name, diff)
			}
		})
	}
}

func TestValidateUpdate(t *testing.T) {
	up := container.UpdateConfig{Resources: container.Resources{PidsLimit: p(int64(-5)), MemorySwap: 100 << 20}}
	if warnings, err := settings.ValidateUpdate(&up, able()); err != nil || len(warnings) != 0 || *up.PidsLimit != 0 {
		t.Errorf("%q, %v, pids %d", warnings, err, *up.PidsLimit)
	}
	for want, up := range map[string]container.UpdateConfig{
		"Minimum memory limit allowed is 6MB":                             {Resources: container.Resources{Memory: 1}},
		"Conflicting options: Nano CPUs and CPU Quota cannot both be set": {Resources: container.Resources{NanoCPUs: 1e9, CPUQuota: 1}},
		"Requested CPUs are not available - requested 9, available: 0-3":  {Resources: container.Resources{CpusetCpus: "9"}},
		"invalid restart policy: maximum retry count cannot be negative":  {RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: -2}},
	} {
		if _, err := settings.ValidateUpdate(&up, able()); !errdefs.IsInvalidArgument(err) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{"ab": "/ab", "/ab": "/ab", "A0_.-": "/A0_.-", "0x": "/0x"} {
		if got, err := settings.CheckName(name); err != nil || got != want {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "a", "/", "/a", "_a", "a b", "a/b", "//ab", "ä1", "ab\n"} {
		_, err := settings.CheckName(name)
		if !errdefs.IsInvalidArgument(err) || err.Error() != "Invalid container name ("+name+"), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed" {
			t.Errorf("%q: %v", name, err)
		}
	}
	seen := map[string]bool{}
	for i := range 200 {
		name := settings.RandomName(i % settings.NameAttempts)
		if _, err := settings.CheckName(name); err != nil || strings.Count(name, "_") != 1 || name != strings.ToLower(name) {
			t.Errorf("%q: %v", name, err)
		}
		last := name[len(name)-1]
		if digit := last >= '0' && last <= '9'; digit != (i%settings.NameAttempts > 0) {
			t.Errorf("attempt %d gives %q", i%settings.NameAttempts, name)
		}
		seen[name] = true
	}
	if len(seen) < 150 {
		t.Errorf("only %d different names of 200", len(seen))
	}
}
