package stream_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/volumes/stream"
)

var head = stream.Head{Name: "data", Driver: "local", Labels: map[string]string{"a": "b"}}

// written returns the stream of a small tree, and that tree.
func written(t testing.TB) ([]byte, string) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"file": "content", "sub/.wh.kept": "no whiteout", "sub/deep/empty": ""} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if _, err := stream.Write(t.Context(), &out, head, dir); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), dir
}

// extract reads a stream into a new directory beside which nothing must appear.
func extract(t testing.TB, in io.Reader) (string, stream.Tail, error) {
	t.Helper()
	outside := t.TempDir()
	dir := filepath.Join(outside, "in")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := stream.NewReader(in)
	if err != nil {
		return dir, stream.Tail{}, err
	}
	tail, err := r.Extract(t.Context(), dir)
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Fatalf("something appeared outside: %v", entries)
	}
	return dir, tail, err
}

func TestRoundTrip(t *testing.T) {
	data, _ := written(t)
	r, err := stream.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Head(); got.Name != "data" || got.Driver != "local" || got.Labels["a"] != "b" || got.Options != nil {
		t.Errorf("%+v", got)
	}
	dir, tail, err := extract(t, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if tail.Entries != 6 || tail.Bytes != 18 || len(tail.LeftOut) != 0 {
		t.Errorf("%+v", tail)
	}
	for name, want := range map[string]string{"file": "content", "sub/.wh.kept": "no whiteout", "sub/deep/empty": ""} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A stream that was cut anywhere, or in which any byte differs, is refused.
func TestDamage(t *testing.T) {
	data, _ := written(t)
	end := bytes.LastIndex(data, []byte("end.json"))
	for cut := 0; cut < end+512; cut += 128 {
		if _, _, err := extract(t, bytes.NewReader(data[:cut])); !errdefs.IsInvalidArgument(err) {
			t.Fatalf("cut at %d of %d: %v", cut, len(data), err)
		}
	}
	for at := 0; at < end; at += 97 {
		bad := slices.Clone(data)
		bad[at] ^= 1
		if _, _, err := extract(t, bytes.NewReader(bad)); err == nil {
			t.Fatalf("byte %d of %d differs, and nobody noticed", at, len(data))
		}
	}
}

func TestSocketsAreLeftOut(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var out bytes.Buffer
	tail, err := stream.Write(t.Context(), &out, head, dir)
	if err != nil || !slices.Equal(tail.LeftOut, []string{"socket sock"}) || tail.Entries != 1 {
		t.Errorf("%+v, %v", tail, err)
	}
	if _, got, err := extract(t, &out); err != nil || !slices.Equal(got.LeftOut, tail.LeftOut) {
		t.Errorf("%+v, %v", got, err)
	}
}

// Marks of a layer are data in a volume, and so are all attributes.
func TestAttributes(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"trusted.overlay.opaque": "y", "user.x": "a\x00b", "trusted.y": "", "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	for key, value := range want {
		if err := unix.Setxattr(sub, key, []byte(value), 0); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
	}
	var out bytes.Buffer
	if _, err := stream.Write(t.Context(), &out, head, dir); err != nil {
		t.Fatal(err)
	}
	got, _, err := extract(t, &out)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range want {
		buf := make([]byte, 100)
		n, err := unix.Getxattr(filepath.Join(got, "sub"), key, buf)
		if err != nil || string(buf[:n]) != value {
			t.Errorf("%s: %q, %v", key, buf[:max(n, 0)], err)
		}
	}
}

// A file's capabilities may hold for the users of a container alone. They must not come back as the host's.
func TestCapabilitiesOfRemappedUsers(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ping")
	if err := os.WriteFile(file, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	const want = "\x01\x00\x00\x03\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xa0\x86\x01\x00" // of the user namespace whose root is 100000
	if err := unix.Setxattr(file, "security.capability", []byte(want), 0); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := stream.Write(t.Context(), &out, head, dir); err != nil {
		t.Fatal(err)
	}
	got, _, err := extract(t, &out)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := unix.Getxattr(filepath.Join(got, "ping"), "security.capability", buf); err != nil || string(buf[:n]) != want {
		t.Errorf("%q, %v", buf[:max(n, 0)], err)
	}
}

// What is unpacked into a directory with a default ACL does not inherit it, as it had not when it was packed.
func TestDefaultACL(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sub, "secret"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	const (
		key   = "system.posix_acl_default"
		whose = "\xff\xff\xff\xff" // nobody in particular
		acl   = "\x02\x00\x00\x00" +
			"\x01\x00\x07\x00" + whose + "\x02\x00\x07\x00\xe8\x03\x00\x00" + // the owner; the user 1000
			"\x04\x00\x05\x00" + whose + "\x10\x00\x07\x00" + whose + "\x20\x00\x05\x00" + whose // the group; the mask; others
	)
	for _, path := range []string{dir, sub} {
		if err := unix.Setxattr(path, key, []byte(acl), 0); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if _, err := stream.Write(t.Context(), &out, head, dir); err != nil {
		t.Fatal(err)
	}
	got, tail, err := extract(t, &out)
	if err != nil || len(tail.LeftOut) != 0 {
		t.Fatal(tail, err)
	}
	buf := make([]byte, 100)
	for _, path := range []string{got, filepath.Join(got, "sub")} {
		if n, err := unix.Getxattr(path, key, buf); err != nil || string(buf[:n]) != acl {
			t.Errorf("%s has %q, %v", path, buf[:max(n, 0)], err)
		}
	}
	for _, path := range []string{"sub", "sub/secret"} {
		if _, err := unix.Getxattr(filepath.Join(got, path), "system.posix_acl_access", buf); err != unix.ENODATA {
			t.Errorf("%s has an ACL: %v", path, err)
		}
	}
}

// forged makes a stream of any entries, with documents that fit them.
func forged(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	document := func(name string, v any) {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(data)), Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	document("volume.json", stream.Head{Format: stream.Format, Version: stream.Version, Name: "x", Driver: "local"})
	tail := stream.Tail{}
	for _, h := range headers {
		if h.Mode == 0 && h.Typeflag != tar.TypeXGlobalHeader {
			h.Mode = 0o755
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = 4
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, "evil"); err != nil {
				t.Fatal(err)
			}
		}
		tail.Entries++
		tail.Bytes += h.Size
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(out.Bytes())
	tail.SHA256 = hex.EncodeToString(sum[:])
	document("end.json", tail)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestHostile(t *testing.T) {
	root := tar.Header{Name: "data/", Typeflag: tar.TypeDir}
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	link := func(kind byte, name, target string) tar.Header {
		return tar.Header{Name: name, Linkname: target, Typeflag: kind}
	}
	target := t.TempDir()
	if _, _, err := extract(t, bytes.NewReader(forged(t, root, file("data/good"), link(tar.TypeLink, "data/link", "data/good"), link(tar.TypeSymlink, "data/sym", "/etc")))); err != nil {
		t.Fatalf("a harmless stream: %v", err)
	}
	for name, headers := range map[string][]tar.Header{
		"no tree":                  {},
		"no root":                  {file("data/x")},
		"root twice":               {root, root},
		"root is a link":           {link(tar.TypeSymlink, "data", target)},
		"absolute":                 {root, file("/data/x")},
		"above":                    {root, file("data/../x")},
		"above and back":           {root, file("data/../data/x")},
		"dots":                     {root, file("data/./x")},
		"beside the tree":          {root, file("x")},
		"another document":         {root, file("volume.json")},
		"doubled slash":            {root, file("data//x")},
		"below a link":             {root, link(tar.TypeSymlink, "data/out", target), file("data/out/x")},
		"below a link to inside":   {root, {Name: "data/in/", Typeflag: tar.TypeDir}, link(tar.TypeSymlink, "data/l", "in"), file("data/l/x")},
		"instead of a link":        {root, link(tar.TypeSymlink, "data/x", filepath.Join(target, "x")), file("data/x")},
		"twice":                    {root, file("data/x"), file("data/x")},
		"hard link above":          {root, link(tar.TypeLink, "data/x", "data/../../../../../../etc/passwd")},
		"hard link absolute":       {root, link(tar.TypeLink, "data/x", "/etc/passwd")},
		"hard link beside":         {root, link(tar.TypeLink, "data/x", "volume.json")},
		"hard link to nothing":     {root, link(tar.TypeLink, "data/x", "data/y")},
		"hard link through a link": {root, link(tar.TypeSymlink, "data/out", "/etc"), link(tar.TypeLink, "data/x", "data/out/passwd")},
		"no directory":             {root, file("data/a/b")},
		"below a file":             {root, file("data/a"), file("data/a/b")},
		"unknown kind":             {root, {Name: "data/x", Typeflag: 'Z'}},
		"global attributes":        {{Name: "data", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}},
		"long name":                {root, file("data/" + strings.Repeat("x", 300))},
		"long link":                {root, link(tar.TypeSymlink, "data/x", strings.Repeat("x", 5000))},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := extract(t, bytes.NewReader(forged(t, headers...))); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v", err)
			}
		})
	}
	if entries, _ := os.ReadDir(target); len(entries) != 0 {
		t.Errorf("written through a link: %v", entries)
	}
}

func TestForeign(t *testing.T) {
	document := func(text string) []byte {
		var out bytes.Buffer
		w := tar.NewWriter(&out)
		if err := w.WriteHeader(&tar.Header{Name: "volume.json", Typeflag: tar.TypeReg, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"nothing":       {nil, "ends too early"},
		"text":          {[]byte(strings.Repeat("hello\n", 1000)), "header"},
		"another tar":   {forged(t)[1024:], "and not with volume.json"},
		"no JSON":       {document("x"), "cannot be read"},
		"another form":  {document(`{"Format":"image","Version":1}`), `format is "image"`},
		"newer version": {document(fmt.Sprintf(`{"Format":%q,"Version":%d}`, stream.Format, stream.Version+1)), "reads versions up to"},
	} {
		if _, err := stream.NewReader(bytes.NewReader(c.data)); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzRead wants no stream, however forged, to reach out of its directory, or to be taken for a whole one that is none.
// What is mutated is short, a script from which the stream is made: the engine would spend its time on making interesting
// tars shorter, and no checksum would ever be right. Give it -fuzzminimizetime 1s all the same.
func FuzzRead(f *testing.F) {
	for _, script := range []string{
		"5data/\n0data/x\n2data/l\t/etc\n1data/h\tdata/x\n6data/p",
		"5data/\n2data/l\t..\n0data/l/x",
		"5data/\n5data/sub/\n1data/sub/h\tdata/../x\n0data/sub",
		"5data/\n@SCHILY.xattr.user.x=y\n0data/x\n@GNU.sparse.size=99999\n0data/y\n3data/dev",
		"0end.json",
	} {
		f.Add(script, uint16(0), byte(0), uint16(0))
		f.Add(script, uint16(1500), byte(1), uint16(0))
		f.Add(script, uint16(0), byte(0), uint16(2000))
	}
	f.Fuzz(func(t *testing.T, script string, at uint16, flip byte, cut uint16) {
		data := forged(t, scripted(script)...)
		if int(at) < len(data) {
			data[at] ^= flip
		}
		if cut > 0 {
			data = data[:min(int(cut), len(data))]
		}
		dir, tail, err := extract(t, bytes.NewReader(data))
		if err != nil {
			return
		}
		again, err := stream.Write(t.Context(), io.Discard, head, dir)
		if err != nil || again.Entries != tail.Entries || again.Bytes != tail.Bytes || tail.Entries == 0 {
			t.Errorf("of %+v came %+v, %v", tail, again, err)
		}
	})
}

// scripted reads headers from lines: a kind, a name, and after a tab a target. A line that begins with "@"
// has an attribute of the header after it.
func scripted(script string) []tar.Header {
	var list []tar.Header
	var attributes map[string]string
	for line := range strings.SplitSeq(script, "\n") {
		if line == "" {
			continue
		}
		if key, value, ok := strings.Cut(line[1:], "="); ok && line[0] == '@' {
			if attributes == nil {
				attributes = map[string]string{}
			}
			attributes[key] = value
			continue
		}
		name, target, _ := strings.Cut(line[1:], "\t")
		h := tar.Header{Typeflag: line[0], Name: name, Linkname: target, PAXRecords: attributes}
		if probe := h; tar.NewWriter(io.Discard).WriteHeader(&probe) == nil { // tars have a form for it
			list = append(list, h)
		}
		attributes = nil
	}
	return list
}
