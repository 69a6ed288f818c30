package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// settleTime is how old the last change of a file must be when the file is looked at, or the next pass takes it for
// changed. Within a tick of the kernel's clock two changes can have one time; and who writes through a mapping has the
// time set when he takes the page, and writes a little later. A second is more than either takes, also where the
// container has so small a share of the processor that it waits in between.
const settleTime = time.Second

// mirror makes a directory a copy of another one that shares the blocks of its files. Each pass brings the copy up to
// date: it looks at every file, and clones anew those that have changed since the pass before. What changes during a
// pass is found by the next; a pass while nothing changes leaves an exact copy.
//
// What has changed is told by inode and time of change, which the kernel sets with every change of contents, attributes
// and names. That includes writes through shared mappings: a clone writes all dirty pages out and protects them, so that
// the next write to each sets the time again.
//
// The original may be anything while a pass runs, also hostile: it is never left by a link, and only files are opened.
// Passes are not to run at the same time.
type mirror struct {
	dst, src string
	tree     *copyTree        // copies attributes
	now      func() time.Time // the kernel's clock, by which files are changed; not ahead of it
	root     node
}

// node is a name of the original, as the last pass left its copy. There is one for each file of a volume.
type node struct {
	name string
	copy *version   // nil where there is no copy, or one that is to be made anew
	dir  *directory // nil for what is none
}

// directory is what a node is besides.
type directory struct {
	rel     string           // to the root
	entries []*node          // some are nil
	times   [2]unix.Timespec // of access and change
	isStale atomic.Bool      // the copy's times are to be set
}

// version is the state of an inode that was copied. Names of one inode share it.
type version struct {
	inode   inodeKey
	mode    uint32
	changed unix.Timespec
	settled bool
}

func newMirror(dst, src string, now func() time.Time) *mirror {
	return &mirror{dst: dst, src: src, now: now, tree: &copyTree{wanted: func(string) bool { return true }}, root: node{dir: &directory{}}}
}

// pass is one pass of a mirror.
type pass struct {
	*mirror
	top     int       // the original, open
	begun   time.Time // before anything was looked at
	workers crew

	mu     sync.Mutex // guards what is below
	linked map[inodeKey][]linkedName
	stale  []*directory
}

// linkedName is one of several names of an inode.
type linkedName struct {
	parent *directory
	*node
	isSame bool // its copy is good still
}

// update makes a pass. It fails with errNoClone where the blocks of a file cannot be shared.
func (m *mirror) update(ctx context.Context) error {
	top, err := unix.Open(m.src, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: m.src, Err: err}
	}
	defer unix.Close(top)
	p := &pass{mirror: m, top: top, begun: m.now(), linked: map[inodeKey][]linkedName{}}
	p.workers.SetLimit(runtime.GOMAXPROCS(0))
	err = p.directory(ctx, &m.root)
	err = cmp.Or(p.workers.Wait(), err)
	if err == nil {
		err = p.links(ctx)
	}
	if err == nil {
		err = p.setTimes()
	}
	return err
}

func (p *pass) version(st *unix.Stat_t) *version {
	changed := time.Unix(st.Ctim.Unix())
	return &version{inode: keyOf(st), mode: st.Mode, changed: st.Ctim, settled: changed.Add(settleTime).Before(p.begun)}
}

func keyOf(st *unix.Stat_t) inodeKey { return inodeKey{dev: st.Dev, ino: st.Ino} }

// shows reports whether the inode is for certain still as it was copied.
func (v *version) shows(st *unix.Stat_t) bool {
	return v != nil && v.settled && v.inode == keyOf(st) && v.mode == st.Mode && v.changed == st.Ctim
}

// isVanished reports whether an error says that a name is gone, or is not what it was, when it was used.
func isVanished(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, errMoved)
}

var errMoved = errors.New("something else has its name now")

// open opens a name of the original.
func (p *pass) open(rel string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err := unix.Openat2(p.top, cmp.Or(rel, "."), &how)
		switch {
		case err == nil:
			return fd, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN): // the latter for a rename somewhere on the host
		default:
			return -1, &os.PathError{Op: "open", Path: filepath.Join(p.src, rel), Err: err}
		}
	}
}

