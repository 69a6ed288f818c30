package shim

import (
	"context"
	"errors"
	"fmt"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/internal/fault"
)

// Limits of what the shim carries out by itself. They only catch a runc that hangs.
const (
	shortLimit      = time.Minute
	startLimit      = 10 * time.Minute // a restore reads the container's memory
	checkpointLimit = time.Hour
)

// taskService is containerd's task API: the inner service's, with calls kept apart from their callers and streams
// opened by the shim.
type taskService struct{ s *Shim }

// carry runs a request apart from its caller.
func carry[T any](ctx context.Context, c *calls, limit time.Duration, fn func(context.Context) (T, error)) (T, error) {
	resp, err := c.do(ctx, limit, func(ctx context.Context) (any, error) {
		r, err := fn(namespaces.WithNamespace(ctx, shimapi.Namespace))
		return r, errgrpc.ToGRPC(err)
	})
	out, _ := resp.(T) // nil with an error
	return out, err
}

// Create prepares init. Its streams and runc's options come from the shim's configuration.
func (t *taskService) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	s := t.s
	return carry(ctx, &s.calls, startLimit, func(ctx context.Context) (*taskapi.CreateTaskResponse, error) {
		s.life.Lock()
		defer s.life.Unlock()
		if s.isGone {
			return nil, fmt.Errorf("task was deleted: %w", errdefs.ErrNotFound)
		}
		if state := s.init.snapshot().State; state != shimapi.StateSpawned {
			return nil, fmt.Errorf("task is %s already: %w", state, errdefs.ErrAlreadyExists)
		}
		if err := s.fillCreate(r); err != nil {
			return nil, err
		}
		if err := fault.Point("shim.create.begun"); err != nil {
			return nil, err
		}
		resp, err := s.inner.Create(ctx, r)
		if err != nil {
			s.init.stdio.forget()
			return nil, err
		}
		pid := int(resp.Pid)
		if pid != 0 { // a restore has none before it starts
			s.init.stdio.begin()
			s.oom.watch(pid)
			s.openPidfd(pid)
		}
		s.init.created(pid)
		if err := fault.Point("shim.create.done"); err != nil {
			return nil, err
		}
		return resp, nil
	})
}

// fillCreate completes a create request.
func (s *Shim) fillCreate(r *taskapi.CreateTaskRequest) error {
	opts, err := typeurl.MarshalAnyToProto(&options.Options{
		BinaryName:    s.cfg.RuncPath,
		Root:          s.cfg.ExecRoot, // the service appends the namespace
		SystemdCgroup: s.cfg.SystemdCgroup,
	})
	if err != nil {
		return err
	}
	io := s.init.stdio
	r.ID, r.Bundle, r.Options = s.cfg.ID, s.dir, opts
	r.Terminal, r.Stdin, r.Stdout, r.Stderr = s.cfg.Tty, io.in, io.out, "" // a terminal has one output
	return nil
}

// openPidfd takes a hold on init that no reuse of its pid can mislead.
func (s *Shim) openPidfd(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // signals then go through runc
	}
	if s.pidfd >= 0 {
		_ = unix.Close(s.pidfd) // of an earlier attempt
	}
	s.pidfd = fd
}

// Start starts init or a further process.
func (t *taskService) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	s := t.s
	return carry(ctx, &s.calls, startLimit, func(ctx context.Context) (*taskapi.StartResponse, error) {
		p := s.process(r.ExecID)
		if p == nil {
			return nil, fmt.Errorf("process %s: %w", r.ExecID, errdefs.ErrNotFound)
		}
		if p == s.init {
			s.life.Lock()
			defer s.life.Unlock()
		}
		defer s.settleSoon()
		before := time.Now()
		resp, err := s.inner.Start(ctx, r)
		if err != nil {
			p.stdio.forget()
			if p != s.init {
				s.failExec(p)
			}
			return nil, err
		}
		p.stdio.begin()
		if p == s.init && s.pidfd < 0 {
			s.oom.watch(int(resp.Pid))
			s.openPidfd(int(resp.Pid))
		}
		p.stdio.awaitReader()
		p.started(int(resp.Pid), before)
		p.stdio.release()
		if p.stdio.stdinEnded() {
			s.closeInnerStdin(ctx, p)
		}
		return resp, nil
	})
}

// failExec ends a further process that could not be started.
func (s *Shim) failExec(p *process) {
	if !p.beginEnd() {
		return
	}
	p.stdio.release()
	p.stdio.closeStdin()
	const cannotInvoke = 126 // what a shell says
	p.end(shimapi.Exit{Code: cannotInvoke, Time: time.Now()})
}

// Exec adds a further process. A stdin that is not empty says that one is wanted; its path is ours.
func (t *taskService) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	s := t.s
	return carry(ctx, &s.calls, shortLimit, func(ctx context.Context) (*emptypb.Empty, error) {
		if s.process(r.ExecID) != nil {
			return nil, fmt.Errorf("process %s: %w", r.ExecID, errdefs.ErrAlreadyExists)
		}
		if state := s.init.snapshot().State; state != shimapi.StateRunning {
			return nil, fmt.Errorf("container is %s, not running: %w", state, errdefs.ErrFailedPrecondition)
		}
		io, err := openStdio(s.dir, s.nextIO(), r.Terminal, r.Stdin != "", owner{s.cfg.UID, s.cfg.GID}, nil)
		if err != nil {
			return nil, err
		}
		r.Stdin, r.Stdout, r.Stderr = io.in, io.out, ""
		p := newProcess(r.ExecID, r.Terminal, io, shimapi.StateCreated)
		s.addExec(p)
		resp, err := s.inner.Exec(ctx, r)
		if err != nil {
			s.forgetExec(r.ExecID)
			io.release()
			io.closeStdin()
			return nil, err
		}
		return resp, nil
	})
}

