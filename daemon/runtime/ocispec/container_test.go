package ocispec_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/mount"
	"github.com/moby/sys/user"

	"stated.dev/stated/daemon/runtime/ocispec"
)

func TestPlainContainer(t *testing.T) {
	in := newInput(t, "write=/", "write=/proc/sys/kernel/domainname", "read=/proc/kcore", "read=/proc/keys", "write=/sys", "open=/dev/null",
		"sysctl=net.ipv4.ip_unprivileged_port_start", "sysctl=net.ipv4.ping_group_range")
	r := run(t, in)

	if r.Hostname != "box" || r.Cwd != "/" || r.UID != 0 || r.GID != 0 {
		t.Errorf("hostname %q, cwd %q, user %d:%d", r.Hostname, r.Cwd, r.UID, r.GID)
	}
	if want := []string{"PATH=" + ocispec.DefaultPath, "HOSTNAME=box", "HOME=/root"}; !slices.Equal(r.Env, want) {
		t.Errorf("environment %q, want %q", r.Env, want)
	}
	// The 14 default capabilities.
	for set, want := range map[string]string{"CapEff": "00000000a80425fb", "CapBnd": "00000000a80425fb", "CapPrm": "00000000a80425fb", "CapInh": "0000000000000000", "CapAmb": "0000000000000000"} {
		if r.Status[set] != want {
			t.Errorf("%s is %s, want %s", set, r.Status[set], want)
		}
	}
	if r.Status["Seccomp"] != "2" || r.Status["NoNewPrivs"] != "0" {
		t.Errorf("seccomp %s, no new privileges %s", r.Status["Seccomp"], r.Status["NoNewPrivs"])
	}
	for path, ok := range map[string]bool{"/": true, "/proc/sys/kernel/domainname": false, "/sys": false, "/dev/null": true} {
		if (r.Tries[path] == "") != ok {
			t.Errorf("writing %s: %q", path, r.Tries[path])
		}
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys"} {
		if r.Reads[path] > 0 { // a kernel may lack the file
			t.Errorf("masked %s yields %d bytes", path, r.Reads[path])
		}
	}
	for point, option := range map[string]string{
		"/proc": "noexec", "/dev": "size=65536k", "/dev/pts": "gid=5", "/sys": "ro", "/dev/mqueue": "noexec", "/dev/shm": "size=1024k",
	} {
		if !r.mountHas(point, option) {
			t.Errorf("mount %s is %q, want %s", point, r.Mounts[point], option)
		}
	}
	for _, name := range []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/random", "/dev/urandom"} {
		if !slices.Contains(r.Devices, name) {
			t.Errorf("no %s among %v", name, r.Devices)
		}
	}
	if r.Sysctls["net.ipv4.ip_unprivileged_port_start"] != "0" || r.Sysctls["net.ipv4.ping_group_range"] != "0\t2147483647" {
		t.Errorf("sysctls %q", r.Sysctls)
	}
	if !strings.Contains(r.Cgroups, in.Host.CgroupParent+"/"+in.ID) {
		t.Errorf("cgroups %q", r.Cgroups)
	}
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		if own, _ := os.Readlink("/proc/self/ns/" + ns); own == r.Links[ns] {
			t.Errorf("namespace %s is the host's", ns)
		}
	}
	for _, ns := range []string{"user", "cgroup"} {
		if own, _ := os.Readlink("/proc/self/ns/" + ns); own != r.Links[ns] {
			t.Errorf("namespace %s is not the host's", ns)
		}
	}
}

func TestPrivileged(t *testing.T) {
	in := newInput(t, "write=/proc/sys/kernel/domainname", "write=/sys/fs/cgroup/pids", "open=/dev/kmsg")
	in.HostConfig.Privileged = true
	r := run(t, in)
	self, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(self), "CapEff:\t"+r.Status["CapEff"]) {
		t.Errorf("CapEff %s is not all that we have", r.Status["CapEff"])
	}
	if r.Status["Seccomp"] != "0" {
		t.Errorf("seccomp %s", r.Status["Seccomp"])
	}
	if r.Tries["/proc/sys/kernel/domainname"] != "" {
		t.Errorf("%q", r.Tries)
	}
	if r.mountHas("/sys", "ro") {
		t.Errorf("/sys is %q", r.Mounts["/sys"])
	}
	if _, err := os.Stat("/dev/kmsg"); err == nil && !slices.Contains(r.Devices, "/dev/kmsg") {
		t.Errorf("no /dev/kmsg among %v", r.Devices)
	}
	if _, masked := r.Mounts["/proc/kcore"]; masked {
		t.Error("/proc/kcore is masked")
	}
}

