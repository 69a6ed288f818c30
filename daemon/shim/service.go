package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// methods are those of the shim's own service that concern its processes.
func (s *Shim) methods() map[string]ttrpc.Method {
	return map[string]ttrpc.Method{
		shimapi.MethodInfo: method(func(context.Context, shimapi.Empty) (shimapi.Snapshot, error) {
			return s.snapshot(), nil
		}),
		shimapi.MethodWait: method(func(ctx context.Context, r shimapi.ProcessRequest) (shimapi.Exit, error) {
			return s.wait(ctx, r.ID)
		}),
		shimapi.MethodForget: kept(&s.calls, s.forget),
		shimapi.MethodDelete: kept(&s.calls, s.delete),
		shimapi.MethodAck: kept(&s.calls, func(context.Context, shimapi.Empty) (shimapi.Empty, error) {
			return shimapi.Empty{}, nil
		}),
	}
}

// method wraps fn's JSON in ttrpc's messages.
func method[Req, Resp any](fn func(context.Context, Req) (Resp, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var msg wrapperspb.BytesValue
		if err := unmarshal(&msg); err != nil {
			return nil, err
		}
		var req Req
		if err := json.Unmarshal(msg.Value, &req); err != nil {
			return nil, errgrpc.ToGRPC(fmt.Errorf("decode request: %w: %w", err, errdefs.ErrInvalidArgument))
		}
		resp, err := fn(ctx, req)
		if err != nil {
			return nil, errgrpc.ToGRPC(err)
		}
		data, err := json.Marshal(resp)
		if err != nil {
			return nil, err
		}
		return wrapperspb.Bytes(data), nil
	}
}

// kept is method for a request that is carried out apart from its caller.
func kept[Req, Resp any](c *calls, fn func(context.Context, Req) (Resp, error)) ttrpc.Method {
	return method(func(ctx context.Context, req Req) (Resp, error) {
		return carry(ctx, c, shortLimit, func(ctx context.Context) (Resp, error) { return fn(ctx, req) })
	})
}

// forget deletes an ended further process. A child that holds its output open would make the task service wait, so
// that part is left to itself.
func (s *Shim) forget(ctx context.Context, r shimapi.ProcessRequest) (shimapi.Empty, error) {
	p := s.process(r.ID)
	if p == nil || p == s.init {
		return shimapi.Empty{}, fmt.Errorf("process %s: %w", r.ID, errdefs.ErrNotFound)
	}
	switch p.snapshot().State {
	case shimapi.StateStopped, shimapi.StateCreated:
	default:
		return shimapi.Empty{}, fmt.Errorf("process %s runs: %w", r.ID, errdefs.ErrFailedPrecondition)
	}
	s.forgetExec(r.ID)
	if p.beginEnd() { // it was never started
		p.stdio.release()
		p.stdio.closeStdin()
		p.end(shimapi.Exit{Time: time.Now()})
	}
	s.ends.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shortLimit)
		defer cancel()
		// The process is gone; what is left is memory in this shim.
		_, _ = s.inner.Delete(ctx, &taskapi.DeleteRequest{ID: s.cfg.ID, ExecID: r.ID})
	})
	return shimapi.Empty{}, nil
}

// delete removes the task and ends the shim. A task that was created and never started is killed.
func (s *Shim) delete(ctx context.Context, _ shimapi.Empty) (shimapi.Empty, error) {
	s.life.Lock()
	defer s.life.Unlock()
	if s.isGone {
		return shimapi.Empty{}, nil
	}
	if s.init.snapshot().State != shimapi.StateSpawned {
		if _, err := s.deleteInner(ctx); err != nil && !errdefs.IsNotFound(err) {
			return shimapi.Empty{}, err
		}
	}
	s.isGone = true
	if s.pidfd >= 0 {
		_ = unix.Close(s.pidfd) // only a handle
		s.pidfd = -1
	}
	s.closeParts()
	close(s.deleted)
	return shimapi.Empty{}, nil
}

// deleteInner removes the task from runc. The caller holds life.
func (s *Shim) deleteInner(ctx context.Context) (*taskapi.DeleteResponse, error) {
	switch state := s.init.snapshot().State; state {
	case shimapi.StateSpawned:
		return nil, fmt.Errorf("task was not created: %w", errdefs.ErrNotFound)
	case shimapi.StateRunning, shimapi.StatePaused:
		return nil, fmt.Errorf("container is %s: %w", state, errdefs.ErrFailedPrecondition)
	case shimapi.StateCreated:
		if err := s.killCreated(ctx); err != nil {
			return nil, err
		}
	}
	resp, err := s.inner.Delete(ctx, &taskapi.DeleteRequest{ID: s.cfg.ID})
	if err != nil {
		return nil, fmt.Errorf("delete the task: %w", errgrpc.ToNative(err))
	}
	return resp, nil
}

// killCreated ends an init that waits for its start, and waits until that is recorded.
func (s *Shim) killCreated(ctx context.Context) error {
	err := unix.ESRCH
	if s.pidfd >= 0 {
		if e := unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0); e != nil && !errors.Is(e, unix.ESRCH) {
			return fmt.Errorf("kill the created task: %w", e)
		}
	} else if s.init.snapshot().Pid == 0 {
		return nil // a restore that was never started has no process
	} else {
		return fmt.Errorf("kill the created task: %w", err)
	}
	select {
	case <-s.init.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the killed task: %w", ctx.Err())
	}
}
