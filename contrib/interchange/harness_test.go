// Package interchange moves data roots between a real dockerd 28 and stated, both ways, and compares what the two say
// of them. It runs in a network and a mount namespace of its own; without root or a dockerd to compare with it fails.
package interchange

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv"
	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/network/netns/netnstest"
)

// dataRoot is where both daemons see the data root: records hold absolute paths.
const dataRoot = "/var/lib/docker"

func TestMain(m *testing.M) {
	netnstest.Enter()
	if err := os.MkdirAll(dataRoot, 0o711); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	etc, err := scratch.AddRemapUser()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	remappedEtc = etc
	code := m.Run()
	_ = os.RemoveAll(etc) // in a temporary directory
	os.Exit(code)
}

// remappedEtc has the files of scratch.RemapUser, for daemons that see another /etc. TestMain sets it.
var remappedEtc string

// root is a data root on which one daemon after the other runs.
type root struct {
	t        *testing.T
	dir      string // the data root is dir/data
	remapped bool   // both daemons remap users
}

// newRoot makes an empty data root, which both daemons see at dataRoot.
func newRoot(t *testing.T) *root {
	t.Helper()
	r := &root{t: t, dir: scratch.Dir(t)}
	if err := os.Mkdir(r.data(), 0o710); err != nil {
		t.Fatal(err)
	}
	r.bind()
	return r
}

// newRemappedRoot makes an empty data root for daemons that remap users.
func newRemappedRoot(t *testing.T) *root {
	t.Helper()
	r := newRoot(t)
	r.remapped = true
	return r
}

// copy returns an independent copy of the root, which takes the original's place at dataRoot.
func (r *root) copy(t *testing.T) *root {
	t.Helper()
	c := &root{t: t, dir: scratch.Dir(t)}
	scratch.Run(t, "cp", "-a", r.data(), c.data())
	c.bind()
	return c
}

func (r *root) data() string { return filepath.Join(r.dir, "data") }

// bind shows the root at dataRoot until the test ends.
func (r *root) bind() {
	r.t.Helper()
	r.t.Cleanup(func() {
		scratch.Unmount(r.t, dataRoot)
		// Bridges stay when a daemon stops, and would hinder the next root's. So would rules.
		scratch.Run(r.t, "sh", "-c", `for name in $(ip -o link show type bridge | cut -d: -f2); do ip link del $name || bad=1; done
			nft flush ruleset && [ -z "$bad" ]`)
	})
	if err := unix.Mount(r.data(), dataRoot, "", unix.MS_BIND, ""); err != nil {
		r.t.Fatal(err)
	}
}

// engine is a running daemon.
type engine struct {
	t        *testing.T
	name     string
	socket   string
	remapped bool // it remaps users
	end      func(syscall.Signal)
}

// dockerd runs a real dockerd on the root until stop.
func (r *root) dockerd() *engine {
	r.t.Helper()
	var env []string
	if r.remapped {
		env = []string{"DOCKERD_ETC=" + remappedEtc, "DOCKERD_FLAGS=--userns-remap " + scratch.RemapUser}
	}
	d := scratch.StartDockerd(r.t, r.data(), filepath.Join(r.dir, "dockerd.log"), env...)
	return &engine{t: r.t, name: "dockerd", socket: d.Socket, remapped: r.remapped, end: func(syscall.Signal) { d.End() }}
}

// stated runs stated on the root until stop.
func (r *root) stated(flags ...string) *engine {
	r.t.Helper()
	e, err := r.tryStated(flags...)
	if err != nil {
		r.t.Fatal(err)
	}
	return e
}

// tryStated is stated for a root on which it may refuse to start.
func (r *root) tryStated(flags ...string) (*engine, error) {
	if r.remapped {
		flags = append(flags, "--userns-remap", scratch.RemapUser)
	}
	l := scratch.Launch{
		Roots:  testenv.Roots{Data: dataRoot, Exec: filepath.Join(r.dir, "exec")},
		Socket: filepath.Join(r.dir, "stated.sock"),
		Log:    filepath.Join(r.dir, "stated.log"),
		Flags:  flags,
	}
	d, err := l.Start()
	if err != nil {
		return nil, err
	}
	e := &engine{t: r.t, name: "stated", socket: l.Socket, remapped: r.remapped, end: func(sig syscall.Signal) {
		if err := d.End(sig); err != nil {
			r.t.Error(err)
		}
	}}
	r.t.Cleanup(func() {
		if r.t.Failed() {
			r.t.Logf("the log of stated ends:\n%s", scratch.Tail(l.Log))
		}
		e.stop()
	})
	return e, nil
}

// stop ends the daemon; its containers have been stopped or removed before.
func (e *engine) stop() { e.end(syscall.SIGTERM) }

// kill ends stated as the kernel would.
func (e *engine) kill() { e.end(syscall.SIGKILL) }

// try sends a request; body is JSON, or an io.Reader that is sent as it is.
func (e *engine) try(method, path string, body any) ([]byte, error) {
	var reader io.Reader
	contentType := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		reader, contentType = b, "application/x-tar"
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(data)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+versioned(path), reader)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := scratch.Client(e.socket).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s %s: %s: %s", e.name, method, path, resp.Status, bytes.TrimSpace(answer))
	}
	return answer, err
}

func versioned(path string) string {
	if path == "/_ping" || strings.HasPrefix(path, "/stated/") {
		return path
	}
	return "/v1.51" + path
}

// do sends a request that must succeed.
func (e *engine) do(method, path string, body any) []byte {
	e.t.Helper()
	answer, err := e.try(method, path, body)
	if err != nil {
		e.t.Fatal(err)
	}
	return answer
}

// get decodes an answer.
func (e *engine) get(path string, v any) {
	e.t.Helper()
	if err := json.Unmarshal(e.do(http.MethodGet, path, nil), v); err != nil {
		e.t.Fatalf("%s: GET %s: %v", e.name, path, err)
	}
}

// wait waits until a container does not run, and returns its exit code.
func (e *engine) wait(name string) int {
	e.t.Helper()
	var answer struct{ StatusCode int }
	if err := json.Unmarshal(e.do(http.MethodPost, "/containers/"+name+"/wait", nil), &answer); err != nil {
		e.t.Fatal(err)
	}
	return answer.StatusCode
}

// output runs a container to its end and returns what it printed since, whole log records without their frames.
func (e *engine) output(name string) string {
	e.t.Helper()
	since := time.Now()
	e.do(http.MethodPost, "/containers/"+name+"/start", nil)
	if code := e.wait(name); code != 0 {
		e.t.Errorf("%s: container %s ended with %d", e.name, name, code)
	}
	raw := e.do(http.MethodGet, fmt.Sprintf("/containers/%s/logs?stdout=1&stderr=1&since=%d.%09d", name, since.Unix(), since.Nanosecond()), nil)
	var text []byte
	for len(raw) >= 8 {
		n := int(raw[4])<<24 | int(raw[5])<<16 | int(raw[6])<<8 | int(raw[7])
		text = append(text, raw[8:8+n]...)
		raw = raw[8+n:]
	}
	return string(text)
}

// files returns the digest of every file below the data root but those that skip names; directories and links too.
func (r *root) files(skip func(rel string) bool) map[string]string {
	r.t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(r.data(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(r.data(), path)
		if err != nil {
			return err
		}
		if skip(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		sum := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum += fmt.Sprintf(" %d bytes %x", len(data), sha256.Sum256(data))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			sum += " -> " + target
		}
		sums[rel] = sum
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return sums
}
