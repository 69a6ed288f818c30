package overlay2_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/overlay2"
)

// With remapped users the owners are those of dockerd: the daemon's directories let their group pass, and what the
// container sees belongs to its root.
func TestRemappedLayout(t *testing.T) {
	home := filepath.Join(t.TempDir(), "overlay2")
	d, err := overlay2.New(t.Context(), graphdriver.Config{Home: home, IDMap: user.IdentityMapping{
		UIDMaps: []user.IDMap{{ParentID: 100000, Count: 65536}}, GIDMaps: []user.IDMap{{ParentID: 200000, Count: 65536}},
	}})
	must(t, err)
	t.Cleanup(func() { d.Close() })
	ctx := t.Context()
	must(t, d.Create(ctx, "base", "", graphdriver.CreateOptions{}))
	seeds := []graphdriver.Seed{{Path: "dev/console", Kind: graphdriver.SeedFile}, {Path: "etc/mtab", Kind: graphdriver.SeedSymlink, Target: "/proc/mounts"}}
	must(t, d.CreateSeeded(ctx, "init", "base", seeds, graphdriver.CreateOptions{}))
	must(t, d.CreateReadWrite(ctx, "top", "init", graphdriver.CreateOptions{}))
	_, err = d.Get(ctx, "top", "")
	must(t, err)
	t.Cleanup(func() { _ = d.Put(ctx, "top") })
	const daemons, containers = "0:200000", "100000:200000"
	for path, want := range map[string]string{
		"": daemons, "l": "0:0", "base": daemons, "base/diff": containers, "init/work": containers,
		"init/diff/dev": containers, "init/diff/dev/console": containers, "init/diff/etc/mtab": containers,
		"top": daemons, "top/diff": containers, "top/work": containers, "top/work/work": containers, "top/merged": containers,
	} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(home, path), &st))
		if got := fmt.Sprintf("%d:%d", st.Uid, st.Gid); got != want {
			t.Errorf("%s belongs to %s, want %s", path, got, want)
		}
	}
}
