package archive_test

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver/archive"
)

const opaqueXattr = "trusted.overlay.opaque"

var overlay = archive.Options{Whiteouts: archive.WhiteoutsOverlay, OpaqueXattr: opaqueXattr}

func makeTar(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = h.Linkname
			h.Linkname, h.Size = "", int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Linkname: body}
}
func symlink(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}
}
func hardlink(name, target string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}
}

// apply unpacks data below dir while it is recorded, and checks that what was recorded gives the same bytes again.
func apply(t testing.TB, dir string, data []byte, opt archive.Options) error {
	t.Helper()
	var record bytes.Buffer
	r := archive.NewReader(bytes.NewReader(data), &record)
	defer r.Close()
	if _, err := archive.Apply(t.Context(), dir, r, opt); err != nil {
		return err
	}
	dgst, n, err := r.Finish()
	if err != nil {
		return err
	}
	if dgst != digest.FromBytes(data) || n != int64(len(data)) {
		t.Errorf("digest %s of %d bytes, want %s of %d", dgst, n, digest.FromBytes(data), len(data))
	}
	if got, err := assemble(&record, dir); err != nil || !bytes.Equal(got, data) {
		t.Errorf("put together again: %d bytes, want %d; %v", len(got), len(data), err)
	}
	return nil
}

func assemble(record io.Reader, dir string) ([]byte, error) {
	out, err := archive.Assemble(record, dir)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	return io.ReadAll(out)
}

