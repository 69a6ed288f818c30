package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"sync"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/sandbox"
)

// taskService is the name of containerd's task API.
const taskService = "containerd.task.v3.Task"

// criuAnnotation names the file in which runc lets criu look for options. It must be in the spec when the container
// is created; criu takes a missing file for an empty one.
const criuAnnotation = "org.criu.config"

// task is a container with a shim of our own, or what such a shim left.
type task struct {
	r    *Shims
	id   string
	dir  string
	conn *conn

	mu      sync.Mutex // guards what is below
	cgroups *cgroupPaths
}

var (
	_ Task         = (*task)(nil)
	_ Checkpointer = (*task)(nil)
)

func (t *task) ID() string { return t.id }

// wrap says what was done to which container.
func (t *task) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", what, ids.Short(t.id), err)
}

// info asks the shim for all it knows.
func (t *task) info(ctx context.Context) (shimapi.Snapshot, error) {
	var snap shimapi.Snapshot
	err := t.conn.ask(ctx, shimapi.MethodInfo, "", shimapi.Empty{}, &snap)
	return snap, err
}

// State asks the shim, or reads what it left.
func (t *task) State(ctx context.Context) (State, error) {
	snap, err := t.info(ctx)
	if errors.Is(err, errShimGone) {
		return t.r.lastState(t.id, t.dir)
	}
	if err != nil {
		return State{}, t.wrap("ask the shim of", err)
	}
	return toState(snap.Init), nil
}

func toState(p shimapi.Process) State {
	s := State{Status: Status(p.State), Pid: p.Pid, StartedAt: p.StartedAt}
	if p.Exit != nil {
		s.Exit = toExit(*p.Exit)
	}
	return s
}

func (t *task) HoldPorts(ctx context.Context, endpointID string, ports []sandbox.Port) ([]sandbox.Port, error) {
	var resp shimapi.HoldResponse
	err := t.conn.ask(ctx, shimapi.MethodHoldPorts, key(), shimapi.HoldRequest{EndpointID: endpointID, Ports: ports}, &resp)
	if err == nil && resp.Conflict != "" {
		return nil, errdefs.ErrConflict.WithMessage(resp.Conflict) // the text is for the user as it is
	}
	return resp.Ports, t.wrap("hold ports of", err)
}

func (t *task) ReleasePorts(ctx context.Context, endpointID string) error {
	err := t.conn.ask(ctx, shimapi.MethodReleasePorts, key(), shimapi.HoldRequest{EndpointID: endpointID}, &shimapi.Empty{})
	if errors.Is(err, errShimGone) {
		return nil // they went with it
	}
	return t.wrap("release ports of", err)
}

func (t *task) Ports(ctx context.Context) (map[string][]sandbox.Port, error) {
	held := map[string][]sandbox.Port{}
	err := t.conn.ask(ctx, shimapi.MethodPorts, "", shimapi.Empty{}, &held)
	if errors.Is(err, errShimGone) {
		return held, nil // they went with it
	}
	return held, t.wrap("list ports of", err)
}

func (t *task) ServeDNS(ctx context.Context, cfg sandbox.DNSConfig) error {
	return t.wrap("serve names for", t.conn.ask(ctx, shimapi.MethodServeDNS, key(), cfg, &shimapi.Empty{}))
}

// Create writes the bundle and creates init. A repetition with the same spec, by whichever daemon, gets the result of
// a creation that is under way.
func (t *task) Create(ctx context.Context, spec *specs.Spec) (int, error) {
	return t.create(ctx, spec, "")
}

// CreateFrom is Create for a container that continues from a checkpoint directory: Start restores it, and the pid is
// known after that.
func (t *task) CreateFrom(ctx context.Context, spec *specs.Spec, checkpoint string) error {
	_, err := t.create(ctx, spec, checkpoint)
	return err
}

func (t *task) create(ctx context.Context, spec *specs.Spec, checkpoint string) (int, error) {
	spec = t.complete(spec)
	data, err := json.Marshal(spec)
	if err != nil {
		return 0, t.wrap("encode the spec of", err)
	}
	if err := atomicfile.WriteNoSync(filepath.Join(t.dir, shimapi.BundleFile), data, 0o600); err != nil {
		return 0, t.wrap("create", err)
	}
	if err := fault.Point("runtime.create.bundled"); err != nil {
		return 0, err
	}
	if t.r.tasks != nil {
		return t.createVia(ctx, spec, checkpoint)
	}
	sum := sha256.Sum256(data)
	req := &taskapi.CreateTaskRequest{ID: t.id, Bundle: t.dir, Checkpoint: checkpoint}
	var resp taskapi.CreateTaskResponse
	if err := t.conn.call(ctx, taskService, "Create", "create:"+hex.EncodeToString(sum[:8]), req, &resp); err != nil {
		return 0, t.gone("create", err)
	}
	return int(resp.Pid), nil
}

