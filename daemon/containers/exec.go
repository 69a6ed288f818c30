package containers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
)

// keptExecs is how many ended execs of a container can still be inspected; unusedExecs is how many may be created ahead
// of their start.
const (
	keptExecs   = 64
	unusedExecs = 1024
)

// exec is a further process in a container.
type exec struct {
	id        string
	container *Container
	run       *run
	req       container.ExecCreateRequest
	keys      []byte

	mu       sync.Mutex // guards the fields below
	process  runtime.Process
	started  bool
	running  bool
	pid      int
	exitCode *int
	done     chan struct{} // closed with exitCode set
}

// ExecCreate prepares a process; nothing runs yet.
func (s *Service) ExecCreate(ctx context.Context, ref string, req container.ExecCreateRequest) (string, error) {
	c, err := s.lookup(ref)
	if err != nil {
		return "", err
	}
	if len(req.Cmd) == 0 {
		return "", errdefs.ErrInvalidArgument.WithMessage("No exec command specified")
	}
	keys, err := detachKeys(req.DetachKeys)
	if err != nil {
		return "", err
	}
	r, err := s.execRun(c, ref)
	if err != nil {
		return "", err
	}
	if _, err := s.execProcess(r, c.rec(), req, nil); err != nil {
		return "", err
	}
	e := &exec{id: ids.New(), container: c, run: r, req: req, keys: keys, done: make(chan struct{})}
	s.mu.Lock()
	s.execs[e.id] = e
	s.mu.Unlock()
	c.mu.Lock()
	c.execIDs = append(c.execIDs, e.id)
	c.mu.Unlock()
	c.dropCache()
	s.forgetExecs(c)
	s.publish(c, events.Action(string(events.ActionExecCreate)+": "+strings.Join(req.Cmd, " ")), map[string]string{"execID": e.id})
	return e.id, nil
}

// execRun returns the run that an exec may be made in.
func (s *Service) execRun(c *Container, ref string) (*run, error) {
	state := c.rec().State
	r := c.live()
	switch {
	case state.Restarting:
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("Container %s is restarting, wait until the container is running", c.id))
	case r == nil:
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is not running", c.id))
	case state.Paused:
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("Container %s is paused, unpause the container before exec", ref))
	}
	return r, nil
}

func (s *Service) findExec(id string) (*exec, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e, ok := s.execs[id]; ok {
		return e, nil
	}
	return nil, errdefs.ErrNotFound.WithMessage("No such exec instance: " + id)
}

// ExecStart runs a prepared process, joined to its streams unless req.Detach is set.
func (s *Service) ExecStart(ctx context.Context, id string, req container.ExecStartRequest) (api.Stream, bool, error) {
	e, err := s.findExec(id)
	if err != nil {
		return nil, false, err
	}
	c := e.container
	e.mu.Lock()
	switch {
	case e.exitCode != nil:
		e.mu.Unlock()
		return nil, false, errdefs.ErrConflict.WithMessage(fmt.Sprintf("exec command %s has already run", id))
	case e.started:
		e.mu.Unlock()
		return nil, false, errdefs.ErrConflict.WithMessage(fmt.Sprintf("exec command %s is already running", id))
	}
	e.started = true
	e.mu.Unlock()
	if c.live() != e.run {
		e.ended(137) // its run is over
		return nil, false, errdefs.ErrConflict.WithMessage(fmt.Sprintf("container %s is not running", c.id))
	}
	command := strings.Join(e.req.Cmd, " ")
	s.publish(c, events.Action(string(events.ActionExecStart)+": "+command), map[string]string{"execID": e.id})
	stream, err := s.runExec(context.WithoutCancel(ctx), e, req)
	if err != nil {
		e.ended(startExitCode(err))
		return nil, false, err
	}
	if stream != nil && e.req.Tty && e.req.AttachStdin {
		stream = newDetachable(stream, e.keys, func() {
			s.publish(c, events.ActionExecDetach, map[string]string{"execID": e.id})
		})
	}
	return stream, !e.req.Tty, nil
}