func TestReadOnlyRootfs(t *testing.T) {
	in := newInput(t, "write=/", "write=/tmp", "write=/dev/shm", "write=/proc/self/comm")
	in.HostConfig.ReadonlyRootfs = true
	in.Mounts = []ocispec.Mount{{Source: ocispec.TmpfsSource, Destination: "/tmp", Data: "size=64k,exec"}}
	r := run(t, in)
	for path, ok := range map[string]bool{"/": false, "/tmp": true, "/dev/shm": true, "/proc/self/comm": true} {
		if (r.Tries[path] == "") != ok {
			t.Errorf("writing %s: %q", path, r.Tries[path])
		}
	}
	for option, want := range map[string]bool{"size=64k": true, "nosuid": true, "nodev": true, "noexec": false} {
		if r.mountHas("/tmp", option) != want {
			t.Errorf("/tmp is %q: %s should be %v", r.Mounts["/tmp"], option, want)
		}
	}
}

func TestUserGroupsWorkdirUmask(t *testing.T) {
	in := newInput(t)
	in.Config.User = "ann"
	in.Config.WorkingDir = "/work/deep"
	in.HostConfig.GroupAdd = []string{"audio", "4711"}
	umask := uint32(0o027)
	in.HostConfig.Umask = &umask
	r := run(t, in)
	if r.UID != 1000 || r.GID != 1000 {
		t.Errorf("user %d:%d", r.UID, r.GID)
	}
	slices.Sort(r.Groups)
	if want := []int{10, 29, 1000, 4711}; !slices.Equal(r.Groups, want) {
		t.Errorf("groups %v, want %v", r.Groups, want)
	}
	if r.Cwd != "/work/deep" || r.Umask != 0o027 {
		t.Errorf("cwd %q, umask %o", r.Cwd, r.Umask)
	}
	if r.Status["CapEff"] != "0000000000000000" {
		t.Errorf("CapEff %s of a plain user", r.Status["CapEff"])
	}
	if home, _ := r.env("HOME"); home != "/home/ann" {
		t.Errorf("HOME %q", home)
	}
}

func TestSecurityOptions(t *testing.T) {
	in := newInput(t)
	in.Security = ocispec.Security{NoNewPrivileges: true, SeccompProfile: ocispec.SeccompUnconfined}
	r := run(t, in)
	if r.Status["NoNewPrivs"] != "1" || r.Status["Seccomp"] != "0" {
		t.Errorf("no new privileges %s, seccomp %s", r.Status["NoNewPrivs"], r.Status["Seccomp"])
	}

	in = newInput(t, "open=/probe")
	in.Security.SeccompProfile = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getgroups"],"action":"SCMP_ACT_ERRNO"}]}`
	if r = run(t, in); r.Status["Seccomp"] != "2" || len(r.Groups) != 0 {
		t.Errorf("own profile: seccomp %s, groups %v", r.Status["Seccomp"], r.Groups)
	}

	in = newInput(t, "read=/proc/keys", "write=/proc/sys/kernel/domainname")
	in.HostConfig.MaskedPaths, in.HostConfig.ReadonlyPaths = []string{}, []string{}
	if r = run(t, in); r.Tries["/proc/sys/kernel/domainname"] != "" {
		t.Errorf("without system paths: %v", r.Tries)
	}
	if _, masked := r.Mounts["/proc/keys"]; masked {
		t.Error("/proc/keys is masked")
	}

	in = newInput(t, "write=/sys/fs/cgroup/pids")
	yes := true
	in.Security.WritableCgroups = &yes
	if r = run(t, in); r.mountHas("/sys/fs/cgroup/pids", "ro") {
		t.Errorf("cgroup is %q", r.Mounts["/sys/fs/cgroup/pids"])
	}
}

func TestHostNamespaces(t *testing.T) {
	in := newInput(t)
	in.HostConfig.NetworkMode, in.HostConfig.PidMode, in.HostConfig.IpcMode, in.HostConfig.UTSMode = "host", "host", "host", "host"
	in.ShmPath = "/dev/shm"
	r := run(t, in)
	for _, ns := range []string{"net", "pid", "ipc", "uts"} {
		if own, _ := os.Readlink("/proc/self/ns/" + ns); own != r.Links[ns] {
			t.Errorf("namespace %s is not the host's", ns)
		}
	}
	if host, _ := os.Hostname(); r.Hostname != host {
		t.Errorf("hostname %q", r.Hostname)
	}
}

