package local_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/local"
	"stated.dev/stated/volumes/volumetest"
)

var size = map[string]string{"size": "1m"}

// onQuotas runs a test on each file system that can limit volumes. The error is what exceeding a limit fails with there.
func onQuotas(t *testing.T, test func(t *testing.T, dir string, exceeded error)) {
	for kind, exceeded := range map[string]error{"ext4": unix.EDQUOT, "xfs": unix.ENOSPC} {
		t.Run(kind, func(t *testing.T) {
			test(t, filepath.Join(scratch.QuotaDisk(t, kind), "volumes"), exceeded)
		})
	}
}

func TestQuotaConformance(t *testing.T) {
	onQuotas(t, func(t *testing.T, dir string, _ error) {
		for name, options := range map[string]map[string]string{"unlimited": nil, "limited": size, "tmpfs": tmpfs} {
			t.Run(name, func(t *testing.T) { conformance(t, dir, options) })
		}
	})
}

// conformance runs the suite on directories below dir.
func conformance(t *testing.T, dir string, options map[string]string) {
	dirs := map[volumes.Driver]string{}
	volumetest.Run(t, volumetest.Harness{
		Options: options,
		New: func(t *testing.T) volumes.Driver {
			own := filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-"))
			if err := os.MkdirAll(own, 0o755); err != nil {
				t.Fatal(err)
			}
			own = filepath.Join(own, "volumes")
			d := local.New(local.Options{Dir: own})
			dirs[d] = own
			return d
		},
		Reopen: func(_ *testing.T, old volumes.Driver) volumes.Driver { return local.New(local.Options{Dir: dirs[old]}) },
	})
}

// fillUp writes into a directory until that fails, or until it has written limit MiB, and returns how many KiB it has
// written.
func fillUp(t *testing.T, dir string, limit int) (int, error) {
	t.Helper()
	written := 0
	err := scratch.Unprivileged(t, func() (err error) {
		f, err := os.Create(filepath.Join(dir, "fill"))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		chunk := bytes.Repeat([]byte("x"), 16<<10)
		for range limit << 10 / 16 {
			if _, err := f.Write(chunk); err != nil {
				return err
			}
			if err := f.Sync(); err != nil { // space may be allocated only now
				return err
			}
			written += 16
		}
		return nil
	})
	return written, err
}

// wantLimit checks that a directory holds a MiB, or somewhat less because of what the file system itself needs.
func wantLimit(t *testing.T, dir string, exceeded error) {
	t.Helper()
	if n, err := fillUp(t, dir, 4); !errors.Is(err, exceeded) || n < 900 || n > 1024 {
		t.Errorf("%s took %d KiB and then failed with %v, want %v at 1 MiB", dir, n, err, exceeded)
	}
}