func (s *Service) runExec(ctx context.Context, e *exec, req container.ExecStartRequest) (api.Stream, error) {
	rec := e.container.rec()
	size := req.ConsoleSize
	if size == nil {
		size = e.req.ConsoleSize
	}
	process, err := s.execProcess(e.run, rec, e.req, size)
	if err != nil {
		return nil, err
	}
	p, err := e.run.task().Exec(ctx, e.id, runtime.ExecRequest{Spec: process, Stdin: e.req.AttachStdin && !req.Detach})
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", rec.ID, err)
	}
	var stream runtime.Stream
	if !req.Detach {
		if stream, err = p.Attach(ctx, runtime.AttachRequest{Stdin: e.req.AttachStdin, Stdout: e.req.AttachStdout, Stderr: e.req.AttachStderr}); err != nil {
			return nil, errors.Join(err, p.Delete(ctx))
		}
	}
	pid, err := p.Start(ctx)
	if err != nil {
		if stream != nil {
			_ = stream.Close() // the start's error is the one to report
		}
		_ = p.Delete(ctx) // as above
		return nil, translateExecError(err, e.req.Cmd[0])
	}
	if err := fault.Point("containers.exec.started"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.process, e.running, e.pid = p, true, pid
	e.mu.Unlock()
	s.tasks.Go(func() { s.watchExec(e, p) })
	if stream == nil {
		return nil, nil
	}
	return &execStream{Stream: stream, done: e.done, closed: make(chan struct{})}, nil
}

// execProcess describes the process of an exec to the runtime.
func (s *Service) execProcess(r *run, rec *Record, req container.ExecCreateRequest, size *[2]uint) (*specs.Process, error) {
	input := ocispec.Input{ID: rec.ID, Config: rec.Config, HostConfig: rec.HostConfig, Path: rec.Path, Args: rec.Args, Rootfs: r.root, Host: s.cfg.Host,
		Security: ocispec.Security{ProcessLabel: rec.ProcessLabel, AppArmorProfile: rec.AppArmorProfile, NoNewPrivileges: rec.NoNewPrivileges}}
	want := ocispec.ExecRequest{Args: req.Cmd, Env: req.Env, User: req.User, WorkingDir: req.WorkingDir, Tty: req.Tty, Privileged: req.Privileged}
	if size != nil {
		want.ConsoleSize = *size
	}
	return ocispec.BuildExec(input, want)
}

