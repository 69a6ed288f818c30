package scratch

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// QuotaDisk mounts a disk of 320 MiB that holds projects to their limits, ext4 or xfs, until the end of the test. It
// skips the test where the kernel has no such quotas, except in the virtual machine of contrib/vmtest, which is there
// for this.
func QuotaDisk(t *testing.T, kind string) string {
	t.Helper()
	dir := Dir(t)
	image := filepath.Join(dir, "image")
	mkfs, option := []string{"-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota", image}, "prjquota"
	if kind == "xfs" {
		mkfs, option = []string{"-q", image}, "pquota"
	}
	Run(t, "truncate", "-s", "320M", image)
	Run(t, "mkfs."+kind, mkfs...)
	point := filepath.Join(dir, "disk")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := run("mount", "-t", kind, "-o", "loop,"+option, image, point); err != nil {
		if os.Getenv("STATED_INSIDE") != "" {
			t.Fatal(err)
		}
		t.Skipf("this kernel has no project quotas on %s, so that only contrib/vmtest runs this, in a virtual machine: %v", kind, err)
	}
	return point
}

// Settle returns when the disk at a path has freed what was deleted there, which xfs does some time later.
func Settle(t *testing.T, disk string) {
	t.Helper()
	Run(t, "fsfreeze", "-f", disk)
	Run(t, "fsfreeze", "-u", disk)
}

// Unprivileged calls do without the capability that lets root exceed what a quota allows.
func Unprivileged(t *testing.T, do func() error) error {
	t.Helper()
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var sets [2]unix.CapUserData
		err := unix.Capget(&header, &sets[0])
		if err == nil {
			sets[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
			err = unix.Capset(&header, &sets[0])
		}
		if err == nil {
			err = do()
		}
		result <- err
	}()
	return <-result
}
