package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// The names by which a tar says that something of the layers below is gone.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// Whiteouts says what a whiteout in the tar becomes.
type Whiteouts int

const (
	// WhiteoutsRemove takes the named file away: the directory already has the contents of the layers below.
	WhiteoutsRemove Whiteouts = iota
	// WhiteoutsOverlay leaves overlayfs's marks: a character device 0/0, and an extended attribute on opaque
	// directories. The directory holds this layer alone.
	WhiteoutsOverlay
	// WhiteoutsKeep takes them for the files that they are: the tar is no layer's.
	WhiteoutsKeep
)

// Options of Apply.
type Options struct {
	Whiteouts Whiteouts
	// OpaqueXattr is the attribute of opaque directories, "trusted.overlay.opaque" or "user.overlay.opaque".
	OpaqueXattr string
	// IDMap translates the owners in the tar to the host's.
	IDMap user.IdentityMapping
	// SkipDevices leaves out device nodes, which cannot be made in a user namespace.
	SkipDevices bool
	// BestEffortXattrs passes over extended attributes that the file system refuses.
	BestEffortXattrs bool
	// OverlayXattrs sets overlayfs's own marks as well, which may be data where the tar is no layer's.
	OverlayXattrs bool
	// OneTree refuses what a tar of one tree does not have: an entry whose directory did not come before it, or is a
	// symbolic link, and a second entry of one name.
	OneTree bool
}

// Entries are what Apply unpacks.
type Entries interface {
	// Next returns the next entry, or io.EOF. What was not copied of the entry before is skipped.
	Next() (*tar.Header, error)
	// CopyTo writes the contents of the current entry to w.
	CopyTo(w io.Writer) (int64, error)
}

var _ Entries = (*Reader)(nil)

// Applied says what Apply did.
type Applied struct {
	Entries int64 // sum of the sizes that the tar's headers state
	Files   int64 // bytes of the files and symbolic links that were made, each inode counted once
	// Replaced is set when an entry took the place of another file, so that Files may be too high.
	Replaced bool
	// Refused counts the extended attributes that the file system did not take.
	Refused int64
}

// Apply unpacks every entry of r below dir. After an error dir holds a part of them.
func Apply(ctx context.Context, dir string, r Entries, opt Options) (Applied, error) {
	root, err := openRoot(dir)
	if err != nil {
		return Applied{}, err
	}
	defer unix.Close(root)
	u := &unpacker{root: root, r: r, opt: opt, parent: -1}
	defer u.dropParent()
	if opt.Whiteouts == WhiteoutsRemove {
		u.made = map[string]struct{}{}
	}
	for {
		if err := ctx.Err(); err != nil {
			return u.applied, err
		}
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return u.applied, err
		}
		if err := u.entry(hdr); err != nil {
			return u.applied, fmt.Errorf("unpack %q: %w", hdr.Name, err)
		}
	}
	return u.applied, u.finishDirs()
}

type unpacker struct {
	root    int
	r       Entries
	opt     Options
	applied Applied

	// The directory of the last entry, which is most often that of the next one too.
	parent     int // -1: none
	parentName string
	parentGid  bool // new files take the directory's group

	dirs []dirEnd            // to be set at the end, as each new file changes them or is changed by them
	made map[string]struct{} // for WhiteoutsRemove: names that this layer made, which its opaque marks spare
}

// dirEnd is what a directory gets at the end.
type dirEnd struct {
	name  string
	times [2]unix.Timespec
	acl   string // defaultACL; empty: none
}

// defaultACL is the attribute of a directory that files made in it inherit. What is unpacked into it must not.
const defaultACL = "system.posix_acl_default"

func (u *unpacker) dropParent() {
	if u.parent >= 0 {
		unix.Close(u.parent)
		u.parent = -1
	}
}

func (u *unpacker) entry(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name := cleanName(hdr.Name)
	u.applied.Entries += contentSize(hdr)
	base := path.Base(name)
	if strings.HasPrefix(base, whiteoutPrefix) && u.opt.Whiteouts != WhiteoutsKeep {
		return u.whiteout(path.Dir(name), base, hdr)
	}
	if name == "." {
		if hdr.Typeflag != tar.TypeDir {
			return fmt.Errorf("the root is not a directory: %w", errdefs.ErrInvalidArgument)
		}
		u.rememberEnd(name, hdr)
		return u.attributes(u.root, name, hdr)
	}
	if err := u.enter(path.Dir(name)); err != nil {
		return err
	}
	if u.made != nil {
		u.markMade(name)
	}
	return u.make(name, base, hdr)
}

