package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// Tasks stands between the daemon and the shims: it keeps its own records of tasks and reaches their shims by the
// annotation shimapi.DirectoryAnnotation in the spec. Its errors have the classes that a shim's would have.
type Tasks interface {
	Create(ctx context.Context, req TaskRequest) (pid int, err error)
	Start(ctx context.Context, id string) error
	// Delete forgets a task. One that is unknown is no error; one that runs is an errdefs.ErrFailedPrecondition.
	Delete(ctx context.Context, id string) error
}

// TaskRequest describes a task to create.
type TaskRequest struct {
	ID         string
	Spec       *specs.Spec
	Directory  string // the container's runtime directory
	ShimPath   string // absolute path of the program that leads to the shim
	Checkpoint string // directory to continue from, or empty
}

func (t *task) createVia(ctx context.Context, spec *specs.Spec, checkpoint string) (int, error) {
	pid, err := t.r.tasks.Create(ctx, TaskRequest{ID: t.id, Spec: spec, Directory: t.dir, ShimPath: t.r.shimPath, Checkpoint: checkpoint})
	return pid, t.goneVia("create", err)
}

func (t *task) startVia(ctx context.Context) error {
	return t.goneVia("start", t.r.tasks.Start(ctx, t.id))
}

// goneVia is gone for an error of somebody who does not know errShimGone.
func (t *task) goneVia(what string, err error) error {
	if err != nil && !isLocked(t.dir) {
		err = fmt.Errorf("%w: %w", errShimGone, err)
	}
	return t.gone(what, err)
}

// deleteVia has the task forgotten. A first answer may only be that its shim is gone.
func (t *task) deleteVia(ctx context.Context) error {
	err := t.r.tasks.Delete(ctx, t.id)
	if err != nil && !isLocked(t.dir) {
		err = t.r.tasks.Delete(ctx, t.id)
	}
	if err != nil {
		return err
	}
	if err := os.Remove(shimapi.ShortSocket(t.r.root, t.id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the short path of the shim: %w", err)
	}
	return nil
}

// dropLinks removes short paths of sockets that are no more.
func (r *Shims) dropLinks() error {
	dir := filepath.Join(r.root, shimapi.ShortDir)
	links, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("list the short paths of shims: %w", err)
	}
	for _, l := range links {
		link := filepath.Join(dir, l.Name())
		if _, err := os.Stat(link); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the short path of a shim: %w", err)
		}
	}
	return nil
}
