package layer_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/layer"
)

func TestRegister(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		r := openRoot(t, t.TempDir(), driver)
		lower, upper := base(t), makeTar(t, dir("etc"), file("etc/motd", "hello"), file("etc/.wh.passwd", ""))
		a := r.register(t, lower, "")
		b := r.register(t, upper, a.ChainID)
		if a.DiffID != digest.FromBytes(lower) || a.ChainID != a.DiffID || a.Parent != "" {
			t.Errorf("base layer: %+v", a)
		}
		if want := digest.FromString(a.ChainID.String() + " " + digest.FromBytes(upper).String()); b.ChainID != want || b.Parent != a.ChainID {
			t.Errorf("second layer: %+v, want chain %s", b, want)
		}
		for chain, want := range map[digest.Digest][]byte{a.ChainID: lower, b.ChainID: upper} {
			if got := r.stream(t, chain); !bytes.Equal(got, want) {
				t.Errorf("tar of %s differs: %d bytes, want %d", chain, len(got), len(want))
			}
		}
		chain, err := r.Chain(b.ChainID)
		if err != nil || !slices.Equal(chain, []layer.Info{a, b}) {
			t.Errorf("chain: %+v, %v", chain, err)
		}

		// The same again finds what is there; the first reference to go deletes nothing.
		again := r.register(t, lower, "")
		if again != a {
			t.Errorf("registered again: %+v, want %+v", again, a)
		}
		mustRelease(t, r, a.ChainID)
		mustRelease(t, r, a.ChainID)
		if _, err := r.Layer(a.ChainID); err != nil {
			t.Errorf("the layer below another one is gone: %v", err)
		}

		// All of it is found by the next process, without any reference.
		r.close(t)
		r = openRoot(t, r.path, driver)
		if got, err := r.Acquire(b.ChainID); err != nil || got != b {
			t.Fatalf("reopened: %+v, %v; want %+v", got, err, b)
		}
		if p := r.Problems(); len(p) > 0 {
			t.Errorf("problems: %v", p)
		}
		mustRelease(t, r, b.ChainID)
		if got := r.Layers(); len(got) > 0 {
			t.Errorf("left after the last release: %v", got)
		}
		r.nothingLeft(t)
	})
}

func (r *root) stream(t testing.TB, chain digest.Digest) []byte {
	t.Helper()
	s, err := r.TarStream(t.Context(), chain)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b, err := io.ReadAll(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustRelease(t testing.TB, r *root, chain digest.Digest) {
	t.Helper()
	if err := r.Release(t.Context(), chain); err != nil {
		t.Fatal(err)
	}
}

// nothingLeft fails unless neither records nor files of any layer exist.
func (r *root) nothingLeft(t testing.TB) {
	t.Helper()
	r.Store.Close() // waits for deletions
	db := filepath.Join(r.path, "image", r.DriverName(), "layerdb")
	for _, sub := range []string{"sha256", "mounts", "tmp"} {
		if got := names(t, db, sub); len(got) > 0 {
			t.Errorf("left in %s: %v", sub, got)
		}
	}
	home := filepath.Join(r.path, r.DriverName())
	sub := map[string]string{"overlay2": "l", "vfs": "dir"}[r.DriverName()]
	if got := names(t, home, sub); len(got) > 0 {
		t.Errorf("left in %s: %v", sub, got)
	}
	if got := names(t, home); len(got) > 1 {
		t.Errorf("left in %s: %v", home, got)
	}
}

func TestRegisterFails(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		r := openRoot(t, t.TempDir(), driver)
		whole := base(t)
		for name, data := range map[string][]byte{
			"truncated contents": whole[:len(whole)-2048-700],
			"truncated header":   whole[:700],
			"no tar":             bytes.Repeat([]byte("no tar"), 1000),
			"link to nowhere":    makeTar(t, entry{name: "a", kind: '1', link: "missing"}),
			"twice the same":     makeTar(t, file("a", "1"), file("b", "2"), file("./a", "3")),
		} {
			if _, err := r.Register(t.Context(), bytes.NewReader(data), ""); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %v, want an invalid argument", name, err)
			}
			r.nothingLeft(t)
		}
		broken := io.MultiReader(bytes.NewReader(whole[:1500]), failingReader{})
		if _, err := r.Register(t.Context(), broken, ""); !errors.Is(err, errBroken) {
			t.Errorf("broken input: %v", err)
		}
		if _, err := r.Register(t.Context(), bytes.NewReader(whole), digest.FromString("no layer")); !errdefs.IsNotFound(err) {
			t.Errorf("parent that is not there: %v", err)
		}
		r.nothingLeft(t)
	})
}

