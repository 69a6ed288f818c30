package overlay2

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/archive"
)

// ApplyDiff unpacks a layer into its diff directory.
func (d *Driver) ApplyDiff(ctx context.Context, id, parent string, diff *archive.Reader) (int64, error) {
	if !d.Exists(id) {
		return 0, graphdriver.NotFound(name, id)
	}
	native, err := d.isNative(id, parent)
	if err != nil {
		return 0, err
	}
	if !native {
		return d.naive.ApplyDiff(ctx, id, diff)
	}
	applied, err := archive.Apply(ctx, d.diffPath(id), diff, archive.Options{
		Whiteouts:   archive.WhiteoutsOverlay,
		OpaqueXattr: d.opaque,
		IDMap:       d.idMap,
		SkipDevices: inUserNS(),
	})
	if err != nil {
		return 0, err
	}
	if applied.Replaced {
		return treeSize(d.diffPath(id))
	}
	return applied.Files, nil
}

// isNative reports whether the diff directory of id is the difference to parent.
func (d *Driver) isNative(id, parent string) (bool, error) {
	lower, err := d.lower(id)
	if err != nil {
		return false, err
	}
	if len(lower) == 0 {
		return parent == "", nil
	}
	if parent == "" {
		return false, nil
	}
	link, err := d.link(parent)
	if err != nil {
		return false, err
	}
	return lower[0] == linksDir+"/"+link, nil
}

// readsNative is isNative for what the kernel wrote.
func (d *Driver) readsNative(id, parent string) (bool, error) {
	native, err := d.isNative(id, parent)
	return native && d.nativeDiff(), err
}

// Diff returns a tar of the changes.
func (d *Driver) Diff(ctx context.Context, id, parent string) (io.ReadCloser, error) {
	native, err := d.readsNative(id, parent)
	if err != nil {
		return nil, err
	}
	if !native {
		return d.naive.Diff(ctx, id, parent)
	}
	tar, err := archive.PackTree(ctx, d.diffPath(id), archive.PackOptions{Overlay: true, OpaqueXattr: d.opaque, IDMap: d.idMap})
	if err != nil {
		return nil, fmt.Errorf("diff of layer %s: %w", id, err)
	}
	return tar, nil
}

// DiffSize returns the bytes of the changes.
func (d *Driver) DiffSize(ctx context.Context, id, parent string) (int64, error) {
	native, err := d.readsNative(id, parent)
	if err != nil {
		return 0, err
	}
	if !native {
		return d.naive.DiffSize(ctx, id, parent)
	}
	size, err := treeSize(d.diffPath(id))
	if err != nil {
		return 0, fmt.Errorf("size of layer %s: %w", id, err)
	}
	return size, nil
}

// DiffDir returns the layer's own files.
func (d *Driver) DiffDir(_ context.Context, id string) (string, func() error, error) {
	if !d.Exists(id) {
		return "", nil, graphdriver.NotFound(name, id)
	}
	return d.diffPath(id), func() error { return nil }, nil
}

// treeSize sums the sizes of all that is not a directory, each inode once. Files that go away meanwhile, as they do
// in the layer of a running container, count nothing.
func treeSize(dir string) (int64, error) {
	var size int64
	seen := map[uint64]struct{}{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil
		}
		if err != nil || e.IsDir() {
			return err
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
			if _, ok := seen[st.Ino]; ok {
				return nil
			}
			seen[st.Ino] = struct{}{}
		}
		size += fi.Size()
		return nil
	})
	return size, err
}

// Changes lists what the layer changes in its parent, by looking up each path of its diff directory in the layers
// below. Directories above a change count as changed.
func (d *Driver) Changes(ctx context.Context, id, parent string) ([]graphdriver.Change, error) {
	native, err := d.readsNative(id, parent)
	if err != nil {
		return nil, err
	}
	if !native {
		return d.naive.Changes(ctx, id, parent)
	}
	below, err := d.below(id)
	if err != nil {
		return nil, err
	}
	w := changeWalk{d: d}
	if err := w.dir(ctx, d.diffPath(id), "/", below, false); err != nil {
		return nil, fmt.Errorf("changes of layer %s: %w", id, err)
	}
	slices.SortFunc(w.changes, func(a, b graphdriver.Change) int { return cmp.Compare(a.Path, b.Path) })
	return w.changes, nil
}

type changeWalk struct {
	d       *Driver
	changes []graphdriver.Change
}

func (w *changeWalk) add(path string, kind graphdriver.ChangeKind) {
	w.changes = append(w.changes, graphdriver.Change{Path: path, Kind: kind})
}

// dir reports the changes below path, which is dir on disk and hides all of below when it is opaque.
func (w *changeWalk) dir(ctx context.Context, dir, path string, below view, opaque bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone meanwhile
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := w.entry(ctx, dir+"/"+e.Name(), filepath.Join(path, e.Name()), below, opaque); err != nil {
			return err
		}
	}
	if !opaque {
		return nil
	}
	old, err := w.d.names(below)
	if err != nil {
		return err
	}
	for _, e := range entries {
		delete(old, e.Name())
	}
	for name := range old {
		w.add(filepath.Join(path, name), graphdriver.Deleted)
	}
	return nil
}

func (w *changeWalk) entry(ctx context.Context, file, path string, below view, inOpaque bool) error {
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return &os.PathError{Op: "lstat", Path: file, Err: err}
	}
	old, err := w.d.lookup(below, filepath.Base(path))
	if err != nil {
		return err
	}
	if isWhiteout(&st) {
		if old.exists {
			w.add(path, graphdriver.Deleted)
		}
		return nil
	}
	kind := graphdriver.Modified
	if !old.exists {
		kind = graphdriver.Added
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	changed := !old.exists || differs(&st, &old.stat) ||
		!isDir && attr(file, "security.capability") != attr(old.path, "security.capability")
	before := len(w.changes)
	if isDir {
		var inside view
		if old.isDir() {
			inside = old.dir
		}
		// What is inside an opaque directory is opaque too, without a mark.
		opaque := len(inside) > 0 && (inOpaque || attr(file, w.d.opaque) == "y")
		if err := w.dir(ctx, file, path, inside, opaque); err != nil {
			return err
		}
	}
	if changed || len(w.changes) > before {
		w.add(path, kind)
	}
	return nil
}

// differs compares what Docker compares: mode, owner, device, and for all but directories size and time of change.
// Times of whole seconds come from tars without fractions and match any fraction.
func differs(a, b *unix.Stat_t) bool {
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev {
		return true
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		return false
	}
	return a.Size != b.Size || !sameTime(a.Mtim, b.Mtim)
}

func sameTime(a, b unix.Timespec) bool {
	return a.Sec == b.Sec && (a.Nsec == b.Nsec || a.Nsec == 0 || b.Nsec == 0)
}
