package runtime

import (
	"context"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/typeurl/v2"
)

// CheckpointRequest says where and how the memory of a container is written.
type CheckpointRequest struct {
	Path     string // directory for the images
	WorkPath string // directory for criu's log; empty for one that is thrown away
	Exit     bool   // end the container; without it the container goes on as it was, running or paused
	// Options of criu.
	OpenTCP, ExternalUnixSockets, Terminal, FileLocks bool
}

// Checkpoint writes the memory of a running or paused container to a directory.
func (t *task) Checkpoint(ctx context.Context, req CheckpointRequest) error {
	opts, err := typeurl.MarshalAnyToProto(&options.CheckpointOptions{
		Exit:                req.Exit,
		OpenTcp:             req.OpenTCP,
		ExternalUnixSockets: req.ExternalUnixSockets,
		Terminal:            req.Terminal,
		FileLocks:           req.FileLocks,
		WorkPath:            req.WorkPath,
	})
	if err != nil {
		return t.wrap("checkpoint", err)
	}
	return t.simple(ctx, "checkpoint", "Checkpoint", &taskapi.CheckpointTaskRequest{
		ID: t.id, Path: req.Path, Options: opts,
	})
}
