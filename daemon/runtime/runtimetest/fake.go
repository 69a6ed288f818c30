package runtimetest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/network/sandbox"
)

// Fake is a Runtime without processes. It runs the verbs of the test program by itself; any other program runs until
// it is signalled or told to end. It can be told to lie: to fail, to fail after having done what was asked, to wait,
// and to lose what stands beside a container.
//
// Operations are named after the methods: "Spawn", "Create", "Start", "Kill", "Pause", "Resume", "Freezer", "Freeze",
// "Thaw", "Update", "Delete",
// "HoldPorts", "ReleasePorts", "ServeDNS", "Exec", "ExecStart", "Attach", "State", "Reconnect".
type Fake struct {
	w      *fakeWorld
	closed chan struct{}
	once   sync.Once
}

var _ runtime.Runtime = (*Fake)(nil)

// fakeWorld is what all Fakes of one host share.
type fakeWorld struct {
	mu         sync.Mutex // guards what is below
	containers map[string]*fakeTask
	lies       map[string][]lie
	calls      []string
	nextPid    int
	nextPort   uint16
	taken      map[string]bool // host ports, as "tcp/80"
}

type lie struct {
	err   error
	after bool            // the operation is done all the same
	until <-chan struct{} // the operation begins after this is closed
}

// NewFake returns a Fake of a host without containers.
func NewFake() *Fake {
	return newFake(&fakeWorld{
		containers: map[string]*fakeTask{}, lies: map[string][]lie{}, taken: map[string]bool{},
		nextPid: 1000, nextPort: 49152,
	})
}

func newFake(w *fakeWorld) *Fake { return &Fake{w: w, closed: make(chan struct{})} }

// Again returns what another daemon process on the same host would have.
func (f *Fake) Again() *Fake { return newFake(f.w) }

// Fail makes the next operation of this name fail without effect.
func (f *Fake) Fail(op string, err error) { f.w.lie(op, lie{err: err}) }

// Drop makes the next operation of this name succeed and its answer get lost.
func (f *Fake) Drop(op string) {
	f.w.lie(op, lie{err: fmt.Errorf("connection lost: %w", errdefs.ErrUnavailable), after: true})
}

// Hold makes the next operation of this name wait until the channel is closed.
func (f *Fake) Hold(op string, until <-chan struct{}) { f.w.lie(op, lie{until: until}) }

// Calls returns what was asked so far, as "Operation id".
func (f *Fake) Calls() []string {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	return slices.Clone(f.w.calls)
}

// End ends a container's init with a code.
func (f *Fake) End(id string, exit runtime.Exit) {
	if t := f.w.get(id); t != nil {
		t.init.finish(exit)
	}
}

// Output makes a container's init write.
func (f *Fake) Output(id, text string) {
	if t := f.w.get(id); t != nil {
		t.init.write(1, []byte(text))
	}
}

// Freezer is the freezer of a container, past all lies.
func (f *Fake) Freezer(id string) runtime.Freezer { return &fakeFreezer{f.w, id} }

// fakeFreezer is the freezer of the container that has an id.
type fakeFreezer struct {
	w  *fakeWorld
	id string
}

func (z *fakeFreezer) set(frozen bool) {
	z.w.mu.Lock()
	defer z.w.mu.Unlock()
	if t := z.w.containers[z.id]; t != nil {
		t.frozen = frozen
	}
}

func (z *fakeFreezer) Frozen() (bool, error) {
	z.w.mu.Lock()
	defer z.w.mu.Unlock()
	t := z.w.containers[z.id]
	return t != nil && t.frozen, nil
}

func (z *fakeFreezer) Freeze(ctx context.Context) error {
	err := z.w.do(ctx, "Freeze", z.id, func() error {
		z.set(true)
		return nil
	})
	if err != nil {
		z.set(false)
	}
	return err
}

func (z *fakeFreezer) Thaw() error {
	return z.w.do(context.Background(), "Thaw", z.id, func() error {
		z.set(false)
		return nil
	})
}

// KillShim loses what stands beside a container. Its process runs on.
func (f *Fake) KillShim(id string) {
	if t := f.w.get(id); t != nil {
		f.w.mu.Lock()
		t.shimGone = true
		f.w.releaseLocked(t, "")
		f.w.mu.Unlock()
	}
}

// KillInit ends a container's process. Without a shim nobody learns how.
func (f *Fake) KillInit(id string) {
	if t := f.w.get(id); t != nil {
		f.w.mu.Lock()
		gone := t.shimGone
		f.w.mu.Unlock()
		if gone {
			t.init.finish(runtime.Exit{Code: 255, At: time.Now()})
		} else {
			t.init.signal(int(syscall.SIGKILL))
		}
	}
}

func (w *fakeWorld) lie(op string, l lie) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lies[op] = append(w.lies[op], l)
}

