package layer_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"stated.dev/stated/graphdriver/layer"
	"stated.dev/stated/internal/fault"
)

// crashRoot tells the test binary, started again, to run a victim on that data root.
const crashRoot = "LAYER_CRASH_ROOT"

// The victims die at an armed point. Before it they have made an image of one layer, and a container of it named kept.
var victims = map[string]func(t *testing.T, r *root, image digest.Digest){
	"register": func(t *testing.T, r *root, image digest.Digest) { r.register(t, upperTar(t), image) },
	"create": func(t *testing.T, r *root, image digest.Digest) {
		if err := r.CreateRW(t.Context(), "new", layer.RWRequest{Parent: image}); err != nil {
			t.Fatal(err)
		}
	},
	"remove": func(t *testing.T, r *root, image digest.Digest) {
		if err := r.RemoveRW(t.Context(), "kept", nil); err != nil {
			t.Fatal(err)
		}
	},
	"release": func(t *testing.T, r *root, image digest.Digest) {
		mustRelease(t, r, r.register(t, upperTar(t), image).ChainID)
	},
}

func upperTar(t testing.TB) []byte { return makeTar(t, dir("opt"), file("opt/upper", "u")) }

// TestVictim is not a test of its own: it is the process that TestCrash starts.
func TestVictim(t *testing.T) {
	path := os.Getenv(crashRoot)
	if path == "" {
		t.Skip("runs only as a child of TestCrash")
	}
	path, rest, _ := strings.Cut(path, "|")
	driver, victim, _ := strings.Cut(rest, "|")
	r := openRoot(t, path, driver)
	image := digest.FromBytes(base(t))
	victims[victim](t, r, image)
}

func TestCrash(t *testing.T) {
	points := []struct {
		name string
		then map[string]bool // what exists afterwards: the upper layer, and the containers kept and new
	}{
		{"layer.register.created", map[string]bool{"kept": true}},
		{"layer.register.extracted", map[string]bool{"kept": true}},
		{"layer.register.described", map[string]bool{"kept": true}},
		{"layer.register.flushed", map[string]bool{"kept": true}},
		{"layer.register.renamed", map[string]bool{"kept": true, "upper": true}},
		{"layer.register.recorded", map[string]bool{"kept": true, "upper": true}},
		{"layer.create.intended", map[string]bool{"kept": true}},
		{"layer.create.seeded", map[string]bool{"kept": true}},
		{"layer.create.made", map[string]bool{"kept": true}},
		{"layer.create.recorded", map[string]bool{"kept": true, "new": true}},
		{"layer.remove.unrecorded", nil},
		{"layer.remove.discarded", nil},
		{"layer.release.renamed", map[string]bool{"kept": true}},
		{"layer.release.unrecorded", map[string]bool{"kept": true}},
		{"layer.release.discarded", map[string]bool{"kept": true}},
	}
	eachDriver(t, func(t *testing.T, driver string) {
		for _, p := range points {
			t.Run(p.name, func(t *testing.T) {
				r := openRoot(t, t.TempDir(), driver)
				image := r.register(t, base(t), "")
				if err := r.CreateRW(t.Context(), "kept", layer.RWRequest{Parent: image.ChainID}); err != nil {
					t.Fatal(err)
				}
				r.close(t)
				crash(t, r.path, driver, p.name)

				r = openRoot(t, r.path, driver)
				upper := layer.ChainID(image.ChainID, digest.FromBytes(upperTar(t)))
				if _, err := r.Acquire(upper); (err == nil) != p.then["upper"] {
					t.Errorf("upper layer: %v", err)
				}
				if got := r.stream(t, image.ChainID); !bytes.Equal(got, base(t)) {
					t.Error("the image has changed")
				}
				all := func(string) bool { return true }
				if err := r.Sweep(t.Context(), all); err != nil {
					t.Fatal(err)
				}
				var want []string
				for _, name := range []string{"kept", "new"} {
					if p.then[name] {
						want = append(want, name)
						r.mount(t, name)
						if err := r.UnmountRW(t.Context(), name); err != nil {
							t.Error(err)
						}
					}
				}
				if got := r.Names(); !slices.Equal(got, want) {
					t.Errorf("containers %v, want %v", got, want)
				}
				if got := r.Problems(); len(got) > 0 {
					t.Errorf("problems: %v", got)
				}
				r.Store.Close()
				if got, err := r.Orphans(); err != nil || len(got) > 0 {
					t.Errorf("orphans: %v, %v", got, err)
				}

				// Everything can still be made, and all of it removed.
				r.register(t, upperTar(t), image.ChainID)
				mustRelease(t, r, upper)
				if p.then["upper"] {
					mustRelease(t, r, upper)
				}
				if err := r.Sweep(t.Context(), func(string) bool { return false }); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Acquire(image.ChainID); err == nil {
					mustRelease(t, r, image.ChainID)
				}
				r.nothingLeft(t)
			})
		}
	})
}

// crash lets another process die at a point.
func crash(t *testing.T, path, driver, point string) {
	t.Helper()
	victim := strings.Split(point, ".")[1]
	cmd := exec.Command(os.Args[0], "-test.run=^TestVictim$")
	cmd.Env = append(os.Environ(), crashRoot+"="+path+"|"+driver+"|"+victim, fault.EnvVar+"="+point+"=kill")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the victim should have died at %s: %v\n%s", point, err, out)
	}
}

