package plugin_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/plugin"
	"stated.dev/stated/volumes/plugin/plugintest"
	"stated.dev/stated/volumes/volumetest"
)

// host has directories for plug-ins.
type host struct {
	t                 *testing.T
	sockets, etc, lib string
	plugins           *plugin.Plugins
}

// short makes calls end before the test loses its patience. Nothing but a plug-in that hangs on purpose takes as long.
var short = plugin.Timeouts{Create: time.Second, Mount: time.Second, Other: time.Second, Silence: time.Minute}

func newHost(t *testing.T, timeouts plugin.Timeouts) *host {
	root := t.TempDir()
	h := &host{t: t, sockets: filepath.Join(root, "run"), etc: filepath.Join(root, "etc"), lib: filepath.Join(root, "lib")}
	for _, dir := range []string{h.sockets, h.etc, h.lib} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.plugins = h.another(timeouts)
	return h
}

func (h *host) another(timeouts plugin.Timeouts) *plugin.Plugins {
	return plugin.New(plugin.Options{SocketDirs: []string{h.sockets}, SpecDirs: []string{h.etc, h.lib}, Timeouts: timeouts})
}

func (h *host) server(name string) *plugintest.Server {
	s := plugintest.New(h.t, filepath.Join(h.sockets, name+".sock"))
	s.Start()
	return s
}

func (h *host) find(name string) volumes.Driver {
	h.t.Helper()
	d, err := h.plugins.Find(h.t.Context(), name)
	if err != nil {
		h.t.Fatal(err)
	}
	return d
}

func (h *host) all() []string {
	names := []string{}
	for _, d := range h.plugins.All(h.t.Context(), time.Minute) {
		names = append(names, d.Name())
	}
	return names
}

func (h *host) write(path, content string) {
	h.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
		h.t.Fatal(err)
	}
}

