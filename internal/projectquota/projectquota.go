// Package projectquota limits how much a directory may hold, with the project quotas of xfs and ext4.
//
// A directory gets a project of its own, which everything made in it inherits, and the project gets the limit. Nothing
// is recorded beside the file system: which project a directory has is read from the directory, and a project is free
// when the file system's books have neither files nor limits for it, so that no project of anybody else on the same
// file system is taken. Files that were in a directory before it got its project do not count.
//
// xfs fails what exceeds a limit with ENOSPC, whoever writes; ext4 with EDQUOT, and not for who has CAP_SYS_RESOURCE.
//
// Locks: that of IDs, held over the search for a free project.
package projectquota

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrUnsupported is returned by Open where project quotas are not to be had. Its text is Docker's.
var ErrUnsupported = errors.New("Filesystem does not support, or has not enabled quotas") //nolint:staticcheck // Docker's text

// deviceName is the node of the file system's device, which the kernel's call wants to see. The name is Docker's.
const deviceName = "backingFsBlockDev"

// IDs hands out projects, each once. Those who limit directories on one file system at the same time share one. The
// zero value is ready.
type IDs struct {
	mu   sync.Mutex
	last uint32
}

// Control limits directories on one file system.
type Control struct {
	device string // the node's path
	number uint64 // of the device
	ids    *IDs
}

// Open finds out whether directories on dir's file system can be limited. It needs a node of the device in dir, named
// backingFsBlockDev, makes it where it is missing or another one's, and leaves none where there is no support.
func Open(dir string, ids *IDs) (*Control, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if fs.Type != unix.XFS_SUPER_MAGIC && fs.Type != unix.EXT4_SUPER_MAGIC {
		return nil, ErrUnsupported
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	c := &Control{device: filepath.Join(dir, deviceName), number: st.Dev, ids: ids}
	made, err := c.makeNode()
	if err != nil {
		return nil, fmt.Errorf("make a node of the device below %s: %w", dir, err)
	}
	if enforced(c.device) {
		return c, nil
	}
	if made {
		if err := os.Remove(c.device); err != nil {
			return nil, err
		}
	}
	return nil, ErrUnsupported
}

// makeNode makes the node, unless it is there.
func (c *Control) makeNode() (made bool, err error) {
	var st unix.Stat_t
	err = unix.Lstat(c.device, &st)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == c.number:
		return false, nil
	case err == nil:
		if err := os.Remove(c.device); err != nil {
			return false, err
		}
	case !errors.Is(err, unix.ENOENT):
		return false, &os.PathError{Op: "lstat", Path: c.device, Err: err}
	}
	if err := unix.Mknod(c.device, unix.S_IFBLK|0o600, int(c.number)); err != nil {
		return false, &os.PathError{Op: "mknod", Path: c.device, Err: err}
	}
	return true, nil
}

// Limit lets what is in the directory take up so many bytes at most. A directory without a project of its own gets one.
func (c *Control) Limit(dir string, bytes uint64) error {
	f, err := c.open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	id, err := own(f)
	if err != nil {
		return err
	}
	if id == 0 {
		if id, err = c.assign(f); err != nil {
			return err
		}
	}
	return limit(c.device, id, bytes)
}

// Forget takes the limit of a directory away before that is deleted, so that its project is free afterwards.
func (c *Control) Forget(dir string) error {
	f, err := c.open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	id, err := own(f)
	if err != nil || id == 0 {
		return err
	}
	return limit(c.device, id, 0)
}

// open opens a directory, which must be on the file system.
func (c *Control) open(dir string) (*os.File, error) {
	f, err := os.OpenFile(dir, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && st.Dev != c.number {
		err = fmt.Errorf("it is not on the file system of %s", filepath.Dir(c.device))
	}
	if err != nil {
		_ = f.Close() // it was only looked at
		return nil, err
	}
	return f, nil
}

// own returns a directory's project, or 0 where it has none or only the one that the directory above it has.
func own(f *os.File) (uint32, error) {
	attr, err := getAttr(f)
	if err != nil || attr.project == 0 {
		return 0, err
	}
	fd, err := unix.Openat(int(f.Fd()), "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: f.Name() + "/..", Err: err}
	}
	above := os.NewFile(uintptr(fd), f.Name()+"/..")
	defer above.Close()
	inherited, err := getAttr(above)
	if err != nil || inherited.project == attr.project {
		return 0, err
	}
	return attr.project, nil
}

// assign gives a directory a free project.
func (c *Control) assign(f *os.File) (uint32, error) {
	attr, err := getAttr(f)
	if err != nil {
		return 0, err
	}
	id, err := c.free()
	if err != nil {
		return 0, err
	}
	attr.project = id
	attr.flags |= inheritProject
	return id, setAttr(f, attr)
}

// free returns a project that nobody has.
func (c *Control) free() (uint32, error) {
	c.ids.mu.Lock()
	defer c.ids.mu.Unlock()
	for c.ids.last < 1<<32-2 { // the very last one means none
		c.ids.last++
		q, err := books(c.device, c.ids.last)
		if err != nil {
			return 0, err
		}
		if q.files == 0 && q.blocks == 0 && q.hard == 0 && q.soft == 0 && q.hardFiles == 0 && q.softFiles == 0 {
			return c.ids.last, nil
		}
	}
	return 0, errors.New("no project is free")
}

// Inherited returns the project that what is made in a directory gets, 0 for none. A rename from one directory to
// another works only if it is the same for both.
func Inherited(dir string) uint32 {
	f, err := os.Open(dir)
	if err != nil {
		return 0
	}
	defer f.Close()
	attr, err := getAttr(f)
	if err != nil || attr.flags&inheritProject == 0 {
		return 0 // most file systems know no projects
	}
	return attr.project
}
