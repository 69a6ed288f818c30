package projectquota_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/projectquota"
	"stated.dev/stated/internal/testenv/scratch"
)

func TestUnsupported(t *testing.T) {
	dir := scratch.Dir(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := projectquota.Open(dir, &projectquota.IDs{}); !errors.Is(err, projectquota.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	if id := projectquota.Inherited(dir); id != 0 {
		t.Errorf("a project on tmpfs: %d", id)
	}
}

// A file system without quotas is left as it was.
func TestDisabled(t *testing.T) {
	dir := scratch.Dir(t)
	image, point := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	scratch.Run(t, "truncate", "-s", "8M", image)
	scratch.Run(t, "mkfs.ext4", "-q", "-F", image)
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	scratch.Run(t, "mount", "-o", "loop", image, point)
	if _, err := projectquota.Open(point, &projectquota.IDs{}); !errors.Is(err, projectquota.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	if list, err := os.ReadDir(point); err != nil || len(list) != 1 { // lost+found
		t.Errorf("%v, %v", list, err)
	}
}

// project returns a directory's project as others see it.
func project(t *testing.T, dir string) string {
	t.Helper()
	return strings.Fields(scratch.Run(t, "lsattr", "-pd", dir))[0]
}

func mkdir(t *testing.T, elem ...string) string {
	t.Helper()
	dir := filepath.Join(elem...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestQuota(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) { testQuota(t, scratch.QuotaDisk(t, kind)) })
	}
}

func testQuota(t *testing.T, disk string) {
	home := mkdir(t, disk, "home")
	node := filepath.Join(home, "backingFsBlockDev")
	if err := os.WriteFile(node, nil, 0o600); err != nil { // no device: it is replaced
		t.Fatal(err)
	}
	c, err := projectquota.Open(home, &projectquota.IDs{})
	if err != nil {
		t.Fatal(err)
	}
	var st, fs unix.Stat_t
	if err := errors.Join(unix.Lstat(node, &st), unix.Stat(disk, &fs)); err != nil || st.Rdev != fs.Dev || st.Mode != unix.S_IFBLK|0o600 {
		t.Errorf("the node: mode %o, device %x of %x, %v", st.Mode, st.Rdev, fs.Dev, err)
	}

	// Somebody else has a project: it is not taken.
	theirs := mkdir(t, disk, "theirs")
	other, err := projectquota.Open(theirs, &projectquota.IDs{})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Limit(mkdir(t, theirs, "a"), 1<<20); err != nil {
		t.Fatal(err)
	}
	taken := map[string]string{project(t, filepath.Join(theirs, "a")): "a"}
	var wg sync.WaitGroup
	for i := range 8 {
		dir := mkdir(t, home, fmt.Sprint(i))
		wg.Go(func() {
			if err := c.Limit(dir, 1<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		id := project(t, filepath.Join(home, fmt.Sprint(i)))
		if id == "0" || taken[id] != "" {
			t.Errorf("directory %d has project %s, which %q has too", i, id, taken[id])
		}
		taken[id] = fmt.Sprint(i)
	}

	// What is in a limited directory has its project, and gets one of its own when it is limited itself.
	outer := filepath.Join(home, "0")
	inner := mkdir(t, outer, "inner")
	if projectquota.Inherited(inner) != projectquota.Inherited(outer) || projectquota.Inherited(home) != 0 {
		t.Errorf("%d in %d in %d", projectquota.Inherited(inner), projectquota.Inherited(outer), projectquota.Inherited(home))
	}
	if err := c.Forget(inner); err != nil { // it has no limit: nothing changes
		t.Fatal(err)
	}
	if err := c.Limit(inner, 1<<20); err != nil {
		t.Fatal(err)
	}
	if id := project(t, inner); taken[id] != "" {
		t.Errorf("the inner directory has project %s of %q", id, taken[id])
	}

	// A limit that is set again keeps the project; a directory that is deleted frees it.
	before := project(t, outer)
	if err := c.Limit(outer, 2<<20); err != nil || project(t, outer) != before {
		t.Errorf("%v, project %s became %s", err, before, project(t, outer))
	}
	if err := errors.Join(c.Forget(outer), os.RemoveAll(outer)); err != nil {
		t.Fatal(err)
	}
	scratch.Settle(t, disk)
	again, err := projectquota.Open(home, &projectquota.IDs{})
	if err != nil {
		t.Fatal(err)
	}
	fresh := mkdir(t, home, "fresh")
	if err := again.Limit(fresh, 1<<20); err != nil || project(t, fresh) != before {
		t.Errorf("%v, want the free project %s, got %s", err, before, project(t, fresh))
	}

	if err := c.Limit(scratch.Dir(t), 1<<20); err == nil || !strings.Contains(err.Error(), "not on the file system of "+home) {
		t.Errorf("%v", err)
	}
}
