// Package servetest starts a server of the key tree for tests: one host without a cluster, whose log applies what is
// proposed at once and keeps nothing. It is not for use outside tests.
package servetest

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"stated.dev/stated/kvstore"
	kvhttp "stated.dev/stated/kvstore/http"
)

// Log is a log that applies what is proposed to it at once.
type Log struct {
	Replica *kvstore.Replica

	mu    sync.Mutex // guards index, and orders commands
	index uint64
}

// Propose applies the command.
func (l *Log) Propose(_ context.Context, command []byte) (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.index++
	return l.Replica.Apply(command), nil
}

// Leading says yes.
func (l *Log) Leading() (bool, <-chan struct{}) { return true, nil }

// ReadIndex has nothing to wait for.
func (l *Log) ReadIndex(ctx context.Context) error { return ctx.Err() }

// Position is the number of commands so far.
func (l *Log) Position() (index, term uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index, 2
}

// Server is a handler that answers on the loopback address.
type Server struct {
	URL     string
	Handler *kvhttp.Handler
	Tree    *kvstore.Replica
	log     record
}

// Logged is what was logged so far.
func (s *Server) Logged() string { return s.log.String() }

// record keeps what is logged.
type record struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(b)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// Start starts a server on a free port. It ends with the test.
func Start(t testing.TB, o kvhttp.Options) *Server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{URL: "http://" + l.Addr().String()}
	o.Logger = slog.New(slog.NewTextHandler(&s.log, nil))
	s.Tree = kvstore.NewReplica(kvstore.New(kvstore.Options{Namespaces: kvhttp.Namespaces()}), kvstore.ReplicaOptions{Logger: o.Logger})
	log := &Log{Replica: s.Tree}
	s.Tree.Attach(log)
	cluster := kvhttp.Alone{Cluster: 0xd1cfaf999eb97a2a, Member: kvhttp.Member{ID: 0xbdae9bbc11dd390d, Name: "default", PeerURLs: []string{"http://127.0.0.1:23801"}, ClientURLs: []string{s.URL}}}
	if err := kvhttp.Register(t.Context(), s.Tree, cluster); err != nil {
		t.Fatal(err)
	}
	s.Handler, err = kvhttp.New(s.Tree, log, cluster, o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := s.Handler.Server()
	var work sync.WaitGroup
	work.Go(func() {
		if err := server.Serve(l); err != http.ErrServerClosed {
			t.Errorf("serve: %v", err)
		}
	})
	work.Go(func() { _ = s.Tree.Run(ctx) }) // it ends with ctx
	t.Cleanup(func() {
		cancel()
		ctx, done := context.WithTimeout(context.Background(), 30*time.Second)
		defer done()
		if err := server.Shutdown(ctx); err != nil {
			t.Errorf("shut down: %v", err)
		}
		work.Wait()
	})
	return s
}
