package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/api/route"
	"stated.dev/stated/api/server"
	"stated.dev/stated/api/types"
)

func get(path string, h route.Handler) []route.Route {
	return []route.Route{{Method: "GET", Path: path, Handler: h}}
}

func text(s string) route.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		_, err := io.WriteString(w, s+" "+route.Version(r.Context()))
		return err
	}
}

func ask(s http.Handler, method, path string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, httptest.NewRequest(method, path, nil))
	return rec
}

func TestVersionsAndPaths(t *testing.T) {
	s := server.New(server.Options{Version: "9"})
	s.Handle(get("/info", text("info")))
	s.Handle(get("/things/{name}/json", func(w http.ResponseWriter, r *http.Request) error {
		_, err := io.WriteString(w, r.PathValue("name"))
		return err
	}))
	const noPage = `{"message":"page not found"}` + "\n"
	for _, c := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/info", 200, "info 1.51"},
		{"GET", "/v1.51/info", 200, "info 1.51"},
		{"GET", "/v1.24/info", 200, "info 1.24"},
		{"GET", "/v1.52/info", 400, `{"message":"client version 1.52 is too new. Maximum supported API version is 1.51"}` + "\n"},
		{"GET", "/v9.99/info", 400, `{"message":"client version 9.99 is too new. Maximum supported API version is 1.51"}` + "\n"},
		{"GET", "/v1.23/info", 400, "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version\n"},
		{"GET", "/v1.5/info", 400, "client version 1.5 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version\n"},
		{"GET", "/vx.51/info", 404, noPage},
		{"GET", "/v1.51", 404, noPage},
		{"GET", "/nothing", 404, noPage},
		{"GET", "/info/", 404, noPage},
		{"GET", "/", 404, noPage},
		{"POST", "/info", 404, noPage},
		{"HEAD", "/info", 404, noPage},
		{"POST", "/v1.51/info", 404, noPage},
		{"OPTIONS", "/v1.51/anything", 200, ""},
		{"GET", "//info", 200, "info 1.51"},
		{"GET", "/v1.40//info", 200, "info 1.40"},
		{"GET", "/things//web/json", 200, "web"},
		{"GET", "/things/a%2Fb/json", 200, "a/b"},
		{"GET", "/v1.41/things/a%2Fb/json", 200, "a/b"},
		{"GET", "/things/%2Fweb/json", 200, "/web"},
		{"GET", "/things/../info", 404, noPage},
		{"GET", "/./info", 404, noPage},
		{"GET", "/things/.hidden/json", 200, ".hidden"},
	} {
		rec := ask(s, c.method, c.path)
		if rec.Code != c.status || rec.Body.String() != c.body {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, rec.Code, rec.Body, c.status, c.body)
		}
		h := rec.Header()
		if h.Get("Api-Version") != "1.51" || h.Get("Ostype") != "linux" || h.Get("Docker-Experimental") != "false" || h.Get("Server") != "stated/9 (linux)" {
			t.Errorf("%s %s: headers %v", c.method, c.path, h)
		}
	}
}