// directory brings a directory up to date whose copy is there, and all below it.
func (p *pass) directory(ctx context.Context, n *node) error {
	f, err := p.openDirectory(n.dir)
	if err != nil {
		return err
	}
	err = p.entries(ctx, n, f)
	if closeErr := f.Close(); err == nil { // before what is below is opened
		err = closeErr
	}
	if err != nil {
		return err
	}
	var wait sync.WaitGroup
	for _, sub := range n.dir.entries {
		if sub == nil || sub.dir == nil {
			continue
		}
		err = cmp.Or(err, p.workers.spread(&wait, func() error {
			err := p.directory(ctx, sub)
			if isVanished(err) {
				return p.remove(n.dir, sub)
			}
			return err
		}))
	}
	wait.Wait()
	return err
}

func (p *pass) openDirectory(dir *directory) (*os.File, error) {
	fd, err := p.open(dir.rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(p.src, dir.rel)), nil
}

// entries brings all of a directory up to date but what is below its own directories.
func (p *pass) entries(ctx context.Context, n *node, f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	dir := n.dir
	dir.times = [2]unix.Timespec{st.Atim, st.Mtim}
	if !n.copy.shows(&st) {
		names, err := f.Readdirnames(-1)
		if err != nil {
			return err
		}
		if err := p.match(dir, names); err != nil {
			return err
		}
		dst := filepath.Join(p.dst, dir.rel)
		if err := dropXattrs(dst); err != nil {
			return err
		}
		if err := p.tree.attributes(place{name: dst}, xattrsOfOpen(int(f.Fd())), &st); err != nil {
			return err
		}
		n.copy = p.version(&st)
		p.touch(dir)
	}
	var wait sync.WaitGroup
	var err error
	for part := range slices.Chunk(dir.entries, chunkOfNames) {
		err = cmp.Or(err, p.workers.spread(&wait, func() error { return p.part(ctx, dir, f, part) }))
	}
	wait.Wait()
	return err
}

// part brings some names of a directory up to date, and forgets those that are gone.
func (p *pass) part(ctx context.Context, dir *directory, f *os.File, names []*node) error {
	for i, n := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if n == nil {
			continue
		}
		err := p.entry(dir, f, n)
		if isVanished(err) {
			names[i] = nil
			err = p.remove(dir, n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// match gives the directory a node for each name, the one that there was if there was one, and removes the copies of the
// others.
func (p *pass) match(dir *directory, names []string) error {
	known := make(map[string]*node, len(dir.entries))
	for _, n := range dir.entries {
		if n != nil {
			known[n.name] = n
		}
	}
	dir.entries = make([]*node, len(names))
	for i, name := range names {
		if dir.entries[i] = known[name]; dir.entries[i] == nil {
			dir.entries[i] = &node{name: name}
		}
		delete(known, name)
	}
	for _, gone := range known {
		if err := p.remove(dir, gone); err != nil {
			return err
		}
	}
	return nil
}

// remove removes the copy of a name, and all below it.
func (p *pass) remove(dir *directory, n *node) error {
	p.touch(dir)
	n.copy, n.dir = nil, nil
	dst := p.copyOf(dir, n)
	if err := unix.Unlink(dst); err == nil || errors.Is(err, unix.ENOENT) { // nearly always
		return nil
	}
	return os.RemoveAll(dst)
}

func (p *pass) copyOf(dir *directory, n *node) string { return filepath.Join(p.dst, dir.rel, n.name) }

// touch has the times of a directory's copy set at the end of the pass.
func (p *pass) touch(dir *directory) {
	if dir.isStale.Swap(true) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stale = append(p.stale, dir)
}

// opened is a path that leads to what is open, and never to what has its name by now.
func opened(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// xattrsBehind are those of what a link in /proc leads to. What is open without being read has no others.
func xattrsBehind(link string) xattrs {
	return xattrs{
		list: func(buf []byte) (int, error) { return unix.Listxattr(link, buf) },
		get:  func(name string, buf []byte) (int, error) { return unix.Getxattr(link, name, buf) },
	}
}

// entry brings one name up to date; if that is a directory, not what is in it, and if it is one of several of its inode,
// only as far as to note that.
func (p *pass) entry(dir *directory, f *os.File, n *node) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(f.Fd()), n.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "stat", Path: filepath.Join(f.Name(), n.name), Err: err}
	}
	isSame := n.copy.shows(&st)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if n.dir != nil && n.copy != nil && n.copy.inode == keyOf(&st) {
			return nil
		}
		if err := p.remove(dir, n); err != nil {
			return err
		}
		n.dir = &directory{rel: path.Join(dir.rel, n.name)}
		return os.Mkdir(p.copyOf(dir, n), 0o700)
	}
	if n.dir != nil {
		if err := p.remove(dir, n); err != nil {
			return err
		}
	}
	if st.Nlink > 1 {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.linked[keyOf(&st)] = append(p.linked[keyOf(&st)], linkedName{dir, n, isSame})
		return nil
	}
	if isSame {
		return nil
	}
	return p.clone(dir, f, n)
}

