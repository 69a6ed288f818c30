package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/go-runc"
	"github.com/containerd/ttrpc"

	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/internal/atomicfile"
)

const (
	// drainLimit bounds how long an exit waits for output that a child of the process keeps open.
	drainLimit = 2 * time.Second
	// settle is how long after a start the memory that it took is given back.
	settle = 300 * time.Millisecond
	// farewell bounds how long a deleted shim waits for its callers to hang up.
	farewell = 500 * time.Millisecond
)

// Container says which container a shim stands beside.
type Container struct {
	// Dir is the container's runtime directory and bundle.
	Dir    string
	Config shimapi.Config
	// Tasks and Attach are the listening sockets.
	Tasks, Attach net.Listener
	// Terminated is closed when the host asks the shim to go. It goes once the container has ended.
	Terminated <-chan struct{}
}

// Shim stands beside one container.
type Shim struct {
	info    shimapi.Info
	parts   Parts
	inner   taskapi.TTRPCTaskService
	down    shutdown.Service // of inner
	server  *ttrpc.Server
	dir     string // this and cfg are set by Run
	cfg     shimapi.Config
	calls   calls
	sink    *sink
	init    *process
	oom     oomCounter
	oomSeen atomic.Bool
	ends    sync.WaitGroup // exits that are being recorded
	deleted chan struct{}
	trim    *time.Timer

	life   sync.Mutex // held over creating, starting and deleting init
	isGone bool       // the task was deleted; guarded by life
	pidfd  int        // of init, or -1; guarded by life
	net    netParts

	mu    sync.Mutex // guards what is below
	execs map[string]*process
	order []string // of execs
	made  int      // number of execs ever made; names their FIFOs
}

// New makes a shim that does not know its container yet. It does all that is the same for every container.
func New(ctx context.Context, version string, parts Parts) (_ *Shim, err error) {
	s := &Shim{
		parts:   parts,
		sink:    &sink{},
		execs:   map[string]*process{},
		deleted: make(chan struct{}),
		pidfd:   -1,
	}
	s.net = netParts{parts: parts, calls: &s.calls}
	if s.info, err = shimapi.Self(version); err != nil {
		return nil, fmt.Errorf("describe the shim: %w", err)
	}
	ctx, s.down = shutdown.WithShutdown(namespaces.WithNamespace(ctx, shimapi.Namespace))
	if s.inner, err = task.NewTaskService(ctx, publisher{s}, s.down); err != nil {
		return nil, fmt.Errorf("open the task service: %w", err)
	}
	runc.Monitor = handover{ProcessMonitor: runc.Monitor, find: s.process} // go-runc has one for the whole program
	if s.server, err = ttrpc.NewServer(); err != nil {
		return nil, err
	}
	taskapi.RegisterTTRPCTaskService(s.server, &taskService{s})
	s.net.register(s.server, s.methods())
	return s, nil
}

// Run serves a container until its task is deleted.
func (s *Shim) Run(ctx context.Context, c Container) error {
	defer s.down.Shutdown()
	s.dir, s.cfg = c.Dir, c.Config
	s.trim = time.AfterFunc(settle, giveBack)
	defer s.trim.Stop()
	if err := s.open(); err != nil {
		return err
	}
	conns := &countingListener{Listener: c.Tasks}
	var serving sync.WaitGroup
	serving.Go(func() {
		ctx := namespaces.WithNamespace(ctx, shimapi.Namespace)
		if err := s.server.Serve(ctx, conns); err != nil && !errors.Is(err, ttrpc.ErrServerClosed) {
			slog.Error("serve tasks", "error", err)
		}
	})
	attaches := &attachServer{shim: s, listener: c.Attach}
	serving.Go(attaches.serve)

	s.untilDone(c.Terminated, s.down.Done())
	conns.waitIdle(farewell)
	_ = s.server.Close() // the process ends here
	attaches.close()
	serving.Wait()
	s.ends.Wait()
	s.closeParts()
	return nil
}