func TestJoinedNamespacesAndShareableShm(t *testing.T) {
	shm := t.TempDir()
	in := newInput(t, "write=/dev/shm")
	in.HostConfig.NetworkMode, in.HostConfig.PidMode, in.HostConfig.IpcMode = "container:x", "container:x", "container:x"
	in.Join = ocispec.Namespaces{Net: "/proc/self/ns/net", PID: "/proc/self/ns/pid", IPC: "/proc/self/ns/ipc"}
	in.ShmPath = shm
	// The paths are those of the runtime itself here, so the container joins what it would have inherited.
	spec, err := ocispec.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(spec.Linux.Sysctl) != 0 {
		t.Errorf("sysctls %v in a foreign network namespace", spec.Linux.Sysctl)
	}
	r := runSpec(t, in, spec)
	for _, ns := range []string{"net", "pid", "ipc"} {
		if own, _ := os.Readlink("/proc/self/ns/" + ns); own != r.Links[ns] {
			t.Errorf("namespace %s was not joined", ns)
		}
	}
	if r.Tries["/dev/shm"] != "" || r.Mounts["/dev/shm"] == "" || r.mountHas("/dev/shm", "size=1024k") {
		t.Errorf("/dev/shm: %q, %q", r.Tries["/dev/shm"], r.Mounts["/dev/shm"])
	}
}

func TestIpcNoneHasNoShm(t *testing.T) {
	in := newInput(t)
	in.HostConfig.IpcMode = "none"
	if r := run(t, in); r.Mounts["/dev/shm"] != "" {
		t.Errorf("/dev/shm is %q", r.Mounts["/dev/shm"])
	}
}

func TestBindMounts(t *testing.T) {
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "f"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	in := newInput(t, "file=/rw/f", "write=/rw", "write=/ro", "file=/one", "write=/one")
	in.Mounts = ocispec.SortMounts([]ocispec.Mount{
		{Source: source, Destination: "/rw", Writable: true, Propagation: "rprivate"},
		{Source: source, Destination: "/ro", Propagation: "rprivate"},
		{Source: filepath.Join(source, "f"), Destination: "/one", ReadOnlyNonRecursive: true},
	})
	r := run(t, in)
	if r.Files["/rw/f"] != "hello" || r.Files["/one"] != "hello" {
		t.Errorf("files %q", r.Files)
	}
	for path, ok := range map[string]bool{"/rw": true, "/ro": false, "/one": false} {
		if (r.Tries[path] == "") != ok {
			t.Errorf("writing %s: %q", path, r.Tries[path])
		}
	}
}

func TestDevices(t *testing.T) {
	in := newInput(t, "open=/dev/kmsg2", "open=/dev/null2")
	in.HostConfig.Devices = []container.DeviceMapping{
		{PathOnHost: "/dev/null", PathInContainer: "/dev/null2", CgroupPermissions: "rwm"},
		{PathOnHost: "/dev/zero", PathInContainer: "/dev/sub/zero2", CgroupPermissions: "r"},
	}
	r := run(t, in)
	for _, name := range []string{"/dev/null2", "/dev/sub/zero2"} {
		if !slices.Contains(r.Devices, name) {
			t.Errorf("no %s among %v", name, r.Devices)
		}
	}
	if r.Tries["/dev/null2"] != "" {
		t.Errorf("opening: %q", r.Tries)
	}
}

func TestLimits(t *testing.T) {
	limit := int64(50)
	in := newInput(t, "file=/sys/fs/cgroup/memory/memory.limit_in_bytes", "file=/sys/fs/cgroup/pids/pids.max",
		"file=/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "file=/sys/fs/cgroup/cpu/cpu.shares", "file=/sys/fs/cgroup/cpuset/cpuset.cpus",
		"file=/sys/fs/cgroup/memory.max", "file=/sys/fs/cgroup/pids.max", "file=/sys/fs/cgroup/cpu.max", "file=/sys/fs/cgroup/cpuset.cpus")
	in.HostConfig.CgroupnsMode = "private"
	in.HostConfig.Memory = 64 << 20
	in.HostConfig.MemorySwap = 128 << 20
	in.HostConfig.NanoCPUs = 5e8
	in.HostConfig.CPUShares = 512
	in.HostConfig.CpusetCpus = "0"
	in.HostConfig.PidsLimit = &limit
	in.HostConfig.OomScoreAdj = 321
	in.HostConfig.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 100, Hard: 200}}
	in.Host.Ulimits = map[string]*container.Ulimit{"nofile": {Name: "nofile", Soft: 1, Hard: 2}, "core": {Name: "core", Soft: 0, Hard: 0}}
	r := run(t, in)

	if r.OOMScore != "321" || r.Limits["nofile"][1] != 200 || // a Go program raises its soft limit
		r.Limits["core"] != [2]uint64{} {
		t.Errorf("oom score %s, limits %v", r.OOMScore, r.Limits)
	}
	for files, want := range map[[2]string]string{
		{"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"}: "67108864",
		{"/sys/fs/cgroup/pids/pids.max", "/sys/fs/cgroup/pids.max"}:                  "50",
		{"/sys/fs/cgroup/cpuset/cpuset.cpus", "/sys/fs/cgroup/cpuset.cpus"}:          "0",
	} {
		if r.Files[files[0]] != want && r.Files[files[1]] != want {
			t.Errorf("%s is %q, %s is %q, want %s", files[0], r.Files[files[0]], files[1], r.Files[files[1]], want)
		}
	}
	if v1, v2 := r.Files["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"], r.Files["/sys/fs/cgroup/cpu.max"]; v1 != "50000" && v2 != "50000 100000" {
		t.Errorf("cpu quota %q, %q", v1, v2)
	}
}

