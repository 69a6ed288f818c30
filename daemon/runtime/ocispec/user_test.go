package ocispec_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime/ocispec"
)

type userIDMap = user.IDMap

func rootWith(t testing.TB, passwd, group string) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": passwd, "group": group} {
		if text != "" {
			if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestLookupUser(t *testing.T) {
	full, empty := rootWith(t, passwd, group), rootWith(t, "", "")
	for _, tc := range []struct {
		root, spec string
		extra      []string
		uid, gid   uint32
		gids       []uint32
		err        string
	}{
		{full, "", nil, 0, 0, []uint32{0, 10}, ""},
		{full, "root", nil, 0, 0, []uint32{0, 10}, ""},
		{full, "ann", nil, 1000, 1000, []uint32{1000, 10}, ""},
		{full, "1000", nil, 1000, 1000, []uint32{1000, 10}, ""},
		{full, "ann:audio", nil, 1000, 29, []uint32{29}, ""},
		{full, "ann:77", nil, 1000, 77, []uint32{77}, ""},
		{full, "4711", nil, 4711, 0, []uint32{0}, ""},
		{full, "4711:4712", nil, 4711, 4712, []uint32{4712}, ""},
		{full, "ann", []string{"audio", "5"}, 1000, 1000, []uint32{1000, 10, 5, 29}, ""},
		{full, "x", nil, 0, 0, nil, "unable to find user x: no matching entries in passwd file"},
		{full, "ann:x", nil, 0, 0, nil, "unable to find group x: no matching entries in group file"},
		{full, "ann", []string{"x"}, 0, 0, nil, "unable to find group x: no matching entries in group file"},
		{full, "ann", []string{""}, 0, 0, nil, `unable to find group "": no matching entries in group file`},
		{full, "-1", nil, 0, 0, nil, "uids and gids must be in range 0-2147483647"},
		{empty, "", nil, 0, 0, []uint32{0}, ""},
		{empty, "12:13", []string{"14"}, 12, 13, []uint32{13, 14}, ""},
		{empty, "root", nil, 0, 0, nil, "unable to find user root: no matching entries in passwd file"},
	} {
		got, err := ocispec.LookupUser(tc.root, tc.spec, tc.extra)
		if tc.err != "" {
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("%q: error %v, want %q", tc.spec, err, tc.err)
			}
			continue
		}
		if err != nil || got.UID != tc.uid || got.GID != tc.gid || !slices.Equal(got.AdditionalGids, tc.gids) {
			t.Errorf("%q + %q: %+v, %v, want %d:%d %v", tc.spec, tc.extra, got, err, tc.uid, tc.gid, tc.gids)
		}
	}
}

func TestLookupUserStaysInTheRoot(t *testing.T) {
	// The image points its user file at the host's, absolutely and by climbing. Both mean files of its own root.
	for _, target := range []string{"/etc/real", "../../../../../../etc/real"} {
		root := rootWith(t, "", "")
		if err := os.Symlink(target, filepath.Join(root, "etc/passwd")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "etc/real"), []byte("bob:x:7:8::/:/\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := ocispec.LookupUser(root, "bob", nil); err != nil || got.UID != 7 || got.GID != 8 {
			t.Errorf("%s: %+v, %v", target, got, err)
		}
	}
	root := rootWith(t, "", "")
	if err := os.Symlink("/etc/hostname-of-nobody", filepath.Join(root, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if _, err := ocispec.LookupUser(root, "0", nil); err != nil {
		t.Errorf("dangling link: %v", err)
	}
}

func TestLookupUserDoesNotWaitForAPipe(t *testing.T) {
	root := rootWith(t, "", "")
	for _, name := range []string{"passwd", "group"} {
		if err := unix.Mkfifo(filepath.Join(root, "etc", name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ocispec.LookupUser(root, "5", nil); err != nil || got.UID != 5 {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add("ann", "audio", passwd, group)
	f.Add("1000:wheel", "9", "ann:x", "::::")
	f.Add(":", "", "a:b:c:d:e:f:g:h\n#\n", "x:y:z:w")
	f.Add("99999999999", "-5", "\x00", "\n\n")
	f.Fuzz(func(t *testing.T, spec, extra, passwd, group string) {
		root := rootWith(t, passwd, group)
		got, err := ocispec.LookupUser(root, spec, []string{extra})
		if err == nil && (len(got.AdditionalGids) == 0 || got.AdditionalGids[0] != got.GID) {
			t.Errorf("%+v has not its own group first", got)
		}
		if err == nil && (got.UID > 1<<31-1 || got.GID > 1<<31-1) {
			t.Errorf("%+v is out of range", got)
		}
	})
}

func TestEnsureWorkdir(t *testing.T) {
	outside := t.TempDir()
	for _, tc := range []struct {
		name, dir string
		prepare   func(root string) error
		made      string // below the root
		err       string
	}{
		{"none", "", nil, "", ""},
		{"root", "/", nil, "", ""},
		{"new", "/a/b/c", nil, "a/b/c", ""},
		{"half there", "/etc/x", nil, "etc/x", ""},
		{"absolute link", "/link/x", func(root string) error { return os.Symlink(outside, filepath.Join(root, "link")) }, outside + "/x", ""},
		{"climbing link", "/link/x", func(root string) error { return os.Symlink("../../../../run/y", filepath.Join(root, "link")) }, "run/y/x", ""},
		{"a file", "/f", func(root string) error { return os.WriteFile(filepath.Join(root, "f"), nil, 0o644) }, "", "Cannot mkdir: /f is not a directory"},
		{"below a file", "/f/x", func(root string) error { return os.WriteFile(filepath.Join(root, "f"), nil, 0o644) }, "", "not a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := rootWith(t, passwd, group)
			if tc.prepare != nil {
				if err := tc.prepare(root); err != nil {
					t.Fatal(err)
				}
			}
			err := ocispec.EnsureWorkdir(root, tc.dir, 1234, 1235)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				return
			}
			if entries, _ := os.ReadDir(outside); len(entries) > 0 {
				t.Fatalf("made %v outside", entries)
			}
			if err != nil {
				t.Fatal(err)
			}
			if tc.made == "" {
				return
			}
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(root, tc.made), &st); err != nil {
				t.Fatal(err)
			}
			if st.Mode != unix.S_IFDIR|0o755 || st.Uid != 1234 || st.Gid != 1235 {
				t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
			}
			if err := unix.Stat(filepath.Join(root, "etc"), &st); err != nil || st.Uid != uint32(os.Getuid()) {
				t.Errorf("/etc was given to %d", st.Uid)
			}
		})
	}
}
