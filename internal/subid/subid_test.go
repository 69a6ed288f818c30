package subid_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/user"

	"stated.dev/stated/internal/subid"
)

// files writes the files of a host and returns them.
func files(t *testing.T, passwd, group, subuid, subgid string) subid.Files {
	t.Helper()
	dir := t.TempDir()
	put := func(name, text string) string {
		path := filepath.Join(dir, name)
		if text == "absent" {
			return path
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return subid.Files{Passwd: put("passwd", passwd), Group: put("group", group), SubUID: put("subuid", subuid), SubGID: put("subgid", subgid)}
}

const (
	passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/false\nbob:x:1001:1001::/:/bin/false\ndockremap:x:999:999::/:/bin/false\n"
	group  = "root:x:0:\nann:x:1000:\nstaff:x:50:ann\ndockremap:x:999:\n"
	subuid = "# ranges\nann:100000:65536\nbob:165536:65536\n1000:300000:10\ndockremap:400000:65536\nodd:line\n"
	subgid = "ann:200000:65536\nstaff:500000:65536\ndockremap:400000:65536\n"
)

func TestRemap(t *testing.T) {
	ann := subid.Remap{User: "ann", Group: "ann", Mapping: user.IdentityMapping{
		UIDMaps: []user.IDMap{{ID: 0, ParentID: 100000, Count: 65536}, {ID: 65536, ParentID: 300000, Count: 10}},
		GIDMaps: []user.IDMap{{ID: 0, ParentID: 200000, Count: 65536}},
	}}
	withStaff := ann
	withStaff.Group = "staff"
	remap := []user.IDMap{{ID: 0, ParentID: 400000, Count: 65536}}
	for setting, want := range map[string]subid.Remap{
		"ann": ann, "1000": ann, "ann:ann": ann, "ann:1000": ann, "1000:1000": ann,
		"ann:staff": withStaff, "1000:50": withStaff, // the group's own range counts for nothing
		"default":   {User: "dockremap", Group: "dockremap", Mapping: user.IdentityMapping{UIDMaps: remap, GIDMaps: remap}},
		"dockremap": {User: "dockremap", Group: "dockremap", Mapping: user.IdentityMapping{UIDMaps: remap, GIDMaps: remap}},
		"root":      {User: "root", Group: "root"},
		"0":         {User: "root", Group: "root"},
	} {
		t.Run(setting, func(t *testing.T) {
			got, err := files(t, passwd, group, subuid, subgid).Remap(setting)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRemapRefuses(t *testing.T) {
	for _, c := range []struct {
		name, setting  string
		subuid, subgid string
		want           []string
	}{
		{"three parts", "a:b:c", subuid, subgid, []string{`"a:b:c"`, "user:group"}},
		{"no user", ":staff", subuid, subgid, []string{"invalid user/group specification"}},
		{"no group", "ann:", subuid, subgid, []string{"invalid user/group specification"}},
		{"unknown user", "eve", subuid, subgid, []string{"user eve", "passwd", "does not exist", "useradd"}},
		{"unknown id", "4711", subuid, subgid, []string{"user 4711", "passwd"}},
		{"unknown group", "ann:eve", subuid, subgid, []string{"group eve", "/group", "groupadd"}},
		{"user without group", "bob", subuid, subgid, []string{"group bob"}},
		{"no range", "ann", "bob:100000:65536\n", subgid, []string{"/subuid", "ann", "usermod --add-subuids 165536-231071 ann"}},
		{"no file", "ann", subuid, "absent", []string{"/subgid", "usermod --add-subgids 100000-165535 ann"}},
		{"malformed", "ann", "bob:1:2\nann:x:65536\n", subgid, []string{"/subuid", "line 2", `"ann:x:65536"`}},
		{"host's root", "ann", "ann:0:65536\n", subgid, []string{"/subuid", "host's root"}},
		{"overlap", "ann", "ann:100000:10\nann:100009:10\n", subgid, []string{"/subuid", "100000", "100009", "overlap"}},
		{"too high", "ann", "ann:4294967000:1000\n", subgid, []string{"above the highest id"}},
		{"too many", "ann", strings.Repeat("ann:100000:1\n", 341), subgid, []string{"341 ranges"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := files(t, passwd, group, c.subuid, c.subgid).Remap(c.setting)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, part := range c.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q does not hold %q", err, part)
				}
			}
		})
	}
}

// Who asks for the default user without having it is told the command that makes it.
func TestNoDefaultUser(t *testing.T) {
	_, err := files(t, "root:x:0:0::/:\n", "root:x:0:\n", "ann:100000:65536\n", "absent").Remap("default")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"useradd --system --user-group", "usermod --add-subuids 165536-231071 --add-subgids 100000-165535 dockremap"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not hold %q", err, part)
		}
	}
}

// Users who stand in no file are asked for.
func TestRemapAsks(t *testing.T) {
	f := files(t, passwd, group, subuid+"eve:600000:65536\n", subgid+"eve:600000:65536\n")
	f.Ask = func(database, key string) ([]byte, error) {
		switch database + " " + key {
		case "passwd eve":
			return []byte("eve:*:7000:7000::/home/eve:/bin/sh\n"), nil
		case "group eve":
			return []byte("eve:*:7000:\n"), nil
		}
		return nil, errors.New("exit status 2")
	}
	got, err := f.Remap("eve")
	if err != nil {
		t.Fatal(err)
	}
	if uid, gid := got.Mapping.RootPair(); uid != 600000 || gid != 600000 {
		t.Errorf("root is %d:%d", uid, gid)
	}
	if _, err := f.Remap("mallory"); err == nil {
		t.Error("a user whom nobody knows was accepted")
	}
}

// Whatever the file holds, ranges that are accepted can be mapped without ambiguity, there and back.
func FuzzParse(f *testing.F) {
	f.Add([]byte(subuid))
	f.Add([]byte("ann:1:4294967294\nann:4294967295:1\n"))
	f.Add([]byte("ann:100000:65536:\n:1:1\nann\n#ann:5:5"))
	f.Fuzz(func(t *testing.T, text []byte) {
		ranges, err := subid.Parse(text, "ann", "1000")
		if err != nil {
			return
		}
		maps, err := subid.Map(ranges)
		if err != nil {
			return
		}
		ids := user.IdentityMapping{UIDMaps: maps, GIDMaps: maps}
		for _, m := range maps {
			for _, id := range []int64{m.ID, m.ID + m.Count - 1} {
				host, _, err := ids.ToHost(int(id), 0)
				if err != nil || host <= 0 || host >= 1<<32-1 {
					t.Fatalf("%d is %d on the host: %v", id, host, err)
				}
				if back, _, err := ids.ToContainer(host, int(maps[0].ParentID)); err != nil || int64(back) != id {
					t.Fatalf("%d is %d on the host, which is %d: %v", id, host, back, err)
				}
			}
		}
	})
}
