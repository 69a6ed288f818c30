package volumes_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"stated.dev/stated/volumes"
)

// makeImage fills dir with one of everything that an image can hold.
func makeImage(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	old := time.Date(2001, 2, 3, 4, 5, 6, 7000, time.UTC)
	in := func(name string) string { return filepath.Join(dir, name) }
	must(os.MkdirAll(in("sub/deep"), 0o755))
	must(os.WriteFile(in("file"), []byte("content"), 0o644))
	must(os.Chown(in("file"), 1000, 1001))
	must(os.WriteFile(in("sub/suid"), []byte("x"), 0o755))
	must(os.Chown(in("sub/suid"), 1000, 1001))
	must(os.Chmod(in("sub/suid"), 0o4755|fs.ModeSetuid))
	must(os.WriteFile(in("sub/root"), []byte("x"), 0o755))
	must(os.Chmod(in("sub/root"), 0o755|fs.ModeSetuid|fs.ModeSetgid))
	must(os.WriteFile(in("sub/empty"), nil, 0o600))
	must(os.Chmod(in("sub/empty"), 0o666)) // more than a usual umask leaves
	must(os.Link(in("file"), in("sub/deep/link")))
	must(os.Symlink("../file", in("sub/symlink")))
	must(os.Symlink("/etc/passwd", in("dangerous")))
	must(os.Lchown(in("sub/symlink"), 5, 6))
	must(unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mkfifo(in("fifo"), 0o600))
	must(unix.Setxattr(in("file"), "user.test", []byte("value"), 0))
	must(unix.Setxattr(in("sub"), "trusted.test", []byte{0, 1, 2}, 0))
	sparse, err := os.Create(in("sparse"))
	must(err)
	_, err = sparse.WriteAt(bytes.Repeat([]byte("data"), 1024), 8<<20)
	must(err)
	must(sparse.Truncate(16 << 20))
	must(sparse.Close())
	must(os.Chmod(in("sub/deep"), 0o700|fs.ModeSticky))
	must(os.Chtimes(in("file"), old, old))
	must(os.Chtimes(in("sub/deep"), old, old))
	must(os.Chtimes(in("sub"), old, old))
	must(os.Chown(dir, 33, 34))
	must(os.Chmod(dir, 0o710|fs.ModeSetgid))
	must(os.Chtimes(dir, old, old))
}