func TestErrors(t *testing.T) {
	var err error
	s := server.New(server.Options{})
	s.Handle(get("/fail", func(w http.ResponseWriter, _ *http.Request) error {
		w.Header().Set("Content-Length", "1000") // of what the handler had in mind
		return err
	}))
	for _, c := range []struct {
		err    error
		status int
	}{
		{errdefs.ErrInvalidArgument.WithMessage("m"), 400},
		{errdefs.ErrUnauthenticated, 401},
		{errdefs.ErrPermissionDenied, 403},
		{fmt.Errorf("look up: %w", errdefs.ErrNotFound.WithMessage("No such container: x")), 404},
		{errdefs.ErrConflict, 409},
		{errdefs.ErrAlreadyExists, 409},
		{errdefs.ErrFailedPrecondition, 409},
		{errdefs.ErrNotImplemented, 501},
		{errdefs.ErrUnavailable, 503},
		{errors.New("boom"), 500},
		{errors.Join(errors.New("boom"), errdefs.ErrNotFound), 404},
		{context.Canceled, 500},
	} {
		err = c.err
		rec := ask(s, "GET", "/fail")
		var body bytes.Buffer
		fmt.Fprintf(&body, "{\"message\":%q}\n", c.err.Error())
		if rec.Code != c.status || rec.Header().Get("Content-Type") != "application/json" || rec.Header().Get("Content-Length") != "" {
			t.Errorf("%v: %d %v", c.err, rec.Code, rec.Header())
		}
		if got := rec.Body.String(); got != strings.ReplaceAll(body.String(), `\\`, `\`) {
			t.Errorf("%v: %s", c.err, got)
		}
	}
	err = fmt.Errorf("start: %w", types.ErrNotModified)
	if rec := ask(s, "GET", "/fail"); rec.Code != 304 || rec.Body.Len() > 0 {
		t.Errorf("not modified: %d %q", rec.Code, rec.Body)
	}
}

func TestReadiness(t *testing.T) {
	phase, ready := "volumes", false
	s := server.New(server.Options{Ready: func() (string, bool) { return phase, ready }})
	s.Handle(get("/stated/phases", text("phases")))
	if rec := ask(s, "GET", "/_ping"); rec.Code != 503 || rec.Body.String() != `{"message":"stated is starting: phase \"volumes\" is not open yet"}`+"\n" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if rec := ask(s, "GET", "/v1.51/info"); rec.Code != 503 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if rec := ask(s, "GET", "/v1.51/stated/phases"); rec.Code != 200 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	s.Handle(get("/_ping", text("OK")))
	ready = true
	if rec := ask(s, "GET", "/_ping"); rec.Code != 200 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestPanic(t *testing.T) {
	var log bytes.Buffer
	s := server.New(server.Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	s.Handle(get("/panic", func(http.ResponseWriter, *http.Request) error { panic("oh") }))
	if rec := ask(s, "GET", "/panic"); rec.Code != 500 || !strings.Contains(rec.Body.String(), "panic while serving GET /panic: oh") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if !strings.Contains(log.String(), "server_test.go") {
		t.Errorf("log has no stack: %s", &log)
	}
}

// serve runs s on a new socket until the test ends.
func serve(t *testing.T, s *server.Server) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "stated-server")
	if err != nil {
		t.Fatal(err)
	}
	socket = filepath.Join(dir, "s")
	ls, err := server.Listen(t.Context(), server.ListenOptions{Addr: "unix://" + socket})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ls[0]) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-done); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return socket
}

// TestKeepAlive sends requests over one connection that each leave it in a state of their own.
func TestKeepAlive(t *testing.T) {
	s := server.New(server.Options{})
	s.Handle([]route.Route{
		{Method: "POST", Path: "/same", Handler: func(http.ResponseWriter, *http.Request) error { return types.ErrNotModified }},
		{Method: "POST", Path: "/done", Handler: func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(204); return nil }},
		{Method: "POST", Path: "/empty", Handler: func(http.ResponseWriter, *http.Request) error { return nil }},
		{Method: "POST", Path: "/fail", Handler: func(http.ResponseWriter, *http.Request) error { return errdefs.ErrConflict }},
	})
	socket := serve(t, s)
	var dials int
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		dials++
		return net.Dial("unix", socket)
	}}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	for range 3 {
		for path, want := range map[string]int{"/same": 304, "/done": 204, "/empty": 200, "/fail": 409, "/none": 404} {
			res, err := client.Post("http://d"+path, "application/json", strings.NewReader(strings.Repeat(" ", 100000))) // unread
			if err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("%s: %d", path, res.StatusCode)
			}
		}
	}
	if dials != 1 {
		t.Errorf("%d connections were needed", dials)
	}
}

func TestErrorAfterStartCutsConnection(t *testing.T) {
	s := server.New(server.Options{})
	s.Handle(get("/half", func(w http.ResponseWriter, _ *http.Request) error {
		_, _ = io.WriteString(w, strings.Repeat("x", 10000))
		return errors.New("the rest is missing")
	}))
	socket := serve(t, s)
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", socket) }}}
	res, err := client.Get("http://d/half")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("half an answer looked whole")
	}
}

func TestShutdownTimesOut(t *testing.T) {
	s := server.New(server.Options{})
	entered := make(chan struct{})
	var handler sync.WaitGroup
	handler.Add(1)
	s.Handle(get("/slow", func(_ http.ResponseWriter, r *http.Request) error {
		defer handler.Done()
		close(entered)
		<-r.Context().Done()
		return r.Context().Err()
	}))
	dir := t.TempDir()
	ls, err := server.Listen(t.Context(), server.ListenOptions{Addr: "unix://" + filepath.Join(dir, "s")})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), ls[0]) }()
	conn, err := net.Dial("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET /slow HTTP/1.1\r\nHost: d\r\n\r\n")
	<-entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_ = s.Shutdown(ctx) // an error if it counted before the handler had noticed
	handler.Wait()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestServeEndsWithContext(t *testing.T) {
	s := server.New(server.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "s.sock")
	listen := func(group string) (net.Listener, error) {
		ls, err := server.Listen(t.Context(), server.ListenOptions{Addr: "unix://" + path, Group: group})
		if err != nil {
			return nil, err
		}
		return ls[0], nil
	}
	if _, err := listen("no-such-group"); err == nil || !strings.Contains(err.Error(), "--group") {
		t.Errorf("unknown group: %v", err)
	}
	l, err := listen("1")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if l.Addr().String() != path {
		t.Errorf("address %s", l.Addr())
	}
	if _, err := listen(""); err == nil || !strings.Contains(err.Error(), "another daemon listens here") {
		t.Errorf("second daemon: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Error("socket is left after close")
	}

	// A socket that a killed daemon left is replaced, and one that is not ours is left alone at the end.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	if l, err = listen(""); err != nil {
		t.Fatalf("stale socket: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_ = l.Close()
	if _, err := os.Stat(path); err != nil {
		t.Error("the socket of another daemon was removed")
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Listen(t.Context(), server.ListenOptions{Addr: "unix://" + file}); err == nil {
		t.Error("a file was taken for a stale socket")
	}
}

func TestListenTCP(t *testing.T) {
	for _, o := range []server.ListenOptions{
		{Addr: "tcp://127.0.0.1:0"},
		{Addr: "tcp://127.0.0.1:0", TLS: &tls.Config{}},
	} {
		if _, err := server.Listen(t.Context(), o); err == nil || !strings.Contains(err.Error(), "--insecure-tcp") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	ls, err := server.Listen(t.Context(), server.ListenOptions{Addr: "tcp://127.0.0.1:0", InsecureTCP: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = ls[0].Close()
	for _, addr := range []string{"/run/x", "http://x", "fd://", "unix://relative"} {
		if _, err := server.Listen(t.Context(), server.ListenOptions{Addr: addr}); err == nil {
			t.Errorf("%s was accepted", addr)
		}
	}
}

func BenchmarkPing(b *testing.B) {
	s := server.New(server.Options{})
	s.Handle(get("/_ping", func(w http.ResponseWriter, _ *http.Request) error {
		_, err := io.WriteString(w, "OK")
		return err
	}))
	for _, path := range []string{"/_ping", "/v1.44/_ping"} {
		b.Run(strings.Trim(path, "/"), func(b *testing.B) {
			b.ReportAllocs()
			w := discard{http.Header{}}
			r := httptest.NewRequest("GET", path, nil)
			for b.Loop() {
				r.URL.Path = path
				s.ServeHTTP(w, r)
			}
		})
	}
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}
