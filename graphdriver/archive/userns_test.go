package archive_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver/archive"
)

var remapped = user.IdentityMapping{
	UIDMaps: []user.IDMap{{ID: 0, ParentID: 100000, Count: 1000}, {ID: 1000, ParentID: 300000, Count: 1}},
	GIDMaps: []user.IDMap{{ID: 0, ParentID: 200000, Count: 1000}},
}

// Owners are shifted on the way to the disk.
func TestApplyRemapped(t *testing.T) {
	owned := func(name string, uid, gid int) tar.Header {
		e := file(name, name)
		e.Uid, e.Gid = uid, gid
		return e
	}
	dir := t.TempDir()
	opt := overlay
	opt.IDMap = remapped
	if err := apply(t, dir, makeTar(t, owned("root", 0, 0), owned("made/user", 12, 34), owned("last", 1000, 0)), opt); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][2]uint32{"root": {100000, 200000}, "made": {100000, 200000}, "made/user": {100012, 200034}, "last": {300000, 200000}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil || st.Uid != want[0] || st.Gid != want[1] {
			t.Errorf("%s belongs to %d:%d, %v; want %v", name, st.Uid, st.Gid, err, want)
		}
	}
	if err := apply(t, t.TempDir(), makeTar(t, owned("stranger", 1001, 0)), opt); err == nil {
		t.Error("a user who has no id on the host owns a file now")
	}
}

// And back. Whiteouts are the kernel's own and belong to the host's root; other files of strangers are nobody's.
func TestPackRemapped(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	capability := func(revision byte, more ...byte) []byte {
		return append([]byte{1, 0, 0, revision, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, more...)
	}
	if err := errors.Join(
		os.WriteFile(at("root"), nil, 0o644), os.Chown(at("root"), 100000, 200000),
		os.Symlink("x", at("user")), os.Lchown(at("user"), 300000, 200007),
		os.WriteFile(at("stranger"), nil, 0o644), os.Chown(at("stranger"), 0, 200001),
		unix.Mknod(at("removed"), unix.S_IFCHR, 0),
		os.WriteFile(at("capable"), nil, 0o755), os.Chown(at("capable"), 100001, 200001),
		// Revision 3 has the id of the root for whom it counts: 100000.
		unix.Setxattr(at("capable"), "security.capability", capability(3, 0xa0, 0x86, 1, 0), 0),
	); err != nil {
		t.Fatal(err)
	}
	packed, err := archive.PackTree(t.Context(), dir, archive.PackOptions{Overlay: true, OpaqueXattr: opaqueXattr, IDMap: remapped})
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	owners := map[string][2]int{}
	tr := tar.NewReader(packed)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		owners[hdr.Name] = [2]int{hdr.Uid, hdr.Gid}
		if value := hdr.PAXRecords["SCHILY.xattr.security.capability"]; hdr.Name == "capable" && !bytes.Equal([]byte(value), capability(2)) {
			t.Errorf("capabilities %x", value)
		}
	}
	want := map[string][2]int{"root": {0, 0}, "user": {1000, 7}, "stranger": {65534, 1}, ".wh.removed": {0, 0}, "capable": {1, 1}}
	if diff := cmp.Diff(want, owners); diff != "" {
		t.Error(diff)
	}
}