// A damaged record sets aside the layer, and what needs it, and nothing else.
func TestDamage(t *testing.T) {
	for _, damage := range []struct{ file, text string }{
		{"diff", ""}, {"diff", "sha256:zz"}, {"cache-id", ""}, {"cache-id", "../../etc"}, {"size", ""}, {"size", "x"}, {"parent", ""}, {"parent", "sha256:" + strings.Repeat("0", 64)},
	} {
		t.Run(damage.file+"="+damage.text, func(t *testing.T) {
			r := openRoot(t, t.TempDir(), "overlay2")
			image := r.register(t, base(t), "")
			upper := r.register(t, upperTar(t), image.ChainID)
			other := r.register(t, makeTar(t, file("other", "")), image.ChainID)
			if err := r.CreateRW(t.Context(), "c", layer.RWRequest{Parent: upper.ChainID}); err != nil {
				t.Fatal(err)
			}
			r.close(t)
			writeFile(t, damage.text, r.path, "image/overlay2/layerdb/sha256", upper.ChainID.Encoded(), damage.file)

			r = openRoot(t, r.path, "overlay2")
			if _, err := r.Layer(upper.ChainID); err == nil {
				t.Error("the damaged layer is used")
			}
			for _, chain := range []digest.Digest{image.ChainID, other.ChainID} {
				if _, err := r.Layer(chain); err != nil {
					t.Error(err)
				}
			}
			problems := r.Problems()
			if len(problems) != 2 || problems[0].Layer != upper.ChainID || !strings.Contains(problems[0].String(), damage.file) || problems[1].RW != "c" {
				t.Errorf("problems: %v", problems)
			}
			// Registered again it is whole, and the damaged record goes.
			if got := r.register(t, upperTar(t), image.ChainID); got.ChainID != upper.ChainID {
				t.Errorf("registered again: %+v", got)
			}
			if err := r.Sweep(t.Context(), func(string) bool { return true }); err != nil {
				t.Fatal(err)
			}
			r.close(t)
			r = openRoot(t, r.path, "overlay2")
			for _, p := range r.Problems() {
				t.Errorf("problem after the repair: %v", p)
			}
		})
	}
}

// A power cut may leave empty files in the driver's directories, or none of them.
func TestRepair(t *testing.T) {
	r := openRoot(t, t.TempDir(), "overlay2")
	image := r.register(t, base(t), "")
	upper := r.register(t, upperTar(t), image.ChainID)
	for _, name := range []string{"c1", "c2"} {
		if err := r.CreateRW(t.Context(), name, layer.RWRequest{Parent: upper.ChainID}); err != nil {
			t.Fatal(err)
		}
	}
	c1, err := r.RW("c1")
	if err != nil {
		t.Fatal(err)
	}
	c2, err := r.RW("c2")
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(r.path, "overlay2")
	link := readFile(t, home, upper.CacheID, "link")
	r.close(t)

	writeFile(t, "", home, image.CacheID, "link")
	writeFile(t, "", home, upper.CacheID, "lower")
	writeFile(t, "", home, c1.InitID, "link")
	writeFile(t, "", home, c1.MountID, "lower")
	for _, gone := range []string{filepath.Join(home, "l", link), filepath.Join(home, c2.MountID), filepath.Join(home, c2.InitID)} {
		if err := os.RemoveAll(gone); err != nil {
			t.Fatal(err)
		}
	}
	r = openRoot(t, r.path, "overlay2")
	notes, err := r.Repair(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(notes) < 6 {
		t.Errorf("notes: %q", notes)
	}
	for _, name := range []string{"c1", "c2"} {
		tree := r.mount(t, name)
		readFile(t, tree, "opt/upper")
		readFile(t, tree, "bin/sh")
		if got := readFile(t, tree, "etc/hosts"); got != "" {
			t.Errorf("%s: etc/hosts holds %q", name, got)
		}
	}
	if notes, err := r.Repair(t.Context()); err != nil || len(notes) > 0 {
		t.Errorf("a second repair: %q, %v", notes, err)
	}
	if p := r.Problems(); len(p) > 0 {
		t.Errorf("problems: %v", p)
	}
}

// What the store knows nothing of is not its to delete.
func TestSweepSpares(t *testing.T) {
	r := openRoot(t, t.TempDir(), "overlay2")
	home := filepath.Join(r.path, "overlay2")
	for _, d := range []string{"x8k2f0q9b7v6n5m4l3k2j1h0g", strings.Repeat("ab", 32)} {
		if err := os.MkdirAll(filepath.Join(home, d, "diff"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := r.register(t, base(t), "")
	again := openRoot(t, r.path, "overlay2")
	if err := again.Sweep(t.Context(), func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if got := names(t, home); len(got) != 4 {
		t.Errorf("left: %v", got)
	}
	if got, err := again.Orphans(); err != nil || !slices.Equal(got, []string{strings.Repeat("ab", 32)}) {
		t.Errorf("orphans: %v, %v", got, err)
	}
	if got := again.Unreferenced(); !slices.Equal(got, []layer.Info{image}) {
		t.Errorf("unreferenced: %v", got)
	}
}
