package sysinfo

import (
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
)

// These tests are inside the package, because a test cannot give the host another kernel: they lay out the files of one.

func touch(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDetectHere(t *testing.T) {
	info := Detect()
	if info.NumCPU != runtime.NumCPU() {
		t.Errorf("%d CPUs", info.NumCPU)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.Hierarchy == HierarchyV2, len(mounts) == 0; got != want {
		t.Errorf("hierarchy %s with %d v1 mounts", info.Hierarchy, len(mounts))
	}
	if !info.MemoryLimit || !slices.Contains(info.Controllers, "memory") {
		t.Errorf("no memory controller in %+v", info)
	}
	if ok, err := info.CpusAvailable("0"); err != nil || !ok {
		t.Errorf("CPU 0 of %q: %v, %v", info.Cpus, ok, err)
	}
	if got := info.CgroupVersion(); (got == "2") != (info.Hierarchy == HierarchyV2) {
		t.Errorf("version %s", got)
	}
	t.Logf("%+v", info)
}

func TestDetectV1(t *testing.T) {
	dir := t.TempDir()
	touch(t, dir, map[string]string{
		"memory/memory.soft_limit_in_bytes": "", "memory/memory.oom_control": "", "memory/memory.swappiness": "",
		"cpu/cpu.shares": "", "cpu/cpu.cfs_quota_us": "",
		"cpuset/cpuset.cpus": "0-3\n", "cpuset/cpuset.mems": "0\n",
		"blkio/blkio.throttle.read_bps_device": "", "blkio/blkio.bfq.weight": "",
	})
	at := controllerMounts([]*mountinfo.Info{
		{VFSOptions: "rw,memory", Mountpoint: dir + "/memory"},
		{VFSOptions: "rw,cpu,cpuacct", Mountpoint: dir + "/cpu"},
		{VFSOptions: "rw,cpuset", Mountpoint: dir + "/cpuset"},
		{VFSOptions: "rw,blkio", Mountpoint: dir + "/blkio"},
		{VFSOptions: "rw,memory", Mountpoint: "/a/second/mount"},
		{VFSOptions: "rw,xattr,name=systemd", Mountpoint: dir + "/systemd"},
	})
	if want := map[string]string{"memory": dir + "/memory", "cpu": dir + "/cpu", "cpuacct": dir + "/cpu", "cpuset": dir + "/cpuset", "blkio": dir + "/blkio"}; !maps.Equal(at, want) {
		t.Fatalf("controllers at %v", at)
	}
	info := Info{Hierarchy: HierarchyV1}
	detectV1(&info, at)
	if !info.MemoryLimit || info.SwapLimit || !info.MemoryReservation || !info.OomKillDisable || !info.MemorySwappiness ||
		!info.CPUShares || !info.CPUCfs || info.CPURealtime || !info.Cpuset || info.Cpus != "0-3" || info.Mems != "0" ||
		!info.BlkioReadBpsDevice || info.BlkioWriteBpsDevice || !info.BlkioWeight || info.PidsLimit || info.Devices {
		t.Errorf("%+v", info)
	}
	got := info.Warnings()
	for _, want := range []string{
		"WARNING: No swap limit support", "WARNING: No kernel memory TCP limit support",
		"WARNING: No blkio throttle.write_bps_device support", "WARNING: No blkio throttle.read_iops_device support",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	for _, text := range got {
		if strings.Contains(text, "oom kill") || strings.Contains(text, "memory limit") || strings.Contains(text, "io.weight") {
			t.Errorf("unwanted %q", text)
		}
	}
}

func TestDetectV2(t *testing.T) {
	dir := t.TempDir()
	touch(t, dir, map[string]string{
		"cgroup.controllers": "cpuset cpu io memory pids\n", "own/slice/memory.swap.max": "max\n",
		"cpuset.cpus.effective": "0-7\n", "cpuset.mems.effective": "0-1\n",
		"proc-cgroup": "1:name=systemd:/x\n0::/own/slice\n",
	})
	own := ownCgroup(filepath.Join(dir, "proc-cgroup"))
	if own != "/own/slice" {
		t.Fatalf("own cgroup %q", own)
	}
	info := Info{Hierarchy: HierarchyV2}
	detectV2(&info, dir, own)
	if !info.MemoryLimit || !info.SwapLimit || info.OomKillDisable || !info.CPUCfs || !info.PidsLimit || !info.BlkioWeight || info.Cpus != "0-7" {
		t.Errorf("%+v", info)
	}
	if w := info.Warnings(); len(w) != 0 {
		t.Errorf("warnings %q", w)
	}
	if ok, _ := info.MemsAvailable("2"); ok {
		t.Error("memory node 2 counts as available")
	}

	bare := Info{Hierarchy: HierarchyV2, IPv4ForwardingDisabled: true}
	detectV2(&bare, t.TempDir(), "")
	want := []string{
		"WARNING: No memory limit support", "WARNING: No swap limit support", "WARNING: No cpu cfs quota support",
		"WARNING: No cpu cfs period support", "WARNING: No cpu shares support", "WARNING: No cpuset support",
		"WARNING: No io.weight support", "WARNING: No io.weight (per device) support",
		"WARNING: No io.max (rbps) support", "WARNING: No io.max (wbps) support", "WARNING: No io.max (riops) support",
		"WARNING: No io.max (wiops) support", "WARNING: IPv4 forwarding is disabled",
	}
	if got := bare.Warnings(); !slices.Equal(got, want) {
		t.Errorf("warnings %q, want %q", got, want)
	}
}

func TestDefaultCgroupDriver(t *testing.T) {
	for _, tc := range []struct {
		info Info
		want string
	}{
		{Info{Hierarchy: HierarchyV2, Systemd: true}, "systemd"},
		{Info{Hierarchy: HierarchyV2}, "cgroupfs"},
		{Info{Hierarchy: HierarchyHybrid, Systemd: true}, "cgroupfs"},
	} {
		if got := tc.info.DefaultCgroupDriver(); got != tc.want {
			t.Errorf("%+v gives %s", tc.info, got)
		}
	}
}

func TestLists(t *testing.T) {
	info := Info{Cpus: "0-3,7"}
	for _, tc := range []struct {
		list string
		ok   bool
		err  string
	}{
		{"", true, ""}, {"0", true, ""}, {"1-3,7", true, ""}, {"7,7,0-0", true, ""}, {"03", true, ""},
		{"4", false, ""}, {"2-4", false, ""},
		{"x", false, "invalid format: x"}, {"1-", false, "invalid format: 1-"}, {"3-1", false, "invalid format: 3-1"},
		{"-1", false, "invalid format: -1"}, {",", false, "invalid format: ,"}, {"1-2-3", false, "invalid format: 1-2-3"},
		{"0-9223372036854775807", false, "value of out range, maximum is 8192"},
	} {
		ok, err := info.CpusAvailable(tc.list)
		if ok != tc.ok || (err == nil) != (tc.err == "") || err != nil && err.Error() != tc.err {
			t.Errorf("%q: %v, %v", tc.list, ok, err)
		}
	}
}

func FuzzParseList(f *testing.F) {
	for _, seed := range []string{"0-3,7", "", "1-", "-", "8192", "0-8193", "00,01"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		set, err := ParseList(list)
		if err != nil {
			return
		}
		for n := range set {
			if n < 0 || n > maxListed {
				t.Errorf("%q has %d", list, n)
			}
		}
	})
}