func TestSysctlsDomainEnv(t *testing.T) {
	in := newInput(t, "sysctl=net.ipv4.ip_unprivileged_port_start", "sysctl=kernel.msgmax")
	in.Config.Domainname = "example.org"
	in.Config.Env = []string{"PATH=/mine", "A=1", "HOSTNAME"}
	in.LinkEnv = []string{"DB_PORT=tcp://1.2.3.4:5"}
	in.HostConfig.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "9000"}
	r := run(t, in)
	if r.Domain != "example.org" || r.Sysctls["net.ipv4.ip_unprivileged_port_start"] != "80" || r.Sysctls["kernel.msgmax"] != "9000" {
		t.Errorf("domain %q, sysctls %v", r.Domain, r.Sysctls)
	}
	if want := []string{"PATH=/mine", "DB_PORT=tcp://1.2.3.4:5", "A=1", "HOME=/root"}; !slices.Equal(r.Env, want) {
		t.Errorf("environment %q, want %q", r.Env, want)
	}
}

func TestCapabilitiesInContainer(t *testing.T) {
	in := newInput(t)
	in.HostConfig.CapAdd, in.HostConfig.CapDrop = []string{"net_admin"}, []string{"ALL"}
	if r := run(t, in); r.Status["CapEff"] != "0000000000001000" {
		t.Errorf("CapEff %s", r.Status["CapEff"])
	}
}

func TestInitGoesBeforeTheCommand(t *testing.T) {
	in := newInput(t, "more")
	probe, err := probeBinary()
	if err != nil {
		t.Fatal(err)
	}
	in.Host.InitPath = probe // it tells its arguments, and that it runs at all
	in.Host.InitByDefault = true
	r := run(t, in)
	if want := []string{ocispec.InitDestination, "--", "/probe", "more"}; !slices.Equal(r.Args, want) {
		t.Errorf("arguments %q, want %q", r.Args, want)
	}
	if !r.mountHas(ocispec.InitDestination, "ro") {
		t.Errorf("the init is mounted %q", r.Mounts[ocispec.InitDestination])
	}

	for name, change := range map[string]func(*ocispec.Input){
		"declined":      func(in *ocispec.Input) { in.HostConfig.Init = new(bool) },
		"host's pids":   func(in *ocispec.Input) { in.HostConfig.PidMode = "host" },
		"shared pids":   func(in *ocispec.Input) { in.HostConfig.PidMode, in.Join.PID = "container:x", "/proc/1/ns/pid" },
		"not a default": func(in *ocispec.Input) { in.Host.InitByDefault = false },
	} {
		in := newInput(t)
		in.Host.InitPath, in.Host.InitByDefault = probe, true
		change(&in)
		spec, err := ocispec.Build(in)
		if err != nil {
			t.Fatal(err)
		}
		if spec.Process.Args[0] != "/probe" {
			t.Errorf("%s: arguments %q", name, spec.Process.Args)
		}
	}
}

const remapBase = 231072

// remappedInput is a container of a daemon that remaps users, with a root file system that belongs to them.
func remappedInput(t *testing.T, args ...string) ocispec.Input {
	t.Helper()
	in := newInput(t, args...)
	in.Host.UIDMaps = []user.IDMap{{ID: 0, ParentID: remapBase, Count: 65536}}
	in.Host.GIDMaps = in.Host.UIDMaps
	err := filepath.WalkDir(in.Rootfs, func(path string, _ os.DirEntry, err error) error {
		if err != nil || filepath.Base(path) == "probe" { // a link to a file of others
			return err
		}
		return os.Lchown(path, remapBase, remapBase)
	})
	if err != nil {
		t.Fatal(err)
	}
	openPath(t, in.Rootfs)
	return in
}

