// Package external runs container tasks through a containerd that somebody else keeps. It tells containerd of each
// container, and has it create, start and delete the tasks; the shims are the daemon's own, which containerd joins, so
// that output, attach, names, ports and exits are where they are without a containerd.
//
// It stores no images and no file systems in containerd, never lets containerd end a shim, and touches one namespace
// of containerd only. It holds no locks.
package external

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/internal/fault"
)

// Namespace is that of containerd in which the containers are.
const Namespace = "stated"

const (
	// specType is containerd's name for a container's OCI spec in JSON.
	specType = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
	// directoryLabel names the runtime directory in containerd's record, as the annotation does in the spec.
	directoryLabel = shimapi.DirectoryAnnotation
	// answerLimit is how long containerd may take for its first answer.
	answerLimit = 10 * time.Second
	// redialLimit is the longest pause between two tries to reach a containerd that went away.
	redialLimit = 2 * time.Second
	// undoLimit bounds what is undone after a failure.
	undoLimit = 10 * time.Second
)

// Options say where containerd is, and where the shims work.
type Options struct {
	// Address is the path of containerd's socket, with or without "unix://".
	Address string
	Shims   runtime.Options
}

// Runtime is a runtime.Runtime whose tasks an external containerd drives.
type Runtime struct {
	*runtime.Shims
	conn *grpc.ClientConn
}

var (
	_ runtime.Runtime = (*Runtime)(nil)
	_ runtime.Tasks   = (*client)(nil)
)

// New connects to containerd, which has to answer. It waits for that for some seconds.
func New(ctx context.Context, opts Options) (_ *Runtime, err error) {
	path, err := SocketPath(opts.Address)
	if err != nil {
		return nil, err
	}
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), // the socket's owner decides who may connect
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{
			BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialLimit}}))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = conn.Close() // the first error is the one to report
		}
	}()
	soon, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	if _, err := versionapi.NewVersionClient(conn).Version(soon, &emptypb.Empty{}, grpc.WaitForReady(true)); err != nil {
		return nil, fmt.Errorf("containerd at %s does not answer: %w", path, errgrpc.ToNative(err))
	}
	c := &client{containers: containersapi.NewContainersClient(conn), tasks: tasksapi.NewTasksClient(conn)}
	opts.Shims.Tasks = c
	shims, err := runtime.New(opts.Shims)
	if err != nil {
		return nil, err
	}
	if err := c.sweep(ctx, shims); err != nil {
		_ = shims.Close() // it holds directories only
		return nil, err
	}
	return &Runtime{Shims: shims, conn: conn}, nil
}

// SocketPath returns the path of the socket that an address names.
func SocketPath(address string) (string, error) {
	path := strings.TrimPrefix(address, "unix://")
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("containerd's address %q is not an absolute path: %w", address, errdefs.ErrInvalidArgument)
	}
	return path, nil
}

// Close drops the connections to the shims and to containerd. Both run on.
func (r *Runtime) Close() error {
	return errors.Join(r.Shims.Close(), r.conn.Close())
}

// client speaks to containerd of one container at a time.
type client struct {
	containers containersapi.ContainersClient
	tasks      tasksapi.TasksClient
}

// Create records the container in containerd and creates its task. A record without a task is what an interrupted
// creation or deletion left; it is replaced.
func (c *client) Create(ctx context.Context, req runtime.TaskRequest) (pid int, err error) {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	create, err := taskRequest(req)
	if err != nil {
		return 0, err
	}
	if err := c.record(ctx, req); err != nil {
		return 0, fmt.Errorf("record the container in containerd: %w", err)
	}
	if err := fault.Point("external.create.recorded"); err != nil {
		return 0, err
	}
	resp, err := c.tasks.Create(ctx, create)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit)
		defer cancel()
		err = errgrpc.ToNative(err)
		if e := c.forget(undo, req.ID); e != nil {
			err = errors.Join(err, e)
		}
		return 0, err
	}
	if err := fault.Point("external.create.created"); err != nil {
		return 0, err
	}
	return int(resp.Pid), nil
}

// taskRequest asks containerd for a task. The streams are the shim's own.
func taskRequest(req runtime.TaskRequest) (*tasksapi.CreateTaskRequest, error) {
	create := &tasksapi.CreateTaskRequest{ContainerID: req.ID}
	if req.Checkpoint != "" {
		opts, err := typeurl.MarshalAnyToProto(&options.Options{CriuImagePath: req.Checkpoint})
		if err != nil {
			return nil, fmt.Errorf("encode the task's options: %w", err)
		}
		create.Options = opts
	}
	return create, nil
}

// record puts the container into containerd's records.
func (c *client) record(ctx context.Context, req runtime.TaskRequest) error {
	spec, err := EncodeSpec(req.Spec)
	if err != nil {
		return err
	}
	create := &containersapi.CreateContainerRequest{Container: &containersapi.Container{
		ID:      req.ID,
		Runtime: &containersapi.Container_Runtime{Name: req.ShimPath},
		Spec:    spec,
		Labels:  map[string]string{directoryLabel: req.Directory},
	}}
	_, err = c.containers.Create(ctx, create)
	if err = errgrpc.ToNative(err); !errdefs.IsAlreadyExists(err) {
		return err
	}
	_, taskErr := c.tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: req.ID})
	if !errdefs.IsNotFound(errgrpc.ToNative(taskErr)) {
		return err // it has a task, or that cannot be told
	}
	if err := c.forget(ctx, req.ID); err != nil {
		return err
	}
	_, err = c.containers.Create(ctx, create)
	return errgrpc.ToNative(err)
}

// EncodeSpec is a spec as containerd's records have it.
func EncodeSpec(spec *specs.Spec) (*anypb.Any, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode the spec: %w", err)
	}
	return &anypb.Any{TypeUrl: specType, Value: data}, nil
}

// sweep forgets containers of this daemon that have no runtime directory any more: a reboot takes the directories, and
// leaves containerd's records.
func (c *client) sweep(ctx context.Context, shims *runtime.Shims) error {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	resp, err := c.containers.List(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("list containerd's records: %w", errgrpc.ToNative(err))
	}
	for _, found := range resp.Containers {
		dir := found.Labels[directoryLabel]
		if filepath.Dir(dir) != shims.Dir() {
			continue // another daemon's
		}
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if _, err := c.tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: found.ID}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			continue // it is not ours to say what runs there
		}
		if err := c.forget(ctx, found.ID); err != nil {
			return err
		}
	}
	return nil
}

// forget takes the container out of containerd's records, if it is there.
func (c *client) forget(ctx context.Context, id string) error {
	_, err := c.containers.Delete(ctx, &containersapi.DeleteContainerRequest{ID: id})
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the container from containerd's records: %w", err)
	}
	return nil
}

// Start starts the task's init process.
func (c *client) Start(ctx context.Context, id string) error {
	_, err := c.tasks.Start(namespaces.WithNamespace(ctx, Namespace), &tasksapi.StartRequest{ContainerID: id})
	return errgrpc.ToNative(err)
}

// Delete removes the task and the container's record from containerd, as far as they are there.
func (c *client) Delete(ctx context.Context, id string) error {
	ctx = namespaces.WithNamespace(ctx, Namespace)
	_, err := c.tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id})
	if err = errgrpc.ToNative(err); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete the task from containerd: %w", err)
	}
	if err := fault.Point("external.delete.deleted"); err != nil {
		return err
	}
	return c.forget(ctx, id)
}