// complete adds what every container needs to a copy of the spec: criu's options, an OOM score that is not the shim's,
// and the way to the shim when somebody else has to find it.
func (t *task) complete(spec *specs.Spec) *specs.Spec {
	s := *spec
	s.Annotations = maps.Clone(s.Annotations)
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	if _, ok := s.Annotations[criuAnnotation]; !ok {
		s.Annotations[criuAnnotation] = filepath.Join(t.dir, shimapi.CriuFile)
	}
	if t.r.tasks != nil {
		s.Annotations[shimapi.DirectoryAnnotation] = t.dir // ours alone to say
	}
	if s.Process != nil && s.Process.OOMScoreAdj == nil {
		p := *s.Process
		p.OOMScoreAdj = new(int)
		s.Process = &p
	}
	return &s
}

func (t *task) Start(ctx context.Context) (err error) {
	if t.r.tasks != nil {
		err = t.startVia(ctx)
	} else {
		err = t.gone("start", t.conn.call(ctx, taskService, "Start", "start", &taskapi.StartRequest{ID: t.id}, &taskapi.StartResponse{}))
	}
	if err == nil {
		t.r.prepareSpare() // now that this start has what it needs of the host
	}
	return err
}

// gone gives a failed operation its context. Without a shim there is no container to operate on.
func (t *task) gone(what string, err error) error {
	if errors.Is(err, errShimGone) {
		if st, e := t.r.lastState(t.id, t.dir); e == nil && st.Status == StatusStopped {
			err = fmt.Errorf("container has ended: %w", errdefs.ErrFailedPrecondition)
		}
	}
	return t.wrap(what, err)
}

func (t *task) Wait(ctx context.Context) (Exit, error) { return t.wait(ctx, "") }

func (t *task) wait(ctx context.Context, execID string) (Exit, error) {
	var exit shimapi.Exit
	err := t.conn.ask(ctx, shimapi.MethodWait, "", shimapi.ProcessRequest{ID: execID}, &exit)
	if err == nil {
		return toExit(exit), nil
	}
	if errors.Is(err, errShimGone) && execID == "" {
		st, err := t.r.lastState(t.id, t.dir)
		return st.Exit, err
	}
	return Exit{}, t.wrap("wait for", err)
}

func (t *task) Kill(ctx context.Context, signal int, all bool) error {
	return t.kill(ctx, "", signal, all)
}

func (t *task) kill(ctx context.Context, execID string, signal int, all bool) error {
	req := &taskapi.KillRequest{ID: t.id, ExecID: execID, Signal: uint32(signal), All: all}
	err := t.conn.call(ctx, taskService, "Kill", key(), req, &emptypb.Empty{})
	if errors.Is(err, errShimGone) {
		if _, e := t.r.lastState(t.id, t.dir); e == nil {
			err = fmt.Errorf("process has ended: %w", errdefs.ErrNotFound)
		}
	}
	return t.wrap("signal", err)
}

// simple makes a request of the task API that has an empty answer.
func (t *task) simple(ctx context.Context, what, method string, req proto.Message) error {
	return t.gone(what, t.conn.call(ctx, taskService, method, key(), req, &emptypb.Empty{}))
}

func (t *task) Pause(ctx context.Context) error {
	return t.simple(ctx, "pause", "Pause", &taskapi.PauseRequest{ID: t.id})
}

func (t *task) Resume(ctx context.Context) error {
	return t.simple(ctx, "resume", "Resume", &taskapi.ResumeRequest{ID: t.id})
}

func (t *task) Update(ctx context.Context, resources *specs.LinuxResources) error {
	data, err := json.Marshal(resources)
	if err != nil {
		return t.wrap("encode resources of", err)
	}
	return t.simple(ctx, "update", "Update", &taskapi.UpdateTaskRequest{ID: t.id, Resources: &anypb.Any{Value: data}})
}

func (t *task) Resize(ctx context.Context, width, height int) error {
	return t.resize(ctx, "", width, height)
}

func (t *task) resize(ctx context.Context, execID string, width, height int) error {
	return t.simple(ctx, "resize the terminal of", "ResizePty", &taskapi.ResizePtyRequest{
		ID: t.id, ExecID: execID, Width: uint32(width), Height: uint32(height),
	})
}

// Delete removes the task, ends the shim and takes the runtime directory away.
func (t *task) Delete(ctx context.Context) error {
	if t.r.tasks != nil {
		if err := t.deleteVia(ctx); err != nil {
			return t.wrap("delete", err)
		}
	}
	err := t.conn.ask(ctx, shimapi.MethodDelete, "delete", shimapi.Empty{}, &shimapi.Empty{})
	switch {
	case errors.Is(err, errShimGone):
		err = t.r.deleteDead(ctx, t.id, t.dir)
	case err == nil:
		err = fault.Point("runtime.delete.answered")
		if err == nil {
			err = removeDir(t.dir)
		}
	}
	if err != nil {
		return t.wrap("delete", err)
	}
	t.conn.close() // the shim ends when its callers have hung up
	return nil
}

// Checkpointer is what a Task of our own shims can do besides. The options of criu that the task API has no word for
// go through the file that the annotation org.criu.config names.
type Checkpointer interface {
	Checkpoint(ctx context.Context, req CheckpointRequest) error
	CreateFrom(ctx context.Context, spec *specs.Spec, checkpoint string) error
}
