package volumes_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/local"
)

// The test binary runs itself to die in the middle of an operation: these variables say of which, and where.
const (
	crashEnv  = "STATED_TEST_CRASH"
	crashRoot = "STATED_TEST_ROOT"
)

func TestMain(m *testing.M) {
	if operation := os.Getenv(crashEnv); operation != "" {
		if err := crash(operation, os.Getenv(crashRoot)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		os.Exit(3) // it should have died
	}
	os.Exit(m.Run())
}

var crashOptions = map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}

// crash does one operation on the volume "victim" of the data root.
func crash(operation, root string) error {
	if operation == "write mapped" {
		return writeMapped(root)
	}
	ctx := context.Background()
	dir := filepath.Join(root, "volumes")
	s, err := volumes.Open(ctx, volumes.Options{Dir: dir, Drivers: map[string]volumes.Driver{"local": local.New(local.Options{Dir: dir})},
		Finder: pluginsOf(root)})
	if err != nil {
		return err
	}
	switch operation {
	case "create":
		_, err = s.Create(ctx, volumes.CreateRequest{Name: "victim", Labels: map[string]string{"a": "b"}, Options: crashOptions})
	case "create far":
		_, err = s.Create(ctx, volumes.CreateRequest{Name: "victim", Driver: "shelf", Options: map[string]string{"colour": "blue"}})
	case "create limited":
		_, err = s.Create(ctx, volumes.CreateRequest{Name: "victim", Options: sizeOption})
	case "mount":
		_, err = s.Mount(ctx, "victim", "m")
	case "remove":
		err = s.Remove(ctx, "victim", volumes.RemoveRequest{})
	case "copyup":
		err = s.CopyUp(ctx, "victim", filepath.Join(root, "image"), nil)
	case "import":
		var in *os.File
		if in, err = os.Open(filepath.Join(root, "stream")); err == nil {
			_, _, err = s.Import(ctx, volumes.ImportRequest{Name: "victim"}, in)
		}
	case "export":
		_, err = s.Export(ctx, "victim", volumes.ExportRequest{})
	default:
		err = fmt.Errorf("no operation %q", operation)
	}
	return errors.Join(err, s.Close())
}

// crashAt runs crash in a process of its own that is killed at the point.
func crashAt(t *testing.T, root, operation, point string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), crashEnv+"="+operation, crashRoot+"="+root, fault.EnvVar+"="+point+"=kill")
	out, err := cmd.CombinedOutput()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("%s did not die at %s: %v\n%s", operation, point, err, out)
	}
}

// checkWhole closes the store and fails unless disk and database tell of the same volumes and of nothing else.
func (h *host) checkWhole() {
	h.t.Helper()
	listed := h.names(nil)
	buckets := h.records()
	if len(buckets) != 1 || len(buckets["volumes"]) != len(listed) {
		h.t.Errorf("listed %q, recorded %q", listed, buckets)
	}
	entries, err := os.ReadDir(h.dir())
	if err != nil {
		h.t.Fatal(err)
	}
	var onDisk []string
	for _, e := range entries {
		if e.Name() != "metadata.db" && e.Name() != "backingFsBlockDev" {
			onDisk = append(onDisk, e.Name())
		}
	}
	if !slices.Equal(onDisk, listed) {
		h.t.Errorf("listed %q, on disk %q", listed, onDisk)
	}
	for _, dir := range []string{"stage", "copyup"} {
		if left, _ := os.ReadDir(filepath.Join(h.root, ".stated", "volumes", dir)); len(left) != 0 {
			h.t.Errorf("litter in %s: %v", dir, left)
		}
	}
}

func newCrashHost(t *testing.T) *host {
	h := newHost(t)
	h.fake = nil
	h.open()
	h.create(volumes.CreateRequest{Name: "witness", Labels: map[string]string{"w": "1"}})
	return h
}

func (h *host) close() {
	h.t.Helper()
	if err := h.store.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.store = nil
}

func TestCrashInCreate(t *testing.T) {
	for _, point := range []string{
		"volumes.create.staged", "volumes.record.logged", "volumes.create.recorded", "volumes.create.published", "volumes.record.folded",
	} {
		t.Run(point, func(t *testing.T) {
			h := newCrashHost(t)
			h.close()
			crashAt(t, h.root, "create", point)
			h.open()
			listed := h.names(nil)
			acknowledged := point == "volumes.create.published" || point == "volumes.record.folded"
			if recorded := point != "volumes.create.staged"; recorded && !slices.Contains(listed, "victim") {
				t.Errorf("recorded and gone (acknowledged: %v): %q", acknowledged, listed)
			}
			if slices.Contains(listed, "victim") {
				v, err := h.store.Get(t.Context(), "victim", volumes.GetRequest{})
				if err != nil || v.Labels["a"] != "b" {
					t.Errorf("%+v, %v", v, err)
				}
				opts, err := os.ReadFile(filepath.Join(h.dir(), "victim", "opts.json"))
				if want := `{"MountType":"tmpfs","MountOpts":"size=1m","MountDevice":"tmpfs","Quota":{"Size":0}}`; err != nil || string(opts) != want {
					t.Errorf("%s, %v", opts, err)
				}
				if _, err := h.store.Mount(t.Context(), "victim", "m"); err != nil {
					t.Error(err)
				}
				if err := h.store.Unmount(t.Context(), "victim", "m"); err != nil {
					t.Error(err)
				}
			}
			if !slices.Contains(listed, "witness") || len(h.store.Problems()) != 0 {
				t.Errorf("%q, %+v", listed, h.store.Problems())
			}
			h.create(volumes.CreateRequest{Name: "victim"})
			if err := h.store.Remove(t.Context(), "victim", volumes.RemoveRequest{}); err != nil {
				t.Error(err)
			}
			h.checkWhole()
		})
	}
}

