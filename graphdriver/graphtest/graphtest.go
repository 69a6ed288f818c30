// Package graphtest is the suite that every storage driver passes. It states the contract of graphdriver.Driver as
// tests, through the driver's public face only.
package graphtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/archive"
	"stated.dev/stated/internal/ids"
)

// Run runs the suite. open returns a driver with an empty home directory; it is asked once for each test.
func Run(t *testing.T, open func(t *testing.T) graphdriver.Driver) {
	for _, c := range []struct {
		name string
		test func(s *suite)
	}{
		{"Empty", (*suite).empty},
		{"Snapshot", (*suite).snapshot},
		{"Refusals", (*suite).refusals},
		{"Remove", (*suite).remove},
		{"Mounts", (*suite).mounts},
		{"Deep", (*suite).deep},
		{"Changes", (*suite).changes},
		{"ReplacedDirectory", (*suite).replacedDirectory},
		{"DiffAndApply", (*suite).diffAndApply},
		{"ManyFiles", (*suite).manyFiles},
		{"Seeds", (*suite).seeds},
		{"Optional", (*suite).optional},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := open(t)
			t.Cleanup(func() {
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			})
			c.test(&suite{T: t, Driver: d})
		})
	}
}

type suite struct {
	*testing.T
	graphdriver.Driver
}

// Name settles which of the two embedded names is meant.
func (s *suite) String() string { return s.Driver.String() }

func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// layer makes a layer on parent that work has written to, and returns its id.
func (s *suite) layer(parent string, work func(dir string)) string {
	s.Helper()
	id := ids.New()
	s.must(s.CreateReadWrite(s.Context(), id, parent, graphdriver.CreateOptions{}))
	s.in(id, work)
	return id
}

// in lets work see a layer mounted.
func (s *suite) in(id string, work func(dir string)) {
	s.Helper()
	dir, err := s.Get(s.Context(), id, "")
	s.must(err)
	defer func() { s.must(s.Put(s.Context(), id)) }()
	work(dir)
}

func (s *suite) write(text string, elems ...string) {
	s.Helper()
	s.must(os.WriteFile(filepath.Join(elems...), []byte(text), 0o644))
}

func (s *suite) read(elems ...string) string {
	s.Helper()
	b, err := os.ReadFile(filepath.Join(elems...))
	s.must(err)
	return string(b)
}

func (s *suite) gone(elems ...string) {
	s.Helper()
	if _, err := os.Lstat(filepath.Join(elems...)); !errors.Is(err, fs.ErrNotExist) {
		s.Errorf("%s is there, or: %v", filepath.Join(elems...), err)
	}
}

// base is a layer with a few files.
func (s *suite) base() string {
	return s.layer("", func(dir string) {
		for _, d := range []string{"bin", "etc", "etc/conf.d", "var"} {
			s.must(os.Mkdir(filepath.Join(dir, d), 0o755))
		}
		s.write("sh", dir, "bin/sh")
		s.write("root", dir, "etc/passwd")
		s.write("a", dir, "etc/conf.d/a")
		s.write("b", dir, "etc/conf.d/b")
	})
}

