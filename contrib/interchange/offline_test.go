package interchange

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stated.dev/stated/api/types"
	"stated.dev/stated/internal/testenv/scratch"
)

// command runs a stated command and returns what it printed.
func command(args ...string) (string, error) {
	out, err := exec.Command("stated", args...).CombinedOutput()
	return string(out), err
}

// TestLiveDockerd starts stated on a root that a dockerd has open: it refuses, and leaves no trace.
func TestLiveDockerd(t *testing.T) {
	r := newRoot(t)
	d := r.dockerd()
	if _, err := r.tryStated(); err == nil || !strings.Contains(err.Error(), "is in use by dockerd, process ") {
		t.Errorf("stated starts beside dockerd: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(r.data(), ".stated")); err == nil {
		t.Error("stated wrote into a root that dockerd uses")
	}
	if out, err := command("adopt", "--check", r.data()); err != nil || !strings.Contains(out, "is in use by dockerd") {
		t.Errorf("adopt --check says %s (%v)", out, err)
	}
	d.stop()
}

// TestBackup checks that the first start on dockerd's root copies its records first, and that no later one does.
func TestBackup(t *testing.T) {
	r := newRoot(t)
	d := r.dockerd()
	importBusybox(d)
	d.do(http.MethodPost, "/volumes/create", object{"Name": "vol"})
	create(d, "cc", object{"Image": "busybox"})
	d.stop()
	before := r.files(func(rel string) bool {
		top, _, _ := strings.Cut(rel, "/")
		return top != "." && top != "containers" && top != "volumes" && top != "network" && top != "image"
	})
	s := r.stated()
	s.do(http.MethodDelete, "/containers/cc", nil)
	s.do(http.MethodDelete, "/volumes/vol", nil)
	s.stop()
	s = r.stated()
	s.stop()
	backups, err := filepath.Glob(filepath.Join(r.data(), ".stated", "backup-*"))
	if err != nil || len(backups) != 1 {
		t.Fatalf("there are %d backups: %v", len(backups), err)
	}
	saved := &root{t: t, dir: t.TempDir()}
	if err := os.Rename(backups[0], saved.data()); err != nil {
		t.Fatal(err)
	}
	files := saved.files(func(string) bool { return false })
	n := 0
	for rel, sum := range files {
		if strings.HasPrefix(sum, "d") || rel == "engine-id" {
			continue
		}
		n++
		if before[rel] != sum {
			t.Errorf("the backup of %s is %s, dockerd's file was %s", rel, sum, before[rel])
		}
	}
	if n != 5 { // two databases, the names of images, two records
		t.Errorf("the backup has %d files: %v", n, files)
	}
}

// TestMissing takes parts of objects away: that is told where a user looks for it, and hinders nobody else.
func TestMissing(t *testing.T) {
	r := newRoot(t)
	d := r.dockerd()
	importBusybox(d)
	d.do(http.MethodPost, "/images/load", twoLayers(t))
	d.do(http.MethodPost, "/volumes/create", object{"Name": "gone"})
	create(d, "volume", object{"Image": "busybox", "HostConfig": object{"Binds": list{"gone:/v"}}})
	create(d, "image", object{"Image": "two:layers"})
	create(d, "writable", object{"Image": "busybox"})
	create(d, "foreign", object{"Image": "busybox"})
	create(d, "healthy", object{"Image": "busybox", "Cmd": list{"true"}})
	upper := func(path string) string {
		var c struct {
			Id          string
			GraphDriver struct{ Data struct{ UpperDir string } }
		}
		d.get(path, &c)
		return filepath.Join(r.data(), strings.TrimPrefix(filepath.Dir(c.GraphDriver.Data.UpperDir), dataRoot))
	}
	paths := []string{upper("/images/two:layers/json"), upper("/containers/writable/json"), filepath.Join(r.data(), "volumes", "gone")}
	var foreign struct{ Id string }
	d.get("/containers/foreign/json", &foreign)
	d.stop()
	for _, p := range paths {
		if err := os.RemoveAll(p); err != nil {
			t.Fatal(err)
		}
	}
	record := filepath.Join(r.data(), "containers", foreign.Id, "config.v2.json")
	data, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(record, []byte(strings.Replace(string(data), `"Driver":"overlay2"`, `"Driver":"overlayfs"`, 1)), 0); err != nil {
		t.Fatal(err)
	}

	s := r.stated()
	var doc types.Doctor
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		s.get("/stated/doctor", &doc) // writable layers are looked at while the daemon serves already
		if strings.Count(fmt.Sprint(doc.Problems), "containers") >= 4 {
			break
		}
	}
	for _, name := range []string{"volume", "image", "writable", foreign.Id} {
		var c struct {
			Id    string
			State struct{ Error string }
		}
		s.get("/containers/"+name+"/json", &c)
		if c.State.Error == "" {
			t.Errorf("inspect of %s names no error", name)
		}
		named := false
		for _, p := range doc.Problems {
			named = named || p.Subsystem == "containers" && p.Object == c.Id
		}
		if !named {
			t.Errorf("the doctor does not name container %s: %v", name, doc.Problems)
		}
		if _, err := s.try(http.MethodPost, "/containers/"+name+"/start", nil); err == nil {
			t.Errorf("container %s starts without its parts", name)
		}
	}
	s.output("healthy")
	s.stop()
}

