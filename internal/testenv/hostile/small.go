package hostile

import (
	"testing"

	"golang.org/x/sys/unix"
)

// SmallDisk mounts a file system of a fixed size, as "16m", on a new directory. It goes with the test.
func SmallDisk(t testing.TB, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // TempDir complains of what stays
	return dir
}