// open prepares the streams of init and tells who we are.
func (s *Shim) open() error {
	data, err := json.Marshal(s.info)
	if err != nil {
		return err
	}
	if err := atomicfile.WriteNoSync(filepath.Join(s.dir, shimapi.InfoFile), data, 0o600); err != nil {
		return err
	}
	if s.cfg.Log.Driver != "" && s.cfg.Log.Driver != "none" {
		if s.sink.w, err = s.parts.OpenLog(s.cfg.Log); err != nil {
			return fmt.Errorf("open the container's log: %w", err)
		}
	}
	io, err := openStdio(s.dir, "init", s.cfg.Tty, s.cfg.OpenStdin, owner{s.cfg.UID, s.cfg.GID}, s.sink)
	if err != nil {
		return err
	}
	s.init = newProcess("", s.cfg.Tty, io, shimapi.StateSpawned)
	return nil
}

// untilDone waits for the task's deletion, or for the container's end once the host wants the shim to go.
func (s *Shim) untilDone(terminated, shut <-chan struct{}) {
	select {
	case <-s.deleted:
		return
	case <-shut:
		return
	case <-terminated:
	}
	s.calls.wait() // runc ends with us; let it finish
	if s.init.snapshot().State == shimapi.StateSpawned {
		return
	}
	select {
	case <-s.deleted:
	case <-shut:
	case <-s.init.ended:
	}
}

// process returns init for the empty name, or a further process.
func (s *Shim) process(id string) *process {
	if id == "" {
		return s.init
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.execs[id]
}

func (s *Shim) addExec(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.execs[p.id] = p
	s.order = append(s.order, p.id)
}

func (s *Shim) forgetExec(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.execs, id)
	for i, other := range s.order {
		if other == id {
			s.order = append(s.order[:i], s.order[i+1:]...)
			break
		}
	}
}

// nextIO names the FIFOs of the next exec.
func (s *Shim) nextIO() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.made++
	return strconv.Itoa(s.made)
}

func (s *Shim) snapshot() shimapi.Snapshot {
	snap := shimapi.Snapshot{Init: s.init.snapshot()}
	s.mu.Lock()
	execs := make([]*process, 0, len(s.order))
	for _, id := range s.order {
		execs = append(execs, s.execs[id])
	}
	s.mu.Unlock()
	for _, p := range execs {
		snap.Execs = append(snap.Execs, p.snapshot())
	}
	return snap
}

// giveBack returns to the kernel what is not in use, and keeps it so from now on. Pools lose their contents at the
// second collection only.
func giveBack() {
	debug.SetGCPercent(gcPercent) // not before: a start has no time for it
	goruntime.GC()
	debug.FreeOSMemory()
}

// settleSoon gives memory back once the present burst of work is over.
func (s *Shim) settleSoon() { s.trim.Reset(settle) }

func (s *Shim) closeParts() {
	s.net.close()
	s.sink.close()
}

// recordExit makes the end of init durable.
func (s *Shim) recordExit(exit shimapi.Exit) {
	data, err := json.Marshal(exit)
	if err == nil {
		err = atomicfile.Write(filepath.Join(s.dir, shimapi.ExitFile), data, 0o600)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		slog.Error("record the exit", "error", err)
	}
}

// countingListener knows how many of its connections are open.
type countingListener struct {
	net.Listener
	mu   sync.Mutex // guards open and idle
	open int
	idle chan struct{} // closed when open falls to 0 while somebody waits
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.open++
	l.mu.Unlock()
	return &countedConn{Conn: c, l: l}, nil
}

func (l *countingListener) waitIdle(limit time.Duration) {
	l.mu.Lock()
	if l.open == 0 {
		l.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	l.idle = idle
	l.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(limit):
	}
}

type countedConn struct {
	net.Conn
	l    *countingListener
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() {
		c.l.mu.Lock()
		defer c.l.mu.Unlock()
		if c.l.open--; c.l.open == 0 && c.l.idle != nil {
			close(c.l.idle)
			c.l.idle = nil
		}
	})
	return c.Conn.Close()
}
