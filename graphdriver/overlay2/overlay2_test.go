package overlay2_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/overlay2"
	"stated.dev/stated/internal/testenv/hostile"
	"stated.dev/stated/internal/testenv/scratch"
)

func open(t *testing.T, home string, opts ...string) graphdriver.Driver {
	t.Helper()
	d, err := overlay2.New(t.Context(), graphdriver.Config{Home: home, Options: opts})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mode is the mode, kind included, of a path that is there.
func mode(t *testing.T, path string) string {
	t.Helper()
	fi, err := os.Lstat(path)
	must(t, err)
	return fi.Mode().String()
}

// The directories are Docker's.
func TestLayout(t *testing.T) {
	old := unix.Umask(0o077) // modes do not depend on it
	defer unix.Umask(old)
	home := filepath.Join(t.TempDir(), "overlay2")
	d := open(t, home)
	ctx := t.Context()
	must(t, d.Create(ctx, "base", "", graphdriver.CreateOptions{}))
	must(t, d.Create(ctx, "second", "base", graphdriver.CreateOptions{}))
	must(t, d.CreateReadWrite(ctx, "top", "second", graphdriver.CreateOptions{}))
	for path, want := range map[string]string{
		"": "drwx--x---", "l": "drwx------", "base": "drwx--x---", "base/diff": "drwxr-xr-x", "base/committed": "-rw-------",
		"second/work": "drwx------", "second/committed": "-rw-------", "top/work": "drwx------",
	} {
		if got := mode(t, filepath.Join(home, path)); got != want {
			t.Errorf("%s has mode %s, want %s", path, got, want)
		}
	}
	link := func(id string) string {
		b, err := os.ReadFile(filepath.Join(home, id, "link"))
		must(t, err)
		if len(b) != 26 || strings.Trim(string(b), "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") != "" {
			t.Errorf("link of %s: %q", id, b)
		}
		target, err := os.Readlink(filepath.Join(home, "l", string(b)))
		must(t, err)
		if want := "../" + id + "/diff"; target != want {
			t.Errorf("link of %s leads to %s", id, target)
		}
		return "l/" + string(b)
	}
	lower, err := os.ReadFile(filepath.Join(home, "top/lower"))
	must(t, err)
	if want := link("second") + ":" + link("base"); string(lower) != want {
		t.Errorf("lower is %q, want %q", lower, want)
	}
	for _, gone := range []string{"base/lower", "base/work", "top/committed", "top/merged"} {
		if _, err := os.Lstat(filepath.Join(home, gone)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", gone, err)
		}
	}
	meta, err := d.Metadata("top")
	must(t, err)
	if got, want := meta["LowerDir"], home+"/second/diff:"+home+"/base/diff"; got != want {
		t.Errorf("LowerDir %q, want %q", got, want)
	}
	if meta["MergedDir"] != home+"/top/merged" || meta["UpperDir"] != home+"/top/diff" || meta["WorkDir"] != home+"/top/work" {
		t.Errorf("metadata %v", meta)
	}

	// A layer with children is mounted read only, one without is not.
	dir, err := d.Get(ctx, "second", "")
	must(t, err)
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write into a committed layer: %v", err)
	}
	must(t, d.Put(ctx, "second"))
	dir, err = d.Get(ctx, "top", "")
	must(t, err)
	if got := mountOptions(t, dir); !strings.Contains(got, "upperdir="+home+"/top/diff") || !strings.Contains(got, "workdir="+home+"/top/work") || !strings.Contains(got, "lowerdir="+home+"/"+link("second")) {
		t.Errorf("mount options %s", got)
	}
	must(t, d.Put(ctx, "top"))
}

func mountOptions(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[1] == dir {
			return f[3]
		}
	}
	t.Fatalf("%s is not mounted", dir)
	return ""
}

