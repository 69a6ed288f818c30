package local_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/volumes/local"
)

// remove does what the store does to remove a volume.
func remove(t *testing.T, d *local.Driver, name string) error {
	t.Helper()
	token, err := d.PrepareRemove(t.Context(), name)
	if err != nil {
		return err
	}
	return d.Remove(t.Context(), name, token)
}

// Somebody removes a volume's directory while the daemon runs. The volume is still there, cannot be mounted, and goes
// when it is removed.
func TestDirectoryRemovedByHand(t *testing.T) {
	for name, tt := range map[string]struct {
		options map[string]string
		err     string // of a mount; %s is the data path
	}{
		"plain": {nil, missingData},
		"mount": {tmpfs, "error while creating volume data path '%[1]s': mkdir %[1]s: no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			options, dir := tt.options, newRoot(t)
			d := newDriver(t, dir)
			data := create(t, d, "vol", options).Mountpoint
			if err := os.RemoveAll(filepath.Dir(data)); err != nil {
				t.Fatal(err)
			}
			if info, err := d.Get(t.Context(), "vol"); err != nil || info.Mountpoint != data || !info.CreatedAt.IsZero() {
				t.Errorf("%+v, %v", info, err)
			}
			_, err := d.Mount(t.Context(), "vol", "a")
			if text(err) != fmt.Sprintf(tt.err, data) {
				t.Errorf("%v", err)
			}
			if err := remove(t, d, "vol"); err != nil {
				t.Error(err)
			}
			if _, err := d.Get(t.Context(), "vol"); !errdefs.IsNotFound(err) {
				t.Errorf("%v", err)
			}
			create(t, d, "vol", options)
		})
	}
}

// missingData is the error of mounting a volume without its data path, which is %s.
const missingData = "directory %[1]s is missing; copy it there, or begin with an empty one: mkdir -p -m 755 %[1]s"

// Only the data directory is missing. The mount does what its error asks for, and no more.
func TestDataRemovedByHand(t *testing.T) {
	d := newDriver(t, newRoot(t))
	data := create(t, d, "vol", nil).Mountpoint
	if err := os.Remove(data); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Mount(t.Context(), "vol", "a"); !errdefs.IsNotFound(err) || text(err) != fmt.Sprintf(missingData, data) {
		t.Errorf("%v", err)
	}
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	mountVolume(t, d, "vol")
}