// openPath lets everybody reach a temporary directory.
func openPath(t *testing.T, path string) {
	t.Helper()
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRemappedUsers(t *testing.T) {
	in := remappedInput(t, "write=/", "file=/proc/self/uid_map")
	source := t.TempDir()
	openPath(t, source)
	in.Mounts = []ocispec.Mount{{Source: source, Destination: "/data", Writable: true, Propagation: "rprivate"}}
	r := run(t, in)
	if r.UID != 0 || strings.Join(strings.Fields(r.Files["/proc/self/uid_map"]), " ") != "0 231072 65536" {
		t.Errorf("user %d, map %q", r.UID, r.Files["/proc/self/uid_map"])
	}
	if r.Tries["/"] != "" {
		t.Errorf("its own root cannot be written: %s", r.Tries["/"])
	}
	if own, _ := os.Readlink("/proc/self/ns/user"); own == r.Links["user"] {
		t.Error("the user namespace is the host's")
	}
}

// A network namespace made beforehand has to belong to the user namespace that the container joins: the kernel mounts
// sysfs and sets network sysctls only for its owner.
func TestRemappedUsersJoinPreparedNamespaces(t *testing.T) {
	holder := exec.Command("sleep", "1000")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: remapBase, Size: 65536}}
	holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET, UidMappings: ids, GidMappings: ids,
		Credential: &syscall.Credential{}, Pdeathsig: syscall.SIGKILL,
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill() // it ends no other way
		_ = holder.Wait()
	})
	ns := func(kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", holder.Process.Pid, kind) }

	in := remappedInput(t, "sysctl=net.ipv4.ip_unprivileged_port_start")
	in.HostConfig.NetworkMode = "bridge"
	in.Join = ocispec.Namespaces{Net: ns("net"), User: ns("user")}
	r := run(t, in)
	for _, kind := range []string{"net", "user"} {
		if prepared, _ := os.Readlink(ns(kind)); prepared == "" || prepared != r.Links[kind] {
			t.Errorf("%s namespace is %s, prepared was %s", kind, r.Links[kind], prepared)
		}
	}
	if r.Sysctls["net.ipv4.ip_unprivileged_port_start"] != "0" || !strings.HasPrefix(r.Mounts["/sys"], "sysfs ") {
		t.Errorf("sysctls %v, /sys %q", r.Sysctls, r.Mounts["/sys"])
	}
}

func TestPropagation(t *testing.T) {
	base := t.TempDir()
	shared := filepath.Join(base, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := mount.Mount("tmpfs", shared, "tmpfs", "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.RecursiveUnmount(shared); err != nil {
			t.Error(err)
		}
	})
	build := func(m ocispec.Mount) (string, error) {
		in := newInput(t)
		m.Destination, m.Writable = "/m", true
		in.Mounts = []ocispec.Mount{m}
		in.Host.DataRoot = base
		spec, err := ocispec.Build(in)
		if err != nil {
			return "", err
		}
		return spec.Linux.RootfsPropagation, nil
	}

	if err := mount.MakePrivate(shared); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"shared", "rshared", "slave", "rslave"} {
		if _, err := build(ocispec.Mount{Source: shared, Propagation: p}); err == nil || !strings.Contains(err.Error(), "is mounted on "+shared+" but it is not a shared") {
			t.Errorf("%s of a private mount: %v", p, err)
		}
	}
	// A propagation that nobody asked for is not insisted on.
	if got, err := build(ocispec.Mount{Source: shared, Propagation: "rslave", PropagationDefaulted: true}); err != nil || got != "" {
		t.Errorf("defaulted rslave: %q, %v", got, err)
	}

	if err := mount.MakeShared(shared); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]string{"rshared": "shared", "rslave": "rslave", "rprivate": "", "": ""} {
		if got, err := build(ocispec.Mount{Source: shared, Propagation: p}); err != nil || got != want {
			t.Errorf("%s: root propagation %q, %v, want %q", p, got, err, want)
		}
	}

	in := newInput(t, "write=/m")
	in.Mounts = []ocispec.Mount{{Source: shared, Destination: "/m", Writable: true, Propagation: "rslave"}}
	if r := run(t, in); r.Tries["/m"] != "" {
		t.Errorf("%v", r.Tries)
	}
}
