package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/internal/ids"
)

// key names a request that is like no other.
func key() string { return ids.New()[:16] }

// process is a further process in a container.
type process struct {
	t  *task
	id string
}

var _ Process = (*process)(nil)

// Exec creates a further process.
func (t *task) Exec(ctx context.Context, execID string, req ExecRequest) (Process, error) {
	data, err := json.Marshal(req.Spec)
	if err != nil {
		return nil, t.wrap("encode a process of", err)
	}
	r := &taskapi.ExecProcessRequest{
		ID: t.id, ExecID: execID, Terminal: req.Spec.Terminal, Spec: &anypb.Any{Value: data},
	}
	if req.Stdin {
		r.Stdin = "wanted" // the shim makes the path
	}
	if err := t.conn.call(ctx, taskService, "Exec", "exec:"+execID, r, &emptypb.Empty{}); err != nil {
		return nil, t.gone("add a process to", err)
	}
	return &process{t: t, id: execID}, nil
}

// Execs returns the further processes that the shim knows.
func (t *task) Execs(ctx context.Context) ([]Process, error) {
	snap, err := t.info(ctx)
	if errors.Is(err, errShimGone) {
		return nil, nil // they ended with the container
	}
	if err != nil {
		return nil, t.wrap("list processes of", err)
	}
	found := make([]Process, 0, len(snap.Execs))
	for _, p := range snap.Execs {
		found = append(found, &process{t: t, id: p.ID})
	}
	return found, nil
}

func (p *process) ID() string { return p.id }

func (p *process) Start(ctx context.Context) (int, error) {
	var resp taskapi.StartResponse
	err := p.t.conn.call(ctx, taskService, "Start", "start:"+p.id, &taskapi.StartRequest{ID: p.t.id, ExecID: p.id}, &resp)
	return int(resp.Pid), p.t.gone("start a process in", err)
}

func (p *process) State(ctx context.Context) (State, error) {
	snap, err := p.t.info(ctx)
	if err != nil {
		return State{}, p.t.gone("ask for a process of", err)
	}
	for _, e := range snap.Execs {
		if e.ID == p.id {
			return toState(e), nil
		}
	}
	return State{}, p.t.wrap("ask for a process of", fmt.Errorf("process %s: %w", p.id, errdefs.ErrNotFound))
}

func (p *process) Wait(ctx context.Context) (Exit, error) { return p.t.wait(ctx, p.id) }

func (p *process) Kill(ctx context.Context, signal int) error {
	return p.t.kill(ctx, p.id, signal, false)
}

func (p *process) Resize(ctx context.Context, width, height int) error {
	return p.t.resize(ctx, p.id, width, height)
}

func (p *process) Attach(ctx context.Context, req AttachRequest) (Stream, error) {
	return p.t.attach(ctx, p.id, req)
}

func (p *process) Delete(ctx context.Context) error {
	err := p.t.conn.ask(ctx, shimapi.MethodForget, key(), shimapi.ProcessRequest{ID: p.id}, &shimapi.Empty{})
	return p.t.gone("forget a process of", err)
}