// TestHandback kills stated and hands its root to dockerd.
func TestHandback(t *testing.T) {
	r := newRoot(t)
	s := r.stated()
	importBusybox(s)
	create(s, "cc", object{"Image": "busybox", "Cmd": list{"true"}})
	before := s.take()
	s.kill()
	flags := []string{"--data-root", dataRoot, "--exec-root", filepath.Join(r.dir, "exec")}
	out, err := command(append([]string{"handback"}, flags...)...)
	if err != nil || !strings.Contains(out, "dockerd may start on it") {
		t.Fatalf("handback: %v: %s", err, out)
	}
	if info, err := os.Stat(filepath.Join(r.data(), ".stated", "journal")); err != nil || info.Size() != 0 {
		t.Errorf("the journal is not empty after handback: %v %v", info, err)
	}
	if out, err := command("adopt", "--check", r.data()); err != nil {
		t.Errorf("adopt --check after handback: %s", out)
	}
	d := r.dockerd()
	agree(t, "stated", before, "dockerd", d.take())
	d.output("cc")
	d.stop()
}

// TestCleanup leaves a daemon with a running container, and then without one.
func TestCleanup(t *testing.T) {
	r := newRoot(t)
	s := r.stated()
	importBusybox(s)
	create(s, "runs", object{"Image": "busybox", "Cmd": list{"sleep", "1000"}, "HostConfig": object{"PortBindings": object{"80/tcp": list{object{"HostPort": "18081"}}}}})
	s.do(http.MethodPost, "/containers/runs/start", nil)
	flags := []string{"cleanup", "--data-root", dataRoot, "--exec-root", filepath.Join(r.dir, "exec")}
	if out, err := command(flags...); err == nil || !strings.Contains(out, "in use by another stated") {
		t.Errorf("cleanup beside a daemon: %v: %s", err, out)
	}
	s.kill()
	if out, err := command(flags...); err == nil || !strings.Contains(out, "these containers run: runs;") {
		t.Errorf("cleanup beside a container: %v: %s", err, out)
	}
	s = r.stated()
	clean(s)
	s.stop()
	out, err := command(flags...)
	if err != nil || !strings.Contains(out, "interface docker0") {
		t.Errorf("cleanup: %v: %s", err, out)
	}
	if left := scratch.Run(t, "ip", "-o", "link", "show", "type", "bridge"); left != "" {
		t.Errorf("cleanup left %s", left)
	}
	if left := scratch.Run(t, "nft", "list", "tables"); strings.Contains(left, "stated-") {
		t.Errorf("cleanup left %s", left)
	}
	if left := scratch.Run(t, "sh", "-c", "grep "+r.dir+" /proc/self/mounts || true"); left != "" {
		t.Errorf("cleanup left the mounts %s", left)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "exec")); err == nil {
		t.Error("cleanup left the exec root")
	}
	if out, err := command(flags...); err != nil {
		t.Errorf("a second cleanup: %v: %s", err, out)
	}
}