// describe returns everything about a tree that a copy must keep, one line a file.
func describe(t *testing.T, dir string) []string {
	t.Helper()
	inodes := map[uint64]string{}
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		line := fmt.Sprintf("%s %o %d:%d rdev %d mtime %d.%d", name, st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		if !d.IsDir() {
			line += fmt.Sprintf(" nlink %d", st.Nlink)
		}
		if first, ok := inodes[st.Ino]; ok {
			line += " = " + first
		}
		inodes[st.Ino] = name
		switch {
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size %d data %q holes %v", len(data), strings.Trim(string(data), "\x00"), st.Blocks*512 < st.Size)
		}
		for _, attr := range []string{"user.test", "trusted.test"} {
			buf := make([]byte, 64)
			if n, err := unix.Lgetxattr(path, attr, buf); err == nil {
				line += fmt.Sprintf(" %s=%q", attr, buf[:n])
			}
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// newOtherMount returns a directory on a file system of its own.
func newOtherMount(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestCopyUp(t *testing.T) {
	h := newHost(t)
	h.open()
	image := filepath.Join(h.root, "image")
	makeImage(t, image)
	for name, options := range map[string]map[string]string{
		"directory": nil,
		"mounted":   {"type": "none", "o": "bind", "device": newOtherMount(t)},
	} {
		t.Run(name, func(t *testing.T) {
			v := h.create(volumes.CreateRequest{Name: name, Options: options})
			t.Cleanup(func() { _ = unix.Unmount(v.Mountpoint, unix.MNT_DETACH) }) // if the test failed half way
			if err := h.store.CopyUp(t.Context(), name, image, nil); err != nil {
				t.Fatal(err)
			}
			path, err := h.store.Mount(t.Context(), name, "m")
			if err != nil {
				t.Fatal(err)
			}
			defer h.store.Unmount(t.Context(), name, "m")
			want, got := describe(t, image), describe(t, path)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			// What is there is not touched again.
			if err := os.Remove(filepath.Join(path, "file")); err != nil {
				t.Fatal(err)
			}
			if err := h.store.CopyUp(t.Context(), name, image, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(filepath.Join(path, "file")); !errors.Is(err, fs.ErrNotExist) {
				t.Error("copied twice")
			}
		})
	}
}

func TestCopyUpOfNothing(t *testing.T) {
	h := newHost(t)
	h.open()
	ctx := t.Context()
	v := h.create(volumes.CreateRequest{Name: "vol"})
	if err := h.store.CopyUp(ctx, "vol", filepath.Join(h.root, "nope"), nil); err != nil {
		t.Error("a path that the image does not have:", err)
	}
	file := filepath.Join(h.root, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, h.store.CopyUp(ctx, "vol", file, nil), "source "+file+" is not directory", nil)
	dir := filepath.Join(h.root, "dir")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, 70, 71), os.Chmod(dir, 0o1777|fs.ModeSticky)); err != nil {
		t.Fatal(err)
	}
	if err := h.store.CopyUp(ctx, "vol", dir, nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(describe(t, dir), describe(t, v.Mountpoint)); diff != "" {
		t.Error(diff)
	}
	err := h.store.CopyUp(ctx, "nope", dir, nil)
	wantError(t, err, "get nope: no such volume", nil)
}

func TestCopyUpAtOnce(t *testing.T) {
	h := newHost(t)
	h.open()
	v := h.create(volumes.CreateRequest{Name: "vol"})
	var images []string
	for i := range 4 {
		dir := filepath.Join(h.root, fmt.Sprint("image", i))
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		images = append(images, dir)
	}
	var wg sync.WaitGroup
	for _, image := range images {
		wg.Go(func() {
			if err := h.store.CopyUp(t.Context(), "vol", image, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	entries, err := os.ReadDir(v.Mountpoint)
	if err != nil || len(entries) != 1 || !slices.Contains([]string{"file0", "file1", "file2", "file3"}, entries[0].Name()) {
		t.Errorf("%v, %v", entries, err)
	}
}

// mountOverlay mounts an overlay of the layers, topmost first, below dir, and returns where.
func mountOverlay(t testing.TB, dir string, layers ...string) string {
	t.Helper()
	merged, upper, work := filepath.Join(dir, "merged"), filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{merged, upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := "lowerdir=" + strings.Join(layers, ":") + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return merged
}

// newXFS returns a directory on an xfs of its own, which can share blocks.
func newXFS(t *testing.T) string {
	t.Helper()
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 512<<20)); err != nil {
		t.Fatal(err)
	}
	run("mkfs.xfs", "-q", "-m", "reflink=1", image)
	run("mount", "-o", "loop", image, dir)
	t.Cleanup(func() { run("umount", dir) })
	return dir
}

// sharesBlocks reports whether all blocks of a file are also another file's.
func sharesBlocks(t *testing.T, path string) bool {
	t.Helper()
	const getMap, maxExtents, shared = 0xc020660b, 16, 0x2000 // FS_IOC_FIEMAP and FIEMAP_EXTENT_SHARED in linux/fiemap.h
	type extent struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
	var m struct {
		start, length                      uint64
		flags, mapped, extentCount, unused uint32
		extents                            [maxExtents]extent
	}
	m.length, m.extentCount = 1<<63, maxExtents
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getMap, uintptr(unsafe.Pointer(&m))); errno != 0 {
		t.Fatal(errno)
	}
	for _, e := range m.extents[:m.mapped] {
		if e.flags&shared == 0 {
			return false
		}
	}
	return m.mapped > 0
}

func TestCopyUpSharesBlocks(t *testing.T) {
	h := newHost(t)
	h.root = newXFS(t)
	h.open()
	t.Cleanup(func() { h.store.Close() }) // before its file system goes; a second Close does nothing
	in := func(elems ...string) string { return filepath.Join(append([]string{h.root}, elems...)...) }
	write := func(path, content string) {
		t.Helper()
		data := bytes.Repeat([]byte(content), 64<<10)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	write(in("low", "dir", "low"), "l")
	write(in("low", "dir", "hidden"), "l")
	write(in("low", "dir", "changed"), "l")
	write(in("low", "dir", "sub", "deep"), "l")
	write(in("low", "dir", "replaced", "low"), "l")
	write(in("top", "dir", "top"), "t")
	write(in("top", "dir", "hidden"), "t")
	write(in("top", "dir", "replaced", "top"), "t")
	if err := unix.Setxattr(in("top", "dir", "replaced"), "trusted.overlay.opaque", []byte("y"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(in("low", "dir", "low"), in("low", "dir", "sub", "link")); err != nil {
		t.Fatal(err)
	}
	merged := mountOverlay(t, h.root, in("top"), in("low"))
	write(filepath.Join(merged, "dir", "changed"), "c")
	layers := []string{in("upper", "dir"), in("top", "dir"), in("low", "dir")}
	cloned := map[string]bool{"low": true, "hidden": true, "top": true, "sub/deep": true, "sub/link": true, "replaced/top": true}
	for _, test := range []struct {
		volume, source string
		layers         []string
		shared         map[string]bool
	}{
		{volume: "overlay", source: filepath.Join(merged, "dir"), layers: layers, shared: cloned},
		{volume: "unknown", source: filepath.Join(merged, "dir")},
		{volume: "wrong", source: filepath.Join(merged, "dir"), layers: []string{in("low", "dir", "sub"), in("nowhere")}},
		{volume: "plain", source: in("low", "dir"), shared: map[string]bool{"low": true, "hidden": true, "changed": true,
			"sub/deep": true, "sub/link": true, "replaced/low": true}},
	} {
		t.Run(test.volume, func(t *testing.T) {
			v := h.create(volumes.CreateRequest{Name: test.volume})
			if err := h.store.CopyUp(t.Context(), test.volume, test.source, test.layers); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(describe(t, test.source), describe(t, v.Mountpoint)); diff != "" {
				t.Error(diff)
			}
			for _, name := range []string{"low", "hidden", "top", "changed", "sub/deep", "sub/link", "replaced/top", "replaced/low"} {
				path := filepath.Join(v.Mountpoint, name)
				if _, err := os.Lstat(path); err != nil {
					continue // describe has compared the names
				}
				if got := sharesBlocks(t, path); got != test.shared[name] {
					t.Errorf("%s shares its blocks: %v, want %v", name, got, test.shared[name])
				}
			}
		})
	}
}
