package interchange

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stated.dev/stated/internal/testenv/scratch"
)

// TestAdopt lets dockerd write a root, stated read it, change it and leave it, and dockerd go on with it.
func TestAdopt(t *testing.T) { testAdopt(t, newRoot(t), "") }

// TestAdoptRemapped is TestAdopt with remapped users, whose data root lies in the other.
func TestAdoptRemapped(t *testing.T) { testAdopt(t, newRemappedRoot(t), remappedDir) }

// remappedDir is the data root of remapped users in that of the daemon.
var remappedDir = fmt.Sprintf("%d.%d/", scratch.RemapUID, scratch.RemapGID)

func testAdopt(t *testing.T, r *root, dir string) {
	d := r.dockerd()
	populate(d)
	before := d.take()
	d.stop()
	written := r.files(volatile)

	s := r.stated()
	agree(t, "dockerd", before, "stated", s.take())
	s.stop()
	same(t, "a start and a stop of stated", written, r.files(volatile))

	s = r.stated()
	changeHost(s)
	after := s.take()
	s.stop()
	changed := r.files(volatile)
	d = r.dockerd()
	agree(t, "stated", after, "dockerd", d.take())
	if out := d.output("mounts"); out != "3\n" {
		t.Errorf("the volume of a container that ran under dockerd, stated and dockerd has %q lines, not 3", out)
	}
	d.output("added")
	last := d.take()
	d.stop()
	for _, c := range []string{"image", "overlay2", "volumes"} {
		if changed[dir+c] == "" {
			t.Errorf("%s is not in the data root", c)
		}
	}

	s = r.stated()
	agree(t, "dockerd", last, "stated", s.take())
	clean(s)
	s.stop()
}

// TestHandOver lets stated write a root from nothing, and dockerd read it, change it and leave it.
func TestHandOver(t *testing.T) { testHandOver(t, newRoot(t)) }

// TestHandOverRemapped is TestHandOver with remapped users.
func TestHandOverRemapped(t *testing.T) { testHandOver(t, newRemappedRoot(t)) }

func testHandOver(t *testing.T, r *root) {
	s := r.stated()
	populate(s)
	before := s.take()
	s.stop()

	d := r.dockerd()
	agree(t, "stated", before, "dockerd", d.take())
	saved := d.do(http.MethodGet, "/images/two:layers/get", nil)
	changeHost(d)
	after := d.take()
	d.stop()

	s = r.stated()
	agree(t, "dockerd", after, "stated", s.take())
	if again := s.do(http.MethodGet, "/images/two:layers/get", nil); len(members(t, again)) < 4 || !subset(members(t, again), members(t, saved)) {
		t.Errorf("an image's archive by stated has %v, dockerd's %v: the configuration, two layers and the manifest must be the same", members(t, again), members(t, saved))
	}
	if out := s.output("mounts"); out != "3\n" {
		t.Errorf("the volume of a container that ran under stated, dockerd and stated has %q lines, not 3", out)
	}
	clean(s)
	s.stop()
}

// TestRecordsKept renames every container: nothing else in their records may change but the order of fields.
func TestRecordsKept(t *testing.T) {
	r := newRoot(t)
	d := r.dockerd()
	populate(d)
	d.stop()
	documents := func() map[string][]byte {
		paths, err := filepath.Glob(filepath.Join(r.data(), "containers", "*", "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		all := map[string][]byte{}
		for _, p := range paths {
			data, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			var v any
			if err := json.Unmarshal(data, &v); err != nil {
				t.Fatal(err)
			}
			if all[p], err = json.Marshal(v); err != nil {
				t.Fatal(err)
			}
			// A container that shares another's network has no networks, which is written as null or as {}.
			all[p] = bytes.Replace(all[p], []byte(`"Networks":null`), []byte(`"Networks":{}`), 1)
		}
		return all
	}
	before := documents()
	if len(before) == 0 {
		t.Fatal("dockerd left no records")
	}
	s := r.stated()
	var list []struct{ Names []string }
	s.get("/containers/json?all=1", &list)
	for _, c := range list {
		name := strings.TrimPrefix(c.Names[0], "/")
		s.do(http.MethodPost, "/containers/"+name+"/rename?name="+name+".x", nil)
		for p, data := range before {
			before[p] = bytes.Replace(data, []byte(`"Name":"/`+name+`"`), []byte(`"Name":"/`+name+`.x"`), 1)
		}
	}
	s.stop()
	after := documents()
	for _, p := range slices.Sorted(maps.Keys(before)) {
		if !bytes.Equal(before[p], after[p]) {
			at := 0
			for at < min(len(before[p]), len(after[p])) && before[p][at] == after[p][at] {
				at++
			}
			from := max(0, at-60)
			t.Errorf("%s\n\tdockerd: …%s\n\tstated:  …%s", p, orNothing(string(before[p][from:])), orNothing(string(after[p][from:])))
		}
	}
}

// changeHost starts, removes and makes something of every kind.
func changeHost(e *engine) {
	e.t.Helper()
	if out := e.output("mounts"); out != "2\n" {
		e.t.Errorf("%s: the volume has %q lines at the second start, not 2", e.name, out)
	}
	e.do(http.MethodDelete, "/containers/named?v=1", nil)
	if _, err := e.try(http.MethodGet, "/images/committed:1/json", nil); err == nil {
		e.do(http.MethodDelete, "/containers/child", nil)
		e.do(http.MethodDelete, "/images/committed:1", nil)
	}
	e.do(http.MethodPost, "/volumes/create", object{"Name": "second", "Labels": object{"by": e.name}})
	e.do(http.MethodPost, "/networks/create", object{"Name": "late", "IPAM": object{"Config": list{object{"Subnet": "10.79.0.0/24"}}}})
	create(e, "added", object{"Image": "two:layers", "Cmd": list{"sh", "-c", "cat /etc/two"}, "HostConfig": object{"Binds": list{"second:/s"}, "NetworkMode": "late"}})
	e.output("added")
	e.do(http.MethodPost, "/containers/fresh/update", object{"RestartPolicy": object{"Name": "on-failure", "MaximumRetryCount": 1}})
	e.do(http.MethodPost, "/images/busybox/tag?repo=other&tag=2", nil)
}

// clean removes every container, so that nothing of them is left in the kernel.
func clean(e *engine) {
	e.t.Helper()
	var list []struct{ Id string }
	e.get("/containers/json?all=1", &list)
	for _, c := range list {
		e.do(http.MethodDelete, "/containers/"+c.Id+"?force=1", nil)
	}
}

// volatile names what may change when nothing is changed: own files, databases that are rewritten in place with the
// same records, and what dockerd keeps for others.
func volatile(rel string) bool {
	rel = strings.TrimPrefix(rel, remappedDir)
	top, _, _ := strings.Cut(rel, "/")
	switch top {
	case ".stated", "buildkit", "containerd", "plugins", "runtimes", "swarm", "tmp":
		return true
	}
	return rel == "volumes/metadata.db" || rel == "network/files/local-kv.db"
}

// same fails the test for every file that is not as it was.
func same(t *testing.T, what string, before, after map[string]string) {
	t.Helper()
	for _, rel := range slices.Sorted(maps.Keys(before)) {
		if after[rel] != before[rel] {
			t.Errorf("%s changed %s\n\tfrom %s\n\tto   %s", what, rel, before[rel], orNothing(after[rel]))
		}
	}
	for _, rel := range slices.Sorted(maps.Keys(after)) {
		if before[rel] == "" {
			t.Errorf("%s made %s: %s", what, rel, after[rel])
		}
	}
}
