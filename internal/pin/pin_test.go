package pin_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/pin"
	"stated.dev/stated/internal/testenv/hostile"
	"stated.dev/stated/network/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// newBase makes a directory of a volume: what is inside holds "in", what is outside "out".
func newBase(t testing.TB) (dir, base string) {
	t.Helper()
	dir = t.TempDir()
	base = filepath.Join(dir, "base")
	for name, text := range map[string]string{"base/a/b/file": "in", "base/file": "in", "out/file": "out"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"rel": "a", "deep": "rel/b", "inside": filepath.Join(base, "a"), "abs": filepath.Join(dir, "out"), "up": "../out", "etc": "/etc",
		"gone": "nowhere", "loop": "loop", "a/back": "..", "a/out": "../../out",
	} {
		if err := os.Symlink(target, filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, base
}

func TestBelow(t *testing.T) {
	dir, base := newBase(t)
	pins := pin.NewDir(filepath.Join(dir, "pins"))
	for _, tt := range []struct{ sub, file string }{
		{"a", "b/file"}, {"a/b", "file"}, {"a/b/file", ""}, {"file", ""}, {".", "file"}, {"a/", "b/file"}, {"./a", "b/file"}, {"a//b", "file"},
		{"a/../a", "b/file"}, {"rel", "b/file"}, {"rel/b", "file"}, {"deep", "file"}, {"inside", "b/file"}, {"a/back", "file"},
	} {
		p, err := pins.Below(base, tt.sub)
		if err != nil {
			t.Errorf("%s: %v", tt.sub, err)
			continue
		}
		if got, err := os.ReadFile(filepath.Join(p.Path(), tt.file)); err != nil || string(got) != "in" {
			t.Errorf("%s: read %q, %v", tt.sub, got, err)
		}
		for range 2 { // the second finds nothing to do
			if err := p.Release(); err != nil {
				t.Errorf("%s: %v", tt.sub, err)
			}
		}
	}
	for _, tt := range []struct {
		sub, want string
		class     func(error) bool
	}{
		{"abs", "path concatenation escapes the base directory, base: " + base + ", subpath: abs", errdefs.IsInvalidArgument},
		{"up", "path concatenation escapes the base directory, base: " + base + ", subpath: up", errdefs.IsInvalidArgument},
		{"etc", "path concatenation escapes the base directory, base: " + base + ", subpath: etc", errdefs.IsInvalidArgument},
		{"a/out/file", "path concatenation escapes the base directory, base: " + base + ", subpath: a/out/file", errdefs.IsInvalidArgument},
		{"..", "path concatenation escapes the base directory, base: " + base + ", subpath: ..", errdefs.IsInvalidArgument},
		{"nope", "cannot access path " + base + "/nope: lstat " + base + "/nope: no such file or directory", errdefs.IsNotFound},
		{"gone", "cannot access path " + base + "/gone: lstat " + base + "/nowhere: no such file or directory", errdefs.IsNotFound},
		{"loop", `error while resolving symlinks in combined path "` + base + `/loop": EvalSymlinks: too many links`, isPlain},
		{"file/x", `error while resolving symlinks in combined path "` + base + `/file/x": not a directory`, isPlain},
	} {
		if _, err := pins.Below(base, tt.sub); err == nil || err.Error() != tt.want || !tt.class(err) {
			t.Errorf("%s:\n got %v\nwant %s", tt.sub, err, tt.want)
		}
	}
	nothingLeft(t, filepath.Join(dir, "pins"))
}

func isPlain(err error) bool { return !errdefs.IsInvalidArgument(err) && !errdefs.IsNotFound(err) }

// nothingLeft wants a directory for pins without any.
func nothingLeft(t testing.TB, pins string) {
	t.Helper()
	left, err := os.ReadDir(pins)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the directory for pins: %v, %v", left, err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(pins))
	if err != nil || len(mounts) > 0 {
		t.Errorf("left mounts: %v, %v", mounts, err)
	}
}

// TestSwap swaps a directory, and one on the way to it, for links that lead out, as fast as it goes. No pin may ever
// show what is outside.
func TestSwap(t *testing.T) {
	dir, base := newBase(t)
	pins := pin.NewDir(filepath.Join(dir, "pins"))
	if err := os.Mkdir(filepath.Join(dir, "out", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "out", "b", "file"), []byte("out"), 0o644); err != nil {
		t.Fatal(err)
	}
	stop := hostile.Swap(t, base+"/a", base+"/abs")
	held, refused := 0, 0
	for range 3000 {
		p, err := pins.Below(base, "a/b")
		if err != nil {
			refused++
			continue
		}
		held++
		if got, err := os.ReadFile(filepath.Join(p.Path(), "file")); err != nil || string(got) != "in" {
			t.Fatalf("a pin shows %q, %v", got, err)
		}
		if err := p.Release(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if held == 0 || refused == 0 {
		t.Errorf("%d pins made, %d refused: that was no race", held, refused)
	}
	nothingLeft(t, filepath.Join(dir, "pins"))
}

// TestClear finds the pins of a process that was killed.
func TestClear(t *testing.T) {
	dir, base := newBase(t)
	path := filepath.Join(dir, "pins")
	if err := pin.NewDir(path).Clear(); err != nil {
		t.Errorf("nothing to clear: %v", err)
	}
	for _, sub := range []string{"a", "file"} {
		if _, err := pin.NewDir(path).Below(base, sub); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(path, "made and not mounted"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := pin.NewDir(path).Clear(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, path)
	if got, err := os.ReadFile(filepath.Join(base, "file")); err != nil || string(got) != "in" {
		t.Errorf("the original holds %q, %v", got, err)
	}
}

// TestSharedOriginal: a pin shows what is mounted below a shared original, and its end does not take that away there.
func TestSharedOriginal(t *testing.T) {
	dir, base := newBase(t)
	mountOn := func(path string) {
		t.Helper()
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, "size=64k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) }) // gone where the test has done it
	}
	mountOn(base)
	if err := unix.Mount("", base, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(base, "sub", "disk"), 0o755); err != nil {
		t.Fatal(err)
	}
	mountOn(filepath.Join(base, "sub", "disk"))
	pins := filepath.Join(dir, "pins")
	p, err := pin.NewDir(pins).Below(base, "sub")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(base, "sub", "later"), 0o755); err != nil {
		t.Fatal(err)
	}
	mountOn(filepath.Join(base, "sub", "later"))
	for _, name := range []string{"disk", "later"} {
		if mounted, err := mountinfo.Mounted(filepath.Join(p.Path(), name)); err != nil || !mounted {
			t.Errorf("%s is not mounted in the pin: %v, %v", name, mounted, err)
		}
	}
	if err := p.Release(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"disk", "later"} {
		if mounted, err := mountinfo.Mounted(filepath.Join(base, "sub", name)); err != nil || !mounted {
			t.Errorf("the release took the original's %s: %v, %v", name, mounted, err)
		}
	}
	nothingLeft(t, pins)
}

func FuzzBelow(f *testing.F) {
	for _, sub := range []string{"a", "a/../..", "/etc", "..", "abs/file", "up", "a/back/../out", "", strings.Repeat("a/back/", 30)} {
		f.Add(sub)
	}
	dir, base := newBase(f)
	pins := pin.NewDir(filepath.Join(dir, "pins"))
	inside := map[uint64]bool{}
	if err := filepath.Walk(base, func(path string, _ os.FileInfo, err error) error {
		inside[inode(f, path)] = true
		return err
	}); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, sub string) {
		p, err := pins.Below(base, sub)
		if err != nil {
			return
		}
		if !inside[inode(t, p.Path())] {
			t.Errorf("%q leads out", sub)
		}
		if err := p.Release(); err != nil {
			t.Error(err)
		}
	})
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func BenchmarkBelow(b *testing.B) {
	dir, base := newBase(b)
	pins := pin.NewDir(filepath.Join(dir, "pins"))
	for b.Loop() {
		p, err := pins.Below(base, "a/b")
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Release(); err != nil {
			b.Fatal(err)
		}
	}
}
