package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// copyTree copies directories as they are: owners, modes, times, extended attributes, hard links, devices and holes.
//
// Where the file system can, copies share the blocks of their originals. An overlay cannot, so beside each directory
// go those that it may show files of: a file is cloned from where it really lies.
type copyTree struct {
	xattrs func(name string) bool // which extended attributes are copied
	// How attributes of an original are read.
	listxattr func(path string, buf []byte) (int, error)
	getxattr  func(path, name string, buf []byte) (int, error)
	workers   crew
	refused   atomic.Bool // blocks cannot be shared, so that nobody tries again

	mu    sync.Mutex          // guards links; held over the copying of a file with more than one name
	links map[inodeKey]string // first copy of each such file
}

// newCopyTree copies all but the attributes by which an overlay remembers its layers.
func newCopyTree() *copyTree {
	return &copyTree{links: map[inodeKey]string{}, xattrs: func(name string) bool { return !strings.HasPrefix(name, "trusted.overlay.") },
		listxattr: unix.Llistxattr, getxattr: unix.Lgetxattr}
}

// newMirrorTree copies all attributes, of originals that are named by the links in /proc to what is open.
func newMirrorTree() *copyTree {
	return &copyTree{links: map[inodeKey]string{}, xattrs: func(string) bool { return true }, listxattr: unix.Listxattr, getxattr: unix.Getxattr}
}

type inodeKey struct{ dev, ino uint64 }

// into copies what is in src into the empty directory dst, and then src's own attributes to dst. Layers are directories
// that src may show files of. It is to be called once.
func (c *copyTree) into(ctx context.Context, dst, src string, layers []string) error {
	c.workers.SetLimit(runtime.GOMAXPROCS(0))
	err := c.directory(ctx, dst, src, layers)
	return cmp.Or(c.workers.Wait(), err)
}

func (c *copyTree) directory(ctx context.Context, dst, src string, layers []string) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: src, Err: err}
	}
	list, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	var wait sync.WaitGroup
	for part := range slices.Chunk(list, chunkOfNames) {
		err = cmp.Or(err, c.workers.spread(&wait, func() error {
			for _, e := range part {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := c.entry(ctx, filepath.Join(dst, e.Name()), filepath.Join(src, e.Name()), layers); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	wait.Wait()
	if err != nil {
		return err
	}
	return c.attributes(dst, src, &st) // last, because entries change the directory's times
}

func (c *copyTree) entry(ctx context.Context, dst, src string, layers []string) error {
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: src, Err: err}
	}
	key := inodeKey{dev: st.Dev, ino: st.Ino}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		c.mu.Lock() // a further name waits for the first
		defer c.mu.Unlock()
		if first, copied := c.links[key]; copied {
			return os.Link(first, dst)
		}
		c.links[key] = dst
	}
	var err error
	switch kind {
	case unix.S_IFDIR:
		if err := os.Mkdir(dst, 0o700); err != nil {
			return err
		}
		return c.directory(ctx, dst, src, subdirs(layers, filepath.Base(src)))
	case unix.S_IFREG:
		err = c.copyFile(dst, src, &st, layers)
	default:
		var fd int
		if fd, err = unix.Open(src, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
			err = makeSpecial(dst, fd, &st)
			_ = unix.Close(fd) // it reads and writes nothing
		}
	}
	if err != nil {
		return err
	}
	return c.attributes(dst, src, &st)
}

// makeSpecial makes what is like the open src, neither a directory nor a file.
func makeSpecial(dst string, src int, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(src, "", target)
		if err != nil {
			return &os.PathError{Op: "read the link that becomes", Path: dst, Err: err}
		}
		return os.Symlink(string(target[:n]), dst)
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		if err := unix.Mknod(dst, st.Mode, int(st.Rdev)); err != nil {
			return &os.PathError{Op: "mknod", Path: dst, Err: err}
		}
		return nil
	}
	return fmt.Errorf("what becomes %s is of no known kind (mode %o)", dst, st.Mode)
}