// Delete removes an ended task or process, or a task that was never started. The shim goes on; MethodDelete ends it.
func (t *taskService) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	return carry(ctx, &t.s.calls, shortLimit, func(ctx context.Context) (*taskapi.DeleteResponse, error) {
		if r.ExecID == "" {
			t.s.life.Lock()
			defer t.s.life.Unlock()
			return t.s.deleteInner(ctx)
		}
		resp, err := t.s.inner.Delete(ctx, r)
		if err == nil {
			t.s.forgetExec(r.ExecID)
		}
		return resp, err
	})
}

// Kill sends a signal. Init of a container that is not paused is signalled without runc.
func (t *taskService) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	s := t.s
	return carry(ctx, &s.calls, shortLimit, func(ctx context.Context) (*emptypb.Empty, error) {
		if p := s.process(r.ExecID); p != nil && p.snapshot().State == shimapi.StateStopped {
			return nil, fmt.Errorf("process has ended: %w", errdefs.ErrNotFound)
		}
		if r.ExecID == "" && !r.All {
			done, err := s.signalInit(unix.Signal(r.Signal))
			if done || err != nil {
				return &emptypb.Empty{}, err
			}
		}
		return s.inner.Kill(ctx, r)
	})
}

// signalInit reports whether it could signal init by itself.
func (s *Shim) signalInit(sig unix.Signal) (done bool, err error) {
	s.life.Lock()
	defer s.life.Unlock()
	if s.pidfd < 0 || s.init.snapshot().State == shimapi.StatePaused {
		return false, nil // runc thaws a paused container for SIGKILL
	}
	switch err := unix.PidfdSendSignal(s.pidfd, sig, nil, 0); {
	case errors.Is(err, unix.ESRCH):
		return false, fmt.Errorf("process has ended: %w", errdefs.ErrNotFound)
	case err != nil:
		return false, fmt.Errorf("signal init: %w", err)
	}
	return true, nil
}

func (t *taskService) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	return carry(ctx, &t.s.calls, shortLimit, func(ctx context.Context) (*emptypb.Empty, error) {
		resp, err := t.s.inner.Pause(ctx, r)
		if err == nil {
			t.s.init.setPaused(true)
		}
		return resp, err
	})
}

func (t *taskService) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	return carry(ctx, &t.s.calls, shortLimit, func(ctx context.Context) (*emptypb.Empty, error) {
		resp, err := t.s.inner.Resume(ctx, r)
		if err == nil {
			t.s.init.setPaused(false)
		}
		return resp, err
	})
}

func (t *taskService) Checkpoint(ctx context.Context, r *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return carry(ctx, &t.s.calls, checkpointLimit, func(ctx context.Context) (*emptypb.Empty, error) {
		return t.s.inner.Checkpoint(ctx, r)
	})
}

func (t *taskService) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	return carry(ctx, &t.s.calls, shortLimit, func(ctx context.Context) (*emptypb.Empty, error) {
		return t.s.inner.Update(ctx, r)
	})
}

func (t *taskService) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	return carry(ctx, &t.s.calls, shortLimit, func(ctx context.Context) (*emptypb.Empty, error) {
		return t.s.inner.ResizePty(ctx, r)
	})
}

func (t *taskService) CloseIO(ctx context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	return carry(ctx, &t.s.calls, shortLimit, func(ctx context.Context) (*emptypb.Empty, error) {
		if p := t.s.process(r.ExecID); p != nil && r.Stdin {
			p.stdio.closeStdin()
		}
		return t.s.inner.CloseIO(ctx, r)
	})
}

func (t *taskService) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	return carry(ctx, &t.s.calls, shortLimit, func(ctx context.Context) (*taskapi.PidsResponse, error) {
		return t.s.inner.Pids(ctx, r)
	})
}

// Wait returns when the process has ended and its end is recorded.
func (t *taskService) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	exit, err := t.s.wait(ctx, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &taskapi.WaitResponse{ExitStatus: uint32(exit.Code), ExitedAt: timestamppb.New(exit.Time)}, nil
}

func (s *Shim) wait(ctx context.Context, execID string) (shimapi.Exit, error) {
	p := s.process(execID)
	if p == nil {
		return shimapi.Exit{}, fmt.Errorf("process %s: %w", execID, errdefs.ErrNotFound)
	}
	select {
	case <-p.ended:
		return *p.snapshot().Exit, nil
	case <-s.deleted:
		return shimapi.Exit{}, fmt.Errorf("task was deleted: %w", errdefs.ErrNotFound)
	case <-ctx.Done():
		return shimapi.Exit{}, ctx.Err()
	}
}

// The rest only look.

func (t *taskService) State(ctx context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	return t.s.inner.State(ctx, r)
}

func (t *taskService) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	return t.s.inner.Stats(ctx, r)
}

func (t *taskService) Connect(ctx context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	return t.s.inner.Connect(ctx, r)
}

// Shutdown does nothing: a shim lives until MethodDelete, so that nobody but the daemon ends it. An external containerd
// asks for it after a creation that failed, which may be tried again.
func (t *taskService) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// closeInnerStdin closes the write end that the task service holds, which brings the end of file to the process.
func (s *Shim) closeInnerStdin(ctx context.Context, p *process) {
	// An error says that the process is gone, and its stdin with it.
	_, _ = s.inner.CloseIO(ctx, &taskapi.CloseIORequest{ID: s.cfg.ID, ExecID: p.id, Stdin: true})
}