// clone makes the copy of a name anew that is no directory.
func (p *pass) clone(dir *directory, f *os.File, n *node) error {
	if err := p.remove(dir, n); err != nil {
		return err
	}
	name := filepath.Join(f.Name(), n.name)
	fd, err := unix.Openat(int(f.Fd()), n.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil { // before the contents are read
		return &os.PathError{Op: "stat", Path: name, Err: err}
	}
	dst := p.copyOf(dir, n)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return fmt.Errorf("%s: %w", name, errMoved)
	case unix.S_IFREG:
		err = cloneFile(dst, opened(fd), &st)
	default:
		err = makeSpecial(dst, fd, &st)
	}
	if err != nil {
		return fmt.Errorf("clone %s: %w", name, err)
	}
	if err := p.tree.attributes(place{name: dst}, xattrsBehind(opened(fd)), &st); err != nil {
		return err
	}
	n.copy = p.version(&st)
	return nil
}

// cloneFile makes a file that shares the blocks of the one at src, which has the attributes st.
func cloneFile(dst, src string, st *unix.Stat_t) error {
	return createFile(place{name: dst}, st, func(out int) error {
		if st.Size == 0 {
			return nil
		}
		in, err := place{name: src}.open(unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		defer unix.Close(in) // only read
		if err := clone(out, in); err != nil {
			return fmt.Errorf("%w (%v)", errNoClone, err)
		}
		return nil
	})
}

// links brings the inodes with several names up to date: the copies of their names become names of one copy.
func (p *pass) links(ctx context.Context) error {
	for key, names := range p.linked {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !slices.ContainsFunc(names, func(l linkedName) bool { return !l.isSame || l.copy != names[0].copy }) {
			continue
		}
		if err := p.link(key, names); err != nil {
			return err
		}
	}
	return nil
}

// link clones the first name that is there still, and makes the others names of its copy.
func (p *pass) link(key inodeKey, names []linkedName) error {
	for i, name := range names {
		err := p.cloneLinked(key, name)
		if isVanished(err) {
			if err := p.remove(name.parent, name.node); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		for _, other := range names[i+1:] {
			if err := p.remove(other.parent, other.node); err != nil {
				return err
			}
			err := os.Link(p.copyOf(name.parent, name.node), p.copyOf(other.parent, other.node))
			if err == nil {
				other.copy = name.copy
			} else if !isVanished(err) { // else its directory is
				return err
			}
		}
		return nil
	}
	return nil
}

func (p *pass) cloneLinked(key inodeKey, name linkedName) error {
	f, err := p.openDirectory(name.parent)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	if err := p.clone(name.parent, f, name.node); err != nil {
		return err
	}
	if name.copy.inode != key {
		return fmt.Errorf("%s: %w", filepath.Join(f.Name(), name.name), errMoved)
	}
	return nil
}

// setTimes sets the times of directories, last, because every new name changes them.
func (p *pass) setTimes() error {
	for _, dir := range p.stale {
		dir.isStale.Store(false)
		dst := filepath.Join(p.dst, dir.rel)
		err := unix.UtimesNanoAt(unix.AT_FDCWD, dst, dir.times[:], unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // removed since
			return fmt.Errorf("set the times of %s: %w", dst, err)
		}
	}
	return nil
}

// dropXattrs removes extended attributes, before they are copied anew.
func dropXattrs(path string) error {
	names, err := listXattrs(func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) })
	if err != nil {
		return &os.PathError{Op: "llistxattr", Path: path, Err: err}
	}
	for _, name := range names {
		if err := unix.Lremovexattr(path, name); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
			return &os.PathError{Op: "remove attribute " + name + " of", Path: path, Err: err}
		}
	}
	return nil
}
