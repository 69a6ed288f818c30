package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
	wanted  func(xattr string) bool // which extended attributes are copied
	workers crew
	refused atomic.Bool // blocks cannot be shared, so that nobody tries again

	mu    sync.Mutex          // guards links; held over the copying of a file with more than one name
	links map[inodeKey]string // first copy of each such file
}

// newCopyTree copies all but the attributes by which an overlay remembers its layers.
func newCopyTree() *copyTree {
	return &copyTree{links: map[inodeKey]string{}, wanted: func(xattr string) bool { return !strings.HasPrefix(xattr, "trusted.overlay.") }}
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
	subs, layers, err := c.files(ctx, dst, src, layers)
	var wait sync.WaitGroup
	for _, name := range subs {
		err = cmp.Or(err, c.workers.spread(&wait, func() error {
			sub := filepath.Join(dst, name)
			if err := os.Mkdir(sub, 0o700); err != nil {
				return err
			}
			subLayers := make([]string, len(layers))
			for i, layer := range layers {
				subLayers[i] = filepath.Join(layer, name)
			}
			return c.directory(ctx, sub, filepath.Join(src, name), subLayers)
		}))
	}
	wait.Wait()
	if err != nil {
		return err
	}
	return c.attributes(place{name: dst}, xattrsOf(src), &st) // last, because entries change the directory's times
}

