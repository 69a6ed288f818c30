package graphdriver_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"stated.dev/stated/graphdriver"
)

type fakeDriver struct {
	graphdriver.Driver
	name string
}

func (d fakeDriver) String() string { return d.name }
func (d fakeDriver) Close() error   { return nil }

var errBroken = errors.New("broken")

func fakeTable(errs map[string]error) map[string]graphdriver.Constructor {
	table := map[string]graphdriver.Constructor{}
	for _, name := range []string{"overlay2", "btrfs", "vfs"} {
		table[name] = func(_ context.Context, cfg graphdriver.Config) (graphdriver.Driver, error) {
			if filepath.Base(cfg.Home) != name {
				return nil, errors.New("wrong home " + cfg.Home)
			}
			return fakeDriver{name: name}, errs[name]
		}
	}
	return table
}

func TestOpen(t *testing.T) {
	for _, c := range []struct {
		what  string
		name  string
		prior []string // directories with something in them
		empty []string
		errs  map[string]error
		want  string // driver
		err   string // part of the text
	}{
		{what: "by name", name: "vfs", want: "vfs"},
		{what: "by name, with prior state of another", name: "vfs", prior: []string{"overlay2"}, want: "vfs"},
		{what: "by name, fails", name: "overlay2", errs: map[string]error{"overlay2": graphdriver.ErrNotSupported}, err: "driver not supported"},
		{what: "removed: aufs", name: "aufs", err: "[graphdriver] ERROR: the aufs storage-driver has been deprecated and removed; visit https://docs.docker.com/go/storage-driver/ for more information"},
		{what: "removed: overlay", name: "overlay", err: "the overlay storage-driver has been deprecated and removed"},
		{what: "unknown", name: "nonsense", err: "not among those of this program (btrfs, overlay2, vfs)"},
		{what: "not built in", name: "devicemapper", err: "not among those of this program"},
		{what: "nothing: first of the list", want: "overlay2"},
		{what: "nothing: not supported", errs: map[string]error{"overlay2": graphdriver.ErrNotSupported}, want: "btrfs"},
		{what: "nothing: prerequisites, incompatible", errs: map[string]error{"overlay2": graphdriver.ErrPrerequisites, "btrfs": graphdriver.ErrIncompatibleFS}, want: "vfs"},
		{what: "nothing: another error", errs: map[string]error{"overlay2": errBroken}, err: "broken"},
		{what: "nothing supported", errs: map[string]error{"overlay2": graphdriver.ErrNotSupported, "btrfs": graphdriver.ErrNotSupported, "vfs": graphdriver.ErrNotSupported}, err: "no supported storage driver found"},
		{what: "prior", prior: []string{"btrfs"}, want: "btrfs"},
		{what: "prior, empty directory", empty: []string{"btrfs"}, want: "overlay2"},
		{what: "prior vfs does not count", prior: []string{"vfs"}, want: "overlay2"},
		{what: "prior vfs does not count beside another", prior: []string{"vfs", "btrfs"}, want: "btrfs"},
		{what: "prior, fails", prior: []string{"btrfs"}, errs: map[string]error{"btrfs": graphdriver.ErrNotSupported}, err: "the data root has images and containers of the storage driver btrfs"},
		{what: "prior, not built in", prior: []string{"devicemapper"}, err: "the data root has images and containers of the storage driver devicemapper"},
		{what: "prior, not built in", prior: []string{"zfs"}, err: "storage driver zfs"},
		{what: "several", prior: []string{"overlay2", "btrfs"}, err: "contains several valid graphdrivers: btrfs, overlay2; cleanup or explicitly choose storage driver (-s <DRIVER>)"},
		{what: "several, first fails", prior: []string{"overlay2", "btrfs"}, errs: map[string]error{"overlay2": errBroken}, err: "broken"},
	} {
		t.Run(c.what, func(t *testing.T) {
			root := t.TempDir()
			for _, name := range append(c.prior, c.empty...) {
				if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range c.prior {
				if err := os.WriteFile(filepath.Join(root, name, "file"), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			d, err := graphdriver.Open(t.Context(), graphdriver.Options{Root: root, Name: c.name}, fakeTable(c.errs))
			switch {
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
			case err != nil:
				t.Error(err)
			case d.String() != c.want:
				t.Errorf("driver %s, want %s", d, c.want)
			}
		})
	}
}

func TestParseOption(t *testing.T) {
	if key, value, err := graphdriver.ParseOption("Overlay2.Size = 10G"); key != "overlay2.size" || value != "10G" || err != nil {
		t.Error(key, value, err)
	}
	if _, _, err := graphdriver.ParseOption("nonsense"); err == nil {
		t.Error("an option without a value")
	}
}

// However many users come and go, mount and unmount alternate.
func TestMounts(t *testing.T) {
	var m graphdriver.Mounts
	var mu sync.Mutex
	mounted := false
	change := func(to bool) func() error {
		return func() error {
			mu.Lock()
			defer mu.Unlock()
			if mounted == to {
				t.Errorf("mounted is %t already", to)
			}
			mounted = to
			return nil
		}
	}
	none := func() bool { return false }
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 200 {
				if err := m.Acquire("a", none, change(true)); err != nil {
					t.Error(err)
				}
				if err := m.Release("a", none, change(false)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if mounted || m.Count("a", none) != 0 {
		t.Error("still mounted")
	}

	// A mount that is found counts once.
	found := func() bool { return true }
	never := func() error { t.Error("mounted though it was"); return nil }
	if err := m.Acquire("b", found, never); err != nil {
		t.Error(err)
	}
	if got := m.Count("b", none); got != 2 {
		t.Errorf("count %d, want 2", got)
	}
	if err := m.Acquire("c", none, func() error { return errBroken }); !errors.Is(err, errBroken) || m.Count("c", none) != 0 {
		t.Errorf("mount that fails: %v", err)
	}
}
