// Package pin holds a file or directory fast while somebody else mounts it by its path. Whoever can write to a volume
// can swap a directory in it for a symbolic link at any time, so a path into it means nothing by the time that a
// runtime opens it. A pin is a bind mount of what was found, under a name of our own that nobody else can change.
//
// A pin is as good as the original to mount from: it holds what is mounted below that, and propagates as that does.
// Linux 5.6 is needed.
package pin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/ids"
)

// Dir is a directory for pins.
type Dir struct{ path string }

// NewDir returns the directory at path, which the first pin makes. It belongs to one process at a time.
func NewDir(path string) *Dir { return &Dir{path: path} }

// Pin is one file or directory that is held.
type Pin struct{ path string }

// Path is where it can be mounted from, until Release.
func (p *Pin) Path() string { return p.path }

// Below pins what the relative path sub names below the directory base; "." is base itself. Symbolic links are followed as a process on
// the host follows them, but what they lead to must lie below base: one that leads out is an
// errdefs.ErrInvalidArgument, one that leads nowhere an errdefs.ErrNotFound. Both have Docker's texts.
func (d *Dir) Below(base, sub string) (*Pin, error) {
	root, inside, err := resolve(base, sub)
	if err != nil {
		return nil, err
	}
	fd, err := openBeneath(root, inside)
	if err != nil {
		return nil, notAccessible(filepath.Join(base, sub), err)
	}
	defer unix.Close(fd)
	return d.hold(fd)
}

// Clear takes away every pin. It is for those that a process before this one left.
func (d *Dir) Clear() error {
	entries, err := os.ReadDir(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take away left pins: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, (&Pin{path: filepath.Join(d.path, e.Name())}).Release())
	}
	return errors.Join(errs...)
}

// Release takes the pin away. What was mounted from it stays mounted. A pin that is gone is no error.
func (p *Pin) Release() error {
	// Cut off first: where the original is shared, unmounting what lies below the pin would unmount it there as well.
	err := unix.Mount("", p.path, "", unix.MS_REC|unix.MS_SLAVE, "")
	if err == nil {
		err = unix.Unmount(p.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil && err != unix.EINVAL && err != unix.ENOENT { // EINVAL: nothing is mounted there
		return fmt.Errorf("unmount pin %s: %w", p.path, err)
	}
	if err := removeEmpty(p.path); err != nil {
		return fmt.Errorf("remove pin %s: %w", p.path, err)
	}
	return nil
}

// removeEmpty removes an empty file or directory, and nothing that holds something.
func removeEmpty(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.IsDir() && info.Size() > 0 {
		return errors.New("it is not empty")
	}
	return os.Remove(path)
}

// resolve finds out where sub leads, and returns base and that relative to it, both without symbolic links. Nothing
// holds what was found: openBeneath opens it again, and takes no link then.
func resolve(base, sub string) (root, inside string, err error) {
	if root, err = filepath.EvalSymlinks(base); err != nil {
		return "", "", unresolved("base directory", base, err)
	}
	path := filepath.Join(root, sub)
	found, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", "", unresolved("combined path", path, err)
	}
	inside, err = filepath.Rel(root, found)
	if err != nil || !filepath.IsLocal(inside) {
		return "", "", errdefs.ErrInvalidArgument.WithMessage(
			fmt.Sprintf("path concatenation escapes the base directory, base: %s, subpath: %s", base, sub))
	}
	return root, inside, nil
}

func unresolved(what, path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return notAccessible(path, err)
	}
	return fmt.Errorf("error while resolving symlinks in %s %q: %w", what, path, err)
}

func notAccessible(path string, err error) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("cannot access path %s: %v", path, err))
}

// openBeneath opens root and what lies below it, neither of which may be or have become a symbolic link.
func openBeneath(root, inside string) (int, error) {
	dir, err := openat2(unix.AT_FDCWD, root, unix.OpenHow{Flags: unix.O_DIRECTORY, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	return openat2(dir, inside, unix.OpenHow{Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
}

func openat2(dir int, path string, how unix.OpenHow) (int, error) {
	how.Flags |= unix.O_PATH | unix.O_CLOEXEC
	for {
		fd, err := unix.Openat2(dir, path, &how)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue // EAGAIN: a rename somewhere on the host made the kernel unsure
		}
		return fd, err
	}
}

// hold mounts what fd refers to under a new name.
func (d *Dir) hold(fd int) (*Pin, error) {
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("copy the mount that a path is on: %w", err)
	}
	defer unix.Close(tree)
	p, err := d.newTarget(tree)
	if err != nil {
		return nil, err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, p.path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return nil, errors.Join(fmt.Errorf("mount pin %s: %w", p.path, err), p.Release())
	}
	return p, nil
}

// newTarget makes what the mount in fd can be put on: a directory, or a file for all else.
func (d *Dir) newTarget(fd int) (*Pin, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at a path to pin: %w", err)
	}
	if err := os.MkdirAll(d.path, 0o700); err != nil {
		return nil, err
	}
	p := &Pin{path: filepath.Join(d.path, ids.New())}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return p, os.Mkdir(p.path, 0o700)
	}
	return p, os.WriteFile(p.path, nil, 0o600)
}
