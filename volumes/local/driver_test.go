package local_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/local"
)

// newRoot returns a volumes directory whose mounts are gone when the test ends.
func newRoot(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volumes")
	t.Cleanup(func() {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Dir(dir)))
		if err != nil {
			t.Error(err)
		}
		for _, m := range mounts {
			_ = unix.Unmount(m.Mountpoint, unix.MNT_DETACH) // TempDir complains of what stays
		}
	})
	return dir
}

func newDriver(t testing.TB, dir string) *local.Driver {
	t.Helper()
	d := local.New(local.Options{Dir: dir})
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func create(t testing.TB, d *local.Driver, name string, options map[string]string) volumes.Info {
	t.Helper()
	staged, err := d.Stage(t.Context(), name, options)
	if err != nil {
		t.Fatal(err)
	}
	info, err := staged.Publish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func mounted(t *testing.T, path string) bool {
	t.Helper()
	yes, err := mountinfo.Mounted(path)
	if err != nil {
		t.Fatal(err)
	}
	return yes
}

var tmpfs = map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,uid=1000"}

func TestConformance(t *testing.T) {
	for name, options := range map[string]map[string]string{"directory": nil, "tmpfs": tmpfs} {
		t.Run(name, func(t *testing.T) {
			conformance(t, filepath.Dir(newRoot(t)), options)
		})
	}
}

// Where the state directory is on another mount, volumes are staged beside their siblings.
func TestStageOnAnotherMount(t *testing.T) {
	dir := newRoot(t)
	if err := os.Mkdir(dir, 0o701); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, dir)
	if _, err := d.Stage(t.Context(), "left", nil); err != nil {
		t.Fatal(err)
	}
	create(t, d, "whole", tmpfs)
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%v, %v", entries, err)
	}
	newDriver(t, dir) // sweeps
	if entries, err = os.ReadDir(dir); err != nil || len(entries) != 1 || entries[0].Name() != "whole" {
		t.Fatalf("%v, %v", entries, err)
	}
}

func TestLayout(t *testing.T) {
	dir := newRoot(t)
	defer unix.Umask(unix.Umask(0o077))
	d := local.New(local.Options{Dir: dir, UID: 1234, GID: 2345})
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	create(t, d, "vol", tmpfs)
	create(t, d, "plain", nil)
	for path, want := range map[string]struct {
		mode     uint32
		uid, gid uint32
	}{
		"":              {0o701, 0, 0},
		"vol":           {0o701, 0, 0},
		"vol/_data":     {0o755, 1234, 2345},
		"vol/opts.json": {0o600, 0, 0},
		"plain/_data":   {0o755, 1234, 2345},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, path), &st); err != nil {
			t.Fatal(path, err)
		}
		if st.Mode&0o7777 != want.mode || st.Uid != want.uid || st.Gid != want.gid {
			t.Errorf("%q: %o %d:%d", path, st.Mode&0o7777, st.Uid, st.Gid)
		}
	}
	got, err := os.ReadFile(filepath.Join(dir, "vol/opts.json"))
	want := `{"MountType":"tmpfs","MountOpts":"size=1m,uid=1000","MountDevice":"tmpfs","Quota":{"Size":0}}`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "plain/opts.json")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a volume without options has an opts.json")
	}
}

func TestNames(t *testing.T) {
	d := newDriver(t, newRoot(t))
	const chars = `includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`
	for name, want := range map[string]string{
		"ab":                     "",
		"A.b-c_d9":               "",
		"0x":                     "",
		strings.Repeat("a", 200): "",
		"a":                      "volume name is too short, names should be at least two alphanumeric characters",
		".":                      "volume name is too short, names should be at least two alphanumeric characters",
		"":                       `"" ` + chars,
		"..":                     `".." ` + chars,
		".hidden":                `".hidden" ` + chars,
		"-x":                     `"-x" ` + chars,
		"a/b":                    `"a/b" ` + chars,
		"a b":                    `"a b" ` + chars,
		"ä1":                     `"ä1" ` + chars,
		"ab\n":                   `"ab\n" ` + chars,
		"backingFsBlockDev":      `"backingFsBlockDev" is no name for a local volume: it is that of a file beside them`,
	} {
		err := stage(t, d, name, nil)
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v", name, err)
			}
		} else if err == nil || err.Error() != want || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// stage stages a volume and takes that back.
