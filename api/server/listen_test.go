package server_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"stated.dev/stated/api/server"
	"stated.dev/stated/internal/testenv/selfsigned"
)

func TestMutualTLS(t *testing.T) {
	cert, pool := selfsigned.Pair(t)
	stranger, _ := selfsigned.Pair(t)
	s := server.New(server.Options{})
	s.Handle(get("/_ping", text("OK")))
	ls, err := server.Listen(t.Context(), server.ListenOptions{Addr: "tcp://127.0.0.1:0", TLS: &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ls[0]) }()
	for name, c := range map[string]struct {
		certs []tls.Certificate
		ok    bool
	}{"known": {[]tls.Certificate{cert}, true}, "stranger": {[]tls.Certificate{stranger}, false}, "nobody": {nil, false}} {
		tr := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: c.certs}}
		res, err := (&http.Client{Transport: tr, Timeout: 10 * time.Second}).Get("https://" + ls[0].Addr().String() + "/_ping")
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if res.ProtoMajor != 1 {
				t.Errorf("%s: %s cannot be hijacked", name, res.Proto)
			}
			_ = res.Body.Close()
		}
		tr.CloseIdleConnections()
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestShutdownDoesNotWaitForSilentClients has a client that connects and says nothing.
func TestShutdownDoesNotWaitForSilentClients(t *testing.T) {
	s := server.New(server.Options{})
	s.Handle(get("/_ping", text("OK")))
	path := filepath.Join(t.TempDir(), "s")
	ls, err := server.Listen(t.Context(), server.ListenOptions{Addr: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ls[0]) }()
	silent, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	// A later connection that is answered shows that the first was accepted.
	talker, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer talker.Close()
	_, _ = io.WriteString(talker, "GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
	if _, err := talker.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("shutdown took %s", took)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// activated is set in the process that TestSocketActivation starts as systemd would.
const activated = "STATED_TEST_ACTIVATED"

func TestSocketActivation(t *testing.T) {
	if os.Getenv(activated) != "" {
		serveActivated()
		return
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	// The variable names the process that the sockets are for, so it is set where the pid is known.
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run='^TestSocketActivation$'`, os.Args[0])
	cmd.Env = append(os.Environ(), activated+"=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=stated.socket")
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET /_ping HTTP/1.0\r\n\r\n")
	if answer, err := io.ReadAll(conn); err != nil || len(answer) < 15 || string(answer[9:15]) != "200 OK" {
		t.Errorf("%q, %v", answer, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// serveActivated answers one request on the socket it was started with.
func serveActivated() {
	s := server.New(server.Options{})
	answered := make(chan struct{})
	s.Handle(get("/_ping", func(w http.ResponseWriter, r *http.Request) error {
		defer close(answered)
		return text("OK")(w, r)
	}))
	ls, err := server.Listen(context.Background(), server.ListenOptions{Addr: "fd://"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ls[0]) }()
	<-answered
	if err := s.Shutdown(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	<-done
	os.Exit(0)
}
