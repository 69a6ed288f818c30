package etcdfile_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/kvstore"
	"stated.dev/stated/kvstore/etcdfile"
	"stated.dev/stated/kvstore/http/keystest"
)

// etcd is one that keeps its directory between starts.
type etcd struct {
	*testing.T
	dir, url string
}

// run starts it and returns what stops it.
func (e *etcd) run(args ...string) (stop func()) {
	e.Helper()
	e.url, stop = keystest.StartEtcd(e.T, e.dir, args...)
	return stop
}

func (e *etcd) put(key string, form url.Values) {
	e.Helper()
	req, err := http.NewRequestWithContext(e.Context(), http.MethodPut, e.url+"/v2/keys"+key, strings.NewReader(form.Encode()))
	if err != nil {
		e.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		e.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		e.Fatalf("put %s: %s", key, resp.Status)
	}
}

// TestEtcd reads what an etcd 3.4.23 leaves: its data directory, a backup of it, and a snapshot.
func TestEtcd(t *testing.T) {
	e := &etcd{T: t, dir: filepath.Join(t.TempDir(), "data")}
	stop := e.run()
	for i := range 20 {
		e.put(fmt.Sprintf("/dir/%d", i), url.Values{"value": {strings.Repeat("v", i)}})
	}
	e.put("/later", url.Values{"value": {"gone"}, "ttl": {"100000"}})
	e.put("/empty", url.Values{"dir": {"true"}})
	stop()
	// All that was written is in the log alone, and is not left out in silence.
	if _, err := etcdfile.Read(e.dir); !errors.Is(err, etcdfile.ErrChangesInLog) || !strings.Contains(err.Error(), ": 22 changes are") {
		t.Errorf("a directory without a snapshot: %v", err)
	}
	// This is what the error advises.
	e.run("--snapshot-count=1")()
	document, err := etcdfile.Read(e.dir)
	if err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(t.TempDir(), "backup")
	cmd := exec.CommandContext(t.Context(), filepath.Join(scratch.Etcd(t), "etcdctl"), "backup", "--data-dir", e.dir, "--backup-dir", backup)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=2")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("etcdctl backup: %v, %s", err, out)
	}
	snaps, err := filepath.Glob(filepath.Join(e.dir, "member/snap/*.snap"))
	if err != nil || len(snaps) == 0 {
		t.Fatalf("no snapshots: %v", err)
	}
	for _, path := range []string{backup, filepath.Join(e.dir, "member"), snaps[len(snaps)-1]} {
		again, err := etcdfile.Read(path)
		if err != nil || !bytes.Equal(again, document) {
			t.Errorf("%s: %d bytes of %d, %v", path, len(again), len(document), err)
		}
	}

	s := kvstore.New(kvstore.Options{Namespaces: []string{"/0", "/1"}})
	r := kvstore.NewReplica(s, kvstore.ReplicaOptions{})
	r.Attach(&direct{r})
	done, err := r.Import(t.Context(), kvstore.ImportRequest{Document: document, Keep: "/0"})
	if err != nil || done.Keys != 21 || done.Directories != 2 {
		t.Fatalf("import: %+v, %v", done, err)
	}
	got, err := s.Get("/1/dir/19", kvstore.GetRequest{})
	if err != nil || got.Node.Value != strings.Repeat("v", 19) || got.Node.CreatedIndex == 0 || got.Node.CreatedIndex >= done.Index {
		t.Errorf("a key is %v, %v", got, err)
	}
	if at, ok := s.NextExpiry(); !ok || time.Until(at) > 100000*time.Second {
		t.Errorf("the next key expires at %v, %v", at, ok)
	}
	if got, err := s.Get("/0", kvstore.GetRequest{}); err != nil || len(got.Node.Nodes) != 0 {
		t.Errorf("the old cluster's members came along: %v, %v", got, err)
	}
}

// direct is a log that applies at once.
type direct struct{ *kvstore.Replica }

func (d *direct) Propose(_ context.Context, command []byte) (any, error) {
	return d.Apply(command), nil
}
func (d *direct) Leading() (bool, <-chan struct{})    { return true, nil }
func (d *direct) ReadIndex(ctx context.Context) error { return ctx.Err() }

func TestWhatIsNoSnapshot(t *testing.T) {
	empty := t.TempDir()
	for name, path := range map[string]string{"a directory of another kind": empty, "nothing": filepath.Join(empty, "none")} {
		if document, err := etcdfile.Read(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %d bytes, %v", name, len(document), err)
		}
	}
	for _, text := range []string{"", "x", "[]", "\x08\x01\x12\x02ab", "\x12\x00", strings.Repeat("\xff", 100)} {
		if _, err := etcdfile.Document([]byte(text)); err == nil {
			t.Errorf("%q is taken for a snapshot", text)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"Root":{}}`), []byte{})
	f.Add([]byte("\x08\x01\x12\x02ab"), []byte("\x04\x00\x00\x00\x00\x00\x00\x84\x08\x04\x10\x00"))
	f.Fuzz(func(t *testing.T, snap, wal []byte) {
		dir := t.TempDir()
		for name, b := range map[string][]byte{"snap/1.snap": snap, "wal/1.wal": wal} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = etcdfile.Read(dir) // an error is fine
	})
}