// subdirs returns the directories called name in those of dirs that have one.
func subdirs(dirs []string, name string) []string {
	var subs []string
	for _, dir := range dirs {
		var st unix.Stat_t
		sub := filepath.Join(dir, name)
		if unix.Lstat(sub, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR { // a link could lead anywhere
			subs = append(subs, sub)
		}
	}
	return subs
}

// copyFile shares the blocks where the file system can, and otherwise copies what is between holes.
func (c *copyTree) copyFile(dst, src string, st *unix.Stat_t, layers []string) error {
	return createFile(dst, st, func(out *os.File) error {
		if len(layers) > 0 && !c.refused.Load() {
			if in := openIn(layers, filepath.Base(src), st); in != nil {
				defer in.Close() // only read
				if c.share(out, in) {
					return nil // and the overlay's file was not opened
				}
			}
		}
		in, err := openFile(src, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer in.Close() // only read
		if len(layers) == 0 && c.share(out, in) {
			return nil
		}
		return copyData(out, in, st.Size)
	})
}

// createFile creates the copy of a file that has the attributes st. What is not empty is filled by fill.
func createFile(dst string, st *unix.Stat_t, fill func(out *os.File) error) (err error) {
	out, err := openFile(dst, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
	}()
	if st.Size == 0 {
		return nil
	}
	return fill(out)
}

// openFile opens a file on a disk. os.OpenFile would try to have the runtime poll it, which takes five system calls more.
func openFile(path string, flags int, mode uint32) (*os.File, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// share makes out share the blocks of in, and reports whether it could.
func (c *copyTree) share(out, in *os.File) bool {
	if c.refused.Load() {
		return false
	}
	err := clone(out, in)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOTTY) {
		c.refused.Store(true)
	}
	return err == nil
}

// openIn opens the file that an overlay of dirs shows as st under this name, or returns nil. An overlay passes the inode
// of a file on, as long as nobody wrote to it.
func openIn(dirs []string, name string, st *unix.Stat_t) *os.File {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		var real unix.Stat_t
		if unix.Lstat(path, &real) != nil || real.Ino != st.Ino || real.Size != st.Size || real.Mode != st.Mode ||
			real.Mtim != st.Mtim || real.Ctim != st.Ctim {
			continue
		}
		if f, err := openFile(path, unix.O_RDONLY|unix.O_NOFOLLOW, 0); err == nil {
			return f
		}
	}
	return nil
}

// copyData copies the size bytes of in, but for its holes.
func copyData(out, in *os.File, size int64) error {
	for offset := int64(0); offset < size; {
		start, end, err := nextData(in, offset, size)
		if err != nil {
			return &os.PathError{Op: "seek", Path: in.Name(), Err: err}
		}
		if start >= size {
			break
		}
		if _, err := in.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(start, io.SeekStart); err != nil {
			return err
		}
		copied, err := io.CopyN(out, in, end-start)
		if err != nil && !errors.Is(err, io.EOF) { // a file that shrinks meanwhile ends early
			return err
		}
		if copied == 0 {
			break
		}
		offset = start + copied
	}
	return out.Truncate(size) // a hole at the end
}

// noCow is FS_NOCOW_FL of the kernel's linux/fs.h.
const noCow = 0x00800000

// clone lets out share the blocks of in, and its freedom from copy-on-write, without which btrfs refuses.
func clone(out, in *os.File) error {
	err := unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	flags, flagsErr := unix.IoctlGetInt(int(in.Fd()), unix.FS_IOC_GETFLAGS)
	if flagsErr != nil || flags&noCow == 0 {
		return err
	}
	if err := unix.IoctlSetPointerInt(int(out.Fd()), unix.FS_IOC_SETFLAGS, flags&noCow); err != nil {
		return err
	}
	return unix.IoctlFileClone(int(out.Fd()), int(in.Fd()))
}

// nextData returns the first run of data at or after offset. Where holes cannot be found, all is data.
func nextData(f *os.File, offset, size int64) (start, end int64, err error) {
	start, err = unix.Seek(int(f.Fd()), offset, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return offset, size, nil
	case err != nil:
		return 0, 0, err
	}
	end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, err
	}
	return start, min(end, size), nil
}

// attributes gives dst the owner, mode, extended attributes and times of src. The order matters: a change of owner takes
// set-id bits and capabilities away, and every change touches the times.
func (c *copyTree) attributes(dst, src string, st *unix.Stat_t) error {
	if err := os.Lchown(dst, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(dst, st.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: dst, Err: err}
		}
	}
	if err := c.copyXattrs(dst, src); err != nil {
		return err
	}
	return copyTimes(dst, st)
}

func copyTimes(dst string, st *unix.Stat_t) error {
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dst, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: dst, Err: err}
	}
	return nil
}

// copyXattrs copies the wanted extended attributes, except where either file system has none.
func (c *copyTree) copyXattrs(dst, src string) error {
	names, err := listXattrs(func(buf []byte) (int, error) { return c.listxattr(src, buf) })
	if err != nil {
		return &os.PathError{Op: "llistxattr", Path: src, Err: err}
	}
	for _, name := range names {
		if !c.xattrs(name) {
			continue
		}
		value, err := grow(func(buf []byte) (int, error) { return c.getxattr(src, name, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err == nil {
			err = unix.Lsetxattr(dst, name, value, 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "copy attribute " + name + " to", Path: dst, Err: err}
		}
	}
	return nil
}

func listXattrs(list func([]byte) (int, error)) ([]string, error) {
	buf, err := grow(list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil || len(buf) == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(buf), "\x00"), "\x00"), nil
}

// grow calls read with a buffer of the size that it asks for.
func grow(read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := read(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		buf := make([]byte, n)
		n, err = read(buf)
		if errors.Is(err, unix.ERANGE) {
			continue // it has grown meanwhile
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}