func stage(t *testing.T, d *local.Driver, name string, options map[string]string) error {
	t.Helper()
	staged, err := d.Stage(t.Context(), name, options)
	if err == nil {
		if err := staged.Discard(t.Context()); err != nil {
			t.Error(err)
		}
	}
	return err
}

// Volumes that were prepared are like those that were not, are nobody's before, and a stop leaves none behind.
func TestStock(t *testing.T) {
	root := newRoot(t)
	d := local.New(local.Options{Dir: root, Spares: 4})
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	stageDir := filepath.Join(filepath.Dir(root), ".stated", "volumes", "stage")
	count := func() int {
		t.Helper()
		list, err := os.ReadDir(stageDir)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	mode := func(name string) (root, data fs.FileMode) {
		t.Helper()
		info, err := d.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for path, mode := range map[string]*fs.FileMode{filepath.Dir(info.Mountpoint): &root, info.Mountpoint: &data} {
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			*mode = st.Mode()
		}
		return root, data
	}
	create := func(name string) {
		t.Helper()
		staged, err := d.Stage(t.Context(), name, nil)
		if err == nil {
			_, err = staged.Publish(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	create("without")
	if !d.Low() {
		t.Fatal("nothing is in stock, and it is not low")
	}
	d.Stock(t.Context())
	if count() != 4 || d.Low() {
		t.Fatalf("%d in stock, low is %t", count(), d.Low())
	}
	if list, err := d.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("List: %v, %v; want the one volume", list, err)
	}
	create("with")
	if err := stage(t, d, "discarded", nil); err != nil {
		t.Error(err)
	}
	if got := count(); got != 2 || !d.Low() {
		t.Errorf("%d in stock after two were taken of four, low is %t", got, d.Low())
	}
	r1, d1 := mode("without")
	if r2, d2 := mode("with"); r1 != r2 || d1 != d2 {
		t.Errorf("modes %v and %v from the stock, %v and %v without", r2, d2, r1, d1)
	}
	for i := range 3 { // more than there are
		create(fmt.Sprintf("more%d", i))
	}
	d.Stock(t.Context())
	newDriver(t, root)
	if got := count(); got != 0 {
		t.Errorf("%d directories are left after a start", got)
	}
}

func TestOptions(t *testing.T) {
	d := newDriver(t, newRoot(t))
	for _, tt := range []struct {
		options map[string]string
		want    string
	}{
		{nil, ""},
		{map[string]string{}, ""},
		{tmpfs, ""},
		{map[string]string{"type": "none", "device": "/srv", "o": "bind"}, ""},
		{map[string]string{"size": "0"}, ""},
		{map[string]string{"type": "cifs", "device": "//host/share", "o": "port=445"}, ""},
		{map[string]string{"type": "tmpfs"}, `missing required option: "device"`},
		{map[string]string{"device": "tmpfs"}, `missing required option: "type"`},
		{map[string]string{"o": "size=1m"}, `missing required option: "device"`},
		{map[string]string{"o": "size=1m", "device": "tmpfs"}, `missing required option: "type"`},
		{map[string]string{"foo": "bar", "type": "x"}, `invalid option: "foo"`},
		{map[string]string{"size": "1g"}, "quota size requested but no quota support"},
		{map[string]string{"size": "many"}, "invalid size: 'many'"},
		{map[string]string{"size": "-1"}, "invalid size: '-1'"},
		{map[string]string{"size": "9999999999t"}, "invalid size: '9999999999t'"},
		{map[string]string{"type": "cifs", "device": "//host:445/share"}, "port not allowed in CIFS device URL, include 'port' in 'o='"},
	} {
		err := stage(t, d, "vol", tt.options)
		if tt.want == "" {
			if err != nil {
				t.Errorf("%v: %v", tt.options, err)
			}
		} else if err == nil || err.Error() != tt.want || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", tt.options, err)
		}
	}
}

// What dockerd left: a plain volume, one with options, one whose opts.json says nothing, one with a broken opts.json,
// the quota's device node, and the store's database.
func TestAdopt(t *testing.T) {
	dir := newRoot(t)
	for name, opts := range map[string]string{
		"plain": "-",
		"mount": `{"MountType":"tmpfs","MountOpts":"","MountDevice":"tmpfs","Quota":{"Size":0}}`,
		"none":  `{"MountType":"","MountOpts":"","MountDevice":"","Quota":{"Size":0}}`,
		"empty": "",
		"torn":  `{"MountType":"tm`,
		"quota": `{"MountType":"","MountOpts":"","MountDevice":"","Quota":{"Size":1048576}}`,
	} {
		if err := os.MkdirAll(filepath.Join(dir, name, "_data"), 0o755); err != nil {
			t.Fatal(err)
		}
		if opts != "-" {
			if err := os.WriteFile(filepath.Join(dir, name, "opts.json"), []byte(opts), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "metadata.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(filepath.Join(dir, "backingFsBlockDev"), unix.S_IFIFO, 0); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, dir)
	list, err := d.List(t.Context())
	if err != nil || len(list) != 6 {
		t.Fatalf("%+v, %v", list, err)
	}
	for name, want := range map[string]string{
		"plain": "", "mount": "", "none": "",
		"empty": "error while unmarshaling volume options for volume: empty: unexpected end of JSON input",
		"torn":  "error while unmarshaling volume options for volume: torn: unexpected end of JSON input",
		"quota": "size quota requested for volume but no quota support",
	} {
		path, err := d.Mount(t.Context(), name, "a")
		if got := text(err); got != want {
			t.Errorf("%s: %q", name, got)
		}
		if err != nil {
			continue
		}
		if got := mounted(t, path); got != (name == "mount") {
			t.Errorf("%s: mounted: %v", name, got)
		}
	}
	info, err := d.Get(t.Context(), "torn")
	if err != nil || info.Broken == nil {
		t.Errorf("a broken volume is still there: %+v, %v", info, err)
	}
}

func TestMountCountsUsers(t *testing.T) {
	dir := newRoot(t)
	d := newDriver(t, dir)
	data := create(t, d, "vol", tmpfs).Mountpoint
	use := func(f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(id string) { use(func() error { _, err := d.Mount(t.Context(), "vol", id); return err }) }
	unmount := func(id string) { use(func() error { return d.Unmount(t.Context(), "vol", id) }) }
	mount("a")
	mount("a")
	mount("b")
	if n := mountsAt(t, data); n != 1 {
		t.Fatalf("%d mounts", n)
	}
	unmount("a")
	unmount("a")
	unmount("c")
	if !mounted(t, data) {
		t.Fatal("unmounted under a user")
	}
	_, err := d.PrepareRemove(t.Context(), "vol")
	if text(err) != "volume has active mounts" {
		t.Fatal(err)
	}

	// The daemon dies and comes back while "b" runs on.
	d = newDriver(t, dir)
	use(func() error { return d.LiveRestore(t.Context(), "vol", "b") })
	mount("c")
	if n := mountsAt(t, data); n != 1 {
		t.Fatalf("%d mounts after the restart", n)
	}
	unmount("b")
	unmount("c")
	if mounted(t, data) {
		t.Fatal("still mounted without users")
	}

	// It dies again, and the user is gone: the mount has nobody, and does not hinder removal.
	mount("d")
	d = newDriver(t, dir)
	token, err := d.PrepareRemove(t.Context(), "vol")
	if err != nil {
		t.Fatal(err)
	}
	use(func() error { return d.Remove(t.Context(), "vol", token) })
}

func mountsAt(t *testing.T, path string) int {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil {
		t.Fatal(err)
	}
	n := len(mounts)
	if n == 0 {
		return 0
	}
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (bool, bool) { return m.Mountpoint != path, false })
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

func TestBindVolumeKeepsItsSource(t *testing.T) {
	dir, source := newRoot(t), t.TempDir()
	keep := filepath.Join(source, "keep")
	if err := os.WriteFile(keep, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDriver(t, dir)
	create(t, d, "vol", map[string]string{"type": "none", "o": "bind", "device": source})
	path, err := d.Mount(t.Context(), "vol", "a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(path, "keep")); err != nil {
		t.Error(err)
	}
	// Somebody mounted it a second time on top: the volume's own unmount uncovers the first one.
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := d.Unmount(t.Context(), "vol", "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.PrepareRemove(t.Context(), "vol"); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the source is still mounted: %v", err)
	}
	if err := d.Remove(t.Context(), "vol", ""); !errors.Is(err, unix.EBUSY) {
		t.Errorf("the source is still mounted: %v", err)
	}
	if err := unix.Unmount(path, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Remove(t.Context(), "vol", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(keep); err != nil {
		t.Fatalf("removal of the volume reached its source: %v", err)
	}
}

func TestMountFails(t *testing.T) {
	d := newDriver(t, newRoot(t))
	create(t, d, "vol", map[string]string{"type": "none", "o": "bind,password=secret", "device": "/nonexistent-for-a-test"})
	_, err := d.Mount(t.Context(), "vol", "a")
	if err == nil || !strings.HasPrefix(err.Error(), "failed to mount local volume: mount /nonexistent-for-a-test:") {
		t.Fatal(err)
	}
	if strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), "password=********") {
		t.Errorf("the password shows: %v", err)
	}
	if _, err := d.PrepareRemove(t.Context(), "vol"); err != nil {
		t.Errorf("a failed mount hinders removal: %v", err)
	}
}

func TestExt4Volume(t *testing.T) {
	image := newExt4Image(t)
	loop := attachLoop(t, image)
	d := newDriver(t, newRoot(t))
	create(t, d, "vol", map[string]string{"type": "ext4", "device": loop, "o": "noatime"})
	path, err := d.Mount(t.Context(), "vol", "a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "file"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Unmount(t.Context(), "vol", "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(path, "file")); !errors.Is(err, os.ErrNotExist) {
		t.Error("still mounted")
	}
	if _, err := d.Mount(t.Context(), "vol", "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(path, "file")); err != nil {
		t.Error(err)
	}
	if err := d.Unmount(t.Context(), "vol", "b"); err != nil {
		t.Fatal(err)
	}
}

func TestRemoveOutside(t *testing.T) {
	dir, outside := newRoot(t), t.TempDir()
	d := newDriver(t, dir)
	data := create(t, d, "vol", nil).Mountpoint
	if err := errors.Join(os.Remove(data), os.Symlink(outside, data)); err != nil {
		t.Fatal(err)
	}
	_, err := d.PrepareRemove(t.Context(), "vol")
	if want := "unable to remove a directory outside of the local volume root " + dir + ": " + outside; text(err) != want {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

func FuzzOptions(f *testing.F) {
	f.Add([]byte(`{"MountType":"tmpfs","MountOpts":"size=1m","MountDevice":"tmpfs","Quota":{"Size":0}}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(``))
	f.Add([]byte(`null`))
	f.Add([]byte(`{"Quota":null}`))
	dir := filepath.Join(f.TempDir(), "volumes")
	if err := os.MkdirAll(filepath.Join(dir, "vol", "_data"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, "vol", "opts.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		d := newDriver(t, dir)
		info, err := d.Get(t.Context(), "vol")
		if err != nil {
			t.Fatal(err)
		}
		if info.Broken == nil && !json.Valid(data) {
			t.Fatalf("%q is not JSON and passes", data)
		}
	})
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