// A daemon is killed before its last change came into the database, and a dockerd writes that: the change is dropped and
// reported, and what dockerd wrote stays.
func TestLogAfterAnotherDaemon(t *testing.T) {
	h := newCrashHost(t)
	h.close()
	crashAt(t, h.root, "create", "volumes.create.published")
	h.write(map[string]string{"other": `{"Name":"other","Driver":"local","Labels":{"o":"1"},"Options":null}`})
	h.mkdir("other")
	h.open()
	if got := h.names(nil); !slices.Equal(got, []string{"other", "victim", "witness"}) {
		t.Errorf("%q", got)
	}
	if v, err := h.store.Get(t.Context(), "victim", volumes.GetRequest{}); err != nil || len(v.Labels) != 0 {
		t.Errorf("a dropped record: %+v, %v", v, err)
	}
	if v, err := h.store.Get(t.Context(), "other", volumes.GetRequest{}); err != nil || v.Labels["o"] != "1" {
		t.Errorf("%+v, %v", v, err)
	}
	problems := h.store.Problems()
	if len(problems) != 1 || problems[0].Volume != "victim" || !strings.Contains(problems[0].Text, "another daemon has written metadata.db") {
		t.Errorf("%+v", problems)
	}
	h.close()
	h.open()
	if problems := h.store.Problems(); len(problems) != 0 {
		t.Errorf("reported twice: %+v", problems)
	}
}

