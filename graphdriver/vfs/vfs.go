// Package vfs keeps each layer as a full copy of its parent: slow and large, but at home on every file system. It
// reads and writes Docker's driver of the same name: <home>/dir/<id> is the layer's whole tree.
//
// It never mounts anything. It has no lock.
package vfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	continuityfs "github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/archive"
	"stated.dev/stated/internal/ids"
)

const (
	name     = "vfs"
	removing = "-removing" // suffix of a layer on the way out
)

// Driver is the vfs storage driver.
type Driver struct {
	home  string
	idMap user.IdentityMapping
	naive graphdriver.Naive
}

var (
	_ graphdriver.Driver    = (*Driver)(nil)
	_ graphdriver.Sweeper   = (*Driver)(nil)
	_ graphdriver.Discarder = (*Driver)(nil)
	_ graphdriver.Lister    = (*Driver)(nil)
)

// New opens the driver and makes its home directory if need be.
func New(_ context.Context, cfg graphdriver.Config) (graphdriver.Driver, error) {
	d := &Driver{home: cfg.Home, idMap: cfg.IDMap}
	d.naive = graphdriver.Naive{Mounter: d, IDMap: cfg.IDMap}
	if err := d.parseOptions(cfg.Options); err != nil {
		return nil, err
	}
	_, gid := cfg.IDMap.RootPair()
	for _, dir := range []string{d.home, d.dirs()} {
		if err := os.MkdirAll(filepath.Dir(dir), 0o710); err != nil {
			return nil, fmt.Errorf("make %s: %w", dir, err)
		}
		err := os.Mkdir(dir, 0o710)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err = errors.Join(err, os.Chown(dir, os.Getuid(), gid)); err != nil {
			return nil, fmt.Errorf("make %s: %w", dir, err)
		}
	}
	return d, nil
}

func (d *Driver) parseOptions(opts []string) error {
	for _, opt := range opts {
		key, value, err := graphdriver.ParseOption(opt)
		if err != nil {
			return err
		}
		switch key {
		case "size":
			return errdefs.ErrInvalidArgument.WithMessage(noQuota)
		case "vfs.xattrs":
			if value != "i_want_broken_containers" {
				return errdefs.ErrInvalidArgument.WithMessage("do not set the vfs.xattrs option unless you are willing to accept the consequences")
			}
			d.naive.BestEffortXattrs = true
		default:
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("unknown option %s for vfs", key))
		}
	}
	return nil
}

const noQuota = "Filesystem does not support, or has not enabled quotas"

func (d *Driver) dirs() string { return filepath.Join(d.home, "dir") }

func (d *Driver) path(id string) string { return filepath.Join(d.dirs(), id) }

func validID(id string) bool {
	return id != "" && id != "." && id != ".." && !strings.Contains(id, "/") && !strings.HasSuffix(id, removing)
}

// String returns the driver's name.
func (d *Driver) String() string { return name }

// Close has nothing to do.
func (d *Driver) Close() error { return nil }

// Status is empty but for best-effort attributes.
func (d *Driver) Status() [][2]string {
	if d.naive.BestEffortXattrs {
		return [][2]string{{"Extended file attributes", "best-effort"}}
	}
	return nil
}

// Metadata is empty.
func (d *Driver) Metadata(id string) (map[string]string, error) {
	if !d.Exists(id) {
		return nil, graphdriver.NotFound(name, id)
	}
	return nil, nil
}

// Create copies the parent.
func (d *Driver) Create(ctx context.Context, id, parent string, opts graphdriver.CreateOptions) error {
	if len(opts.StorageOpt) > 0 {
		if _, ok := opts.StorageOpt["size"]; ok {
			return errdefs.ErrInvalidArgument.WithMessage("--storage-opt size is only supported for ReadWrite Layers")
		}
		return errdefs.ErrInvalidArgument.WithMessage("--storage-opt is not supported for vfs on read-only layers")
	}
	return d.create(ctx, id, parent)
}

// CreateReadWrite copies the parent.
func (d *Driver) CreateReadWrite(ctx context.Context, id, parent string, opts graphdriver.CreateOptions) error {
	for key := range opts.StorageOpt {
		if key == "size" {
			return errdefs.ErrInvalidArgument.WithMessage(noQuota)
		}
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("Storage opt %s not supported", key))
	}
	return d.create(ctx, id, parent)
}