// With long paths and many layers the options exceed a page.
func TestLongOptions(t *testing.T) {
	home := filepath.Join(t.TempDir(), strings.Repeat("long", 30), "overlay2")
	d := open(t, home)
	ctx := t.Context()
	cwd, err := os.Getwd()
	must(t, err)
	parent := ""
	const layers = 128
	for i := range layers {
		id := "layer" + strings.Repeat("x", i%3) + string(rune('a'+i/26)) + string(rune('a'+i%26))
		must(t, d.Create(ctx, id, parent, graphdriver.CreateOptions{}))
		must(t, os.WriteFile(filepath.Join(home, id, "diff", "f"+id), nil, 0o644))
		parent = id
	}
	must(t, d.CreateReadWrite(ctx, "top", parent, graphdriver.CreateOptions{}))
	if err := d.Create(ctx, "toomany", "top", graphdriver.CreateOptions{}); err == nil || err.Error() != "max depth exceeded" {
		t.Errorf("layer %d: %v", layers+2, err)
	}
	dir, err := d.Get(ctx, "top", "")
	must(t, err)
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != layers {
		t.Errorf("%d files, want %d", len(entries), layers)
	}
	must(t, os.WriteFile(filepath.Join(dir, "new"), nil, 0o644))
	must(t, d.Put(ctx, "top"))
	if got, err := os.Getwd(); got != cwd || err != nil {
		t.Errorf("the working directory has become %s (%v)", got, err)
	}
}

func TestOptions(t *testing.T) {
	root := t.TempDir()
	open(t, filepath.Join(root, "a"), "overlay2.override_kernel_check=1")
	for opt, want := range map[string]string{
		"overlay2.nonsense=1": "overlay2: unknown option overlay2.nonsense",
		"OVERLAY2.Nonsense=1": "overlay2: unknown option overlay2.nonsense",
		"overlay2.size=10G":   "Storage Option overlay2.size only supported for backingFS XFS. Found ",
		"nothing":             "unable to parse storage-opt key/value: nothing",
	} {
		home := filepath.Join(root, "b")
		_, err := overlay2.New(t.Context(), graphdriver.Config{Home: home, Options: []string{opt}})
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %s", opt, err, want)
		}
		if _, err := os.Lstat(home); err == nil {
			t.Errorf("%s: the home directory was made", opt)
		}
	}
	d := open(t, filepath.Join(root, "a"))
	err := d.CreateReadWrite(t.Context(), "id", "", graphdriver.CreateOptions{StorageOpt: map[string]string{"size": "1G"}})
	if err == nil || err.Error() != "--storage-opt is supported only for overlay over xfs with 'pquota' mount option" {
		t.Errorf("size of a container: %v", err)
	}
}

// Where the kernel cannot stack overlays, the reason says so, and the choice of a driver goes on.
func TestOnOverlay(t *testing.T) {
	top := t.TempDir()
	for _, sub := range []string{"l", "u", "w", "m"} {
		must(t, os.Mkdir(filepath.Join(top, sub), 0o755))
	}
	merged := filepath.Join(top, "m")
	must(t, unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+top+"/l,upperdir="+top+"/u,workdir="+top+"/w"))
	t.Cleanup(func() { unix.Unmount(merged, unix.MNT_DETACH) })
	_, err := overlay2.New(t.Context(), graphdriver.Config{Home: filepath.Join(merged, "overlay2")})
	if !graphdriver.NotSupported(err) || !strings.Contains(err.Error(), "overlayfs") {
		t.Errorf("overlay2 on overlayfs: %v", err)
	}
	if entries, err := os.ReadDir(merged); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

// On a full disk what is there can still be used, and a home that is not there cannot be made.
func TestOnFullDisk(t *testing.T) {
	dir := scratch.Dir(t)
	image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	scratch.Run(t, "truncate", "-s", "16M", image)
	scratch.Run(t, "mkfs.ext4", "-q", "-F", "-m", "0", image)
	must(t, os.Mkdir(disk, 0o755))
	scratch.Run(t, "mount", "-o", "loop", image, disk)
	home := filepath.Join(disk, "overlay2")
	d := open(t, home)
	must(t, d.CreateReadWrite(t.Context(), "layer", "", graphdriver.CreateOptions{}))
	must(t, d.Close())
	hostile.FillDisk(t, disk)
	d = open(t, home)
	merged, err := d.Get(t.Context(), "layer", "")
	must(t, err)
	if _, err := os.ReadDir(merged); err != nil {
		t.Error(err)
	}
	must(t, d.Put(t.Context(), "layer"))
	if _, err := overlay2.New(t.Context(), graphdriver.Config{Home: filepath.Join(disk, "other")}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a new home on a full disk: %v", err)
	}
	must(t, d.Close())
}

func TestStatus(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "overlay2"))
	var keys []string
	for _, kv := range d.Status() {
		keys = append(keys, kv[0])
	}
	if got := strings.Join(keys, "|"); got != "Backing Filesystem|Supports d_type|Using metacopy|Native Overlay Diff|userxattr" {
		t.Errorf("status %s", got)
	}
}
