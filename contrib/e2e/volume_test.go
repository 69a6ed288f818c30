package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"stated.dev/stated/internal/testenv/scratch"
)

// stated runs a client command of stated against the host's daemon.
func (h host) stated(args ...string) result {
	h.T.Helper()
	cmd := exec.Command("stated", args...)
	cmd.Env = append(os.Environ(), "STATED_HOST=unix://"+h.Socket)
	return runCommand(h.T, cmd, "")
}

// mustStated is stated for a command that must succeed.
func (h host) mustStated(args ...string) string {
	h.T.Helper()
	r := h.stated(args...)
	if r.code != 0 {
		h.T.Fatalf("stated %q: code %d: %s%s", args, r.code, r.out, r.err)
	}
	return r.out + r.err
}

// listing tells all of a volume's files that a container can see.
func (h host) listing(volume string) string {
	h.T.Helper()
	return h.Docker("run", "--rm", "-v", volume+":/v", "busybox", "sh", "-c",
		`cd /v && find . | sort | while read f; do stat -c "%n %a %u:%g %s %t,%T %Y %h %F" "$f"; [ -f "$f" ] && md5sum <"$f"; [ -h "$f" ] && readlink "$f"; done; true`)
}

// TestVolumeExportImport moves a volume to another host.
func TestVolumeExportImport(t *testing.T) {
	h := startedHost(t)
	h.Docker("volume", "create", "--label", "tier=db", "data")
	h.Docker("run", "--rm", "-v", "data:/v", "busybox", "sh", "-c",
		"cd /v && mkdir -p a/b && echo content >a/file && ln a/file a/b/link && ln -s /nowhere sym && mknod null c 1 3 && mkfifo fifo && chown -R 70:71 a && chmod 4711 a/file && chmod 1777 . && touch -d @1000000 a/b")
	want := h.listing("data")
	file := filepath.Join(h.Dir, "data.tar")
	if out := h.mustStated("volume", "export", "-o", file, "data"); !strings.Contains(out, "volume data: 8 entries") {
		t.Errorf("%s", out)
	}
	if r := h.stated("volume", "import", "-i", file); r.code == 0 || !strings.Contains(r.err, "there is a volume data already") || !strings.Contains(r.err, "docker volume rm data") {
		t.Errorf("%+v", r)
	}

	other := startedHost(t)
	other.mustStated("volume", "import", "-i", file)
	if got := other.listing("data"); got != want {
		t.Errorf("there it is\n%s\nand was\n%s", got, want)
	}
	other.want("map[tier:db]", "volume", "inspect", "-f", "{{.Labels}}", "data")

	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(h.Dir, "half.tar")
	if err := os.WriteFile(half, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if r := other.stated("volume", "import", "-i", half, "half"); r.code == 0 || !strings.Contains(r.err, "not a whole stream") {
		t.Errorf("%+v", r)
	}
	other.want("data", "volume", "ls", "-q")
	if r := h.stated("volume", "export", "-o", filepath.Join(h.Dir, "no.tar"), "nope"); r.code == 0 || !strings.Contains(r.err, "get nope: no such volume") {
		t.Errorf("%+v", r)
	}
}

// The daemon refuses what it need not read to its end, and the client that is still sending says why.
func TestVolumeImportRefusedEarly(t *testing.T) {
	h := startedHost(t)
	h.Docker("run", "--rm", "-v", "data:/v", "busybox", "dd", "if=/dev/urandom", "of=/v/big", "bs=1M", "count=32")
	file := filepath.Join(h.Dir, "data.tar")
	h.mustStated("volume", "export", "-o", file, "data")
	for range 5 {
		if r := h.stated("volume", "import", "-i", file); r.code != 1 || !strings.Contains(r.err, "there is a volume data already") {
			t.Errorf("%+v", r)
		}
	}
}

// cloningHost is a host whose data root can clone files.
func cloningHost(t *testing.T) host {
	t.Helper()
	h := host{scratch.New(t)}
	image := filepath.Join(h.Dir, "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 1<<30); err != nil {
		t.Fatal(err)
	}
	scratch.Run(t, "mkfs.xfs", "-q", image)
	if err := os.Mkdir(h.Roots.Data, 0o710); err != nil {
		t.Fatal(err)
	}
	scratch.Run(t, "mount", "-o", "loop", image, h.Roots.Data)
	h.Start()
	h.ImportBusybox()
	return h
}

// writer writes two files in turn, the first always first, so that a volume at one moment has them equal, or the first
// ahead by one.
const writer = `n=0; while true; do n=$((n+1)); echo $n >/v/a.tmp; mv /v/a.tmp /v/a; echo $n >/v/b.tmp; mv /v/b.tmp /v/b; done`

// TestVolumeSnapshot exports a volume while containers write, at one moment and with a short pause.
func TestVolumeSnapshot(t *testing.T) {
	h := cloningHost(t)
	h.Docker("run", "-d", "--name", "writer", "-v", "data:/v", "busybox", "sh", "-c",
		`for i in $(seq 500); do head -c 5000 /dev/urandom >/v/file$i; done; touch /v/zready; `+writer)
	h.Docker("run", "-d", "--name", "still", "-v", "data:/v", "busybox", "sleep", "1000")
	h.Docker("pause", "still")
	data := filepath.Join(h.Roots.Data, "volumes", "data", "_data")
	h.eventually("the volume is filled", func() bool { _, err := os.Stat(filepath.Join(data, "b")); return err == nil })
	for i := range 3 {
		name := fmt.Sprint("copy", i)
		file := filepath.Join(h.Dir, name)
		out := h.mustStated("volume", "export", "-o", file, "data")
		if !strings.Contains(out, "consistency: snapshot") || !regexp.MustCompile(`paused for [0-9.]+m?s: writer\n`).MatchString(out) {
			t.Fatalf("%s", out)
		}
		t.Log(out)
		h.mustStated("volume", "import", "-i", file, name)
		number := func(file string) int {
			text, err := os.ReadFile(filepath.Join(h.Roots.Data, "volumes", name, "_data", file))
			if err != nil {
				t.Fatal(err)
			}
			n, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		if a, b := number("a"), number("b"); a != b && a != b+1 {
			t.Errorf("the files are of different moments: %d and %d", a, b)
		}
	}
	h.want("running", "inspect", "-f", "{{.State.Status}}", "writer")
	h.want("paused", "inspect", "-f", "{{.State.Status}}", "still")
}

// A daemon that is killed while it has containers paused lets them go on at its next start, but for those that somebody
// else has paused.
func TestCrashInVolumeExport(t *testing.T) {
	h := cloningHost(t)
	for _, name := range []string{"web", "still"} {
		h.Docker("run", "-d", "--name", name, "-v", "data:/v", "busybox", "sleep", "1000")
	}
	h.Docker("pause", "still")
	for _, point := range []string{"volumes.export.prepared", "containers.freezing", "containers.frozen", "volumes.export.cloned", "volumes.export.thawed"} {
		h.Stop(syscall.SIGTERM)
		h.Env = []string{"STATED_FAULT=" + point + "=kill"}
		h.Start()
		if r := h.stated("volume", "export", "-o", filepath.Join(h.Dir, point), "data"); r.code == 0 {
			t.Fatalf("%s: %+v", point, r)
		}
		<-h.Exited()
		h.Env = nil
		h.Start()
		h.want("running", "inspect", "-f", "{{.State.Status}}", "web")
		h.want("paused", "inspect", "-f", "{{.State.Status}}", "still")
		h.want("", "exec", "web", "true")
		h.eventually("what the export left is gone", func() bool {
			left, _ := os.ReadDir(filepath.Join(h.Roots.Data, ".stated", "volumes", "snapshots"))
			return len(left) == 0
		})
		if left, _ := os.ReadDir(filepath.Join(h.Roots.Exec, "frozen")); len(left) != 0 {
			t.Errorf("%s: noted as paused: %v", point, left)
		}
	}
}

// TestVolumeAdopt loses the database of volumes, and a volume.
func TestVolumeAdopt(t *testing.T) {
	h := startedHost(t)
	h.Docker("volume", "create", "--label", "a=b", "data")
	h.Docker("create", "--name", "web", "-v", "data:/data", "-v", "/cache", "busybox", "sh", "-c", "echo x >>/data/log; wc -l </data/log")
	h.Docker("create", "--name", "db", "-v", "gone:/db", "busybox", "true")
	h.want("1", "start", "-a", "web")
	h.Stop(syscall.SIGTERM)
	for _, path := range []string{"volumes/metadata.db", ".stated/volumes", "volumes/gone"} {
		if err := os.RemoveAll(filepath.Join(h.Roots.Data, path)); err != nil {
			t.Fatal(err)
		}
	}
	offline := func(args ...string) result {
		return h.stated(append([]string{"volume", "adopt", "--data-root", h.Roots.Data}, args...)...)
	}
	place := filepath.Join(h.Roots.Data, "volumes", "gone", "_data")
	missing := "container db needs volume gone at /db: directory " + place + " is missing; copy it there, or create it with docker volume create gone"
	if r := offline("--dry-run"); r.code != 2 || !strings.Contains(r.out, "data (local) has no record, and would get one") || !strings.Contains(r.out, missing) {
		t.Errorf("%+v", r)
	}
	if r := offline(); r.code != 2 || !strings.Contains(r.out, "data (local) is recorded now") || !strings.Contains(r.out, missing) || !strings.Contains(r.out, "lost: labels") {
		t.Errorf("%+v", r)
	}
	h.Start()
	if r := offline(); r.code != 1 || !strings.Contains(r.err, "in use") {
		t.Errorf("the root of a running daemon: %+v", r)
	}
	h.want("2", "start", "-a", "web")
	if got := h.Docker("inspect", "-f", "{{.State.Error}}", "db"); !strings.Contains(got, "volume at /db: get gone: no such volume: directory "+place+" is missing") {
		t.Errorf("State.Error is %q", got)
	}
	if r := h.stated("doctor"); r.code != 2 || !strings.Contains(r.out, "create it with docker volume create gone") {
		t.Errorf("%+v", r)
	}
	h.fails("create it with docker volume create gone", "start", "db")
	if r := h.stated("volume", "adopt", "gone"); r.code != 2 || !strings.Contains(r.out, missing) {
		t.Errorf("%+v", r)
	}
	if err := os.MkdirAll(place, 0o755); err != nil { // copied there by hand, while the daemon runs
		t.Fatal(err)
	}
	if r := h.stated("volume", "adopt"); r.code != 0 || !strings.Contains(r.out, "gone (local) is recorded now") {
		t.Errorf("%+v", r)
	}
	h.Docker("start", "db")
	h.fails("volume is in use", "volume", "rm", "gone")
	// Who made the anonymous volume is known, and so is its label.
	h.Docker("rm", "-v", "web")
	h.want("data\ngone", "volume", "ls", "-q")
}

// TestMoveContainerByHand copies a container, its layers and its volume to another data root, and leaves out one piece
// after the other.
func TestMoveContainerByHand(t *testing.T) {
	from := startedHost(t)
	to := startedHost(t)
	from.Docker("create", "--name", "web", "-v", "data:/data", "-e", "A=1", "busybox", "sh", "-c", "echo line >>/data/log; echo x >>/own; cat /etc/hostname >/dev/null; wc -l </data/log; wc -l </own")
	from.want("1\n1", "start", "-a", "web")
	var got []struct {
		ID          string `json:"Id"`
		GraphDriver struct{ Name string }
	}
	if err := json.Unmarshal([]byte(from.Docker("inspect", "web")), &got); err != nil {
		t.Fatal(err)
	}
	id, driver := got[0].ID, got[0].GraphDriver.Name
	from.Stop(syscall.SIGTERM)
	to.Stop(syscall.SIGTERM)
	copied := func(paths ...string) {
		t.Helper()
		for _, rel := range paths {
			dst := filepath.Join(to.Roots.Data, rel)
			if err := os.MkdirAll(filepath.Dir(dst), 0o711); err != nil {
				t.Fatal(err)
			}
			scratch.Run(t, "cp", "-a", filepath.Join(from.Roots.Data, rel), dst)
		}
	}
	read := func(rel string) string {
		t.Helper()
		data, err := os.ReadFile(filepath.Join(from.Roots.Data, rel))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	mounts := filepath.Join("image", driver, "layerdb", "mounts", id)
	refused := func(texts ...string) {
		t.Helper()
		to.Start()
		out, err := to.Try("start", "-a", "web")
		for _, text := range texts {
			if err == nil || !strings.Contains(out, text) {
				t.Errorf("start says %q, not %q", out, text)
			}
			to.eventually("the doctor says "+text, func() bool { return strings.Contains(to.stated("doctor").out, text) })
		}
		to.Stop(syscall.SIGTERM)
	}

	copied("containers/" + id)
	refused("directory " + filepath.Join(to.Roots.Data, mounts) + " is missing")
	copied(mounts)
	var layers []string
	for _, name := range []string{"mount-id", "init-id"} {
		layers = append(layers, read(filepath.Join(mounts, name)))
	}
	refused(layers[0])
	for _, l := range layers {
		copied(filepath.Join(driver, l), filepath.Join(driver, "l", read(filepath.Join(driver, l, "link"))))
	}
	// The image's layers lie in other directories there: their names are each host's own.
	to.Start()
	to.fails("run stated handback --data-root "+to.Roots.Data, "start", "web")
	to.Stop(syscall.SIGTERM)
	to.mustStated("handback", "--data-root", to.Roots.Data, "--exec-root", to.Roots.Exec)
	place := filepath.Join(to.Roots.Data, "volumes", "data", "_data")
	refused("directory " + place + " is missing; copy it there, or create it with docker volume create data")
	copied("volumes/data")
	to.Start()
	if out, err := to.Try("start", "-a", "web"); err != nil || strings.TrimSpace(out) != "2\n2" {
		t.Errorf("%q, %v", out, err)
	}
	if out := to.Docker("inspect", "-f", "{{.HostnamePath}} {{.LogPath}}", "web"); strings.Contains(out, from.Dir) {
		t.Errorf("it uses files of the old root: %s", out)
	}
	if out := to.Docker("logs", "--tail", "2", "web"); !slices.Equal(strings.Fields(out), []string{"2", "2"}) {
		t.Errorf("logs: %q", out)
	}
	if r := to.stated("volume", "adopt", "data"); r.code != 0 || !strings.Contains(r.out, "data (local)") {
		t.Errorf("%+v", r)
	}
}
