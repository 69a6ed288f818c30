package overlay2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
)

// Create makes a layer.
func (d *Driver) Create(ctx context.Context, id, parent string, opts graphdriver.CreateOptions) error {
	if _, ok := opts.StorageOpt["size"]; ok {
		return errdefs.ErrInvalidArgument.WithMessage("--storage-opt size is only supported for ReadWrite Layers")
	}
	return d.create(ctx, id, parent, opts)
}

// CreateReadWrite makes a container's layer.
func (d *Driver) CreateReadWrite(ctx context.Context, id, parent string, opts graphdriver.CreateOptions) error {
	return d.create(ctx, id, parent, opts)
}

func (d *Driver) create(_ context.Context, id, parent string, opts graphdriver.CreateOptions) error {
	return d.build(id, parent, opts, func(int) error { return nil })
}

// build makes the layer's directory and lets fill have the open diff directory.
func (d *Driver) build(id, parent string, opts graphdriver.CreateOptions, fill func(diff int) error) (err error) {
	if err := checkStorageOpt(opts.StorageOpt); err != nil {
		return err
	}
	if !validID(id) {
		return fmt.Errorf("layer id %q: %w", id, errdefs.ErrInvalidArgument)
	}
	lower, err := d.lowerOn(parent)
	if err != nil {
		return err
	}
	if err := unix.Mkdirat(d.homeFD, id, 0o710); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("layer %s: %w", id, errdefs.ErrAlreadyExists)
		}
		return fmt.Errorf("make directory of layer %s: %w", id, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make layer %s: %w", id, err), d.remove(id))
		}
	}()
	dir, err := d.openOwned(d.homeFD, id, 0o710, os.Getuid())
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unix.Mkdirat(dir, diffDir, 0o755); err != nil {
		return err
	}
	diff, err := d.openOwned(dir, diffDir, 0o755, d.rootID.uid)
	if err != nil {
		return err
	}
	defer unix.Close(diff)
	link := newLink()
	if err := unix.Symlinkat("../"+id+"/"+diffDir, d.homeFD, linksDir+"/"+link); err != nil {
		return err
	}
	if err := writeAt(dir, linkFile, link, 0o644); err != nil {
		_ = unix.Unlinkat(d.homeFD, linksDir+"/"+link, 0) // nothing else leads to it
		return err
	}
	if lower != "" {
		if err := d.stack(dir, lower, parent); err != nil {
			return err
		}
	}
	return fill(diff)
}

// openOwned opens the directory just made and gives it the mode, whatever the umask, and the remapped root's group.
func (d *Driver) openOwned(at int, dir string, mode uint32, uid int) (int, error) {
	fd, err := unix.Openat(at, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	err = unix.Fchmod(fd, mode)
	if err == nil && (d.rootID.uid != 0 || d.rootID.gid != 0) {
		err = unix.Fchown(fd, uid, d.rootID.gid)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// stack writes what makes a layer one with a parent.
func (d *Driver) stack(dir int, lower, parent string) error {
	if err := unix.Mkdirat(dir, workDir, 0o700); err != nil {
		return err
	}
	if d.rootID.uid != 0 || d.rootID.gid != 0 {
		if err := unix.Fchownat(dir, workDir, d.rootID.uid, d.rootID.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	if err := writeAt(dir, lowerFile, lower, 0o644); err != nil {
		return err
	}
	fd, err := unix.Openat(d.homeFD, parent+"/"+committedFile, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// SetParent puts a layer made without a parent onto one.
func (d *Driver) SetParent(_ context.Context, id, parent string) error {
	lower, err := d.lowerOn(parent)
	if err != nil {
		return err
	}
	if !d.Exists(id) {
		return graphdriver.NotFound(name, id)
	}
	dir, err := unix.Openat(d.homeFD, id, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open layer %s: %w", id, err)
	}
	defer unix.Close(dir)
	if err := d.stack(dir, lower, parent); err != nil {
		return fmt.Errorf("put layer %s onto %s: %w", id, parent, err)
	}
	return nil
}

// lowerOn returns the contents of the file "lower" of a layer on parent.
func (d *Driver) lowerOn(parent string) (string, error) {
	if parent == "" {
		return "", nil
	}
	link, err := d.link(parent)
	if err != nil {
		return "", err
	}
	below, err := d.lower(parent)
	if err != nil {
		return "", err
	}
	if len(below)+1 > maxDepth {
		return "", errdefs.ErrFailedPrecondition.WithMessage("max depth exceeded")
	}
	return strings.Join(append([]string{linksDir + "/" + link}, below...), ":"), nil
}

// link returns the layer's short name.
func (d *Driver) link(id string) (string, error) {
	data, err := d.readFile(id, linkFile)
	if errors.Is(err, os.ErrNotExist) {
		if !d.Exists(id) {
			return "", graphdriver.NotFound(name, id)
		}
		data, err = nil, nil
	}
	if err != nil {
		return "", fmt.Errorf("read the short name of layer %s: %w", id, err)
	}
	if !validLink(string(data)) {
		return "", fmt.Errorf("layer %s: its file %q holds %q instead of a short name, probably since a power cut: %w", id, linkFile, data, errdefs.ErrDataLoss)
	}
	return string(data), nil
}

func validLink(s string) bool {
	if s == "" {
		return false
	}
	for _, c := range s {
		if (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return false
		}
	}
	return true
}

func checkStorageOpt(opts map[string]string) error {
	for key := range opts {
		if strings.ToLower(key) != "size" {
			return errdefs.ErrInvalidArgument.WithMessage("Unknown option " + strings.ToLower(key))
		}
		return errdefs.ErrInvalidArgument.WithMessage("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")
	}
	return nil
}

// writeAt makes a small file below the directory.
func writeAt(dir int, file, text string, mode uint32) error {
	fd, err := unix.Openat(dir, file, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, mode)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte(text)) // a few bytes are written whole or not at all
	return errors.Join(err, unix.Close(fd))
}