// files copies all of a directory but its own directories, whose names it returns with those layers that there are. It
// holds the directories open, which spares the way to each file; but not while it is below them.
func (c *copyTree) files(ctx context.Context, dst, src string, layers []string) (subs, found []string, err error) {
	var open openDirs
	defer open.close()
	if open.dst, err = os.Open(dst); err != nil {
		return nil, nil, err
	}
	if open.src, err = os.Open(src); err != nil {
		return nil, nil, err
	}
	for _, layer := range layers {
		fd, err := place{name: layer}.open(unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) { // so is a link, which could lead anywhere
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		found, open.layers = append(found, layer), append(open.layers, os.NewFile(uintptr(fd), layer))
	}
	list, err := open.src.ReadDir(-1)
	if err != nil {
		return nil, nil, err
	}
	list = slices.DeleteFunc(list, func(e fs.DirEntry) bool {
		if e.IsDir() {
			subs = append(subs, e.Name())
		}
		return e.IsDir()
	})
	var wait sync.WaitGroup
	for part := range slices.Chunk(list, chunkOfNames) {
		err = cmp.Or(err, c.workers.spread(&wait, func() error {
			for _, e := range part {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := c.entry(&open, e.Name()); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	wait.Wait()
	return subs, found, err
}

// openDirs are directories that are copied: the new one, the original, and what that may show files of.
type openDirs struct {
	dst, src *os.File
	layers   []*os.File
}

func (o *openDirs) close() {
	for _, dir := range append(o.layers, o.dst, o.src) {
		_ = dir.Close() // nothing was written to it
	}
}

// place is a name in an open directory, or a path where there is none.
type place struct {
	dir  *os.File
	name string
}

func (p place) fd() int {
	if p.dir == nil {
		return unix.AT_FDCWD
	}
	return int(p.dir.Fd())
}

func (p place) path() string {
	if p.dir == nil {
		return p.name
	}
	return filepath.Join(p.dir.Name(), p.name)
}

// open returns a descriptor. An os.File of it would cost a system call more for each file, and os.OpenFile, which tries to
// have the runtime poll it, four more.
func (p place) open(flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(p.fd(), p.name, flags|unix.O_CLOEXEC, mode)
		switch {
		case err == nil:
			return fd, nil
		case !errors.Is(err, unix.EINTR):
			return -1, &os.PathError{Op: "open", Path: p.path(), Err: err}
		}
	}
}

// entry copies what is no directory.
func (c *copyTree) entry(dirs *openDirs, name string) error {
	dst, src := place{dirs.dst, name}, place{dirs.src, name}
	var st unix.Stat_t
	if err := unix.Fstatat(src.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "lstat", Path: src.path(), Err: err}
	}
	key := inodeKey{dev: st.Dev, ino: st.Ino}
	if st.Nlink > 1 {
		c.mu.Lock() // a further name waits for the first
		defer c.mu.Unlock()
		if first, copied := c.links[key]; copied {
			return os.Link(first, dst.path())
		}
		c.links[key] = dst.path()
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		return c.copyFile(dst, src, &st, dirs.layers)
	}
	fd, err := unix.Openat(src.fd(), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: src.path(), Err: err}
	}
	err = makeSpecial(dst.path(), fd, &st)
	_ = unix.Close(fd) // it reads and writes nothing
	if err != nil {
		return err
	}
	return c.attributes(dst, xattrsOf(src.path()), &st)
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

// copyFile shares the blocks where the file system can, and otherwise copies what is between holes.
func (c *copyTree) copyFile(dst, src place, st *unix.Stat_t, layers []*os.File) error {
	return createFile(dst, st, func(out int) error {
		in := -1
		if !c.refused.Load() {
			in = openIn(layers, src.name, st) // an overlay's own files share nothing
		}
		isReal := in >= 0 || len(layers) == 0
		if in < 0 {
			var err error
			if in, err = src.open(unix.O_RDONLY|unix.O_NOFOLLOW, 0); err != nil {
				return err
			}
		}
		defer unix.Close(in) // only read
		if st.Size > 0 && !(isReal && c.share(out, in)) {
			if err := copyData(out, in, src.path(), st.Size); err != nil {
				return err
			}
		}
		return c.attributes(dst, xattrsOfOpen(in), st)
	})
}

// createFile creates the copy of a file that has the attributes st, and has fill fill it. Nobody else can get at it yet,
// so it may have the permissions of the original; set-id bits come with the owner.
func createFile(dst place, st *unix.Stat_t, fill func(out int) error) (err error) {
	out, err := dst.open(unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, st.Mode&0o777)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := unix.Close(out); err == nil && closeErr != nil {
			err = &os.PathError{Op: "close", Path: dst.path(), Err: closeErr}
		}
	}()
	return fill(out)
}

// share makes out share the blocks of in, and reports whether it could.
func (c *copyTree) share(out, in int) bool {
	if c.refused.Load() {
		return false
	}
	err := clone(out, in)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.ENOTTY) {
		c.refused.Store(true)
	}
	return err == nil
}

// openIn opens the file that an overlay of dirs shows as st under this name, or returns -1. An overlay passes the inode
// of a file on, as long as nobody wrote to it.
func openIn(dirs []*os.File, name string, st *unix.Stat_t) int {
	for _, dir := range dirs {
		var real unix.Stat_t
		if unix.Fstatat(int(dir.Fd()), name, &real, unix.AT_SYMLINK_NOFOLLOW) != nil || real.Ino != st.Ino || real.Size != st.Size ||
			real.Mode != st.Mode || real.Mtim != st.Mtim || real.Ctim != st.Ctim {
			continue
		}
		if fd, err := (place{dir, name}).open(unix.O_RDONLY|unix.O_NOFOLLOW, 0); err == nil {
			return fd
		}
	}
	return -1
}

// copyData copies the size bytes of the open file called name, but for its holes.
func copyData(outFD, inFD int, name string, size int64) (err error) {
	out, err := duplicate(outFD, "the copy of "+name)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := out.Close(); err == nil {
			err = closeErr
		}
	}()
	in, err := duplicate(inFD, name)
	if err != nil {
		return err
	}
	defer in.Close() // only read
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

// duplicate opens what is open once more.
func duplicate(fd int, name string) (*os.File, error) {
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "duplicate", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// noCow is FS_NOCOW_FL of the kernel's linux/fs.h.
const noCow = 0x00800000

// clone lets out share the blocks of in, and its freedom from copy-on-write, without which btrfs refuses.
func clone(out, in int) error {
	err := unix.IoctlFileClone(out, in)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	flags, flagsErr := unix.IoctlGetInt(in, unix.FS_IOC_GETFLAGS)
	if flagsErr != nil || flags&noCow == 0 {
		return err
	}
	if err := unix.IoctlSetPointerInt(out, unix.FS_IOC_SETFLAGS, flags&noCow); err != nil {
		return err
	}
	return unix.IoctlFileClone(out, in)
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

// attributes gives dst the owner, mode and times of st, and the extended attributes of src. What is so already is left
// alone. The order matters: a change of owner takes set-id bits and capabilities away, and every change touches the times.
func (c *copyTree) attributes(dst place, src xattrs, st *unix.Stat_t) error {
	var is unix.Stat_t
	if err := unix.Fstatat(dst.fd(), dst.name, &is, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "lstat", Path: dst.path(), Err: err}
	}
	chown := is.Uid != st.Uid || is.Gid != st.Gid
	if chown {
		if err := unix.Fchownat(dst.fd(), dst.name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "lchown", Path: dst.path(), Err: err}
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK && (chown || is.Mode != st.Mode) {
		if err := unix.Fchmodat(dst.fd(), dst.name, st.Mode&0o7777, 0); err != nil {
			return &os.PathError{Op: "chmod", Path: dst.path(), Err: err}
		}
	}
	if err := c.copyXattrs(dst, src); err != nil {
		return err
	}
	return copyTimes(dst, st)
}

func copyTimes(dst place, st *unix.Stat_t) error {
	times := []unix.Timespec{st.Atim, st.Mtim}
	if err := unix.UtimesNanoAt(dst.fd(), dst.name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: dst.path(), Err: err}
	}
	return nil
}

// xattrs are how the extended attributes of an original are read.
type xattrs struct {
	list func(buf []byte) (int, error)
	get  func(name string, buf []byte) (int, error)
}

func xattrsOf(path string) xattrs {
	return xattrs{
		list: func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) },
		get:  func(name string, buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) },
	}
}

func xattrsOfOpen(fd int) xattrs {
	return xattrs{
		list: func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) },
		get:  func(name string, buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) },
	}
}

// copyXattrs copies the wanted extended attributes, except where either file system has none.
func (c *copyTree) copyXattrs(dst place, src xattrs) error {
	names, err := listXattrs(src.list)
	if err != nil {
		return &os.PathError{Op: "list the attributes for", Path: dst.path(), Err: err}
	}
	for _, name := range names {
		if !c.wanted(name) {
			continue
		}
		value, err := grow(func(buf []byte) (int, error) { return src.get(name, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err == nil {
			err = unix.Lsetxattr(dst.path(), name, value, 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "copy attribute " + name + " to", Path: dst.path(), Err: err}
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
