package volumes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	router "stated.dev/stated/api/router/volumes"
	"stated.dev/stated/volumes"
)

// export returns the stream of a volume.
func (h *host) export(name string, req volumes.ExportRequest) ([]byte, volumes.ExportReport) {
	h.t.Helper()
	e, err := h.store.Export(h.t.Context(), name, req)
	if err != nil {
		h.t.Fatal(err)
	}
	var out bytes.Buffer
	report, err := e.Write(h.t.Context(), &out)
	if err := errors.Join(err, e.Close()); err != nil {
		h.t.Fatal(err)
	}
	return out.Bytes(), report
}

func (h *host) importStream(req volumes.ImportRequest, data []byte) volumes.Volume {
	h.t.Helper()
	v, _, err := h.store.Import(h.t.Context(), req, bytes.NewReader(data))
	if err != nil {
		h.t.Fatal(err)
	}
	return v
}

func TestExportAndImport(t *testing.T) {
	h := newHost(t)
	h.open()
	v := h.create(volumes.CreateRequest{Name: "vol", Labels: map[string]string{"a": "b"}})
	makeImage(t, v.Mountpoint)
	data, report := h.export("vol", volumes.ExportRequest{})
	if want := int64(13); report.Entries != want || len(report.LeftOut) != 0 {
		t.Errorf("%+v", report)
	}
	again := h.importStream(volumes.ImportRequest{Name: "again"}, data)
	if again.Labels["a"] != "b" || again.Driver != "local" || again.Options != nil {
		t.Errorf("%+v", again)
	}
	if diff := cmp.Diff(describe(t, v.Mountpoint), describe(t, again.Mountpoint)); diff != "" {
		t.Error(diff)
	}
	other := newHost(t)
	other.fake = nil
	other.open()
	other.importStream(volumes.ImportRequest{}, data)
	if got := other.names(nil); !slices.Equal(got, []string{"vol"}) {
		t.Errorf("%q", got)
	}
	other.checkWhole()
	other.open()
	if v, err := other.store.Get(t.Context(), "vol", volumes.GetRequest{}); err != nil || v.Labels["a"] != "b" {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestImportRefuses(t *testing.T) {
	h := newHost(t)
	h.open()
	h.create(volumes.CreateRequest{Name: "vol"})
	h.fake.Dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(h.fake.Dir, "far"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.create(volumes.CreateRequest{Name: "far", Driver: "fake"})
	h.create(volumes.CreateRequest{Name: "memory", Options: crashOptions})
	anonymous := h.create(volumes.CreateRequest{})
	plain, _ := h.export("vol", volumes.ExportRequest{})
	far, _ := h.export("far", volumes.ExportRequest{})
	memory, _ := h.export("memory", volumes.ExportRequest{})
	nobodys, _ := h.export(anonymous.Name, volumes.ExportRequest{})
	before := h.names(nil)
	for name, c := range map[string]struct {
		req  volumes.ImportRequest
		data []byte
		want string
		kind func(error) bool
	}{
		"taken":               {volumes.ImportRequest{}, plain, `remove it with "docker volume rm vol"`, errdefs.IsConflict},
		"taken elsewhere":     {volumes.ImportRequest{Name: "far"}, plain, "there is a volume far already", errdefs.IsConflict},
		"bad name":            {volumes.ImportRequest{Name: "../x"}, plain, "invalid characters", errdefs.IsInvalidArgument},
		"of a plug-in":        {volumes.ImportRequest{Name: "new"}, far, "--data-only", errdefs.IsInvalidArgument},
		"with mount options":  {volumes.ImportRequest{Name: "new"}, memory, "--data-only", errdefs.IsInvalidArgument},
		"half":                {volumes.ImportRequest{Name: "new"}, plain[:len(plain)-2500], "not a whole stream", errdefs.IsInvalidArgument},
		"nothing of a volume": {volumes.ImportRequest{Name: "new"}, nil, "not a whole stream", errdefs.IsInvalidArgument},
	} {
		_, _, err := h.store.Import(t.Context(), c.req, bytes.NewReader(c.data))
		if !c.kind(err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after := h.names(nil); !slices.Equal(before, after) {
		t.Errorf("%q became %q", before, after)
	}
	for name, data := range map[string][]byte{"far2": far, "memory2": memory} {
		if v := h.importStream(volumes.ImportRequest{Name: name, DataOnly: true}, data); v.Driver != "local" || v.Options != nil {
			t.Errorf("%+v", v)
		}
	}
	if v := h.importStream(volumes.ImportRequest{Name: "mine"}, nobodys); len(v.Labels) != 0 {
		t.Errorf("a volume with a name is labelled as one without: %v", v.Labels)
	}
	if left, _ := os.ReadDir(filepath.Join(h.root, ".stated", "volumes", "stage")); len(left) != 0 {
		t.Errorf("left in the stage: %v", left)
	}
}

// A volume that is being exported cannot be removed.
func TestExportKeeps(t *testing.T) {
	h := newHost(t)
	h.open()
	h.create(volumes.CreateRequest{Name: "vol"})
	e, err := h.store.Export(t.Context(), "vol", volumes.ExportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, req := range []volumes.RemoveRequest{{}, {Force: true}} {
		if err := h.store.Remove(t.Context(), "vol", req); !errors.Is(err, volumes.ErrInUse) {
			t.Errorf("%v", err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.store.Remove(t.Context(), "vol", volumes.RemoveRequest{}); err != nil {
		t.Error(err)
	}
	_, err = h.store.Export(t.Context(), "vol", volumes.ExportRequest{})
	wantError(t, err, "get vol: no such volume", errdefs.IsNotFound)
}

// freezer notes when containers are held still.
type freezer struct{ held, calls int }

func (f *freezer) freeze(context.Context, string) (volumes.Frozen, error) {
	f.held++
	f.calls++
	return volumes.Frozen{Containers: []string{"web"}, Thaw: func() (time.Duration, error) {
		f.held--
		return time.Millisecond, nil
	}}, nil
}

func (f *freezer) in(h *host) *host {
	h.adjust = func(o *volumes.Options) { o.Freeze = f.freeze }
	return h
}

// watch calls look at the first byte of a stream.
type watch struct {
	io.Writer
	look func()
}

func (w *watch) Write(p []byte) (int, error) {
	w.look()
	w.look = func() {}
	return w.Writer.Write(p)
}

// Where files cannot be cloned nobody is held still unless that was asked for, and then until all is read.
func TestExportWithoutClones(t *testing.T) {
	var f freezer
	root := newFileSystem(t, "ext4") // unmounted after the store is closed
	h := f.in(newHost(t))
	h.root = root
	h.open()
	h.create(volumes.CreateRequest{Name: "vol"})
	if _, report := h.export("vol", volumes.ExportRequest{}); report.Consistency != volumes.ConsistencyLive || f.calls != 0 || report.Reason == "" {
		t.Errorf("%+v, %+v", report, f)
	}
	e, err := h.store.Export(t.Context(), "vol", volumes.ExportRequest{Pause: true})
	if err != nil {
		t.Fatal(err)
	}
	report, err := e.Write(t.Context(), &watch{io.Discard, func() {
		if f.held != 1 {
			t.Error("not held still while it is read")
		}
	}})
	if err := errors.Join(err, e.Close()); err != nil {
		t.Fatal(err)
	}
	if report.Consistency != volumes.ConsistencyPaused || f.held != 0 || !slices.Equal(report.Paused, []string{"web"}) || report.PausedFor <= 0 {
		t.Errorf("%+v, %+v", report, f)
	}
}

// Where files can be cloned the clones are read, when everybody goes on already.
func TestExportOfClones(t *testing.T) {
	for _, kind := range []string{"xfs", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			var f freezer
			root := newFileSystem(t, kind)
			h := f.in(newHost(t))
			h.root = root
			h.open()
			v := h.create(volumes.CreateRequest{Name: "vol"})
			makeImage(t, v.Mountpoint)
			if kind == "btrfs" { // a file without copy-on-write, as databases have them
				path := filepath.Join(v.Mountpoint, "nocow")
				run(t, "touch", path)
				run(t, "chattr", "+C", path)
				if err := os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want := describe(t, v.Mountpoint)
			e, err := h.store.Export(t.Context(), "vol", volumes.ExportRequest{Pause: true})
			if err != nil {
				t.Fatal(err)
			}
			if f.held != 0 || f.calls != 1 {
				t.Errorf("%+v", f)
			}
			if err := os.WriteFile(filepath.Join(v.Mountpoint, "later"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			report, err := e.Write(t.Context(), &out)
			if err := errors.Join(err, e.Close()); err != nil {
				t.Fatal(err)
			}
			if report.Consistency != volumes.ConsistencySnapshot || report.Reason != "" {
				t.Errorf("%+v", report)
			}
			again := h.importStream(volumes.ImportRequest{Name: "again"}, out.Bytes())
			if diff := cmp.Diff(want, describe(t, again.Mountpoint)); diff != "" {
				t.Error(diff)
			}
			if left, _ := os.ReadDir(filepath.Join(h.root, ".stated", "volumes", "snapshots")); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// newFileSystem mounts a new file system, until the test ends.
func newFileSystem(t *testing.T, kind string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 512<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs."+kind, "-q", image)
	dir := t.TempDir()
	run(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { run(t, "umount", dir) })
	return dir
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func TestCrashInImport(t *testing.T) {
	for _, point := range []string{
		"volumes.import.filled", "volumes.record.logged", "volumes.create.recorded", "volumes.create.published", "volumes.record.folded",
	} {
		t.Run(point, func(t *testing.T) {
			h := newCrashHost(t)
			source := h.create(volumes.CreateRequest{Name: "source", Labels: map[string]string{"a": "b"}})
			makeImage(t, source.Mountpoint)
			data, _ := h.export("source", volumes.ExportRequest{})
			if err := os.WriteFile(filepath.Join(h.root, "stream"), data, 0o600); err != nil {
				t.Fatal(err)
			}
			want := describe(t, source.Mountpoint)
			h.close()
			crashAt(t, h.root, "import", point)
			h.open()
			names := h.names(nil)
			if whole := point == "volumes.create.published" || point == "volumes.record.folded"; whole && !slices.Contains(names, "victim") {
				t.Errorf("it was whole, and is gone: %q", names)
			}
			if slices.Contains(names, "victim") {
				v, err := h.store.Get(t.Context(), "victim", volumes.GetRequest{})
				if err != nil || v.Labels["a"] != "b" {
					t.Fatalf("%+v, %v", v, err)
				}
				if diff := cmp.Diff(want, describe(t, v.Mountpoint)); diff != "" {
					t.Error(diff)
				}
			} else {
				h.importStream(volumes.ImportRequest{Name: "victim"}, data)
			}
			if problems := h.store.Problems(); len(problems) != 0 {
				t.Errorf("%+v", problems)
			}
			h.checkWhole()
		})
	}
}

// What an export left that a crash cut short is removed by the next start.
func TestCrashInExport(t *testing.T) {
	root := newFileSystem(t, "xfs")
	for _, point := range []string{"volumes.export.prepared", "volumes.export.cloned", "volumes.export.thawed"} {
		t.Run(point, func(t *testing.T) {
			h := newHost(t)
			h.root, h.fake = root, nil
			h.open()
			v := h.create(volumes.CreateRequest{Name: "victim"})
			if err := os.WriteFile(filepath.Join(v.Mountpoint, "file"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			h.close()
			snapshots := filepath.Join(root, ".stated", "volumes", "snapshots")
			crashAt(t, root, "export", point)
			if left, err := os.ReadDir(snapshots); err != nil || len(left) != 1 {
				t.Errorf("the crash left %v, %v", left, err)
			}
			h.open()
			h.close() // which waits for what is done in the background
			if left, _ := os.ReadDir(snapshots); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// states returns what Adopt says of each volume.
func states(list []volumes.Adoption) map[string]volumes.AdoptionState {
	got := map[string]volumes.AdoptionState{}
	for _, a := range list {
		got[a.Name] = a.State
	}
	return got
}

func find(t *testing.T, list []volumes.Adoption, name string) volumes.Adoption {
	t.Helper()
	for _, a := range list {
		if a.Name == name {
			return a
		}
	}
	t.Fatalf("nothing is said of %s: %+v", name, list)
	return volumes.Adoption{}
}

// A data root comes without its database: everything that can be known is recorded again.
func TestAdopt(t *testing.T) {
	h := newHost(t)
	h.fake = nil
	h.open()
	h.create(volumes.CreateRequest{Name: "plain", Labels: map[string]string{"a": "b"}})
	h.create(volumes.CreateRequest{Name: "memory", Options: crashOptions})
	anonymous := h.create(volumes.CreateRequest{Labels: map[string]string{"l": "m"}})
	h.create(volumes.CreateRequest{Name: "gone"})
	h.create(volumes.CreateRequest{Name: "hollow"})
	h.close()
	for _, path := range []string{"volumes/metadata.db", ".stated", "volumes/gone", "volumes/hollow/_data"} {
		if err := os.RemoveAll(filepath.Join(h.root, path)); err != nil {
			t.Fatal(err)
		}
	}
	users := map[string][]string{"plain": {"id1"}}
	h.refs = func(context.Context) map[string][]string { return users }
	h.open()
	claims := []volumes.Claim{
		{Container: "web", Destination: "/data", Volume: "plain", Driver: "local", Labels: map[string]string{"a": "b"}},
		{Container: "web", Destination: "/cache", Volume: anonymous.Name, Driver: "local", Anonymous: true, Labels: map[string]string{"l": "m"}},
		{Container: "db", Destination: "/db", Volume: "gone", Driver: "local"},
		{Container: "db", Destination: "/far", Volume: "far", Driver: "nfs"},
	}
	dry, err := h.store.Adopt(t.Context(), volumes.AdoptRequest{Claims: claims, DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]volumes.AdoptionState{
		"plain": volumes.AdoptionPossible, "memory": volumes.AdoptionPossible, anonymous.Name: volumes.AdoptionPossible,
		"gone": volumes.AdoptionMissing, "hollow": volumes.AdoptionMissing, "far": volumes.AdoptionUncertain,
	}
	if diff := cmp.Diff(want, states(dry)); diff != "" {
		t.Error(diff)
	}
	if records := h.records(); len(records["volumes"]) != 0 {
		t.Errorf("a dry run recorded %v", records)
	}
	h.open()
	list, err := h.store.Adopt(t.Context(), volumes.AdoptRequest{Claims: claims})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"plain", "memory", anonymous.Name} {
		want[name] = volumes.AdoptionRecorded
	}
	if diff := cmp.Diff(want, states(list)); diff != "" {
		t.Error(diff)
	}
	text := "container db needs volume gone at /db: directory " + filepath.Join(h.dir(), "gone", "_data") + " is missing; copy it there, or create it with docker volume create gone"
	if got := find(t, list, "gone").Missing; !slices.Equal(got, []string{text}) {
		t.Errorf("%q, want %q", got, text)
	}
	if got := find(t, list, "hollow").Missing; len(got) != 1 || !strings.Contains(got[0], "mkdir -p -m 755 "+filepath.Join(h.dir(), "hollow", "_data")) {
		t.Errorf("%q", got)
	}
	if got := find(t, list, "plain").Lost; len(got) != 1 || !strings.Contains(got[0], "container web asked for a=b") {
		t.Errorf("%q", got)
	}
	if got := find(t, list, anonymous.Name); len(got.Lost) != 0 {
		t.Errorf("%+v", got)
	}
	if err := h.store.Remove(t.Context(), "plain", volumes.RemoveRequest{}); !errors.Is(err, volumes.ErrInUse) {
		t.Errorf("a volume that a container needs was removed: %v", err)
	}
	again, err := h.store.Adopt(t.Context(), volumes.AdoptRequest{Names: []string{"plain"}})
	if err != nil || len(again) != 1 || again[0].State != volumes.AdoptionKept {
		t.Errorf("%+v, %v", again, err)
	}
	records := h.records()["volumes"]
	wantRecords := map[string]string{
		"plain":        `{"Name":"plain","Driver":"local","Labels":null,"Options":null}`,
		"memory":       `{"Name":"memory","Driver":"local","Labels":null,"Options":{"device":"tmpfs","o":"size=1m","type":"tmpfs"}}`,
		anonymous.Name: `{"Name":"` + anonymous.Name + `","Driver":"local","Labels":{"com.docker.volume.anonymous":"","l":"m"},"Options":null}`,
	}
	if diff := cmp.Diff(wantRecords, records); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(filepath.Join(h.dir(), "hollow", "_data")); err == nil {
		t.Error("data was invented")
	}
}

// Directories that appear while the store is open are found, and volumes of other drivers asked for.
func TestAdoptWhileOpen(t *testing.T) {
	h := newHost(t)
	h.open()
	h.fake.Add("far")
	h.mkdir("late")
	list, err := h.store.Adopt(t.Context(), volumes.AdoptRequest{Claims: []volumes.Claim{
		{Container: "web", Destination: "/a", Volume: "far", Driver: "fake"}, {Container: "web", Destination: "/b", Volume: "nowhere", Driver: "fake"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]volumes.AdoptionState{"late": volumes.AdoptionRecorded, "far": volumes.AdoptionRecorded, "nowhere": volumes.AdoptionMissing}
	if diff := cmp.Diff(want, states(list)); diff != "" {
		t.Error(diff)
	}
	if got := find(t, list, "nowhere").Missing; len(got) != 1 || !strings.Contains(got[0], "docker volume create -d fake nowhere") {
		t.Errorf("%q", got)
	}
	if _, err := h.store.Mount(t.Context(), "late", "m"); err != nil {
		t.Error(err)
	}
}

// A database that somebody left behind while the copy of the last start came along loses nothing of that.
func TestMissingDatabase(t *testing.T) {
	h := newHost(t)
	h.fake = nil
	h.open()
	h.create(volumes.CreateRequest{Name: "vol", Labels: map[string]string{"a": "b"}})
	h.open() // makes the copy
	h.close()
	if err := os.Remove(filepath.Join(h.dir(), "metadata.db")); err != nil {
		t.Fatal(err)
	}
	h.open()
	if v, err := h.store.Get(t.Context(), "vol", volumes.GetRequest{}); err != nil || v.Labels["a"] != "b" {
		t.Errorf("%+v, %v", v, err)
	}
	if p := h.store.Problems(); len(p) != 1 || !strings.Contains(p[0].Text, "was missing; the copy of the last start") {
		t.Errorf("%+v", p)
	}
}

// A client takes no trailer that is longer than 4 KiB, whatever the files in a volume are called.
func TestExportReportStaysShort(t *testing.T) {
	h := newHost(t)
	h.open()
	data := h.create(volumes.CreateRequest{Name: "data"}).Mountpoint
	for i := range 20 {
		if err := unix.Mknod(filepath.Join(data, strings.Repeat("<\x01", 120)+fmt.Sprint(i)), unix.S_IFSOCK|0o600, 0); err != nil {
			t.Fatal(err)
		}
	}
	e, err := volumes.API{Store: h.store}.Export(t.Context(), "data", router.ExportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	report, err := e.Write(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(report)
	if err != nil || len(text) > 3000 || len(report.LeftOut) != 6 {
		t.Errorf("%d bytes, %q, %v", len(text), report.LeftOut, err)
	}
}