func mountVolume(t *testing.T, d *local.Driver, name string) string {
	t.Helper()
	path, err := d.Mount(t.Context(), name, "a")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func project(t *testing.T, dir string) string {
	t.Helper()
	return strings.Fields(scratch.Run(t, "lsattr", "-pd", dir))[0]
}

func TestQuotaLimits(t *testing.T) {
	onQuotas(t, func(t *testing.T, dir string, exceeded error) {
		d := newDriver(t, dir)
		create(t, d, "first", size)
		create(t, d, "free", nil)
		got, err := os.ReadFile(filepath.Join(dir, "first/opts.json"))
		if want := `{"MountType":"","MountOpts":"","MountDevice":"","Quota":{"Size":1048576}}`; err != nil || string(got) != want {
			t.Errorf("%s, %v", got, err)
		}
		first := mountVolume(t, d, "first")
		wantLimit(t, first, exceeded)
		if n, err := fillUp(t, mountVolume(t, d, "free"), 4); err != nil {
			t.Errorf("a volume without a limit takes %d KiB: %v", n, err)
		}

		// After a restart a new volume does not share the project of an old one, which is full.
		d = newDriver(t, dir)
		create(t, d, "second", size)
		wantLimit(t, mountVolume(t, d, "second"), exceeded)
		wantLimit(t, mountVolume(t, d, "first"), exceeded) // overwrites what it holds

		// What a removed volume held is free, and its project as well.
		before := project(t, first)
		token, err := d.PrepareRemove(t.Context(), "first")
		if err == nil {
			err = d.Remove(t.Context(), "first", token)
		}
		if err != nil {
			t.Fatal(err)
		}
		scratch.Settle(t, filepath.Dir(dir))
		d = newDriver(t, dir)
		third := create(t, d, "third", size).Mountpoint
		if got := project(t, third); got != before {
			t.Errorf("project %s, want the free one, %s", got, before)
		}
		wantLimit(t, mountVolume(t, d, "third"), exceeded)
	})
}

// A mount brings back a limit, and a project, that was lost.
func TestQuotaIsSetByEachMount(t *testing.T) {
	onQuotas(t, func(t *testing.T, dir string, exceeded error) {
		d := newDriver(t, dir)
		data := create(t, d, "vol", size).Mountpoint
		if err := errors.Join(os.Remove(data), os.Mkdir(data, 0o755)); err != nil {
			t.Fatal(err)
		}
		wantLimit(t, mountVolume(t, d, "vol"), exceeded)
	})
}

func TestQuotaOfMountedVolumes(t *testing.T) {
	onQuotas(t, func(t *testing.T, dir string, exceeded error) {
		d := newDriver(t, dir)
		source := filepath.Join(filepath.Dir(dir), "source")
		if err := errors.Join(os.Mkdir(source, 0o755), os.Symlink(source, source+"-link")); err != nil {
			t.Fatal(err)
		}
		create(t, d, "bound", map[string]string{"type": "none", "o": "bind", "device": source + "-link", "size": "1m"})
		wantLimit(t, mountVolume(t, d, "bound"), exceeded)
		if err := d.Unmount(t.Context(), "bound", "a"); err != nil {
			t.Fatal(err)
		}

		data := create(t, d, "memory", map[string]string{"type": "tmpfs", "device": "tmpfs", "size": "1m"}).Mountpoint
		_, err := d.Mount(t.Context(), "memory", "a")
		if err == nil || !strings.Contains(err.Error(), "not on the file system of "+dir) {
			t.Errorf("%v", err)
		}
		if mounted(t, data) {
			t.Error("it is mounted all the same")
		}
	})
}

// A volume that was never published, because the daemon was killed, keeps no project.
func TestQuotaOfAStageIsFreed(t *testing.T) {
	onQuotas(t, func(t *testing.T, dir string, _ error) {
		if _, err := newDriver(t, dir).Stage(t.Context(), "lost", size); err != nil {
			t.Fatal(err)
		}
		d := newDriver(t, dir)
		scratch.Settle(t, filepath.Dir(dir))
		if got := project(t, create(t, d, "vol", size).Mountpoint); got != "1" {
			t.Errorf("the first volume has project %s", got)
		}
		list, err := d.List(t.Context())
		if err != nil || len(list) != 1 {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// Where the data root belongs to a project and the volumes to another, nothing can be renamed between them.
func TestQuotaBetweenStageAndVolumes(t *testing.T) {
	onQuotas(t, func(t *testing.T, dir string, exceeded error) {
		if err := os.Mkdir(dir, 0o701); err != nil {
			t.Fatal(err)
		}
		scratch.Run(t, "chattr", "+P", "-p", "77", dir)
		d := newDriver(t, dir)
		create(t, d, "plain", nil)
		create(t, d, "vol", size)
		wantLimit(t, mountVolume(t, d, "vol"), exceeded)
		if got := project(t, mountVolume(t, d, "plain")); got != "77" {
			t.Errorf("a plain volume has project %s", got)
		}
	})
}
