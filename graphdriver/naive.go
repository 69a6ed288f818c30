package graphdriver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	dockerarchive "github.com/moby/go-archive"
	"github.com/moby/sys/user"

	"stated.dev/stated/graphdriver/archive"
)

// Mounter is the part of a driver that Naive needs.
type Mounter interface {
	Get(ctx context.Context, id, mountLabel string) (string, error)
	Put(ctx context.Context, id string) error
}

// Naive finds the differences between two layers by mounting both and comparing their trees. It serves drivers
// whose storage cannot tell them.
type Naive struct {
	Mounter          Mounter
	IDMap            user.IdentityMapping
	BestEffortXattrs bool
}

// Diff is Driver.Diff.
func (n Naive) Diff(ctx context.Context, id, parent string) (io.ReadCloser, error) {
	dirs, err := n.mount(ctx, id, parent)
	if err != nil {
		return nil, err
	}
	var tar io.ReadCloser
	opt := archive.PackOptions{IDMap: n.IDMap}
	if parent == "" {
		tar, err = archive.PackTree(ctx, dirs.layer, opt)
	} else {
		var changes []dockerarchive.Change
		if changes, err = dockerarchive.ChangesDirs(dirs.layer, dirs.parent); err == nil {
			var paths, gone []string
			for _, c := range changes {
				if c.Kind == dockerarchive.ChangeDelete {
					gone = append(gone, c.Path)
				} else {
					paths = append(paths, c.Path)
				}
			}
			slices.Sort(paths)
			slices.Sort(gone)
			tar, err = archive.PackPaths(ctx, dirs.layer, paths, gone, opt)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("diff of layer %s: %w", id, err), dirs.release())
	}
	return &releasing{ReadCloser: tar, release: dirs.release}, nil
}

// Changes is Driver.Changes.
func (n Naive) Changes(ctx context.Context, id, parent string) (_ []Change, err error) {
	dirs, err := n.mount(ctx, id, parent)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dirs.release()) }()
	found, err := n.changes(dirs)
	if err != nil {
		return nil, fmt.Errorf("changes of layer %s: %w", id, err)
	}
	changes := make([]Change, len(found))
	for i, c := range found {
		changes[i] = Change{Path: c.Path, Kind: ChangeKind(c.Kind)} // the numbers are the same
	}
	slices.SortFunc(changes, func(a, b Change) int { return cmp.Compare(a.Path, b.Path) })
	return changes, nil
}

// changes compares the two trees. A layer without parent is compared with an empty directory.
func (n Naive) changes(dirs naiveDirs) ([]dockerarchive.Change, error) {
	old := dirs.parent
	if old == "" {
		empty, err := os.MkdirTemp("", "empty-layer-")
		if err != nil {
			return nil, err
		}
		defer os.Remove(empty)
		old = empty
	}
	return dockerarchive.ChangesDirs(dirs.layer, old)
}

// DiffSize is Driver.DiffSize.
func (n Naive) DiffSize(ctx context.Context, id, parent string) (_ int64, err error) {
	dirs, err := n.mount(ctx, id, parent)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dirs.release()) }()
	changes, err := n.changes(dirs)
	if err != nil {
		return 0, fmt.Errorf("size of layer %s: %w", id, err)
	}
	return dockerarchive.ChangesSize(dirs.layer, changes), nil
}

// ApplyDiff is Driver.ApplyDiff, for layers that show their parent's files.
func (n Naive) ApplyDiff(ctx context.Context, id string, diff *archive.Reader) (_ int64, err error) {
	dirs, err := n.mount(ctx, id, "")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dirs.release()) }()
	applied, err := archive.Apply(ctx, dirs.layer, diff, archive.Options{
		Whiteouts:        archive.WhiteoutsRemove,
		IDMap:            n.IDMap,
		BestEffortXattrs: n.BestEffortXattrs,
	})
	return applied.Entries, err
}

type naiveDirs struct {
	layer, parent string
	release       func() error
}

func (n Naive) mount(ctx context.Context, id, parent string) (naiveDirs, error) {
	ctx = context.WithoutCancel(ctx) // a mount that was taken is given back whatever happens
	var dirs naiveDirs
	var err error
	if dirs.layer, err = n.Mounter.Get(ctx, id, ""); err != nil {
		return dirs, err
	}
	dirs.release = func() error { return n.Mounter.Put(ctx, id) }
	if parent == "" {
		return dirs, nil
	}
	if dirs.parent, err = n.Mounter.Get(ctx, parent, ""); err != nil {
		return dirs, errors.Join(err, dirs.release())
	}
	dirs.release = func() error { return errors.Join(n.Mounter.Put(ctx, parent), n.Mounter.Put(ctx, id)) }
	return dirs, nil
}

// releasing releases something when it is closed, once.
type releasing struct {
	io.ReadCloser
	release func() error
}

func (r *releasing) Close() error {
	err := r.ReadCloser.Close()
	if r.release != nil {
		err = errors.Join(err, r.release())
		r.release = nil
	}
	return err
}
