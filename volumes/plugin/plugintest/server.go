// Package plugintest has a volume plug-in for tests. It speaks the protocol through the library that plug-ins are
// written with, keeps its volumes as directories, so that it can die and come back, and fails as it is told.
package plugintest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/docker/go-plugins-helpers/volume"
)

// Server is a plug-in. Its methods beside the protocol's may be called from several goroutines.
type Server struct {
	t      testing.TB
	socket string
	dir    string

	mu       sync.Mutex // guards the fields below and what is in dir
	listener *listener  // nil while it is dead
	scope    string
	fail     map[string]string
	hang     map[string]chan struct{}
	deadly   map[string]bool
	calls    map[string]int
}

var _ volume.Driver = (*Server)(nil)

// New returns a plug-in that will listen on socket and keeps its volumes in a directory of the test. It is dead until
// Start.
func New(t testing.TB, socket string) *Server {
	s := &Server{t: t, socket: socket, dir: t.TempDir(), scope: "global", fail: map[string]string{},
		hang: map[string]chan struct{}{}, deadly: map[string]bool{}, calls: map[string]int{}}
	t.Cleanup(func() {
		s.mu.Lock()
		methods := slices.Collect(maps.Keys(s.hang))
		s.mu.Unlock()
		for _, method := range methods {
			s.Release(method)
		}
		s.Die()
	})
	return s
}

// Socket is where Start listens.
func (s *Server) Socket() string { return s.socket }

// Start makes the plug-in listen, on a socket that may be a dead one's.
func (s *Server) Start() {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(s.socket), 0o700); err != nil {
		s.t.Fatal(err)
	}
	_ = os.Remove(s.socket) // there is none, or a dead one's
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	s.Serve(l)
}

// Serve is Start on a listener of the caller's.
func (s *Server) Serve(l net.Listener) {
	tracked := &listener{Listener: l, conns: map[net.Conn]bool{}}
	s.mu.Lock()
	s.listener = tracked
	s.mu.Unlock()
	tracked.serving.Go(func() {
		_ = volume.NewHandler(s).Serve(tracked) // it ends when the listener does
	})
}

// Die closes all connections, as the death of the process would. The socket's file stays.
func (s *Server) Die() {
	s.mu.Lock()
	l := s.listener
	s.listener = nil
	s.mu.Unlock()
	if l != nil {
		l.kill()
		l.serving.Wait()
	}
}

// Fail makes every later call of a method answer text; "" ends that.
func (s *Server) Fail(method, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail[method] = text
}

// DieIn makes the plug-in die in the next call of a method, once it has done what was asked for.
func (s *Server) DieIn(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadly[method] = true
}

// Hang makes every later call of a method wait for Release before it does anything.
func (s *Server) Hang(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hang[method] == nil {
		s.hang[method] = make(chan struct{})
	}
}

// Release is the end of Hang.
func (s *Server) Release(method string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.hang[method]; c != nil {
		close(c)
		s.hang[method] = nil
	}
}

// SetScope is what Capabilities answers from now on.
func (s *Server) SetScope(scope string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scope = scope
}

// Calls returns how often a method has been called.
func (s *Server) Calls(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[method]
}

// Users returns the ids under which a volume is mounted.
func (s *Server) Users(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	list, _ := os.ReadDir(s.path(name, "users")) // no volume has no users
	var ids []string
	for _, e := range list {
		ids = append(ids, e.Name())
	}
	return ids
}

// do runs one call.
func (s *Server) do(method string, f func() error) error {
	s.mu.Lock()
	s.calls[method]++
	wait := s.hang[method]
	s.mu.Unlock()
	if wait != nil {
		<-wait
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if text := s.fail[method]; text != "" {
		return errors.New(text)
	}
	err := f()
	if s.deadly[method] {
		delete(s.deadly, method)
		s.listener.kill()
		s.listener = nil
	}
	return err
}

func (s *Server) path(name string, elem ...string) string {
	return filepath.Join(append([]string{s.dir, url.PathEscape(name)}, elem...)...)
}

// made is what is written down of a volume.
type made struct {
	Options   map[string]string
	CreatedAt time.Time
}

// read returns a volume. The caller holds mu.
func (s *Server) read(name string) (*volume.Volume, error) {
	var m made
	data, err := os.ReadFile(s.path(name, "volume.json"))
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		return nil, fmt.Errorf("no volume %s here", name)
	}
	return &volume.Volume{Name: name, Mountpoint: s.path(name, "data"), CreatedAt: m.CreatedAt.Format(time.RFC3339),
		Status: map[string]any{"options": m.Options, "large": 1 << 62}}, nil
}

