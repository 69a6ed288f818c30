package ocispec_test

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/runtime/ocispec"
)

var update = flag.Bool("update", false, "write the files that whole specifications are held against")

func TestOverrideEnv(t *testing.T) {
	for _, tc := range []struct{ base, over, want []string }{
		{nil, nil, []string{}},
		{[]string{"A=1"}, nil, []string{"A=1"}},
		{[]string{"A=1", "B=2"}, []string{"B=3", "C=4"}, []string{"A=1", "B=3", "C=4"}},
		{[]string{"A=1", "B=2"}, []string{"A"}, []string{"B=2"}},
		{[]string{"A=1"}, []string{"A", "A=2"}, []string{"A=2"}},
		{[]string{"A=1"}, []string{"A=2", "A"}, []string{}},
		{[]string{"A=1"}, []string{"A=2", "A=3"}, []string{"A=3"}},
		{[]string{"A=1"}, []string{"X"}, []string{"A=1"}},
		{[]string{"A=1"}, []string{"A=b=c"}, []string{"A=b=c"}},
		{[]string{"A=1"}, []string{"N=1", "N=2"}, []string{"A=1", "N=1", "N=2"}},
	} {
		if got := ocispec.OverrideEnv(tc.base, tc.over); !slices.Equal(got, tc.want) {
			t.Errorf("%q over %q gives %q, want %q", tc.over, tc.base, got, tc.want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	without := func(names ...string) []string {
		return slices.DeleteFunc(ocispec.DefaultCapabilities(), func(c string) bool { return slices.Contains(names, c) })
	}
	for _, tc := range []struct {
		add, drop []string
		want      []string
	}{
		{nil, nil, ocispec.DefaultCapabilities()},
		{nil, []string{"chown"}, without("CAP_CHOWN")},
		{nil, []string{"CAP_CHOWN", "kill"}, without("CAP_CHOWN", "CAP_KILL")},
		{[]string{"Net_Admin"}, nil, append(ocispec.DefaultCapabilities(), "CAP_NET_ADMIN")},
		{[]string{"NET_ADMIN"}, []string{"all"}, []string{"CAP_NET_ADMIN"}},
		{nil, []string{"ALL"}, nil},
		{[]string{"ALL"}, nil, ocispec.AllCapabilities()},
		{[]string{"ALL"}, []string{"SYS_ADMIN"}, slices.DeleteFunc(ocispec.AllCapabilities(), func(c string) bool { return c == "CAP_SYS_ADMIN" })},
	} {
		got, err := ocispec.Capabilities(tc.add, tc.drop)
		if err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("add %v drop %v: %v, %v, want %v", tc.add, tc.drop, got, err, tc.want)
		}
	}
	_, err := ocispec.NormalizeCapabilities([]string{"x"})
	if !errdefs.IsInvalidArgument(err) || err.Error() != `unknown capability: "CAP_X"` {
		t.Errorf("unknown: %v", err)
	}
}

func TestCgroupsPath(t *testing.T) {
	for _, tc := range []struct{ driver, daemon, own, want string }{
		{"cgroupfs", "", "", "/docker/ID"},
		{"cgroupfs", "/mine", "", "/mine/ID"},
		{"cgroupfs", "/mine", "/yours", "/yours/ID"},
		{"systemd", "", "", "system.slice:docker:ID"},
		{"systemd", "a.slice", "", "a.slice:docker:ID"},
		{"systemd", "a.slice", "b.slice", "b.slice:docker:ID"},
	} {
		in := ocispec.Input{ID: "ID", HostConfig: &container.HostConfig{}, Host: ocispec.Host{CgroupDriver: tc.driver, CgroupParent: tc.daemon}}
		in.HostConfig.CgroupParent = tc.own
		if got := ocispec.CgroupsPath(in); got != tc.want {
			t.Errorf("%+v gives %q", tc, got)
		}
	}
}

func TestParseDeviceRule(t *testing.T) {
	n := func(i int64) *int64 { return &i }
	for text, want := range map[string]specs.LinuxDeviceCgroup{
		"c 1:3 rwm": {Allow: true, Type: "c", Major: n(1), Minor: n(3), Access: "rwm"},
		"a *:* m":   {Allow: true, Type: "a", Major: n(-1), Minor: n(-1), Access: "m"},
		"b 8:* r":   {Allow: true, Type: "b", Major: n(8), Minor: n(-1), Access: "r"},
	} {
		got, err := ocispec.ParseDeviceRule(text)
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("%q: %v, %s", text, err, cmp.Diff(want, got))
		}
	}
	for text, want := range map[string]string{
		"":                             "invalid device cgroup rule format: ''",
		"c 1:3":                        "invalid device cgroup rule format: 'c 1:3'",
		"c 1:3 x":                      "invalid device cgroup rule format: 'c 1:3 x'",
		"c 1:3 rwmr":                   "invalid device cgroup rule format: 'c 1:3 rwmr'",
		"c 1:3 r\n":                    "invalid device cgroup rule format: 'c 1:3 r\n'",
		"c 99999999999999999999:3 rwm": "invalid major value in device cgroup rule format: 'c 99999999999999999999:3 rwm'",
		"c 1:99999999999999999999 rwm": "invalid minor value in device cgroup rule format: 'c 1:99999999999999999999 rwm'",
	} {
		if _, err := ocispec.ParseDeviceRule(text); err == nil || err.Error() != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseDeviceRule(f *testing.F) {
	for _, seed := range []string{"c 1:3 rwm", "a *:* m", "b 8:0 r", "x 1:1 r", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		rule, err := ocispec.ParseDeviceRule(text)
		if err != nil {
			return
		}
		if !rule.Allow || rule.Major == nil || rule.Minor == nil || *rule.Major < -1 || *rule.Minor < -1 || strings.Trim(rule.Access, "rwm") != "" {
			t.Errorf("%q gives %+v", text, rule)
		}
	})
}

func TestResources(t *testing.T) {
	zero, limit, swappiness, yes := int64(0), int64(7), int64(30), true
	for _, tc := range []struct {
		name string
		in   container.Resources
		want string
	}{
		{"nothing", container.Resources{}, `{"blockIO":{}}`},
		{"memory", container.Resources{Memory: 8, MemorySwap: 16, MemoryReservation: 4, MemorySwappiness: &swappiness, OomKillDisable: &yes},
			`{"memory":{"limit":8,"reservation":4,"swap":16,"swappiness":30,"disableOOMKiller":true},"blockIO":{}}`},
		{"unlimited swap", container.Resources{Memory: 8, MemorySwap: -1}, `{"memory":{"limit":8},"blockIO":{}}`},
		{"cpus", container.Resources{NanoCPUs: 1.5e9, CPUShares: 3, CpusetCpus: "0-1", CpusetMems: "0"},
			`{"cpu":{"shares":3,"quota":150000,"period":100000,"cpus":"0-1","mems":"0"},"blockIO":{}}`},
		{"quota", container.Resources{CPUQuota: -1, CPUPeriod: 5000}, `{"cpu":{"quota":-1,"period":5000},"blockIO":{}}`},
		{"real time", container.Resources{CPURealtimePeriod: 10, CPURealtimeRuntime: 5}, `{"cpu":{"realtimeRuntime":5,"realtimePeriod":10},"blockIO":{}}`},
		{"pids", container.Resources{PidsLimit: &limit}, `{"pids":{"limit":7},"blockIO":{}}`},
		{"no pids limit", container.Resources{PidsLimit: &zero}, `{"pids":{"limit":-1},"blockIO":{}}`},
		{"block", container.Resources{BlkioWeight: 100,
			BlkioWeightDevice:   []*blkiodev.WeightDevice{{Path: "/dev/zero", Weight: 20}},
			BlkioDeviceReadBps:  []*blkiodev.ThrottleDevice{{Path: "/dev/zero", Rate: 1}},
			BlkioDeviceWriteBps: []*blkiodev.ThrottleDevice{{Path: "/dev/zero", Rate: 2}}, BlkioDeviceReadIOps: []*blkiodev.ThrottleDevice{{Path: "/dev/zero", Rate: 3}},
			BlkioDeviceWriteIOps: []*blkiodev.ThrottleDevice{{Path: "/dev/zero", Rate: 4}, {Path: "/dev/null", Rate: 5}}},
			`{"blockIO":{"weight":100,"weightDevice":[{"major":1,"minor":5,"weight":20}],"throttleReadBpsDevice":[{"major":1,"minor":5,"rate":1}],` +
				`"throttleWriteBpsDevice":[{"major":1,"minor":5,"rate":2}],"throttleReadIOPSDevice":[{"major":1,"minor":5,"rate":3}],` +
				`"throttleWriteIOPSDevice":[{"major":1,"minor":5,"rate":4},{"major":1,"minor":3,"rate":5}]}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ocispec.Resources(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			if text := mustJSON(t, got); text != tc.want {
				t.Errorf("got  %s\nwant %s", text, tc.want)
			}
		})
	}
	if _, err := ocispec.Resources(container.Resources{BlkioDeviceReadBps: []*blkiodev.ThrottleDevice{{Path: "/no/such"}}}); err == nil || !strings.Contains(err.Error(), "/no/such") {
		t.Errorf("missing device: %v", err)
	}
	if _, err := ocispec.Resources(container.Resources{CPUShares: -1}); err == nil {
		t.Error("negative shares pass")
	}
}

func TestUpdateResources(t *testing.T) {
	zero := int64(0)
	for want, in := range map[string]container.Resources{
		`{}`:                        {OomKillDisable: new(bool), MemorySwappiness: &zero},
		`{"memory":{"swap":-1}}`:    {MemorySwap: -1},
		`{"pids":{"limit":-1}}`:     {PidsLimit: &zero},
		`{"blockIO":{"weight":10}}`: {BlkioWeight: 10},
		`{"memory":{"limit":9,"swap":18},"cpu":{"quota":50000,"period":100000}}`: {Memory: 9, MemorySwap: 18, NanoCPUs: 5e8},
	} {
		if got := mustJSON(t, ocispec.UpdateResources(in)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestBuildRefuses(t *testing.T) {
	for want, change := range map[string]func(*ocispec.Input){
		"has no mounted root file system": func(in *ocispec.Input) { in.Rootfs = "" },
		"only together with the user namespace that owns it": func(in *ocispec.Input) {
			in.Host.UIDMaps = []userIDMap{{Count: 1}}
			in.Join.Net = "/run/netns/x"
		},
		"has no configuration":                                           func(in *ocispec.Input) { in.Config = nil },
		"invalid IPC mode: odd":                                          func(in *ocispec.Input) { in.HostConfig.IpcMode = "odd" },
		"invalid PID mode: odd":                                          func(in *ocispec.Input) { in.HostConfig.PidMode = "odd" },
		"invalid UTS mode: odd":                                          func(in *ocispec.Input) { in.HostConfig.UTSMode = "odd" },
		"invalid cgroup namespace mode":                                  func(in *ocispec.Input) { in.HostConfig.CgroupnsMode = "odd" },
		"network namespace of container x to join is not known":          func(in *ocispec.Input) { in.HostConfig.NetworkMode = "container:x" },
		"unable to find user nobody: no matching entries in passwd file": func(in *ocispec.Input) { in.Config.User = "nobody" },
		"unknown capability":                                             func(in *ocispec.Input) { in.HostConfig.CapAdd = []string{"nothing"} },
		`could not select device driver "" with capabilities: [[gpu]]`: func(in *ocispec.Input) {
			in.HostConfig.DeviceRequests = []container.DeviceRequest{{Count: -1, Capabilities: [][]string{{"gpu"}}}}
		},
		`error gathering device information while adding custom device "/dev/none"`: func(in *ocispec.Input) {
			in.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/none", PathInContainer: "/dev/none", CgroupPermissions: "rwm"}}
		},
		"invalid device cgroup rule format: 'x'": func(in *ocispec.Input) { in.HostConfig.DeviceCgroupRules = []string{"x"} },
		"mount options conflict": func(in *ocispec.Input) {
			in.Mounts = []ocispec.Mount{{Source: "/tmp", Destination: "/a", ReadOnlyNonRecursive: true, ReadOnlyForceRecursive: true}}
		},
		"rro is not supported": func(in *ocispec.Input) {
			in.Host.RecursiveReadOnly = false
			in.Mounts = []ocispec.Mount{{Source: "/tmp", Destination: "/a", ReadOnlyForceRecursive: true}}
		},
		"tmpfs at /a": func(in *ocispec.Input) {
			in.Mounts = []ocispec.Mount{{Source: ocispec.TmpfsSource, Destination: "/a", Data: "bogus"}}
		},
		"no init binary": func(in *ocispec.Input) { in.Host.InitByDefault = true },
		"seccomp is not enabled": func(in *ocispec.Input) {
			in.Host.SeccompSupported = false
			in.Security.SeccompProfile = "{}"
		},
		"option WritableCgroups conflicts": func(in *ocispec.Input) {
			in.Security.WritableCgroups = new(bool)
			in.Host.UIDMaps = []userIDMap{{Count: 1}}
		},
	} {
		t.Run(want, func(t *testing.T) {
			in := newInput(t)
			change(&in)
			if _, err := ocispec.Build(in); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestDeviceDirectoriesAndRules(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, dev := range map[string]uint64{filepath.Join(dir, "a"): unix.Mkdev(1, 3), filepath.Join(sub, "b"): unix.Mkdev(1, 5)} {
		if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(dev)); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	in := newInput(t)
	in.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: link, PathInContainer: "/dev/many", CgroupPermissions: "rw"}}
	in.HostConfig.DeviceCgroupRules = []string{"c 42:* rmw"}
	spec, err := ocispec.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, d := range spec.Linux.Devices {
		paths = append(paths, d.Path)
	}
	if want := []string{"/dev/many/a", "/dev/many/sub/b"}; !slices.Equal(paths, want) {
		t.Errorf("devices %q, want %q", paths, want)
	}
	rules := mustJSON(t, spec.Linux.Resources.Devices[8:])
	if want := `[{"allow":true,"type":"c","major":1,"minor":3,"access":"rw"},{"allow":true,"type":"c","major":1,"minor":5,"access":"rw"},{"allow":true,"type":"c","major":42,"minor":-1,"access":"rmw"}]`; rules != want {
		t.Errorf("rules %s", rules)
	}
}

func TestOwnMountsReplaceDefaults(t *testing.T) {
	points := func(change func(*ocispec.Input)) []string {
		in := newInput(t)
		change(&in)
		spec, err := ocispec.Build(in)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, m := range spec.Mounts {
			out = append(out, m.Destination+":"+m.Type)
		}
		return out
	}
	for name, tc := range map[string]struct {
		change func(*ocispec.Input)
		want   []string
	}{
		"none": {func(*ocispec.Input) {}, []string{"/proc:proc", "/dev:tmpfs", "/dev/pts:devpts", "/sys:sysfs", "/sys/fs/cgroup:cgroup", "/dev/mqueue:mqueue", "/dev/shm:tmpfs"}},
		"/dev": {func(in *ocispec.Input) {
			in.Mounts = []ocispec.Mount{{Source: "/dev", Destination: "/dev", Writable: true}}
		}, []string{"/proc:proc", "/sys:sysfs", "/sys/fs/cgroup:cgroup", "/dev:bind"}},
		"/dev/shm": {func(in *ocispec.Input) {
			in.ShmPath = "/nowhere"
			in.Mounts = []ocispec.Mount{{Source: ocispec.TmpfsSource, Destination: "/dev/shm"}}
		}, []string{"/proc:proc", "/dev:tmpfs", "/dev/pts:devpts", "/sys:sysfs", "/sys/fs/cgroup:cgroup", "/dev/mqueue:mqueue", "/dev/shm:tmpfs"}},
	} {
		if got := points(tc.change); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestAppArmor(t *testing.T) {
	for _, tc := range []struct {
		loaded, own string
		privileged  bool
		want        string
	}{
		{"", "mine", false, ""},
		{"docker-default", "", false, "docker-default"},
		{"docker-default", "", true, "unconfined"},
		{"docker-default", "mine", true, "mine"},
	} {
		in := newInput(t)
		in.Host.AppArmorDefault, in.Security.AppArmorProfile, in.HostConfig.Privileged = tc.loaded, tc.own, tc.privileged
		spec, err := ocispec.Build(in)
		if err != nil || spec.Process.ApparmorProfile != tc.want {
			t.Errorf("%+v gives %v, %v", tc, spec.Process.ApparmorProfile, err)
		}
	}
}

func TestTerminalAnnotationsLabels(t *testing.T) {
	in := newInput(t)
	in.Config.Tty = true
	in.HostConfig.ConsoleSize = [2]uint{24, 80}
	in.HostConfig.Annotations = map[string]string{"a": "user", "b": "user"}
	in.Annotations = map[string]string{"a": "daemon", "org.criu.config": "/x"}
	in.Security.ProcessLabel, in.Security.MountLabel = "p", "m"
	spec, err := ocispec.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if size := spec.Process.ConsoleSize; !spec.Process.Terminal || size == nil || size.Height != 24 || size.Width != 80 {
		t.Errorf("console %+v", size)
	}
	if !slices.Contains(spec.Process.Env, "TERM=xterm") {
		t.Errorf("environment %q", spec.Process.Env)
	}
	if want := map[string]string{"a": "daemon", "b": "user", "org.criu.config": "/x"}; !cmp.Equal(spec.Annotations, want) {
		t.Errorf("annotations %v", spec.Annotations)
	}
	if spec.Process.SelinuxLabel != "p" || spec.Linux.MountLabel != "m" {
		t.Errorf("labels %q, %q", spec.Process.SelinuxLabel, spec.Linux.MountLabel)
	}
}

func BenchmarkBuild(b *testing.B) {
	root := rootWith(b, passwd, group)
	in := ocispec.Input{
		ID: newID(), Config: &types.ContainerConfig{}, HostConfig: &container.HostConfig{NetworkMode: "bridge", IpcMode: "private"},
		Path: "/x", Rootfs: root, Host: ocispec.Host{SeccompSupported: true},
	}
	for b.Loop() {
		if _, err := ocispec.Build(in); err != nil {
			b.Fatal(err)
		}
	}
}

func TestBuildExec(t *testing.T) {
	in := newInput(t)
	in.Config.Env = []string{"A=1"}
	in.Config.WorkingDir = "/w"
	in.Config.User = "ann"
	in.Security.NoNewPrivileges = true
	p, err := ocispec.BuildExec(in, ocispec.ExecRequest{Args: []string{"ls", "-l"}, Env: []string{"A=2", "B=3"}})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Args, []string{"ls", "-l"}) || p.Cwd != "/w" || p.User.UID != 1000 || !p.NoNewPrivileges || p.Terminal {
		t.Errorf("%+v", p)
	}
	if want := []string{"PATH=" + ocispec.DefaultPath, "HOSTNAME=box", "A=2", "B=3"}; !slices.Equal(p.Env, want) {
		t.Errorf("environment %q, want %q", p.Env, want)
	}
	p, err = ocispec.BuildExec(in, ocispec.ExecRequest{Args: []string{"sh"}, User: "0:10", WorkingDir: "/", Tty: true, Privileged: true, ConsoleSize: [2]uint{1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	if p.Env[2] != "TERM=xterm" { // before the image's and the user's, which may say otherwise
		t.Errorf("environment %q", p.Env)
	}
	if p.User.UID != 0 || p.User.GID != 10 || p.Cwd != "/" || p.ConsoleSize == nil || !slices.Contains(p.Env, "TERM=xterm") || len(p.Capabilities.Effective) != len(ocispec.AllCapabilities()) {
		t.Errorf("%+v", p)
	}
}

// TestWholeSpec holds the whole specification of a plain container, but for the list of system calls, against the one
// that is checked in. Run with -update after a change that is meant, and read the difference.
func TestWholeSpec(t *testing.T) {
	in := ocispec.Input{
		ID:     strings.Repeat("ab", 32),
		Config: &types.ContainerConfig{},
		HostConfig: &container.HostConfig{
			NetworkMode: "bridge", IpcMode: "private", CgroupnsMode: "private", ShmSize: 64 << 20,
			MaskedPaths: []string{"/proc/kcore"}, // the default depends on the host's CPUs
		},
		Path: "sh", Args: []string{"-c", "true"},
		Rootfs: rootWith(t, passwd, group),
		Join:   ocispec.Namespaces{Net: "/run/stated/netns/0123456789ab"},
		Mounts: []ocispec.Mount{
			{Source: "/c/hostname", Destination: "/etc/hostname", Writable: true, Propagation: "rprivate"},
			{Source: "/v/data", Destination: "/data", Propagation: "rprivate"},
			{Source: ocispec.TmpfsSource, Destination: "/tmp"},
		},
		Host: ocispec.Host{
			CgroupDriver: ocispec.CgroupDriverSystemd, SeccompSupported: true, RecursiveReadOnly: true,
			PingGroupRange: true, UnprivilegedPortStart: true,
		},
	}
	in.Config.Hostname, in.Config.Domainname = "abababababab", "example.org"
	spec, err := ocispec.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if spec.Linux.Seccomp == nil || len(spec.Linux.Seccomp.Syscalls) == 0 {
		t.Error("there is no seccomp profile")
	}
	spec.Linux.Seccomp = nil
	spec.Root.Path = "/rootfs"
	got, err := json.MarshalIndent(spec, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const golden = "testdata/plain.json"
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
