package server

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"sync"
	"time"

	"stated.dev/stated/api/route"
)

// headerTimeout is how long a client may take over a request's header.
const headerTimeout = 5 * time.Minute

// Options say what a server tells its clients about itself.
type Options struct {
	Version      string       // stated's own
	Log          *slog.Logger // gets server errors, and each request at debug level
	Experimental bool
	// Ready reports the phase of the start that is being opened, and whether all are open. Until they are, every
	// request but those below /stated/ is answered 503. Nil means always ready.
	Ready func() (phase string, ok bool)
}

// Server serves routes on any number of listeners.
type Server struct {
	log   *slog.Logger
	ready func() (string, bool)
	mux   *http.ServeMux
	http  *http.Server

	// Values of the headers that every answer has.
	serverName, apiVersion, experimental, osType []string

	closing context.Context // ends when Shutdown begins: the signal for streams
	close   context.CancelFunc
	base    context.Context // ends when Shutdown ends: all requests come from it
	cancel  context.CancelFunc

	mu     sync.RWMutex // guards mounts
	mounts []mount

	active activity
	silent newcomers
}

// New returns a server without routes. It listens nowhere until Serve.
func New(o Options) *Server {
	s := &Server{
		log:          o.Log,
		ready:        o.Ready,
		mux:          http.NewServeMux(),
		serverName:   []string{fmt.Sprintf("stated/%s (%s)", o.Version, runtime.GOOS)},
		apiVersion:   []string{route.DefaultVersion},
		experimental: []string{strconv.FormatBool(o.Experimental)},
		osType:       []string{runtime.GOOS},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.closing, s.close = context.WithCancel(context.Background())
	s.base, s.cancel = context.WithCancel(route.WithClosing(context.Background(), s.closing))
	// The mux answers an unknown path by itself in its own words, and a known one of another method with 405; this
	// pattern is met instead by both.
	s.mux.HandleFunc("/", s.notFound)

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true) // a connection of HTTP/2 cannot be taken over
	s.http = &http.Server{
		Handler:           s,
		Protocols:         protocols,
		ReadHeaderTimeout: headerTimeout,
		ConnState:         s.silent.note,
		BaseContext:       func(net.Listener) context.Context { return s.base },
		ErrorLog:          log.New(debugWriter{s.log}, "", 0),
	}
	s.http.RegisterOnShutdown(s.silent.close)
	return s
}

// Handle adds routes. It may be called while the server serves. Two routes of the same method and path are a mistake
// of the program and make it panic.
func (s *Server) Handle(routes []route.Route) {
	for _, r := range routes {
		s.mux.Handle(r.Method+" "+r.Path, s.handler(r))
	}
}

// mount is an API of its own.
type mount struct {
	match   func(path string) bool
	handler http.Handler
}

// Mount has a handler answer the paths that match, instead of the routes, once the server is ready. It knows neither
// versions nor the headers of the Docker API.
func (s *Server) Mount(match func(path string) bool, h http.Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts = append(s.mounts, mount{match, h})
}

// mounted returns the handler that a path belongs to; nil for a route's.
func (s *Server) mounted(path string) http.Handler {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, m := range s.mounts {
		if m.match(path) {
			return m.handler
		}
	}
	return nil
}

// Serve serves the connections of l until ctx ends or Shutdown is called, and closes l. It returns nil then, and the
// listener's error otherwise. Requests that run go on: Shutdown ends them.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() }) // makes Accept return
	defer stop()
	err := s.http.Serve(l)
	if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

// Shutdown stops accepting, ends streams at once and waits for all other requests. When ctx ends first their contexts
// are cancelled and their connections closed, and Shutdown returns an error that counts them.
func (s *Server) Shutdown(ctx context.Context) error {
	s.close()
	defer s.cancel()
	err := s.http.Shutdown(ctx)
	if err == nil {
		// Connections that were taken over from the server are not in its count.
		select {
		case <-s.active.idle():
			return nil
		case <-ctx.Done():
		}
	}
	s.cancel()
	_ = s.http.Close() // of listeners and connections that nobody waits for
	if n := s.active.count(); n > 0 {
		return fmt.Errorf("shut down API server: %d requests still ran: %w", n, context.Cause(ctx))
	}
	return nil
}

// debugWriter passes what net/http says about broken connections on at debug level: it is the clients' doing.
type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(line []byte) (int, error) {
	w.log.Debug("HTTP server", "message", string(line))
	return len(line), nil
}