// CreateSeeded copies the parent and plants the seeds.
func (d *Driver) CreateSeeded(ctx context.Context, id, parent string, seeds []graphdriver.Seed, opts graphdriver.CreateOptions) error {
	if err := d.Create(ctx, id, parent, opts); err != nil {
		return err
	}
	uid, gid := d.idMap.RootPair()
	if err := graphdriver.Plant(d.path(id), seeds, uid, gid); err != nil {
		return errors.Join(err, d.Remove(context.WithoutCancel(ctx), id))
	}
	return nil
}

func (d *Driver) create(ctx context.Context, id, parent string) (err error) {
	if !validID(id) {
		return fmt.Errorf("layer id %q: %w", id, errdefs.ErrInvalidArgument)
	}
	if parent != "" && !d.Exists(parent) {
		return graphdriver.NotFound(name, parent)
	}
	dir := d.path(id)
	if err := os.Mkdir(dir, 0o755); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("layer %s: %w", id, errdefs.ErrAlreadyExists)
		}
		return fmt.Errorf("make layer %s: %w", id, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make layer %s: %w", id, err), os.RemoveAll(dir))
		}
	}()
	uid, gid := d.idMap.RootPair()
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, uid, gid)); err != nil {
		return err
	}
	if parent == "" {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return continuityfs.CopyDir(dir, d.path(parent))
}

// Remove deletes a layer.
func (d *Driver) Remove(ctx context.Context, id string) error {
	finish, err := d.Discard(ctx, id)
	if err != nil {
		return err
	}
	return finish()
}

// Discard renames a layer out of the way; finish deletes it.
func (d *Driver) Discard(_ context.Context, id string) (finish func() error, err error) {
	if !validID(id) {
		return nil, fmt.Errorf("layer id %q: %w", id, errdefs.ErrInvalidArgument)
	}
	trash := d.path(id) + "-" + ids.Short(ids.New()) + removing
	err = os.Rename(d.path(id), trash)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove layer %s: %w", id, err)
	}
	return func() error { return os.RemoveAll(trash) }, nil
}

// Sweep deletes the layers whose removal did not end.
func (d *Driver) Sweep(ctx context.Context) error {
	entries, err := os.ReadDir(d.dirs())
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if strings.HasSuffix(e.Name(), removing) {
			errs = append(errs, os.RemoveAll(d.path(e.Name())))
		}
	}
	return errors.Join(errs...)
}

// List returns the ids of all layers.
func (d *Driver) List() ([]string, error) {
	entries, err := os.ReadDir(d.dirs())
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	var all []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), removing) {
			all = append(all, e.Name())
		}
	}
	return all, nil
}

// Get returns the layer's directory.
func (d *Driver) Get(_ context.Context, id, _ string) (string, error) {
	if !d.Exists(id) {
		return "", graphdriver.NotFound(name, id)
	}
	return d.path(id), nil
}

// Put has nothing to do.
func (d *Driver) Put(context.Context, string) error { return nil }

// Mounted reports false: there are no mounts.
func (d *Driver) Mounted(string) (string, bool) { return "", false }

// Exists reports whether the layer has a directory.
func (d *Driver) Exists(id string) bool {
	fi, err := os.Lstat(d.path(id))
	return validID(id) && err == nil && fi.IsDir()
}

// Diff compares the trees.
func (d *Driver) Diff(ctx context.Context, id, parent string) (io.ReadCloser, error) {
	return d.naive.Diff(ctx, id, parent)
}

// Changes compares the trees.
func (d *Driver) Changes(ctx context.Context, id, parent string) ([]graphdriver.Change, error) {
	return d.naive.Changes(ctx, id, parent)
}

// DiffSize compares the trees.
func (d *Driver) DiffSize(ctx context.Context, id, parent string) (int64, error) {
	return d.naive.DiffSize(ctx, id, parent)
}

// ApplyDiff unpacks over the copy of the parent.
func (d *Driver) ApplyDiff(ctx context.Context, id, _ string, diff *archive.Reader) (int64, error) {
	return d.naive.ApplyDiff(ctx, id, diff)
}

// DiffDir returns the layer's directory, which has all its files.
func (d *Driver) DiffDir(ctx context.Context, id string) (string, func() error, error) {
	dir, err := d.Get(ctx, id, "")
	return dir, func() error { return nil }, err
}

// Sync flushes the file system that holds the layers.
func (d *Driver) Sync(context.Context) error {
	f, err := os.Open(d.home)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
	}
	if err != nil {
		return fmt.Errorf("flush the file system of %s: %w", d.home, err)
	}
	return nil
}