// enter makes dir the current parent; directories that the tar leaves out are made.
func (u *unpacker) enter(dir string) error {
	if u.parent >= 0 && u.parentName == dir {
		return nil
	}
	u.dropParent()
	fd, err := u.openDir(dir)
	if errors.Is(err, unix.ENOENT) && !u.opt.OneTree {
		if err := u.makeParents(dir); err != nil {
			return err
		}
		fd, err = u.openDir(dir)
	}
	if err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENAMETOOLONG) {
			return fmt.Errorf("its directory %q: %w: %w", dir, err, errdefs.ErrInvalidArgument)
		}
		return fmt.Errorf("open its directory %q: %w", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return fmt.Errorf("stat its directory %q: %w", dir, err)
	}
	u.parent, u.parentName, u.parentGid = fd, dir, st.Mode&unix.S_ISGID != 0
	return nil
}

func (u *unpacker) openDir(dir string) (int, error) {
	if u.opt.OneTree {
		return openOneTree(u.root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	}
	return openBeneath(u.root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
}

func (u *unpacker) makeParents(dir string) error {
	uid, gid := u.opt.IDMap.RootPair()
	at := "."
	for elem := range strings.SplitSeq(dir, "/") {
		fd, err := u.openDir(at)
		if err != nil {
			return fmt.Errorf("open %q: %w", at, err)
		}
		err = unix.Mkdirat(fd, elem, 0o755)
		if err == nil {
			err = unix.Fchownat(fd, elem, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
			if err == nil {
				err = unix.Fchmodat(fd, elem, 0o755, 0) // whatever the process's umask
			}
		} else if errors.Is(err, unix.EEXIST) {
			err = nil
		}
		unix.Close(fd)
		at = path.Join(at, elem)
		if err != nil {
			return fmt.Errorf("make directory %q: %w", at, err)
		}
	}
	return nil
}

// make creates the entry in the current parent. Something that is there already gives way, but a directory stays
// where the entry is one too.
func (u *unpacker) make(name, base string, hdr *tar.Header) error {
	err := u.create(name, base, hdr)
	if errors.Is(err, unix.ENAMETOOLONG) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if u.opt.OneTree {
		return fmt.Errorf("there are two entries of this name: %w", errdefs.ErrInvalidArgument)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(u.parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if isDir && hdr.Typeflag == tar.TypeDir {
		u.rememberEnd(name, hdr)
		return u.attributes(u.parent, base, hdr)
	}
	if err := u.remove(base, isDir); err != nil {
		return err
	}
	return u.create(name, base, hdr)
}

func (u *unpacker) remove(base string, isDir bool) error {
	u.applied.Replaced = true
	if !isDir {
		return unix.Unlinkat(u.parent, base, 0)
	}
	return removeAllAt(u.parent, base)
}

// removeAllAt removes the tree base below the directory dirfd and follows nothing.
func removeAllAt(dirfd int, base string) error {
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", dirfd))
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(base)
}

func (u *unpacker) create(name, base string, hdr *tar.Header) error {
	mode := uint32(hdr.Mode & 0o7777)
	switch hdr.Typeflag {
	case tar.TypeReg, tar.TypeRegA, tar.TypeGNUSparse, tar.TypeCont: //nolint:staticcheck // the old flag is still found in tars
		return u.regular(base, hdr)

	case tar.TypeDir:
		if err := unix.Mkdirat(u.parent, base, 0o700); err != nil {
			return err
		}
		u.rememberEnd(name, hdr)
		return u.attributes(u.parent, base, hdr)

	case tar.TypeSymlink:
		if err := unix.Symlinkat(hdr.Linkname, u.parent, base); err != nil {
			if errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("empty symbolic link: %w", errdefs.ErrInvalidArgument)
			}
			return err
		}
		u.applied.Files += int64(len(hdr.Linkname))
		return u.attributes(u.parent, base, hdr)

	case tar.TypeLink:
		return u.link(base, hdr)

	case tar.TypeBlock, tar.TypeChar:
		if u.opt.SkipDevices {
			return nil
		}
		kind := uint32(unix.S_IFCHR)
		if hdr.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		dev := unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
		if err := unix.Mknodat(u.parent, base, kind|mode, int(dev)); err != nil {
			return err
		}
		return u.attributes(u.parent, base, hdr)

	case tar.TypeFifo:
		if err := unix.Mknodat(u.parent, base, unix.S_IFIFO|mode, 0); err != nil {
			return err
		}
		return u.attributes(u.parent, base, hdr)
	}
	return fmt.Errorf("unhandled tar header type %d: %w", hdr.Typeflag, errdefs.ErrInvalidArgument)
}

// link makes a hard link to a file of this layer. A link that is to a symbolic link is to the link itself.
func (u *unpacker) link(base string, hdr *tar.Header) error {
	target := cleanName(hdr.Linkname)
	fd, err := u.openDir(path.Dir(target))
	if err == nil {
		err = unix.Linkat(fd, path.Base(target), u.parent, base, 0)
		unix.Close(fd)
	}
	switch {
	case err == nil, errors.Is(err, unix.EEXIST):
		return err
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EPERM), errors.Is(err, unix.ELOOP):
		return fmt.Errorf("hard link to %q: %w: %w", hdr.Linkname, err, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
}

func (u *unpacker) regular(base string, hdr *tar.Header) error {
	fd, err := unix.Openat(u.parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if size := contentSize(hdr); size > 0 {
		w := fileWriter{fd: fd}
		n, err := u.r.CopyTo(&w)
		u.applied.Files += n
		if err == nil {
			err = w.end()
		}
		if err != nil {
			return err
		}
	}
	uid, gid, err := u.owner(hdr)
	if err != nil {
		return err
	}
	if uid != 0 || gid != 0 || u.parentGid {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("set owner: %w", err)
		}
	}
	if err := u.xattrs(hdr, func(key string, value []byte) error {
		return unix.Fsetxattr(fd, key, value, 0)
	}); err != nil {
		return err
	}
	if mode := uint32(hdr.Mode & 0o7777); mode != 0o600 {
		if err := unix.Fchmod(fd, mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	times := timesOf(hdr)
	if err := unix.UtimesNanoAt(fd, "", times[:], unix.AT_EMPTY_PATH); err != nil {
		return u.setTimes(u.parent, base, times) // kernels before 5.8 know no empty path there
	}
	return nil
}

// attributes sets owner, extended attributes, mode and times of an entry that is not a regular file.
func (u *unpacker) attributes(dirfd int, base string, hdr *tar.Header) error {
	if base == "." && dirfd == u.root {
		fd, err := u.openDir(".")
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		dirfd = fd
	}
	uid, gid, err := u.owner(hdr)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(dirfd, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := u.xattrs(hdr, func(key string, value []byte) error {
		// There is no setxattr relative to a directory before kernel 6.13; /proc leads to the same place, and the
		// last element is not followed.
		return unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, base), key, value, 0)
	}); err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeSymlink {
		// Nobody else writes here, and what was just made is no symbolic link, so chmod follows none.
		if err := unix.Fchmodat(dirfd, base, uint32(hdr.Mode&0o7777), 0); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	if hdr.Typeflag == tar.TypeDir {
		return nil // finishDirs sets the times
	}
	return u.setTimes(dirfd, base, timesOf(hdr))
}

func (u *unpacker) setTimes(dirfd int, base string, times [2]unix.Timespec) error {
	if err := unix.UtimesNanoAt(dirfd, base, times[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

func (u *unpacker) owner(hdr *tar.Header) (uid, gid int, err error) {
	if u.opt.IDMap.Empty() {
		return hdr.Uid, hdr.Gid, nil
	}
	uid, gid, err = u.opt.IDMap.ToHost(hdr.Uid, hdr.Gid)
	if err != nil {
		return 0, 0, fmt.Errorf("map owner %d:%d: %w: %w", hdr.Uid, hdr.Gid, err, errdefs.ErrInvalidArgument)
	}
	return uid, gid, nil
}

const xattrRecord = "SCHILY.xattr."

func (u *unpacker) xattrs(hdr *tar.Header, set func(key string, value []byte) error) error {
	for record, value := range hdr.PAXRecords {
		key, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || key == defaultACL && hdr.Typeflag == tar.TypeDir { // that one comes last
			continue
		}
		if !u.opt.OverlayXattrs && (strings.HasPrefix(key, "trusted.overlay.") || strings.HasPrefix(key, "user.overlay.")) {
			continue // overlayfs's own marks would let a tar redirect names to elsewhere in the layers below
		}
		if err := u.xattr(key, value, set); err != nil {
			return err
		}
	}
	return nil
}

// isRefusal reports whether a file system does not take an attribute: of such a name, of such a length, or beside so many
// others. ext4 says ENOSPC for the last two; where the disk is full the files do not go in either.
func isRefusal(err error) bool {
	for _, refusal := range []error{unix.ENOTSUP, unix.EPERM, unix.E2BIG, unix.ERANGE, unix.ENOSPC} {
		if errors.Is(err, refusal) {
			return true
		}
	}
	return false
}

func (u *unpacker) xattr(key, value string, set func(key string, value []byte) error) error {
	err := set(key, []byte(value))
	if u.opt.BestEffortXattrs && isRefusal(err) {
		u.applied.Refused++
		return nil
	}
	if err != nil {
		return fmt.Errorf("set extended attribute %s: %w", key, err)
	}
	return nil
}

func (u *unpacker) rememberEnd(name string, hdr *tar.Header) {
	u.dirs = append(u.dirs, dirEnd{name, timesOf(hdr), hdr.PAXRecords[xattrRecord+defaultACL]})
}

func (u *unpacker) finishDirs() error {
	for _, d := range u.dirs {
		fd, err := openBeneath(u.root, d.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // a later entry has replaced it
		}
		if err != nil {
			return fmt.Errorf("open directory %q: %w", d.name, err)
		}
		err = u.finishDir(fd, d)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("directory %q: %w", d.name, err)
		}
	}
	return nil
}

func (u *unpacker) finishDir(fd int, d dirEnd) error {
	if d.acl != "" {
		if err := u.xattr(defaultACL, d.acl, func(key string, value []byte) error { return unix.Fsetxattr(fd, key, value, 0) }); err != nil {
			return err
		}
	}
	if err := unix.UtimesNanoAt(fd, ".", d.times[:], 0); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

func timesOf(hdr *tar.Header) [2]unix.Timespec {
	atime, mtime := hdr.AccessTime, hdr.ModTime
	if atime.Before(mtime) {
		atime = mtime
	}
	return [2]unix.Timespec{timespec(atime), timespec(mtime)}
}

func timespec(t time.Time) unix.Timespec {
	if t.IsZero() {
		t = time.Unix(0, 0)
	}
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

// markMade notes name and the directories above it.
func (u *unpacker) markMade(name string) {
	for name != "." {
		if _, ok := u.made[name]; ok {
			return
		}
		u.made[name] = struct{}{}
		name = path.Dir(name)
	}
}

func (u *unpacker) whiteout(dir, base string, hdr *tar.Header) error {
	if base != whiteoutOpaque && strings.HasPrefix(base, whiteoutMeta) {
		return nil // the notes of an old union file system
	}
	if base == whiteoutPrefix || base == whiteoutPrefix+"." || base == whiteoutPrefix+".." {
		return fmt.Errorf("whiteout of nothing: %w", errdefs.ErrInvalidArgument)
	}
	if err := u.enter(dir); err != nil {
		return err
	}
	target := strings.TrimPrefix(base, whiteoutPrefix)
	if u.opt.Whiteouts == WhiteoutsRemove {
		if base == whiteoutOpaque {
			return u.emptyParent()
		}
		if _, ours := u.made[path.Join(dir, target)]; ours {
			return nil // a whiteout is about the layers below
		}
		u.applied.Replaced = true
		return removeAllAt(u.parent, target)
	}
	if base == whiteoutOpaque {
		return unix.Fsetxattr(u.parent, u.opt.OpaqueXattr, []byte("y"), 0)
	}
	err := unix.Mknodat(u.parent, target, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) {
		return nil // made by this layer already; a whiteout is about the layers below
	}
	if err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	uid, gid, err := u.owner(hdr)
	if err != nil {
		return err
	}
	return unix.Fchownat(u.parent, target, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

// emptyParent removes what the layers below have in the current directory.
func (u *unpacker) emptyParent() error {
	var drop func(root *os.Root, name string) error
	drop = func(root *os.Root, name string) error {
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		entries, err := f.ReadDir(-1)
		f.Close()
		if err != nil {
			return err
		}
		for _, e := range entries {
			child := filepath.Join(name, e.Name())
			_, ours := u.made[path.Join(u.parentName, child)]
			if !ours {
				err = root.RemoveAll(child)
			} else if e.IsDir() {
				err = drop(root, child)
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
	u.applied.Replaced = true
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", u.parent))
	if err != nil {
		return err
	}
	defer root.Close()
	return drop(root, ".")
}