func (w *fakeWorld) get(id string) *fakeTask {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.containers[id]
}

// do runs an operation and the lies about it.
func (w *fakeWorld) do(ctx context.Context, op, id string, fn func() error) error {
	w.mu.Lock()
	w.calls = append(w.calls, op+" "+id)
	var l lie
	if queue := w.lies[op]; len(queue) > 0 {
		l = queue[0]
		w.lies[op] = queue[1:]
	}
	w.mu.Unlock()
	if l.until != nil {
		select {
		case <-l.until:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if l.err != nil && !l.after {
		return l.err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	return l.err
}

// Spawn makes a container without a process.
func (f *Fake) Spawn(ctx context.Context, req runtime.SpawnRequest) (runtime.Task, error) {
	var h *fakeHandle
	err := f.w.do(ctx, "Spawn", req.ID, func() error {
		f.w.mu.Lock()
		defer f.w.mu.Unlock()
		if f.w.containers[req.ID] != nil {
			return fmt.Errorf("container %s: %w", req.ID, errdefs.ErrAlreadyExists)
		}
		t := &fakeTask{req: req, init: newFakeProc(req.Tty, req.OpenStdin), ports: map[string][]sandbox.Port{}}
		t.init.state.Status = runtime.StatusSpawned
		t.init.stdinOnce = req.StdinOnce
		f.w.containers[req.ID] = t
		h = &fakeHandle{f: f, id: req.ID, t: t}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// Reconnect finds a container.
func (f *Fake) Reconnect(ctx context.Context, id string) (runtime.Task, error) {
	var h *fakeHandle
	err := f.w.do(ctx, "Reconnect", id, func() error {
		t := f.w.get(id)
		if t == nil {
			return fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
		}
		h = &fakeHandle{f: f, id: id, t: t}
		return h.reachable()
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// List returns all containers.
func (f *Fake) List(ctx context.Context) ([]string, error) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	return slices.Sorted(maps.Keys(f.w.containers)), nil
}

// Close ends the waits of this Fake and leaves the containers alone.
func (f *Fake) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// fakeTask is a container.
type fakeTask struct {
	req      runtime.SpawnRequest
	init     *fakeProc
	shimGone bool // guarded by the world
	// Guarded by the world, too.
	frozen bool
	ports  map[string][]sandbox.Port
	execs  []*fakeExec
	dns    sandbox.DNSConfig
}

// fakeHandle is one daemon's view of a container.
type fakeHandle struct {
	f  *Fake
	id string
	t  *fakeTask
}

func (h *fakeHandle) ID() string { return h.id }

// reachable says whether the container answers, or how it ended is known.
func (h *fakeHandle) reachable() error {
	h.f.w.mu.Lock()
	gone, deleted := h.t.shimGone, h.f.w.containers[h.id] != h.t
	h.f.w.mu.Unlock()
	if deleted {
		return fmt.Errorf("container %s: %w", h.id, errdefs.ErrNotFound)
	}
	if gone && h.t.init.snapshot().Status != runtime.StatusStopped {
		return fmt.Errorf("container %s has no shim: %w", h.id, errdefs.ErrUnavailable)
	}
	return nil
}

// op runs an operation on a container that answers.
func (h *fakeHandle) op(ctx context.Context, name string, fn func() error) error {
	return h.f.w.do(ctx, name, h.id, func() error {
		if err := h.reachable(); err != nil {
			return err
		}
		return fn()
	})
}

func (h *fakeHandle) State(ctx context.Context) (st runtime.State, err error) {
	err = h.op(ctx, "State", func() error {
		st = h.t.init.snapshot()
		return nil
	})
	return st, err
}

func (h *fakeHandle) want(states ...runtime.Status) error {
	if st := h.t.init.snapshot().Status; !slices.Contains(states, st) {
		return fmt.Errorf("container %s is %s: %w", h.id, st, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (h *fakeHandle) Create(ctx context.Context, spec *specs.Spec) (pid int, err error) {
	err = h.op(ctx, "Create", func() error {
		if h.want(runtime.StatusSpawned) != nil {
			return fmt.Errorf("container %s: %w", h.id, errdefs.ErrAlreadyExists)
		}
		if err := h.t.init.prepare(spec.Process); err != nil {
			return err
		}
		pid = h.f.w.pid()
		h.t.init.created(pid)
		return nil
	})
	return pid, err
}

func (w *fakeWorld) pid() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nextPid++
	return w.nextPid
}

func (h *fakeHandle) Start(ctx context.Context) error {
	return h.op(ctx, "Start", func() error {
		if err := h.want(runtime.StatusCreated); err != nil {
			return err
		}
		h.t.init.onEnd = h.endExecs
		h.t.init.start()
		return nil
	})
}

// endExecs ends the further processes with init.
func (h *fakeHandle) endExecs() {
	h.f.w.mu.Lock()
	execs := slices.Clone(h.t.execs)
	h.f.w.mu.Unlock()
	for _, e := range execs {
		e.p.signal(int(syscall.SIGKILL))
	}
}

func (h *fakeHandle) Wait(ctx context.Context) (runtime.Exit, error) {
	if err := h.reachable(); err != nil {
		return runtime.Exit{}, err
	}
	return h.t.init.wait(ctx, h.f.closed)
}

func (h *fakeHandle) Kill(ctx context.Context, signal int, all bool) error {
	return h.op(ctx, "Kill", func() error { return h.t.init.signal(signal) })
}

func (h *fakeHandle) Pause(ctx context.Context) error {
	return h.op(ctx, "Pause", func() error {
		if err := h.want(runtime.StatusRunning); err != nil {
			return err
		}
		h.t.init.set(runtime.StatusPaused)
		return nil
	})
}

func (h *fakeHandle) Resume(ctx context.Context) error {
	return h.op(ctx, "Resume", func() error {
		if err := h.want(runtime.StatusPaused); err != nil {
			return err
		}
		h.t.init.set(runtime.StatusRunning)
		return nil
	})
}

func (h *fakeHandle) Freezer(ctx context.Context) (z runtime.Freezer, err error) {
	err = h.op(ctx, "Freezer", func() error {
		z = &fakeFreezer{h.f.w, h.id}
		return h.want(runtime.StatusCreated, runtime.StatusRunning, runtime.StatusPaused)
	})
	return z, err
}

func (h *fakeHandle) Update(ctx context.Context, _ *specs.LinuxResources) error {
	return h.op(ctx, "Update", func() error {
		return h.want(runtime.StatusCreated, runtime.StatusRunning, runtime.StatusPaused)
	})
}

func (h *fakeHandle) Pids(ctx context.Context) (pids []int, err error) {
	err = h.op(ctx, "Pids", func() error {
		if err := h.want(runtime.StatusCreated, runtime.StatusRunning, runtime.StatusPaused); err != nil {
			return err
		}
		pids = append(pids, h.t.init.snapshot().Pid)
		return nil
	})
	return pids, err
}

func (h *fakeHandle) Stats(ctx context.Context) (*runtime.Stats, error) {
	err := h.op(ctx, "Stats", func() error {
		return h.want(runtime.StatusCreated, runtime.StatusRunning, runtime.StatusPaused)
	})
	if err != nil {
		return nil, err
	}
	return &runtime.Stats{Read: time.Now(), Version: 2, Pids: runtime.PidsStats{Current: 1}}, nil
}

func (h *fakeHandle) Resize(ctx context.Context, width, height int) error {
	return h.op(ctx, "Resize", func() error { return h.t.init.resize(width, height) })
}

func (h *fakeHandle) Attach(ctx context.Context, req runtime.AttachRequest) (s runtime.Stream, err error) {
	err = h.op(ctx, "Attach", func() error {
		s = h.t.init.attach(req)
		return nil
	})
	return s, err
}

func (h *fakeHandle) HoldPorts(ctx context.Context, endpointID string, ports []sandbox.Port) (bound []sandbox.Port, err error) {
	err = h.op(ctx, "HoldPorts", func() error {
		w := h.f.w
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, p := range ports {
			if p.HostPort == 0 {
				w.nextPort++
				p.HostPort = w.nextPort
			}
			p.HostPortEnd = p.HostPort
			if name := fmt.Sprintf("%s/%d", p.Proto, p.HostPort); w.taken[name] {
				return errdefs.ErrConflict.WithMessage("port " + name + " is already allocated")
			}
			bound = append(bound, p)
		}
		for _, p := range bound {
			w.taken[fmt.Sprintf("%s/%d", p.Proto, p.HostPort)] = true
		}
		h.t.ports[endpointID] = append(h.t.ports[endpointID], bound...)
		return nil
	})
	return bound, err
}

func (h *fakeHandle) ReleasePorts(ctx context.Context, endpointID string) error {
	return h.op(ctx, "ReleasePorts", func() error {
		h.f.w.mu.Lock()
		defer h.f.w.mu.Unlock()
		h.f.w.releaseLocked(h.t, endpointID)
		return nil
	})
}

// releaseLocked gives the ports of an endpoint back, or of all for the empty id.
func (w *fakeWorld) releaseLocked(t *fakeTask, endpointID string) {
	for ep, ports := range t.ports {
		if endpointID != "" && ep != endpointID {
			continue
		}
		for _, p := range ports {
			delete(w.taken, fmt.Sprintf("%s/%d", p.Proto, p.HostPort))
		}
		delete(t.ports, ep)
	}
}

func (h *fakeHandle) Ports(ctx context.Context) (held map[string][]sandbox.Port, err error) {
	err = h.op(ctx, "Ports", func() error {
		h.f.w.mu.Lock()
		defer h.f.w.mu.Unlock()
		held = maps.Clone(h.t.ports)
		return nil
	})
	return held, err
}

func (h *fakeHandle) ServeDNS(ctx context.Context, cfg sandbox.DNSConfig) error {
	return h.op(ctx, "ServeDNS", func() error {
		h.f.w.mu.Lock()
		defer h.f.w.mu.Unlock()
		h.t.dns = cfg
		return nil
	})
}

func (h *fakeHandle) Delete(ctx context.Context) error {
	return h.f.w.do(ctx, "Delete", h.id, func() error {
		err := h.reachable()
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := h.want(runtime.StatusSpawned, runtime.StatusCreated, runtime.StatusStopped); err != nil {
			return err
		}
		h.t.init.finish(runtime.Exit{Code: 137, At: time.Now()})
		h.f.w.mu.Lock()
		defer h.f.w.mu.Unlock()
		h.f.w.releaseLocked(h.t, "")
		delete(h.f.w.containers, h.id)
		return nil
	})
}

// fakeExec is a further process.
type fakeExec struct {
	h  *fakeHandle
	id string
	p  *fakeProc
}

func (h *fakeHandle) Exec(ctx context.Context, execID string, req runtime.ExecRequest) (_ runtime.Process, err error) {
	var e *fakeExec
	err = h.op(ctx, "Exec", func() error {
		if err := h.want(runtime.StatusRunning); err != nil {
			return err
		}
		e = &fakeExec{h: h, id: execID, p: newFakeProc(req.Spec.Terminal, req.Stdin)}
		e.p.stdinOnce = true
		e.p.spec = req.Spec
		e.p.state.Status = runtime.StatusCreated
		h.f.w.mu.Lock()
		defer h.f.w.mu.Unlock()
		h.t.execs = append(h.t.execs, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (h *fakeHandle) Execs(ctx context.Context) (found []runtime.Process, err error) {
	err = h.op(ctx, "Execs", func() error {
		h.f.w.mu.Lock()
		defer h.f.w.mu.Unlock()
		for _, e := range h.t.execs {
			found = append(found, &fakeExec{h: h, id: e.id, p: e.p})
		}
		return nil
	})
	return found, err
}

func (e *fakeExec) ID() string { return e.id }

func (e *fakeExec) Attach(ctx context.Context, req runtime.AttachRequest) (s runtime.Stream, err error) {
	err = e.h.op(ctx, "Attach", func() error {
		s = e.p.attach(req)
		return nil
	})
	return s, err
}

func (e *fakeExec) Start(ctx context.Context) (pid int, err error) {
	err = e.h.op(ctx, "ExecStart", func() error {
		if err := e.p.prepare(e.p.spec); err != nil {
			e.p.finish(runtime.Exit{Code: 126, At: time.Now()})
			return err
		}
		pid = e.h.f.w.pid()
		e.p.created(pid)
		e.p.start()
		return nil
	})
	return pid, err
}

func (e *fakeExec) State(ctx context.Context) (st runtime.State, err error) {
	err = e.h.op(ctx, "ExecState", func() error {
		st = e.p.snapshot()
		return nil
	})
	return st, err
}

func (e *fakeExec) Wait(ctx context.Context) (runtime.Exit, error) {
	return e.p.wait(ctx, e.h.f.closed)
}

func (e *fakeExec) Kill(ctx context.Context, signal int) error {
	return e.h.op(ctx, "ExecKill", func() error { return e.p.signal(signal) })
}

func (e *fakeExec) Resize(ctx context.Context, width, height int) error {
	return e.h.op(ctx, "ExecResize", func() error { return e.p.resize(width, height) })
}

func (e *fakeExec) Delete(ctx context.Context) error {
	return e.h.op(ctx, "ExecDelete", func() error {
		if st := e.p.snapshot().Status; st == runtime.StatusRunning {
			return fmt.Errorf("process %s is %s: %w", e.id, st, errdefs.ErrFailedPrecondition)
		}
		e.h.f.w.mu.Lock()
		defer e.h.f.w.mu.Unlock()
		e.h.t.execs = slices.DeleteFunc(e.h.t.execs, func(o *fakeExec) bool { return o.p == e.p })
		return nil
	})
}

// words returns the verb and arguments of the test program, or nothing for another program.
func words(p *specs.Process) []string {
	if p == nil || len(p.Args) < 2 || p.Args[0] != Prog {
		return nil
	}
	return p.Args[1:]
}

// missing reports whether the fake's root file system lacks a program.
func missing(p *specs.Process) bool {
	return p != nil && len(p.Args) > 0 && strings.HasPrefix(p.Args[0], "/nowhere")
}