func (s *suite) empty() {
	id := ids.New()
	if s.Exists(id) {
		s.Error("a layer exists before it was made")
	}
	s.must(s.Create(s.Context(), id, "", graphdriver.CreateOptions{}))
	if !s.Exists(id) {
		s.Error("the layer does not exist")
	}
	s.in(id, func(dir string) {
		entries, err := os.ReadDir(dir)
		s.must(err)
		if len(entries) > 0 {
			s.Errorf("an empty layer holds %v", entries)
		}
		var st unix.Stat_t
		s.must(unix.Stat(dir, &st))
		if st.Mode&0o7777 != 0o755 || st.Uid != 0 || st.Gid != 0 {
			s.Errorf("its root has mode %o and owner %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
		}
	})
	if _, err := s.Metadata(id); err != nil {
		s.Error(err)
	}
}

func (s *suite) snapshot() {
	base := s.base()
	one := s.layer(base, func(dir string) {
		s.write("one", dir, "etc/passwd")
		s.must(os.Remove(filepath.Join(dir, "bin/sh")))
	})
	two := s.layer(base, func(dir string) { s.write("two", dir, "new") })
	onOne := s.layer(one, func(string) {})
	s.in(base, func(dir string) {
		if got := s.read(dir, "etc/passwd"); got != "root" {
			s.Errorf("a child changed its parent: %q", got)
		}
		s.read(dir, "bin/sh")
		s.gone(dir, "new")
	})
	s.in(two, func(dir string) {
		if s.read(dir, "etc/passwd") != "root" || s.read(dir, "new") != "two" {
			s.Error("the second child does not show its parent's file and its own")
		}
	})
	s.in(onOne, func(dir string) {
		if got := s.read(dir, "etc/passwd"); got != "one" {
			s.Errorf("a grandchild shows %q", got)
		}
		s.gone(dir, "bin/sh")
	})
}

func (s *suite) refusals() {
	ctx := s.Context()
	missing := ids.New()
	for what, err := range map[string]error{
		"Create on nothing":          s.Create(ctx, ids.New(), missing, graphdriver.CreateOptions{}),
		"CreateReadWrite on nothing": s.CreateReadWrite(ctx, ids.New(), missing, graphdriver.CreateOptions{}),
		"Get":                        func() error { _, err := s.Get(ctx, missing, ""); return err }(),
		"Metadata":                   func() error { _, err := s.Metadata(missing); return err }(),
		"Diff":                       func() error { _, err := s.Diff(ctx, missing, ""); return err }(),
		"DiffDir":                    func() error { _, _, err := s.DiffDir(ctx, missing); return err }(),
	} {
		if !errdefs.IsNotFound(err) {
			s.Errorf("%s of a layer that is not there: %v", what, err)
		}
	}
	size := graphdriver.CreateOptions{StorageOpt: map[string]string{"size": "1G"}}
	if err := s.Create(ctx, ids.New(), "", size); err == nil || err.Error() != "--storage-opt size is only supported for ReadWrite Layers" {
		s.Errorf("a size for a read-only layer: %v", err)
	}
	if err := s.CreateReadWrite(ctx, ids.New(), "", graphdriver.CreateOptions{StorageOpt: map[string]string{"nonsense": "1"}}); !errdefs.IsInvalidArgument(err) {
		s.Errorf("an unknown storage option: %v", err)
	}
	id := s.base()
	if err := s.Create(ctx, id, "", graphdriver.CreateOptions{}); !errdefs.IsAlreadyExists(err) {
		s.Errorf("a second layer of the same id: %v", err)
	}
	s.in(id, func(dir string) { s.read(dir, "bin/sh") }) // the first one has stayed
	for _, bad := range []string{"", ".", "..", "../x", "a/b"} {
		if err := s.Create(ctx, bad, "", graphdriver.CreateOptions{}); !errdefs.IsInvalidArgument(err) {
			s.Errorf("layer id %q: %v", bad, err)
		}
	}
}

func (s *suite) remove() {
	base := s.base()
	top := s.layer(base, func(dir string) { s.write("x", dir, "x") })
	s.must(s.Remove(s.Context(), top))
	if s.Exists(top) {
		s.Error("the layer exists after its removal")
	}
	s.must(s.Remove(s.Context(), top))
	s.must(s.Create(s.Context(), top, base, graphdriver.CreateOptions{}))
	s.in(top, func(dir string) { s.gone(dir, "x") })
}

func (s *suite) mounts() {
	id := s.layer(s.base(), func(string) {})
	first, err := s.Get(s.Context(), id, "")
	s.must(err)
	second, err := s.Get(s.Context(), id, "")
	s.must(err)
	if first != second {
		s.Errorf("got %s and %s", first, second)
	}
	s.must(s.Put(s.Context(), id))
	s.read(second, "bin/sh")
	s.must(s.Put(s.Context(), id))
	s.must(s.Put(s.Context(), id)) // one too many
	if dir, mounted := s.Mounted(id); mounted {
		s.Errorf("still mounted at %s", dir)
	}
	s.in(id, func(dir string) { s.read(dir, "bin/sh") })
}

func (s *suite) deep() {
	const layers = 100
	id := s.base()
	for i := range layers {
		id = s.layer(id, func(dir string) {
			s.write(fmt.Sprint(i), dir, fmt.Sprint("f", i))
			s.write(fmt.Sprint(i), dir, "last")
		})
	}
	s.in(id, func(dir string) {
		s.read(dir, "f0")
		if got := s.read(dir, "last"); got != fmt.Sprint(layers-1) {
			s.Errorf("the uppermost file is of layer %s", got)
		}
	})
}

func (s *suite) wantChanges(id, parent string, want ...graphdriver.Change) {
	s.Helper()
	got, err := s.Changes(s.Context(), id, parent)
	s.must(err)
	if !slices.Equal(got, want) {
		s.Errorf("changes %v, want %v", got, want)
	}
}

func (s *suite) changes() {
	base := s.base()
	s.wantChanges(s.layer(base, func(string) {}), base)
	top := s.layer(base, func(dir string) {
		s.write("changed", dir, "etc/passwd")
		s.must(os.Remove(filepath.Join(dir, "bin/sh")))
		s.must(os.MkdirAll(filepath.Join(dir, "var/lib/x"), 0o755))
		s.must(os.Chmod(filepath.Join(dir, "etc/conf.d"), 0o700))
	})
	s.wantChanges(top, base,
		graphdriver.Change{Path: "/bin", Kind: graphdriver.Modified},
		graphdriver.Change{Path: "/bin/sh", Kind: graphdriver.Deleted},
		graphdriver.Change{Path: "/etc", Kind: graphdriver.Modified},
		graphdriver.Change{Path: "/etc/conf.d", Kind: graphdriver.Modified},
		graphdriver.Change{Path: "/etc/passwd", Kind: graphdriver.Modified},
		graphdriver.Change{Path: "/var", Kind: graphdriver.Modified},
		graphdriver.Change{Path: "/var/lib", Kind: graphdriver.Added},
		graphdriver.Change{Path: "/var/lib/x", Kind: graphdriver.Added},
	)
	size, err := s.DiffSize(s.Context(), top, base)
	s.must(err)
	if size != int64(len("changed")) {
		s.Errorf("size of the changes: %d", size)
	}
}

// A directory that was removed and made again hides what it held, through a diff too.
func (s *suite) replacedDirectory() {
	base := s.base()
	top := s.layer(base, func(dir string) {
		s.must(os.RemoveAll(filepath.Join(dir, "etc")))
		s.must(os.MkdirAll(filepath.Join(dir, "etc/conf.d"), 0o755))
		s.write("c", dir, "etc/conf.d/c")
	})
	got, err := s.Changes(s.Context(), top, base)
	s.must(err)
	for _, want := range []graphdriver.Change{
		{Path: "/etc/conf.d/a", Kind: graphdriver.Deleted}, {Path: "/etc/conf.d/c", Kind: graphdriver.Added}, {Path: "/etc/passwd", Kind: graphdriver.Deleted},
	} {
		if !slices.Contains(got, want) {
			s.Errorf("changes %v are without %v", got, want)
		}
	}
	copied := s.applied(s.diff(top, base), base)
	s.in(copied, func(dir string) {
		s.read(dir, "etc/conf.d/c")
		s.gone(dir, "etc/conf.d/a")
		s.gone(dir, "etc/passwd")
	})
}

func (s *suite) diff(id, parent string) []byte {
	s.Helper()
	r, err := s.Diff(s.Context(), id, parent)
	s.must(err)
	b, err := io.ReadAll(r)
	s.must(errors.Join(err, r.Close()))
	return b
}

// applied unpacks a tar into a new layer on parent.
func (s *suite) applied(tar []byte, parent string) string {
	s.Helper()
	id := ids.New()
	s.must(s.Create(s.Context(), id, parent, graphdriver.CreateOptions{}))
	r := archive.NewReader(bytes.NewReader(tar), nil)
	defer r.Close()
	_, err := s.ApplyDiff(s.Context(), id, parent, r)
	s.must(err)
	_, _, err = r.Finish()
	s.must(err)
	s.must(s.Sync(s.Context()))
	return id
}

func (s *suite) diffAndApply() {
	base := s.base()
	stamp := time.Unix(1234567890, 987654321)
	top := s.layer(base, func(dir string) {
		at := func(name string) string { return filepath.Join(dir, name) }
		s.write("plain", dir, "plain")
		s.must(os.Chown(at("plain"), 1000, 1001))
		s.must(unix.Chmod(at("plain"), 0o6750))
		s.must(os.Link(at("plain"), at("etc/linked")))
		s.must(os.Symlink("../up", at("symlink")))
		s.must(unix.Mkfifo(at("fifo"), 0o600))
		s.must(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		s.must(os.Mkdir(at("sticky"), 0o755))
		s.must(unix.Chmod(at("sticky"), 0o1777))
		s.must(os.WriteFile(at("capable"), []byte("c"), 0o755))
		s.must(unix.Setxattr(at("capable"), "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
		s.must(os.Truncate(at("capable"), 1))
		s.must(os.RemoveAll(at("etc/conf.d")))
		s.must(os.Chtimes(at("plain"), stamp, stamp))
	})
	tar := s.diff(top, base)
	if again := s.diff(top, base); !bytes.Equal(again, tar) && s.Driver.String() != "vfs" {
		s.Error("two diffs of the same layer differ")
	}
	copied := s.applied(tar, base)
	s.wantSame(top, copied)
	s.wantSame(top, s.applied(s.diff(top, ""), "")) // everything at once
}

// wantSame compares what two layers show.
func (s *suite) wantSame(a, b string) {
	s.Helper()
	s.in(a, func(dirA string) {
		s.in(b, func(dirB string) {
			got, want := describe(s.T, dirB), describe(s.T, dirA)
			if got != want {
				s.Errorf("the copy is\n%s\nwant\n%s", got, want)
			}
		})
	})
}

func describe(t *testing.T, dir string) string {
	var b bytes.Buffer
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %o %d:%d %#x", name, st.Mode, st.Uid, st.Gid, st.Rdev)
		switch {
		case e.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if st.Nlink > 1 {
				if inodes[st.Ino] == "" {
					inodes[st.Ino] = name
				}
				fmt.Fprintf(&b, " same as %s", inodes[st.Ino])
			}
			fmt.Fprintf(&b, " %d %q", st.Mtim.Nano(), data)
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", target)
		}
		var buf [256]byte
		if n, err := unix.Lgetxattr(path, "security.capability", buf[:]); err == nil {
			fmt.Fprintf(&b, " capability %x", buf[:n])
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func (s *suite) manyFiles() {
	base := s.base()
	top := s.layer(base, func(dir string) {
		for i := range 2000 {
			if i%100 == 0 {
				s.must(os.Mkdir(filepath.Join(dir, fmt.Sprint("d", i/100)), 0o755))
			}
			s.write(fmt.Sprint(i), dir, fmt.Sprint("d", i/100), fmt.Sprint("f", i))
		}
	})
	s.wantSame(top, s.applied(s.diff(top, base), base))
}

func (s *suite) seeds() {
	seeds := []graphdriver.Seed{
		{Path: ".file", Kind: graphdriver.SeedFile},
		{Path: "etc/passwd", Kind: graphdriver.SeedFile},
		{Path: "etc/link", Kind: graphdriver.SeedSymlink, Target: "/target"},
		{Path: "bin/sub/dir", Kind: graphdriver.SeedDir},
		{Path: "var", Kind: graphdriver.SeedDir},
		{Path: "odd/file", Kind: graphdriver.SeedFile},
		{Path: "masked/dir", Kind: graphdriver.SeedDir},
	}
	lower := s.layer(s.base(), func(dir string) {
		s.must(os.Mkdir(filepath.Join(dir, "masked"), 0o755))
		s.write("", dir, "masked/old")
	})
	image := s.layer(lower, func(dir string) {
		s.must(os.Chmod(filepath.Join(dir, "etc"), 0o711))
		s.must(os.Chown(filepath.Join(dir, "etc"), 5, 6))
		s.must(os.Symlink("/etc", filepath.Join(dir, "odd")))
		s.must(os.RemoveAll(filepath.Join(dir, "masked")))
	})
	id := ids.New()
	s.must(s.CreateSeeded(s.Context(), id, image, seeds, graphdriver.CreateOptions{}))
	top := s.layer(id, func(string) {})
	s.in(top, func(dir string) {
		for _, empty := range []string{".file", "etc/passwd", "odd/file"} {
			if got := s.read(dir, empty); got != "" {
				s.Errorf("%s holds %q", empty, got)
			}
		}
		if target, err := os.Readlink(filepath.Join(dir, "etc/link")); target != "/target" {
			s.Errorf("etc/link: %q, %v", target, err)
		}
		for path, want := range map[string]string{"etc": "drwx--x--x 5:6", "bin": "drwxr-xr-x 0:0", "bin/sub/dir": "drwxr-xr-x 0:0", "odd": "drwxr-xr-x 0:0", ".file": "-rwxr-xr-x 0:0"} {
			fi, err := os.Lstat(filepath.Join(dir, path))
			s.must(err)
			var st unix.Stat_t
			s.must(unix.Lstat(filepath.Join(dir, path), &st))
			if got := fmt.Sprintf("%s %d:%d", fi.Mode(), st.Uid, st.Gid); got != want {
				s.Errorf("%s is %s, want %s", path, got, want)
			}
		}
		s.read(dir, "bin/sh")
		s.read(dir, "etc/conf.d/a")
		s.gone(dir, "masked/old")
	})
	s.in(image, func(dir string) {
		if got := s.read(dir, "etc/passwd"); got != "root" {
			s.Errorf("the image was changed: %q", got)
		}
	})
}

// What a driver can do beyond the contract it does as it says.
func (s *suite) optional() {
	base := s.base()
	top := s.layer(base, func(dir string) { s.write("t", dir, "t") })
	if d, ok := s.Driver.(graphdriver.Lister); ok {
		got, err := d.List()
		s.must(err)
		slices.Sort(got)
		want := []string{base, top}
		slices.Sort(want)
		if !slices.Equal(got, want) {
			s.Errorf("listed %v, want %v", got, want)
		}
	}
	if d, ok := s.Driver.(graphdriver.Discarder); ok {
		_, err := d.Discard(s.Context(), top) // never finished
		s.must(err)
		if s.Exists(top) {
			s.Error("a discarded layer exists")
		}
		s.must(s.CreateReadWrite(s.Context(), top, base, graphdriver.CreateOptions{}))
		finish, err := d.Discard(s.Context(), top)
		s.must(err)
		s.must(finish())
	}
	if d, ok := s.Driver.(graphdriver.Sweeper); ok {
		s.must(d.Sweep(s.Context()))
	}
	if d, ok := s.Driver.(graphdriver.Stacker); ok {
		alone := s.layer("", func(dir string) { s.write("alone", dir, "etc-free") })
		s.must(d.SetParent(s.Context(), alone, base))
		s.in(alone, func(dir string) {
			s.read(dir, "bin/sh")
			s.read(dir, "etc-free")
		})
	}
	if d, ok := s.Driver.(graphdriver.Repairer); ok {
		notes, err := d.Repair(s.Context(), map[string]string{})
		s.must(err)
		if len(notes) > 0 {
			s.Errorf("repairs where nothing was broken: %q", notes)
		}
	}
}