// execStream is the output of an exec. It ends after the exit code is known, because clients ask for that next.
type execStream struct {
	api.Stream
	done   <-chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (x *execStream) Read(b []byte) (int, error) {
	n, err := x.Stream.Read(b)
	if n > 0 || err == nil {
		return n, nil
	}
	select {
	case <-x.done:
	case <-x.closed:
	}
	return 0, err
}

func (x *execStream) Close() error {
	x.once.Do(func() { close(x.closed) })
	return x.Stream.Close()
}

func translateExecError(err error, command string) error {
	translated := translateStartError(err, command)
	var se *startError
	if errors.As(translated, &se) {
		return &startError{code: se.code, error: errdefs.ErrInvalidArgument.WithMessage(execText(err))}
	}
	return errors.New(execText(err))
}

// execText is the runtime's text from where it speaks of the exec, which is what users know.
func execText(err error) string {
	const begin = "OCI runtime exec failed: "
	text := err.Error()
	if i := strings.LastIndex(text, begin); i >= 0 {
		return text[i:]
	}
	return begin + text
}

// watchExec waits for the end of an exec.
func (s *Service) watchExec(e *exec, p runtime.Process) {
	exit, err := p.Wait(s.ctx)
	if err != nil {
		if s.ctx.Err() != nil {
			return // the daemon goes; the next one asks the shim
		}
		exit.Code = 137 // the shim went with the container
	}
	e.ended(exit.Code)
	e.container.dropCache()
	s.publish(e.container, events.ActionExecDie, map[string]string{"execID": e.id, "exitCode": strconv.Itoa(exit.Code)})
	_ = p.Delete(context.WithoutCancel(s.ctx)) // the shim may be gone with it
	s.forgetExecs(e.container)
}

func (e *exec) ended(code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running = false
	if e.exitCode == nil {
		close(e.done)
	}
	e.exitCode = &code
}

// endedWithRun is the end of an exec whose end nobody saw, or that was never started.
func (e *exec) endedWithRun() {
	e.mu.Lock()
	over := e.exitCode != nil
	e.mu.Unlock()
	if !over {
		e.ended(137)
	}
}

// forgetExecs drops the oldest execs of a container, ended ones beyond keptExecs and those never started beyond
// unusedExecs.
func (s *Service) forgetExecs(c *Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	ended, unused := 0, 0
	for _, id := range slices.Backward(c.execIDs) {
		e := s.execs[id]
		if e == nil {
			continue
		}
		e.mu.Lock()
		drop := false
		switch {
		case e.exitCode != nil:
			ended++
			drop = ended > keptExecs
		case !e.started:
			unused++
			drop = unused > unusedExecs
		}
		e.mu.Unlock()
		if drop {
			delete(s.execs, id)
		}
	}
	c.execIDs = slices.DeleteFunc(c.execIDs, func(id string) bool { return s.execs[id] == nil })
}

// execsEnded marks the execs of a container whose run is over; the kernel has killed them with it.
func (s *Service) execsEnded(c *Container) {
	c.mu.Lock()
	own := slices.Clone(c.execIDs)
	c.mu.Unlock()
	s.mu.RLock()
	list := make([]*exec, 0, len(own))
	for _, id := range own {
		if e := s.execs[id]; e != nil {
			list = append(list, e)
		}
	}
	s.mu.RUnlock()
	for _, e := range list {
		e.endedWithRun()
	}
	s.forgetExecs(c)
	c.dropCache()
}

// ExecInspect describes an exec.
func (s *Service) ExecInspect(_ context.Context, id string) (container.ExecInspectResponse, error) {
	e, err := s.findExec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	privileged := e.req.Privileged
	return container.ExecInspectResponse{
		ID: e.id, Running: e.running, ExitCode: e.exitCode, Pid: e.pid,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: e.req.Tty, Entrypoint: e.req.Cmd[0], Arguments: e.req.Cmd[1:], Privileged: &privileged, User: e.req.User,
		},
		OpenStdin: e.req.AttachStdin, OpenStderr: e.req.AttachStderr, OpenStdout: e.req.AttachStdout,
		CanRemove: e.exitCode != nil, ContainerID: e.container.id, DetachKeys: e.keys,
	}, nil
}

// ExecResize sets the size of an exec's terminal.
func (s *Service) ExecResize(ctx context.Context, id string, width, height int) error {
	e, err := s.findExec(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	p, running := e.process, e.running
	e.mu.Unlock()
	if !running {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf("exec %s is not running", id))
	}
	return p.Resize(ctx, width, height)
}

func sizeAttributes(width, height int) map[string]string {
	return map[string]string{"width": strconv.Itoa(width), "height": strconv.Itoa(height)}
}

// restoreExecs takes up the execs that a container's shim knows.
func (s *Service) restoreExecs(ctx context.Context, c *Container, r *run) error {
	processes, err := r.task().Execs(ctx)
	if err != nil {
		return fmt.Errorf("list execs: %w", err)
	}
	for _, p := range processes {
		state, err := p.State(ctx)
		if err != nil {
			return fmt.Errorf("ask for exec %s: %w", p.ID(), err)
		}
		e := &exec{id: p.ID(), container: c, run: r, process: p, started: true, pid: state.Pid, done: make(chan struct{}),
			req: container.ExecCreateRequest{Cmd: []string{""}}}
		s.mu.Lock()
		s.execs[e.id] = e
		s.mu.Unlock()
		c.mu.Lock()
		c.execIDs = append(c.execIDs, e.id)
		c.mu.Unlock()
		if state.Status == runtime.StatusStopped {
			e.ended(state.Exit.Code)
			continue
		}
		e.running = true
		s.tasks.Go(func() { s.watchExec(e, p) })
	}
	return nil
}