// Create implements volume.Driver. It refuses the option "bad".
func (s *Server) Create(req *volume.CreateRequest) error {
	return s.do("Create", func() error {
		if _, bad := req.Options["bad"]; bad {
			return errors.New("bad is no option")
		}
		if err := errors.Join(os.MkdirAll(s.path(req.Name, "data"), 0o755), os.MkdirAll(s.path(req.Name, "users"), 0o755)); err != nil {
			return err
		}
		data, err := json.Marshal(made{Options: req.Options, CreatedAt: time.Now()})
		if err != nil {
			return err
		}
		return os.WriteFile(s.path(req.Name, "volume.json"), data, 0o600)
	})
}

// List implements volume.Driver.
func (s *Server) List() (*volume.ListResponse, error) {
	resp := &volume.ListResponse{}
	return resp, s.do("List", func() error {
		entries, err := os.ReadDir(s.dir)
		for _, e := range entries {
			name, _ := url.PathUnescape(e.Name()) // we escaped it
			if v, err := s.read(name); err == nil {
				resp.Volumes = append(resp.Volumes, v)
			}
		}
		return err
	})
}

// Get implements volume.Driver.
func (s *Server) Get(req *volume.GetRequest) (*volume.GetResponse, error) {
	resp := &volume.GetResponse{}
	return resp, s.do("Get", func() (err error) {
		resp.Volume, err = s.read(req.Name)
		return err
	})
}

// Remove implements volume.Driver. It refuses a volume that is mounted.
func (s *Server) Remove(req *volume.RemoveRequest) error {
	return s.do("Remove", func() error {
		if _, err := s.read(req.Name); err != nil {
			return err
		}
		if users, err := os.ReadDir(s.path(req.Name, "users")); err != nil || len(users) > 0 {
			return fmt.Errorf("volume %s is mounted", req.Name)
		}
		return os.RemoveAll(s.path(req.Name))
	})
}

// Path implements volume.Driver.
func (s *Server) Path(req *volume.PathRequest) (*volume.PathResponse, error) {
	resp := &volume.PathResponse{}
	return resp, s.do("Path", func() error {
		v, err := s.read(req.Name)
		if err == nil {
			resp.Mountpoint = v.Mountpoint
		}
		return err
	})
}

// Mount implements volume.Driver.
func (s *Server) Mount(req *volume.MountRequest) (*volume.MountResponse, error) {
	resp := &volume.MountResponse{}
	return resp, s.do("Mount", func() error {
		v, err := s.read(req.Name)
		if err != nil {
			return err
		}
		resp.Mountpoint = v.Mountpoint
		return os.WriteFile(s.path(req.Name, "users", req.ID), nil, 0o600)
	})
}

// Unmount implements volume.Driver. It refuses an id that it does not know.
func (s *Server) Unmount(req *volume.UnmountRequest) error {
	return s.do("Unmount", func() error { return os.Remove(s.path(req.Name, "users", req.ID)) })
}

// Capabilities implements volume.Driver.
func (s *Server) Capabilities() *volume.CapabilitiesResponse {
	resp := &volume.CapabilitiesResponse{}
	_ = s.do("Capabilities", func() error { // the library has no way to refuse
		resp.Capabilities.Scope = s.scope
		return nil
	})
	return resp
}

// listener knows its connections.
type listener struct {
	net.Listener
	serving sync.WaitGroup

	mu    sync.Mutex // guards the fields below
	conns map[net.Conn]bool
	dead  bool
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead {
		_ = c.Close() // the process would not have accepted it
		return nil, net.ErrClosed
	}
	l.conns[c] = true
	return c, nil
}

func (l *listener) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
	_ = l.Close() // nothing more can come
	for c := range l.conns {
		_ = c.Close() // as the process's end would
	}
}
