package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/ids"
)

// Processes of a cgroup of version 2 are still when Freeze returns, wherever below it they are.
func TestFreezeVersion2(t *testing.T) {
	dir := newUnified(t)
	sub := filepath.Join(dir, "below")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := &freezer{dir: dir, file: "cgroup.freeze", frozen: "1", thawed: "0"}
	t.Cleanup(func() {
		for _, err := range []error{f.Thaw(), cmd.Process.Kill()} {
			if err != nil {
				t.Error(err)
			}
		}
		_ = cmd.Wait() // it was killed
		for _, d := range []string{sub, dir} {
			if err := unix.Rmdir(d); err != nil {
				t.Errorf("%s: %v", d, err)
			}
		}
	})
	if err := os.WriteFile(filepath.Join(sub, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := f.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if frozen, err := f.Frozen(); err != nil || !frozen {
			t.Errorf("%v, %v", frozen, err)
		}
		if still, err := f.still(); err != nil || !still {
			t.Errorf("%v, %v", still, err)
		}
		if err := f.Thaw(); err != nil {
			t.Fatal(err)
		}
		if frozen, err := f.Frozen(); err != nil || frozen {
			t.Errorf("%v, %v", frozen, err)
		}
	}
}

// newUnified makes a cgroup in the hierarchy of version 2, wherever that is mounted.
func newUnified(t *testing.T) string {
	t.Helper()
	for _, root := range []string{cgroupRoot, filepath.Join(cgroupRoot, "unified")} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		dir := filepath.Join(root, "stated-test-"+ids.New())
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Fatal("no hierarchy of version 2 is mounted")
	return ""
}

func TestCgroupNamed(t *testing.T) {
	const id = "0123abcd"
	for dir, want := range map[string]string{
		"/sys/fs/cgroup/docker/0123abcd":                               "/sys/fs/cgroup/docker/0123abcd",
		"/sys/fs/cgroup/docker/0123abcd/init.scope":                    "/sys/fs/cgroup/docker/0123abcd",
		"/sys/fs/cgroup/system.slice/docker-0123abcd.scope":            "/sys/fs/cgroup/system.slice/docker-0123abcd.scope",
		"/sys/fs/cgroup/system.slice/docker-0123abcd.scope/a/0123abcd": "/sys/fs/cgroup/system.slice/docker-0123abcd.scope",
		"/sys/fs/cgroup/elsewhere":                                     "",
		"":                                                             "",
	} {
		if got, ok := cgroupNamed(dir, id); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", dir, got, ok)
		}
	}
}
