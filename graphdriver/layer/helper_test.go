package layer_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/builtin"
	"stated.dev/stated/graphdriver/layer"
)

// entry is one entry of a test's tar.
type entry struct {
	name, body, link string
	kind             byte
	mode             int64
}

func file(name, body string) entry {
	return entry{name: name, body: body, kind: tar.TypeReg, mode: 0o644}
}
func dir(name string) entry { return entry{name: name + "/", kind: tar.TypeDir, mode: 0o755} }

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		hdr := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.body)), Linkname: e.link, ModTime: time.Unix(1700000000, 0)}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// base is the tar of a small image.
func base(t testing.TB) []byte {
	return makeTar(t, dir("bin"), file("bin/sh", "#!shell"), dir("etc"), file("etc/hosts", "127.0.0.1 image"), file("etc/passwd", "root"))
}

// root is a data root with an open store.
type root struct {
	path   string
	driver graphdriver.Driver
	*layer.Store
}

// openRoot opens the store of a data root and closes it with the test.
func openRoot(t testing.TB, path, driver string) *root {
	t.Helper()
	d, err := graphdriver.Open(t.Context(), graphdriver.Options{Root: path, Name: driver}, builtin.Table())
	if err != nil {
		t.Fatal(err)
	}
	s, err := layer.Open(t.Context(), filepath.Join(path, "image", driver), d)
	if err != nil {
		t.Fatal(err)
	}
	r := &root{path: path, driver: d, Store: s}
	t.Cleanup(func() { r.close(t) })
	return r
}

// close ends the store like the end of the process; mounts stay.
func (r *root) close(t testing.TB) {
	if r.Store == nil {
		return
	}
	if err := r.Store.Close(); err != nil {
		t.Error(err)
	}
	if err := r.driver.Close(); err != nil {
		t.Error(err)
	}
	r.Store = nil
}

func (r *root) register(t testing.TB, tar []byte, parent digest.Digest) layer.Info {
	t.Helper()
	info, err := r.Register(t.Context(), bytes.NewReader(tar), parent)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// eachDriver runs a test for every driver of this host.
func eachDriver(t *testing.T, test func(t *testing.T, driver string)) {
	for _, name := range []string{"overlay2", "vfs"} {
		t.Run(name, func(t *testing.T) { test(t, name) })
	}
}

func readFile(t testing.TB, elems ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elems...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeFile(t testing.TB, text string, elems ...string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(elems...), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// names lists a directory.
func names(t testing.TB, elems ...string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(elems...))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