// Whatever a tar holds, nothing outside the directory is made, changed or read.
func TestContainment(t *testing.T) {
	for name, headers := range map[string][]tar.Header{
		"absolute name":                  {file("/canary/new", "x"), file("/etc/new", "x")},
		"dots":                           {file("../canary/new", "x"), file("a/../../../canary/new", "x")},
		"symlink, then file":             {symlink("out", "../canary"), file("out/new", "x")},
		"absolute symlink, then file":    {symlink("out", "CANARY"), file("out/new", "x")},
		"file over symlink":              {symlink("new", "CANARY/file"), file("new", "x")},
		"symlink chain":                  {symlink("a", ".."), symlink("b", "a/../canary"), file("b/new", "x")},
		"directory over symlink":         {symlink("out", "CANARY"), {Name: "out/", Typeflag: tar.TypeDir, Mode: 0o777}, file("out/new", "x")},
		"hard link to outside":           {hardlink("in", "../canary/file")},
		"hard link, absolute":            {hardlink("in", "CANARY/file")},
		"hard link through symlink":      {symlink("out", "CANARY"), hardlink("in", "out/file")},
		"hard link to symlink, written":  {symlink("out", "CANARY/file"), hardlink("in", "out"), file("in", "x")},
		"whiteout outside":               {file("../canary/.wh.file", "")},
		"whiteout through symlink":       {symlink("out", "CANARY"), file("out/.wh.file", "")},
		"opaque through symlink":         {symlink("out", "CANARY"), file("out/.wh..wh..opq", "")},
		"whiteout of dots":               {file(".wh...", "")},
		"whiteout of dot":                {file("sub/.wh..", "")},
		"root replaced by symlink":       {symlink(".", "CANARY")},
		"fifo at symlink":                {symlink("out", "CANARY"), {Name: "out/new", Typeflag: tar.TypeFifo}},
		"device at symlink":              {symlink("out", "CANARY"), {Name: "out/new", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"directory time through symlink": {{Name: "d/", Typeflag: tar.TypeDir, ModTime: time.Unix(1, 0)}, symlink("d", "CANARY")},
		"mode through symlink":           {{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "CANARY/file", Mode: 0o7777, Uid: 7}},
		"overlay marks":                  {{Name: "d/", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc"}}},
	} {
		for kind, opt := range map[string]archive.Options{"overlay": overlay, "remove": {}} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				top := t.TempDir()
				canary, dir := filepath.Join(top, "canary"), filepath.Join(top, "layer")
				for _, d := range []string{canary, dir} {
					if err := os.Mkdir(d, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				if err := os.WriteFile(filepath.Join(canary, "file"), []byte("precious"), 0o600); err != nil {
					t.Fatal(err)
				}
				before := fingerprint(t, canary)
				hs := make([]tar.Header, len(headers))
				for i, h := range headers {
					h.Linkname = strings.ReplaceAll(h.Linkname, "CANARY", canary)
					hs[i] = h
				}
				data := makeTar(t, hs...)
				r := archive.NewReader(bytes.NewReader(data), nil)
				_, err := archive.Apply(t.Context(), dir, r, opt)
				r.Close()
				t.Logf("apply: %v", err)
				if after := fingerprint(t, canary); after != before {
					t.Errorf("outside was\n%s\nand is\n%s", before, after)
				}
				if got := len(ls(t, top)); got != 2 {
					t.Errorf("made beside the layer: %v", ls(t, top))
				}
				if _, err := os.Lstat("/etc/new"); err == nil {
					t.Error("/etc/new exists")
				}
				for _, redirect := range []string{dir + "/d"} {
					var buf [64]byte
					if n, err := unix.Lgetxattr(redirect, "trusted.overlay.redirect", buf[:]); err == nil {
						t.Errorf("the tar has set a redirect: %q", buf[:n])
					}
				}
			})
		}
	}
}

func ls(t testing.TB, dir string) []os.DirEntry {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// fingerprint describes a tree: modes, owners, link counts, times and contents.
func fingerprint(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		body := ""
		if e.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			body = string(data)
		}
		b.WriteString(strings.Join([]string{path, e.Type().String(), digest.FromString(body).Encoded()[:8]}, " "))
		b.WriteString(time.Unix(st.Mtim.Unix()).String())
		b.WriteString(string(rune('0'+st.Nlink)) + " " + string(rune('0'+st.Uid)) + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A path through a symbolic link of the same layer ends where a process in the container would find it.
func TestSymlinkInside(t *testing.T) {
	dir := t.TempDir()
	data := makeTar(t, tar.Header{Name: "usr/lib/", Typeflag: tar.TypeDir}, symlink("lib", "/usr/lib"), file("lib/libc", "c"), hardlink("lib/libc2", "lib/libc"))
	if err := apply(t, dir, data, overlay); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/lib/libc", "usr/lib/libc2"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != "c" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestWhiteouts(t *testing.T) {
	dir := t.TempDir()
	data := makeTar(t, file("d/.wh.gone", ""), file("d/.wh..wh..opq", ""), file("d/.wh..wh.plnk", "ignored"), file("kept", "k"), file(".wh.kept", ""))
	if err := apply(t, dir, data, overlay); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "d/gone"), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		t.Errorf("whiteout: %o %d %v", st.Mode, st.Rdev, err)
	}
	var buf [8]byte
	if n, err := unix.Lgetxattr(filepath.Join(dir, "d"), opaqueXattr, buf[:]); err != nil || string(buf[:n]) != "y" {
		t.Errorf("opaque mark: %q, %v", buf[:max(n, 0)], err)
	}
	if len(ls(t, filepath.Join(dir, "d"))) != 1 {
		t.Errorf("d holds %v", ls(t, filepath.Join(dir, "d")))
	}

	below := t.TempDir()
	for _, d := range []string{"d/sub", "e"} {
		if err := os.MkdirAll(filepath.Join(below, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"d/old", "d/sub/old", "e/gone", "e/stays"} {
		if err := os.WriteFile(filepath.Join(below, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data = makeTar(t, file("d/new", "n"), file("d/.wh..wh..opq", ""), file("e/.wh.gone", ""))
	if err := apply(t, below, data, archive.Options{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"d/new": true, "d/old": false, "d/sub": false, "e/gone": false, "e/stays": true} {
		if _, err := os.Lstat(filepath.Join(below, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Bytes that follow the end mark, odd padding and old formats come back as they were.
func TestSameBytes(t *testing.T) {
	plain := makeTar(t, file("a", strings.Repeat("a", 300_000)), file("b", ""), file("long/"+strings.Repeat("n", 200), "x"))
	for name, data := range map[string][]byte{
		"trailing zeros":   append(bytes.Clone(plain), make([]byte, 1<<20)...),
		"trailing garbage": append(bytes.Clone(plain), []byte("what is this")...),
		"no end mark":      plain[:len(plain)-1024],
		"empty":            {},
		"only end mark":    make([]byte, 1024),
	} {
		t.Run(name, func(t *testing.T) {
			if err := apply(t, t.TempDir(), data, overlay); err != nil {
				t.Error(err)
			}
		})
	}
}

// Holes are kept, and do not change the bytes.
func TestHoles(t *testing.T) {
	dir := t.TempDir()
	body := make([]byte, 4<<20)
	copy(body[1<<20:], "data")
	if err := apply(t, dir, makeTar(t, file("f", string(body))), overlay); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "f"), &st); err != nil || st.Size != int64(len(body)) || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d in %d blocks, %v", st.Size, st.Blocks, err)
	}
}

// Attributes that a file system does not take are counted where that is asked for, and else an error.
func TestRefusedXattrs(t *testing.T) {
	h := file("f", "data")
	h.Format = tar.FormatPAX
	h.PAXRecords = map[string]string{
		"SCHILY.xattr.user.huge":    strings.Repeat("x", 65<<10), // larger than the kernel takes
		"SCHILY.xattr.unknown.name": "x",
		"SCHILY.xattr.user.fine":    "x",
	}
	data := makeTar(t, h)
	read := func(opt archive.Options) (archive.Applied, error) {
		r := archive.NewReader(bytes.NewReader(data), nil)
		defer r.Close()
		return archive.Apply(t.Context(), t.TempDir(), r, opt)
	}
	tolerant := overlay
	tolerant.BestEffortXattrs = true
	if applied, err := read(tolerant); err != nil || applied.Refused != 2 {
		t.Errorf("%d were refused, %v; want 2", applied.Refused, err)
	}
	if _, err := read(overlay); err == nil {
		t.Error("they were taken")
	}
}

// Everything that a file has goes through a tar and comes out the same.
func TestRoundTrip(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	at := func(name string) string { return filepath.Join(src, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(at("d"), 0o700))
	must(os.WriteFile(at("d/suid"), []byte("#!"), 0o755))
	must(os.Chown(at("d/suid"), 12, 34))
	must(unix.Chmod(at("d/suid"), 0o6755))
	capability := []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	must(os.WriteFile(at("capable"), nil, 0o755))
	must(unix.Setxattr(at("capable"), "security.capability", capability, 0))
	must(unix.Setxattr(at("capable"), "user.note", []byte("n\x00n"), 0))
	must(os.Link(at("d/suid"), at("linked")))
	must(os.Symlink("no/where", at("symlink")))
	must(unix.Mkfifo(at("fifo"), 0o640))
	must(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(at("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 0))))
	must(unix.Mknod(at("removed"), unix.S_IFCHR, 0))
	must(os.Mkdir(at("opaque"), 0o755))
	must(unix.Setxattr(at("opaque"), opaqueXattr, []byte("y"), 0))
	stamp := time.Unix(1234567890, 123456789)
	must(os.Chtimes(at("d/suid"), stamp, stamp))
	must(os.Chtimes(at("d"), stamp, stamp))

	packed, err := archive.PackTree(t.Context(), src, archive.PackOptions{Overlay: true, OpaqueXattr: opaqueXattr})
	must(err)
	data, err := io.ReadAll(packed)
	must(err)
	must(packed.Close())
	must(apply(t, dst, data, overlay))
	if got, want := strings.ReplaceAll(fingerprint(t, filepath.Join(dst, "d")), dst, src), fingerprint(t, at("d")); got != want {
		t.Errorf("d is\n%swant\n%s", got, want)
	}
	for _, e := range ls(t, src) {
		var a, b unix.Stat_t
		must(unix.Lstat(at(e.Name()), &a))
		if err := unix.Lstat(filepath.Join(dst, e.Name()), &b); err != nil {
			t.Error(err)
			continue
		}
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev || a.Nlink != b.Nlink || a.Size != b.Size && a.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("%s: %+v, want %+v", e.Name(), b, a)
		}
		for _, key := range []string{"security.capability", "user.note", opaqueXattr} {
			var x, y [64]byte
			n, _ := unix.Lgetxattr(at(e.Name()), key, x[:])
			m, _ := unix.Lgetxattr(filepath.Join(dst, e.Name()), key, y[:])
			if !bytes.Equal(x[:max(n, 0)], y[:max(m, 0)]) {
				t.Errorf("%s: %s is %q, want %q", e.Name(), key, y[:max(m, 0)], x[:max(n, 0)])
			}
		}
	}
}

// A tree that changes while it is packed never leads outside.
func TestPackFollowsNothing(t *testing.T) {
	top := t.TempDir()
	secret := filepath.Join(top, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top, "layer")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(top, filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	packed, err := archive.PackPaths(t.Context(), dir, []string{"/out/secret", "/../secret", "/out"}, nil, archive.PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	data, err := io.ReadAll(packed)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("secret\x00")) && bytes.Count(data, []byte("secret")) > 0 {
		t.Error("the secret was packed")
	}
}

func FuzzApply(f *testing.F) {
	f.Add(makeTar(f, file("a", "body"), symlink("s", "../x"), hardlink("h", "a"), file("s/y", "z")))
	f.Add(makeTar(f, file("d/.wh.gone", ""), file("d/.wh..wh..opq", "")))
	f.Add([]byte("no tar at all"))
	f.Fuzz(func(t *testing.T, data []byte) {
		top := t.TempDir()
		canary := filepath.Join(top, "canary")
		dir := filepath.Join(top, "layer")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(canary, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		before := fingerprint(t, canary)
		var record bytes.Buffer
		r := archive.NewReader(bytes.NewReader(data), &record)
		defer r.Close()
		_, err := archive.Apply(t.Context(), dir, r, archive.Options{Whiteouts: archive.WhiteoutsOverlay, OpaqueXattr: opaqueXattr, SkipDevices: true, BestEffortXattrs: true})
		if fingerprint(t, canary) != before || len(ls(t, top)) != 2 {
			t.Error("something outside has changed")
		}
		if err != nil {
			return
		}
		dgst, _, err := r.Finish()
		if err != nil {
			return
		}
		if dgst != digest.FromBytes(data) {
			t.Errorf("digest %s", dgst)
		}
		// Where nothing was written twice, the same bytes come back; else reading them must fail, not lie.
		if got, err := assemble(&record, dir); err == nil && !bytes.Equal(got, data) {
			t.Errorf("put together again: other bytes")
		}
	})
}