var errBroken = errors.New("broken")

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, errBroken }

func TestDepth(t *testing.T) {
	r := openRoot(t, t.TempDir(), "overlay2")
	var at digest.Digest
	const limit = 125
	for i := range limit {
		at = r.register(t, makeTar(t, file("depth", string(rune('a'+i%26))), file("f"+string(rune('0'+i)), "")), at).ChainID
	}
	if _, err := r.Register(t.Context(), bytes.NewReader(base(t)), at); err == nil || !errdefs.IsFailedPrecondition(err) {
		t.Errorf("layer %d: %v", limit+1, err)
	}
	if err := r.CreateRW(t.Context(), "deep", layer.RWRequest{Parent: at}); err != nil {
		t.Fatal(err)
	}
	tree := r.mount(t, "deep")
	if got := readFile(t, tree, "depth"); got != string(rune('a'+(limit-1)%26)) {
		t.Errorf("uppermost file: %q", got)
	}
	readFile(t, tree, "f0") // of the lowest layer
}

// mount mounts a writable layer until the test ends.
func (r *root) mount(t testing.TB, name string) string {
	t.Helper()
	tree, err := r.MountRW(t.Context(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.Store != nil {
			r.UnmountRW(t.Context(), name)
		}
	})
	return tree
}

func TestStage(t *testing.T) {
	r := openRoot(t, t.TempDir(), "overlay2")
	var staged []*layer.Staged
	tars := [][]byte{base(t), makeTar(t, file("a", "a")), makeTar(t, file("b", "b"), file(".wh.a", ""))}
	for _, data := range tars {
		st, err := r.Stage(t.Context(), bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if st.DiffID() != digest.FromBytes(data) {
			t.Errorf("staged %s", st.DiffID())
		}
		staged = append(staged, st)
	}
	before := r.Flushes()
	infos, err := r.Commit(t.Context(), "", staged...)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Flushes() - before; got != 2 {
		t.Errorf("%d flushes for three layers, want 2", got)
	}
	top := infos[2].ChainID
	for i, info := range infos {
		if got := r.stream(t, info.ChainID); !bytes.Equal(got, tars[i]) {
			t.Errorf("tar of layer %d differs", i)
		}
	}
	if err := r.CreateRW(t.Context(), "c", layer.RWRequest{Parent: top}); err != nil {
		t.Fatal(err)
	}
	tree := r.mount(t, "c")
	if _, err := os.Stat(filepath.Join(tree, "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a: %v", err)
	}
	readFile(t, tree, "bin/sh")

	// The same layers again: all are found, and the copies go.
	staged = staged[:0]
	for _, data := range tars {
		st, err := r.Stage(t.Context(), bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		staged = append(staged, st)
	}
	if again, err := r.Commit(t.Context(), "", staged...); err != nil || !slices.Equal(again, infos) {
		t.Errorf("again: %+v, %v", again, err)
	}
	if err := r.UnmountRW(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveRW(t.Context(), "c", nil); err != nil {
		t.Fatal(err)
	}
	mustRelease(t, r, top)
	mustRelease(t, r, top)
	r.nothingLeft(t)
}

func TestRegisterAtOnce(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		r := openRoot(t, t.TempDir(), driver)
		lower, upper := base(t), makeTar(t, file("upper", "u"))
		const callers = 8
		done := make(chan error)
		for range callers {
			go func() {
				a, err := r.Register(t.Context(), bytes.NewReader(lower), "")
				if err != nil {
					done <- err
					return
				}
				b, err := r.Register(t.Context(), bytes.NewReader(upper), a.ChainID)
				if err == nil {
					err = r.Release(t.Context(), a.ChainID)
				}
				if err == nil {
					err = r.Release(t.Context(), b.ChainID)
				}
				done <- err
			}()
		}
		for range callers {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		r.nothingLeft(t)
	})
}

func TestRW(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		r := openRoot(t, t.TempDir(), driver)
		image := r.register(t, base(t), "")
		var handed []layer.File
		err := r.CreateRW(t.Context(), "c1", layer.RWRequest{Parent: image.ChainID, Commit: func(files []layer.File) error {
			handed = files
			for _, f := range files {
				if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(f.Path, f.Data, f.Mode); err != nil {
					return err
				}
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if len(handed) != 3 {
			t.Errorf("files of the record: %v", handed)
		}
		if err := r.CreateRW(t.Context(), "c1", layer.RWRequest{}); !errdefs.IsAlreadyExists(err) {
			t.Errorf("a second one of the same name: %v", err)
		}
		failed := errors.New("no")
		if err := r.CreateRW(t.Context(), "c2", layer.RWRequest{Parent: image.ChainID, Commit: func([]layer.File) error { return failed }}); !errors.Is(err, failed) {
			t.Errorf("commit that fails: %v", err)
		}

		tree := r.mount(t, "c1")
		if got := readFile(t, tree, "etc/hosts"); got != "" {
			t.Errorf("etc/hosts holds %q, want the empty file of the init layer", got)
		}
		if got, err := os.Readlink(filepath.Join(tree, "etc/mtab")); got != "/proc/mounts" {
			t.Errorf("etc/mtab: %q, %v", got, err)
		}
		if fi, err := os.Stat(filepath.Join(tree, "dev/console")); err != nil || fi.Mode() != 0o755 {
			t.Errorf("dev/console: %v, %v", fi, err)
		}
		if got, err := r.RWChanges(t.Context(), "c1"); err != nil || len(got) > 0 {
			t.Errorf("changes of a fresh container: %v, %v", got, err)
		}
		writeFile(t, "changed", tree, "etc/passwd")
		writeFile(t, "12345", tree, "new")
		os.Remove(filepath.Join(tree, "bin/sh"))
		want := []graphdriver.Change{
			{Path: "/bin", Kind: graphdriver.Modified}, {Path: "/bin/sh", Kind: graphdriver.Deleted},
			{Path: "/etc", Kind: graphdriver.Modified}, {Path: "/etc/passwd", Kind: graphdriver.Modified},
			{Path: "/new", Kind: graphdriver.Added},
		}
		if got, err := r.RWChanges(t.Context(), "c1"); err != nil || !slices.Equal(got, want) {
			t.Errorf("changes: %v, %v; want %v", got, err, want)
		}
		if rw, total, err := r.RWSize(t.Context(), "c1"); err != nil || rw != 12 || total != 12+image.Size {
			t.Errorf("size: %d, %d, %v", rw, total, err)
		}
		if m, err := r.RWMetadata("c1"); err != nil || m["ID"] != "c1" {
			t.Errorf("metadata: %v, %v", m, err)
		}

		// Commit: the diff becomes a layer that shows the same.
		diff, err := r.RWDiff(t.Context(), "c1")
		if err != nil {
			t.Fatal(err)
		}
		committed, err := r.Register(t.Context(), diff, image.ChainID)
		if err = errors.Join(err, diff.Close()); err != nil {
			t.Fatal(err)
		}
		if err := r.CreateRW(t.Context(), "c3", layer.RWRequest{Parent: committed.ChainID}); err != nil {
			t.Fatal(err)
		}
		tree = r.mount(t, "c3")
		if got := readFile(t, tree, "etc/passwd"); got != "changed" {
			t.Errorf("committed etc/passwd: %q", got)
		}
		if _, err := os.Stat(filepath.Join(tree, "bin/sh")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("committed bin/sh: %v", err)
		}

		if got := r.Names(); !slices.Equal(got, []string{"c1", "c3"}) {
			t.Errorf("names: %v", got)
		}
		for _, name := range []string{"c1", "c3"} {
			if driver == "overlay2" {
				if err := r.RemoveRW(t.Context(), name, nil); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("removal of a mounted layer: %v", err)
				}
			}
			if err := r.UnmountRW(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			if err := r.RemoveRW(t.Context(), name, nil); err != nil {
				t.Fatal(err)
			}
			if err := r.RemoveRW(t.Context(), name, nil); !errdefs.IsNotFound(err) {
				t.Errorf("removal of what is gone: %v", err)
			}
		}
		mustRelease(t, r, committed.ChainID)
		mustRelease(t, r, image.ChainID)
		r.nothingLeft(t)
	})
}

// A bare layer shows its image as it is, and keeps its layers.
func TestBareRW(t *testing.T) {
	eachDriver(t, func(t *testing.T, driver string) {
		path := t.TempDir()
		r := openRoot(t, path, driver)
		image := r.register(t, base(t), "")
		if err := r.CreateRW(t.Context(), "c1-image:1", layer.RWRequest{Parent: image.ChainID, Bare: true}); err != nil {
			t.Fatal(err)
		}
		if got := names(t, path, "image", driver, "layerdb", "mounts", "c1-image:1"); !slices.Equal(got, []string{"mount-id", "parent"}) {
			t.Errorf("files of the record: %v", got)
		}
		mustRelease(t, r, image.ChainID)
		r.close(t)

		r = openRoot(t, path, driver)
		tree := r.mount(t, "c1-image:1")
		if got := names(t, tree); !slices.Equal(got, []string{"bin", "etc"}) {
			t.Errorf("the layer shows %v", got)
		}
		if got := readFile(t, tree, "etc/hosts"); got != "127.0.0.1 image" {
			t.Errorf("etc/hosts holds %q", got)
		}
		if err := r.UnmountRW(t.Context(), "c1-image:1"); err != nil {
			t.Fatal(err)
		}
		if notes, err := r.Repair(t.Context()); err != nil || len(notes) > 0 {
			t.Errorf("repair: %v, %v", notes, err)
		}
		if got := r.Problems(); len(got) > 0 {
			t.Errorf("problems: %v", got)
		}
		if err := r.RemoveRW(t.Context(), "c1-image:1", nil); err != nil {
			t.Fatal(err)
		}
		r.nothingLeft(t)
	})
}

// A mount survives the store and counts as one for the next.
func TestMountsSurvive(t *testing.T) {
	r := openRoot(t, t.TempDir(), "overlay2")
	image := r.register(t, base(t), "")
	for _, name := range []string{"running", "stopped"} {
		if err := r.CreateRW(t.Context(), name, layer.RWRequest{Parent: image.ChainID}); err != nil {
			t.Fatal(err)
		}
	}
	tree, err := r.MountRW(t.Context(), "running", "")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, "still here", tree, "file")
	r.close(t)

	r = openRoot(t, r.path, "overlay2")
	if got, mounted := r.MountedRW("running"); !mounted || got != tree {
		t.Errorf("mounted: %q, %t", got, mounted)
	}
	if _, mounted := r.MountedRW("stopped"); mounted {
		t.Error("the stopped one is mounted")
	}
	if got, err := r.MountRW(t.Context(), "running", ""); err != nil || got != tree {
		t.Errorf("mounted again: %q, %v", got, err)
	}
	if err := r.UnmountRW(t.Context(), "running"); err != nil {
		t.Fatal(err)
	}
	if got := readFile(t, tree, "file"); got != "still here" {
		t.Errorf("file: %q", got)
	}
	if err := r.UnmountRW(t.Context(), "running"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(tree); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("mount point after the last unmount: %v", err)
	}
	// An image's layer outlives the image while a container needs it, even one that was not yet asked for.
	r.close(t)
	r = openRoot(t, r.path, "overlay2")
	if _, err := r.Acquire(image.ChainID); err != nil {
		t.Fatal(err)
	}
	mustRelease(t, r, image.ChainID)
	if _, err := r.Layer(image.ChainID); err != nil {
		t.Errorf("layer under containers: %v", err)
	}
}