func create(t *testing.T, d volumes.Driver, name string) {
	t.Helper()
	staged, err := d.Stage(t.Context(), name, nil)
	if err == nil {
		_, err = staged.Publish(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func wantText(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestConformance(t *testing.T) {
	hosts := map[volumes.Driver]*host{}
	volumetest.Run(t, volumetest.Harness{
		New: func(t *testing.T) volumes.Driver {
			h := newHost(t, plugin.Timeouts{})
			h.server("shelf")
			d := h.find("shelf")
			hosts[d] = h
			return d
		},
		Reopen: func(t *testing.T, old volumes.Driver) volumes.Driver {
			d, err := hosts[old].another(plugin.Timeouts{}).Find(t.Context(), "shelf")
			if err != nil {
				t.Fatal(err)
			}
			return d
		},
		Options: map[string]string{"colour": "blue"},
	})
}

func TestWhereTheyAre(t *testing.T) {
	h := newHost(t, plugin.Timeouts{})
	handler := replies{"Plugin.Activate": `{"Implements":["NetworkDriver","VolumeDriver"]}`, "VolumeDriver.Capabilities": `{}`}
	plain := httptest.NewServer(handler)
	defer plain.Close()
	secure := httptest.NewTLSServer(handler)
	defer secure.Close()
	network := httptest.NewServer(replies{"Plugin.Activate": `{"Implements":["NetworkDriver"]}`})
	defer network.Close()

	h.server("direct")
	nested := plugintest.New(t, filepath.Join(h.sockets, "nested", "nested.sock"))
	nested.Start()
	elsewhere := plugintest.New(t, filepath.Join(t.TempDir(), "any.name"))
	elsewhere.Start()

	ca := filepath.Join(t.TempDir(), "ca.pem")
	h.write(ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})))
	addr := func(s *httptest.Server) string { return s.Listener.Addr().String() }
	h.write(filepath.Join(h.etc, "plain.spec"), " tcp://"+addr(plain)+"\n")
	h.write(filepath.Join(h.lib, "deep", "deep.spec"), "tcp://"+addr(plain))
	h.write(filepath.Join(h.lib, "secure.json"), fmt.Sprintf(`{"Name":"other","Addr":"tcp://%s","TLSConfig":{"CAFile":%q}}`, addr(secure), ca))
	h.write(filepath.Join(h.lib, "trusting.json"), fmt.Sprintf(`{"Addr":"tcp://%s","TLSConfig":{"InsecureSkipVerify":true}}`, addr(secure)))
	h.write(filepath.Join(h.lib, "stranger.json"), fmt.Sprintf(`{"Addr":"tcp://%s","TLSConfig":{}}`, addr(secure)))
	h.write(filepath.Join(h.etc, "network.spec"), "tcp://"+addr(network))
	h.write(filepath.Join(h.etc, "broken.json"), `{"Addr":`)
	h.write(filepath.Join(h.etc, "odd.spec"), "http://"+addr(plain))
	h.write(filepath.Join(h.sockets, "file.sock"), "")
	// What comes first counts: a socket before files, .spec before .json, /etc before /usr/lib.
	h.write(filepath.Join(h.etc, "direct.spec"), "tcp://127.0.0.1:1")
	h.write(filepath.Join(h.etc, "plain.json"), `{"Addr":"tcp://127.0.0.1:1"}`)
	h.write(filepath.Join(h.lib, "plain.spec"), "tcp://127.0.0.1:1")

	want := []string{"deep", "direct", "nested", "plain", "secure", "trusting"}
	if got := h.all(); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
	for name, want := range map[string]string{
		"none":     `error looking up volume plugin none: plugin "none" not found`,
		"file":     `error looking up volume plugin file: plugin "file" not found`,
		"../etc/x": `error looking up volume plugin ../etc/x: plugin "../etc/x" not found`,
		"network":  `error looking up volume plugin network: plugin "network" is no VolumeDriver`,
	} {
		_, err := h.plugins.Find(t.Context(), name)
		wantText(t, err, want)
		if !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]string{
		"broken":   "broken.json: unexpected end of JSON input",
		"odd":      "want unix:///PATH or tcp://HOST:PORT",
		"stranger": "certificate",
	} {
		if _, err := h.plugins.Find(t.Context(), name); err == nil || errdefs.IsNotFound(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want …%s…", name, err, want)
		}
	}
	if err := os.Remove(filepath.Join(h.etc, "odd.spec")); err != nil {
		t.Fatal(err)
	}
	h.write(filepath.Join(h.etc, "odd.spec"), "unix://"+filepath.Join(filepath.Dir(elsewhere.Socket()), "any.name"))
	create(t, h.find("odd"), "vol")
}

func TestScope(t *testing.T) {
	for told, want := range map[string]string{"global": "global", "GLOBAL": "global", "local": "local", "": "local", "galactic": "local"} {
		h := newHost(t, plugin.Timeouts{})
		h.server("shelf").SetScope(told)
		if got := h.find("shelf").Traits(); got != (volumes.Traits{Scope: want}) {
			t.Errorf("told %q, it is %+v", told, got)
		}
	}
	server := httptest.NewServer(replies{"Plugin.Activate": `{"Implements":["VolumeDriver"]}`}) // none to tell
	defer server.Close()
	h := newHost(t, plugin.Timeouts{})
	h.write(filepath.Join(h.etc, "old.spec"), "tcp://"+server.Listener.Addr().String())
	if got := h.find("old").Traits().Scope; got != "local" {
		t.Errorf("it is %q", got)
	}
}

func TestRefusals(t *testing.T) {
	h := newHost(t, plugin.Timeouts{})
	server := h.server("shelf")
	d := h.find("shelf")
	staged, err := d.Stage(t.Context(), "vol", map[string]string{"bad": "1"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = staged.Publish(t.Context())
	wantText(t, err, "VolumeDriver.Create: bad is no option")

	create(t, d, "vol")
	if _, err := d.Mount(t.Context(), "vol", "id"); err != nil {
		t.Fatal(err)
	}
	err = d.Remove(t.Context(), "vol", "")
	wantText(t, err, "VolumeDriver.Remove: volume vol is mounted")
	if errdefs.IsNotFound(err) {
		t.Error("what is listed is not unknown")
	}
	server.Fail("Unmount", "busy")
	wantText(t, d.Unmount(t.Context(), "vol", "id"), "VolumeDriver.Unmount: busy")
	server.Fail("Unmount", "")
	if err := d.Unmount(t.Context(), "vol", "id"); err != nil || len(server.Users("vol")) > 0 {
		t.Errorf("%v, %q", err, server.Users("vol"))
	}
	// A volume is unknown only when the list agrees.
	server.Fail("Get", "no idea")
	if _, err := d.Get(t.Context(), "vol"); err == nil || errdefs.IsNotFound(err) {
		t.Error(err)
	}
	server.Fail("List", "no list either")
	if _, err := d.Get(t.Context(), "nope"); err == nil || errdefs.IsNotFound(err) {
		t.Error(err)
	}
	server.Fail("List", "")
	if _, err := d.Get(t.Context(), "nope"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
}

func TestRepeatedMounts(t *testing.T) {
	h := newHost(t, plugin.Timeouts{})
	server := h.server("shelf")
	d := h.find("shelf")
	create(t, d, "vol")
	for range 3 {
		if _, err := d.Mount(t.Context(), "vol", "a"); err != nil {
			t.Fatal(err)
		}
	}
	if got := server.Calls("Mount"); got != 1 {
		t.Errorf("%d mounts", got)
	}
	// After a restart of the daemon an id is unknown, and reaches the plug-in.
	again, err := h.another(plugin.Timeouts{}).Find(t.Context(), "shelf")
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Unmount(t.Context(), "vol", "a"); err != nil || len(server.Users("vol")) > 0 {
		t.Errorf("%v, %q", err, server.Users("vol"))
	}
}

func TestOneThatHangs(t *testing.T) {
	h := newHost(t, short)
	slow, quick := h.server("slow"), h.server("quick")
	d := h.find("slow")
	create(t, d, "vol")
	h.find("quick")

	slow.Hang("Get")
	failed := make(chan error)
	go func() {
		_, err := d.Get(context.WithoutCancel(t.Context()), "vol")
		failed <- err
	}()
	create(t, h.find("quick"), "other") // meanwhile
	if err := <-failed; !errors.Is(err, context.DeadlineExceeded) || errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if got := h.all(); !slices.Equal(got, []string{"quick"}) {
		t.Errorf("silent for a moment, %q are asked", got)
	}
	if quick.Calls("Create") != 1 {
		t.Error("the other plug-in was not asked")
	}
	slow.Release("Get")
	if _, err := d.Get(t.Context(), "vol"); err != nil {
		t.Error(err)
	}
	if got := h.all(); !slices.Equal(got, []string{"quick", "slow"}) {
		t.Errorf("it answers again, but %q are asked", got)
	}
}

func TestHurry(t *testing.T) {
	h := newHost(t, plugin.Timeouts{Hurry: 100 * time.Millisecond}) // a minute for each call otherwise
	server := h.server("shelf")
	d := h.find("shelf")
	server.Hang("List")
	failed := make(chan error)
	go func() {
		_, err := d.List(context.WithoutCancel(t.Context()))
		failed <- err
	}()
	h.plugins.Hurry()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := d.List(t.Context()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	create(t, d, "vol") // what answers in time is not concerned
}

func TestOneThatHangsFromTheStart(t *testing.T) {
	h := newHost(t, short)
	l, err := net.Listen("unix", filepath.Join(h.sockets, "mute.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h.server("quick")
	began := make(chan struct{})
	failed := make(chan error)
	go func() {
		close(began)
		_, err := h.plugins.Find(context.WithoutCancel(t.Context()), "mute")
		failed <- err
	}()
	<-began
	h.find("quick")
	// Who asks for the same name waits for the answer, but not longer than he wants to.
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.plugins.Find(impatient, "mute"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if got := h.all(); !slices.Equal(got, []string{"quick"}) {
		t.Errorf("%q", got)
	}
}

func TestOneThatDiesAndComesBack(t *testing.T) {
	h := newHost(t, plugin.Timeouts{})
	server := h.server("shelf")
	d := h.find("shelf")
	create(t, d, "vol")
	path, err := d.Mount(t.Context(), "vol", "a")
	if err != nil {
		t.Fatal(err)
	}

	server.DieIn("Create")
	staged, err := d.Stage(t.Context(), "half", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := staged.Publish(t.Context()); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("the plug-in died: %v", err)
	}
	if _, err := h.plugins.Find(t.Context(), "shelf"); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("its socket is there and it is not: %v", err)
	}
	if _, err := d.Get(t.Context(), "vol"); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("nobody can tell: %v", err)
	}

	server.Start()
	again := h.find("shelf")
	if again != d {
		t.Error("it is another driver, which knows no users")
	}
	list, err := again.List(t.Context())
	if err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	mounts := server.Calls("Mount")
	if got, err := again.Mount(t.Context(), "vol", "a"); err != nil || got != path || server.Calls("Mount") != mounts+1 {
		t.Errorf("the new process is not asked for the mount of the old: %q, %v", got, err)
	}
	if err := again.Unmount(t.Context(), "vol", "a"); err != nil || len(server.Users("vol")) > 0 {
		t.Errorf("%v, %q", err, server.Users("vol"))
	}
}

func TestOneThatComesLateAndMoves(t *testing.T) {
	h := newHost(t, plugin.Timeouts{})
	if _, err := h.plugins.Find(t.Context(), "shelf"); !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	server := h.server("shelf")
	create(t, h.find("shelf"), "vol")
	server.Die()
	if err := os.Remove(server.Socket()); err != nil {
		t.Fatal(err)
	}
	if _, err := h.find("shelf").List(t.Context()); err == nil { // nobody noticed until now
		t.Fatal("it is dead")
	}
	_, err := h.plugins.Find(t.Context(), "shelf")
	wantText(t, err, `error looking up volume plugin shelf: plugin "shelf" not found`)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server.Serve(l)
	h.write(filepath.Join(h.lib, "shelf.spec"), "tcp://"+l.Addr().String())
	if _, err := h.find("shelf").Get(t.Context(), "vol"); err != nil {
		t.Error(err)
	}
}

// replies are the answers of a plug-in that was not written with the library, by method.
type replies map[string]string

func (r replies) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, ok := r[strings.TrimPrefix(req.URL.Path, "/")]
	if !ok {
		http.NotFound(w, req)
		return
	}
	if to, ok := strings.CutPrefix(body, "redirect "); ok {
		http.Redirect(w, req, to, http.StatusTemporaryRedirect)
		return
	}
	_, _ = io.WriteString(w, body) // a test that needs it notices
}

func TestOddAnswers(t *testing.T) {
	var undone atomic.Int32
	answers := replies{"Plugin.Activate": `{"Implements":["VolumeDriver"]}`, "VolumeDriver.Capabilities": `{"Err":"which?"}`,
		"VolumeDriver.List": `{"Volumes":[null,{"Name":""},{"Name":"a","Mountpoint":"/a"},{"Name":"a"},{"Name":"b","CreatedAt":"yesterday"}]}`}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if got := req.Header.Get("Content-Type"); got != "application/vnd.docker.plugins.v1.2+json" || req.Method != http.MethodPost {
			t.Errorf("%s %s of %s", req.Method, req.URL, got)
		}
		if req.URL.Path == "/VolumeDriver.Unmount" {
			undone.Add(1)
		}
		answers.ServeHTTP(w, req)
	}))
	defer server.Close()
	h := newHost(t, plugin.Timeouts{})
	h.write(filepath.Join(h.etc, "odd.spec"), "tcp://"+server.Listener.Addr().String())
	d := h.find("odd")

	if list, err := d.List(t.Context()); err != nil || len(list) != 2 || list[0].Mountpoint != "/a" || !list[1].CreatedAt.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	for _, c := range []struct{ answer, want string }{
		{`{"Volume":{"Name":"A"}}`, ""}, // the name that was asked for counts
		{`{}`, "plug-in odd has no volume a"},
		{`null`, "plug-in odd has no volume a"},
		{`{"Err":"away"}`, "away"},
		{``, "VolumeDriver.Get: the plug-in's answer cannot be read: EOF"},
		{`<html>`, "VolumeDriver.Get: the plug-in's answer cannot be read: invalid character '<' looking for beginning of value"},
		{`{} {}`, "VolumeDriver.Get: the plug-in's answer cannot be read: there is more after its end"},
		{`redirect http://127.0.0.1:1/`, "VolumeDriver.Get: HTTP status 307: "},
		{`{"Volume":{"Name":"` + strings.Repeat("a", 17<<20) + `"}}`, "VolumeDriver.Get: the plug-in's answer is longer than 16777216 bytes"},
	} {
		answers["VolumeDriver.Get"] = c.answer
		info, err := d.Get(t.Context(), "a")
		if c.want == "" {
			if err != nil || info.Name != "a" {
				t.Errorf("%.40s: %+v, %v", c.answer, info, err)
			}
			continue
		}
		wantText(t, err, c.want)
	}
	// A path that cannot be one is no mount, and is given back.
	for _, path := range []string{"", "relative"} {
		answers["VolumeDriver.Mount"] = fmt.Sprintf(`{"Mountpoint":%q}`, path)
		before := undone.Load()
		_, err := d.Mount(t.Context(), "a", "id")
		wantText(t, err, fmt.Sprintf("VolumeDriver.Mount: plug-in odd says that the volume is at %q, which is no absolute path", path))
		if undone.Load() != before+1 {
			t.Error("it was not given back")
		}
	}
	// Calls that return nothing may be answered with nothing.
	answers["VolumeDriver.Remove"] = ""
	if err := d.Remove(t.Context(), "a", ""); err != nil {
		t.Error(err)
	}
}