// The database is damaged when a daemon was killed: the changes of its log complete the copy that takes its place.
func TestLogCompletesOlderCopy(t *testing.T) {
	h := newCrashHost(t)
	h.close()
	crashAt(t, h.root, "create", "volumes.create.published")
	path := filepath.Join(h.dir(), "metadata.db")
	if err := os.WriteFile(path, make([]byte, 32<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	h.open()
	if v, err := h.store.Get(t.Context(), "victim", volumes.GetRequest{}); err != nil || v.Labels["a"] != "b" {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err := h.store.Get(t.Context(), "witness", volumes.GetRequest{}); err != nil || v.Labels["w"] != "1" {
		t.Errorf("%+v, %v", v, err)
	}
}

// A power cut takes the directory of a volume whose creation was acknowledged: the record brings it back.
func TestPowerCutAfterCreate(t *testing.T) {
	h := newCrashHost(t)
	h.close()
	crashAt(t, h.root, "create", "volumes.create.published")
	if err := os.RemoveAll(filepath.Join(h.dir(), "victim")); err != nil {
		t.Fatal(err)
	}
	h.open()
	if _, err := h.store.Mount(t.Context(), "victim", "m"); err != nil {
		t.Error(err)
	}
	if err := h.store.Unmount(t.Context(), "victim", "m"); err != nil {
		t.Error(err)
	}
	if v, err := h.store.Get(t.Context(), "victim", volumes.GetRequest{}); err != nil || v.Labels["a"] != "b" || v.Options["o"] != "size=1m" {
		t.Errorf("%+v, %v", v, err)
	}
	h.checkWhole()

	// After a clean stop a missing directory means that somebody took it away.
	if err := os.RemoveAll(filepath.Join(h.dir(), "victim")); err != nil {
		t.Fatal(err)
	}
	h.open()
	if got := h.names(nil); !slices.Equal(got, []string{"witness"}) {
		t.Errorf("%q", got)
	}
	h.checkWhole()
}

func TestCrashInRemove(t *testing.T) {
	for point, want := range map[string][]string{
		"volumes.remove.prepared":   {"victim", "witness"},
		"volumes.record.logged":     {"witness"},
		"volumes.record.folded":     {"witness"},
		"volumes.remove.unrecorded": {"witness"},
		"volumes.remove.deleted":    {"witness"},
	} {
		t.Run(point, func(t *testing.T) {
			h := newCrashHost(t)
			v := h.create(volumes.CreateRequest{Name: "victim", Labels: map[string]string{"a": "b"}})
			data := filepath.Join(v.Mountpoint, "data")
			if err := os.WriteFile(data, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			h.close()
			crashAt(t, h.root, "remove", point)
			h.open()
			if diff := cmp.Diff(want, h.names(nil)); diff != "" {
				t.Error(diff)
			}
			if _, err := os.Stat(data); (err == nil) != slices.Contains(want, "victim") {
				t.Errorf("data of the volume: %v", err)
			}
			h.checkWhole()
		})
	}
}

// A daemon that is killed while it mounts a volume leaves the mount. The next one takes it down, unless a container
// that kept running uses it.
func TestCrashInMount(t *testing.T) {
	for _, used := range []bool{false, true} {
		t.Run(fmt.Sprintf("used %v", used), func(t *testing.T) {
			h := newCrashHost(t)
			v := h.create(volumes.CreateRequest{Name: "victim", Options: crashOptions})
			t.Cleanup(func() { _ = syscall.Unmount(v.Mountpoint, syscall.MNT_DETACH) }) // if the test failed half way
			h.close()
			crashAt(t, h.root, "mount", "volumes.local.mounted")
			if !isMounted(t, v.Mountpoint) {
				t.Fatal("the killed daemon has not mounted it")
			}
			h.open()
			if used {
				if err := h.store.LiveRestore(t.Context(), "victim", "m"); err != nil {
					t.Fatal(err)
				}
			}
			if err := h.store.Sweep(t.Context()); err != nil || isMounted(t, v.Mountpoint) != used {
				t.Errorf("%v, mounted: %v", err, isMounted(t, v.Mountpoint))
			}
			if err := h.store.Unmount(t.Context(), "victim", "m"); err != nil || isMounted(t, v.Mountpoint) {
				t.Errorf("%v, mounted: %v", err, isMounted(t, v.Mountpoint))
			}
			if err := h.store.Remove(t.Context(), "victim", volumes.RemoveRequest{}); err != nil {
				t.Error(err)
			}
			h.checkWhole()
		})
	}
}

func isMounted(t *testing.T, path string) bool {
	t.Helper()
	mounted, err := mountinfo.Mounted(path)
	if err != nil {
		t.Fatal(err)
	}
	return mounted
}

// Between crash and restart somebody put another directory in the place of the removed one: it is no remains.
func TestCrashInRemoveSparesSuccessor(t *testing.T) {
	h := newCrashHost(t)
	v := h.create(volumes.CreateRequest{Name: "victim"})
	h.close()
	crashAt(t, h.root, "remove", "volumes.remove.unrecorded")
	if err := os.Rename(filepath.Dir(v.Mountpoint), filepath.Join(h.root, "aside")); err != nil {
		t.Fatal(err)
	}
	h.mkdir("victim")
	h.open()
	if got := h.names(nil); !slices.Equal(got, []string{"victim", "witness"}) {
		t.Errorf("%q", got)
	}
}

// describeSettled is describe without the time of the top directory, which a copy in two runs cannot keep.
func describeSettled(t *testing.T, dir string) []string {
	t.Helper()
	lines := describe(t, dir)
	lines[0], _, _ = strings.Cut(lines[0], " mtime")
	return lines
}

func TestCrashInCopyUp(t *testing.T) {
	for _, point := range []string{"copyup.copied", "copyup.ready", "copyup.moved", "copyup.finished"} {
		for kind, options := range map[string]map[string]string{"directory": nil, "mounted": {"type": "none", "o": "bind"}} {
			t.Run(point+" "+kind, func(t *testing.T) {
				h := newCrashHost(t)
				image := filepath.Join(h.root, "image")
				makeImage(t, image)
				if options != nil {
					options = map[string]string{"type": "none", "o": "bind", "device": newOtherMount(t)}
				}
				v := h.create(volumes.CreateRequest{Name: "victim", Options: options})
				t.Cleanup(func() { _ = syscall.Unmount(v.Mountpoint, syscall.MNT_DETACH) }) // if the test failed half way
				h.close()
				crashAt(t, h.root, "copyup", point)
				h.open()
				if err := h.store.CopyUp(t.Context(), "victim", image, nil); err != nil {
					t.Fatal(err)
				}
				path, err := h.store.Mount(t.Context(), "victim", "m")
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(describeSettled(t, image), describeSettled(t, path)); diff != "" {
					t.Error(diff)
				}
				if err := h.store.Unmount(t.Context(), "victim", "m"); err != nil {
					t.Fatal(err)
				}
				if err := h.store.Remove(t.Context(), "victim", volumes.RemoveRequest{}); err != nil {
					t.Errorf("in use after the crash: %v", err)
				}
				h.checkWhole()
			})
		}
	}
}

// A copy that was whole when the daemon died is completed by the start itself, for a container that only restarts.
func TestCrashInCopyUpIsCompletedByTheStart(t *testing.T) {
	h := newCrashHost(t)
	image := filepath.Join(h.root, "image")
	makeImage(t, image)
	v := h.create(volumes.CreateRequest{Name: "victim"})
	h.close()
	crashAt(t, h.root, "copyup", "copyup.moved")
	h.open()
	if diff := cmp.Diff(describeSettled(t, image), describeSettled(t, v.Mountpoint)); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(fmt.Sprint(describe(t, v.Mountpoint)), "stated") {
		t.Error("litter in the volume")
	}
	h.checkWhole()
}