// Whatever the data path has become, removing the volume deletes nothing outside of the volume.
func TestRemoveNeverLeaves(t *testing.T) {
	for name, tt := range map[string]struct {
		become func(data, outside, other string) error
		err    string // the end of what it is refused with
	}{
		"link to the outside":    {func(data, outside, _ string) error { return os.Symlink(outside, data) }, "outside"},
		"link to another volume": {func(data, _, other string) error { return os.Symlink(other, data) }, ""},
		"relative link":          {func(data, outside, _ string) error { return os.Symlink("../../"+filepath.Base(outside), data) }, "outside"},
		"link to nothing":        {func(data, _, _ string) error { return os.Symlink("/nonexistent-for-a-test", data) }, ""},
		"file":                   {func(data, _, _ string) error { return os.WriteFile(data, []byte("x"), 0o600) }, ""},
		"device":                 {func(data, _, _ string) error { return unix.Mknod(data, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }, ""},
		"directory of strange things": {func(data, outside, _ string) error {
			return errors.Join(os.Mkdir(data, 0o755),
				unix.Mknod(filepath.Join(data, "device"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))),
				unix.Mknod(filepath.Join(data, "pipe"), unix.S_IFIFO|0o600, 0),
				os.Symlink(outside, filepath.Join(data, "link")),
				os.Mkdir(filepath.Join(data, "locked"), 0))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newRoot(t)
			outside := filepath.Join(filepath.Dir(dir), "outside")
			d := newDriver(t, dir)
			data, other := create(t, d, "vol", nil).Mountpoint, create(t, d, "other", nil).Mountpoint
			kept := []string{filepath.Join(outside, "keep"), filepath.Join(other, "keep")}
			err := errors.Join(os.Mkdir(outside, 0o755), os.WriteFile(kept[0], nil, 0o600), os.WriteFile(kept[1], nil, 0o600),
				os.Remove(data), tt.become(data, outside, other))
			if err != nil {
				t.Fatal(err)
			}
			if err := remove(t, d, "vol"); (tt.err == "") != (err == nil) || !strings.HasSuffix(text(err), tt.err) {
				t.Errorf("%v", err)
			}
			// A removal that a crash cut short is completed without the check that came before it.
			if err := d.Remove(t.Context(), "vol", ""); err != nil && !errdefs.IsNotFound(err) {
				t.Error(err)
			}
			if _, err := os.Lstat(filepath.Join(dir, "vol")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it is still there: %v", err)
			}
			for _, path := range kept {
				if _, err := os.Stat(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// What is in the directory and no volume: files, links and devices. An opts.json that is no file breaks its volume alone.
func TestStrangeEntries(t *testing.T) {
	dir := newRoot(t)
	err := errors.Join(
		os.MkdirAll(filepath.Join(dir, "pipe", "_data"), 0o755),
		unix.Mknod(filepath.Join(dir, "pipe", "opts.json"), unix.S_IFIFO|0o600, 0),
		os.MkdirAll(filepath.Join(dir, "directory", "_data"), 0o755),
		os.Mkdir(filepath.Join(dir, "directory", "opts.json"), 0o755),
		os.MkdirAll(filepath.Join(dir, "with space", "_data"), 0o755),
		os.WriteFile(filepath.Join(dir, "file"), nil, 0o600),
		os.Symlink(dir, filepath.Join(dir, "link")),
		unix.Mknod(filepath.Join(dir, "device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))),
	)
	if err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, dir)
	list, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, info := range list {
		names = append(names, info.Name)
	}
	slices.Sort(names)
	if want := []string{"directory", "pipe", "with space"}; !slices.Equal(names, want) {
		t.Errorf("%q", names)
	}
	for _, name := range []string{"directory", "pipe"} {
		_, err := d.Mount(t.Context(), name, "a")
		want := "error while unmarshaling volume options for volume: " + name + ": " + filepath.Join(dir, name, "opts.json") + " is not a file"
		if text(err) != want {
			t.Errorf("%v", err)
		}
	}
	for _, name := range []string{"../outside", "pipe/_data", "/etc", ".", "..", "", "file", "link"} {
		if _, err := d.Get(t.Context(), name); !errdefs.IsNotFound(err) {
			t.Errorf("Get %q: %v", name, err)
		}
		if err := remove(t, d, name); !errdefs.IsNotFound(err) {
			t.Errorf("remove %q: %v", name, err)
		}
	}
}

// A volume that is removed while somebody looks for new ones does not come back without its directory.
func TestRescanWhileVolumesGo(t *testing.T) {
	d := newDriver(t, newRoot(t))
	done := make(chan struct{})
	var scans sync.WaitGroup
	scans.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := d.Rescan(t.Context()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 2000 {
		create(t, d, "vol", nil)
		if err := remove(t, d, "vol"); err != nil {
			t.Fatal(err)
		}
		if list, err := d.List(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("after the removal there are %v, %v", list, err)
			break
		}
	}
	close(done)
	scans.Wait()
}

// What a killed daemon left mounted goes once it is known that nobody uses it. What somebody mounted by hand stays.
func TestSweep(t *testing.T) {
	dir := newRoot(t)
	d := newDriver(t, dir)
	left := map[string]bool{"idle": false, "used": true, "hand": true, "broken": true}
	for name := range left {
		options := tmpfs
		if name == "hand" {
			options = nil
		}
		data := create(t, d, name, options).Mountpoint
		mountVolume(t, d, name)
		if name == "hand" {
			if err := unix.Mount("tmpfs", data, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "broken", "opts.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	d = newDriver(t, dir)
	if err := d.LiveRestore(t.Context(), "used", "a"); err != nil {
		t.Fatal(err)
	}
	if err := d.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, want := range left {
		if got := mounted(t, filepath.Join(dir, name, "_data")); got != want {
			t.Errorf("%s is mounted: %v", name, got)
		}
	}
	if err := remove(t, d, "broken"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("nobody knows what is mounted on it: %v", err)
	}
}
