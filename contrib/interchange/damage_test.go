package interchange

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"stated.dev/stated/api/types"
)

// damages are what power cuts and bad disks make of a file.
var damages = map[string]func(data []byte) []byte{
	"empty":     func([]byte) []byte { return nil },
	"truncated": func(data []byte) []byte { return data[:len(data)/2] },
	"random": func(data []byte) []byte {
		noise := rand.NewChaCha8([32]byte{1})
		out := make([]byte, len(data))
		_, _ = noise.Read(out) // never fails
		return out
	},
}

// TestDamage damages each file of a data root in turn. stated starts all the same, says what is broken, leaves the
// other objects alone and deletes nothing.
func TestDamage(t *testing.T) {
	r := newRoot(t)
	d := r.dockerd()
	importBusybox(d)
	d.do(http.MethodPost, "/images/load", twoLayers(t))
	d.do(http.MethodPost, "/volumes/create", object{"Name": "vol", "Labels": object{"a": "b"}})
	d.do(http.MethodPost, "/volumes/create", object{"Name": "opts", "DriverOpts": object{"type": "tmpfs", "device": "tmpfs"}})
	d.do(http.MethodPost, "/networks/create", object{"Name": "net"})
	run(d, "one", object{"Image": "busybox", "Cmd": list{"true"}, "HostConfig": object{"Binds": list{"vol:/v"}, "NetworkMode": "net"}})
	create(d, "two", object{"Image": "two:layers", "HostConfig": object{"Binds": list{"opts:/v"}}})
	ids := map[string]string{}
	for _, name := range []string{"one", "two"} {
		var c struct{ Id string }
		d.get("/containers/"+name+"/json", &c)
		ids[c.Id] = name
	}
	d.stop()
	for _, rel := range records(t, r.data()) {
		for _, how := range slices.Sorted(maps.Keys(damages)) {
			t.Run(rel+" "+how, func(t *testing.T) { damage(t, r, rel, how, ids) })
		}
	}
}

// records lists the files that hold metadata: all but the contents of layers and volumes and what stated never reads.
func records(t *testing.T, root string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if e.IsDir() && (slices.Contains([]string{"buildkit", "containerd", "plugins", "runtimes", "swarm", "tmp"}, rel) || e.Name() == "diff" || e.Name() == "_data" || e.Name() == "work") {
			return fs.SkipDir
		}
		if e.Type().IsRegular() {
			list = append(list, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func damage(t *testing.T, original *root, rel, how string, ids map[string]string) {
	r := original.copy(t)
	path := filepath.Join(r.data(), rel)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	harmed := damages[how](data)
	if bytes.Equal(data, harmed) {
		t.Skip("the file is empty anyway")
	}
	if filepath.Base(rel) == "size" && how == "truncated" {
		t.Skip("a shorter number is a number, too")
	}
	if err := os.WriteFile(path, harmed, 0); err != nil {
		t.Fatal(err)
	}
	want, object := victim(rel)
	before := r.files(volatile)

	check, checkErr := command("adopt", "--check", r.data())
	if found := checkErr != nil; found != (want != "") {
		t.Errorf("adopt --check finds a problem: %v, should be %v:\n%s", found, want != "", check)
	}
	if want != "" && !strings.Contains(check, object) {
		t.Errorf("adopt --check does not name %s:\n%s", object, check)
	}
	same(t, "adopt --check", before, r.files(volatile))

	s, err := r.tryStated()
	if err != nil {
		t.Fatal(err)
	}
	var doc types.Doctor
	s.get("/stated/doctor", &doc)
	named := false
	if repaired(rel) { // the start has put it right
		doc.Problems = append(doc.Problems, doc.Notes...)
	}
	for _, p := range doc.Problems {
		named = named || strings.Contains(p.Object+p.Text, object)
	}
	if want == "" && len(doc.Problems) > 0 || want != "" && !tolerated(rel) && !named {
		t.Errorf("the doctor should report %q of %q, and says %v", object, want, doc.Problems)
	}
	var list []struct{ Id string }
	s.get("/containers/json?all=1", &list)
	for id, name := range ids {
		if strings.Contains(rel, id) {
			continue
		}
		if !slices.ContainsFunc(list, func(c struct{ Id string }) bool { return c.Id == id }) {
			t.Errorf("container %s is not listed, which has nothing to do with it", name)
		}
	}
	s.stop()
	after := r.files(volatile)
	for _, file := range slices.Sorted(maps.Keys(before)) {
		if after[file] == "" {
			t.Errorf("%s was deleted", file)
		}
	}
	kept := fmt.Sprintf(" %d bytes", len(harmed))
	if want != "" && !strings.HasSuffix(rel, ".db") && filepath.Base(rel) != "repositories.json" && !strings.Contains(after[rel], kept) && !repaired(rel) {
		t.Errorf("%s was overwritten: %s", rel, after[rel])
	}
}

// victim returns what a damaged file breaks: a subsystem, and a word that names the object; "" where the file can be
// made anew or is only read by others.
func victim(rel string) (subsystem, object string) {
	parts := strings.Split(rel, "/")
	name := parts[len(parts)-1]
	switch {
	case parts[0] == "containers" && (name == "config.v2.json" || name == "hostconfig.json"):
		return "containers", parts[1]
	case name == "repositories.json":
		return "images", "repositories.json"
	case strings.Contains(rel, "imagedb/content"):
		return "images", name
	case strings.Contains(rel, "layerdb/sha256"):
		return "layers", parts[4]
	case strings.Contains(rel, "layerdb/mounts"):
		return "layers", parts[4]
	case parts[0] == "overlay2" && (name == "link" || name == "lower"):
		return "layers", strings.TrimSuffix(parts[1], "-init")
	case name == "opts.json":
		return "volumes", parts[1]
	case rel == "volumes/metadata.db":
		return "volumes", "metadata.db"
	case rel == "network/files/local-kv.db":
		return "networks", "local-kv.db"
	case rel == "engine-id":
		return "", ""
	}
	return "", ""
}

// tolerated names files that are only read when they are needed.
func tolerated(rel string) bool { return strings.HasSuffix(rel, "tar-split.json.gz") }

// repaired names files that are derived from others, and are made again at the start.
func repaired(rel string) bool {
	return strings.HasPrefix(rel, "overlay2/") && (strings.HasSuffix(rel, "/link") || strings.HasSuffix(rel, "/lower"))
}
