package overlay2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/ids"
)

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
	nothing := func() error { return nil }
	if !validID(id) {
		return nil, fmt.Errorf("layer id %q: %w", id, errdefs.ErrInvalidArgument)
	}
	if _, err := os.Lstat(d.path(id, mergedDir)); err == nil {
		if _, mounted := d.Mounted(id); mounted {
			return nil, fmt.Errorf("remove layer %s: it is mounted: %w", id, errdefs.ErrFailedPrecondition)
		}
	}
	trash := id + removing
	err = unix.Renameat2(d.homeFD, id, d.homeFD, trash, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		trash = id + "-" + ids.Short(ids.New()) + removing // an earlier layer of that id was not yet deleted
		err = unix.Renameat(d.homeFD, id, d.homeFD, trash)
	}
	if errors.Is(err, unix.ENOENT) {
		return nothing, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remove layer %s: %w", id, err)
	}
	return func() error { return d.remove(trash) }, nil
}

// remove deletes the directory of a layer, whatever it is called by now, and its short name.
func (d *Driver) remove(dir string) error {
	link, err := os.ReadFile(d.path(dir, linkFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("delete %s: %w", d.path(dir), err)
	}
	if validLink(string(link)) { // never the directory of all links
		if err := unix.Unlinkat(d.homeFD, linksDir+"/"+string(link), 0); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete short name of %s: %w", d.path(dir), err)
		}
	}
	// The file "link" goes last, so that a deletion that was cut short can be taken up.
	if err := os.RemoveAll(d.path(dir, diffDir)); err != nil {
		return fmt.Errorf("delete %s: %w", d.path(dir), err)
	}
	if err := os.RemoveAll(d.path(dir)); err != nil {
		return fmt.Errorf("delete %s: %w", d.path(dir), err)
	}
	return nil
}

// Sweep deletes the layers whose removal did not end.
func (d *Driver) Sweep(ctx context.Context) error {
	entries, err := d.entries()
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.IsDir() {
			continue
		}
		switch {
		case strings.HasSuffix(e.Name(), removing):
			errs = append(errs, d.remove(e.Name()))
		case strings.HasPrefix(e.Name(), probePrefix):
			errs = append(errs, os.RemoveAll(d.path(e.Name())))
		}
	}
	return errors.Join(errs...)
}
