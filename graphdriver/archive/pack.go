package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// PackOptions say how a directory becomes a layer's tar.
type PackOptions struct {
	// Overlay turns overlayfs's marks into whiteouts. OpaqueXattr is the attribute of opaque directories.
	Overlay     bool
	OpaqueXattr string
	// IDMap translates the host's owners to the tar's. What belongs to nobody in it is packed as the container sees it.
	IDMap user.IdentityMapping
}

// PackTree returns an uncompressed tar of everything below dir but dir itself, ordered by path. dir may be that of a
// running container: nothing is read through a symbolic link, and what goes away meanwhile is left out.
func PackTree(ctx context.Context, dir string, opt PackOptions) (io.ReadCloser, error) {
	return pack(dir, opt, func(p *packer) error { return p.tree(ctx, ".") })
}

// PackPaths returns an uncompressed tar of some paths below dir and of whiteouts for others. Directories are packed
// without what is below them.
func PackPaths(ctx context.Context, dir string, paths, gone []string, opt PackOptions) (io.ReadCloser, error) {
	return pack(dir, opt, func(p *packer) error {
		for _, name := range paths {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := p.entry(cleanName(name)); err != nil {
				return err
			}
		}
		for _, name := range gone {
			if err := p.whiteout(cleanName(name), time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
}

func pack(dir string, opt PackOptions, work func(*packer) error) (io.ReadCloser, error) {
	root, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	pr, pw := io.Pipe()
	a := &assembly{PipeReader: pr, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		defer unix.Close(root)
		p := &packer{root: root, opt: opt, out: tar.NewWriter(pw), links: map[[2]uint64]string{}, buf: make([]byte, chunkSize)}
		err := work(p)
		if err == nil {
			err = p.out.Close()
		}
		pw.CloseWithError(err) // nil means io.EOF
	}()
	return a, nil
}

type packer struct {
	root  int
	opt   PackOptions
	out   *tar.Writer
	links map[[2]uint64]string // first name of each file that has several
	buf   []byte
}

// open opens a path for reading without following any symbolic link.
func (p *packer) open(name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	for {
		fd, err := unix.Openat2(p.root, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// isGone reports whether something is no longer what it was a moment ago.
func isGone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func (p *packer) tree(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	fd, err := p.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pack directory %s: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	entries, err := f.ReadDir(-1)
	_ = f.Close() // read only
	if err != nil {
		return fmt.Errorf("pack directory %s: %w", dir, err)
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if err := p.entry(name); err != nil {
			return err
		}
		if e.IsDir() {
			if err := p.tree(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// entry packs one path.
func (p *packer) entry(name string) error {
	fd, err := p.open(name, unix.O_PATH)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pack %s: %w", name, err)
	}
	defer unix.Close(fd)
	if err := p.opened(name, fd); err != nil {
		return fmt.Errorf("pack %s: %w", name, err)
	}
	return nil
}

func (p *packer) opened(name string, fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	hdr := &tar.Header{
		Name:    name,
		Mode:    int64(st.Mode & 0o7777),
		ModTime: time.Unix(st.Mtim.Unix()),
		Format:  tar.FormatPAX,
	}
	if p.opt.Overlay && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		return p.whiteout(name, hdr.ModTime) // the kernel's own, whoever the users are
	}
	hdr.Uid, hdr.Gid = p.owner(&st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		hdr.Typeflag = tar.TypeDir
		hdr.Name += "/"
	case unix.S_IFREG:
		hdr.Typeflag = tar.TypeReg
		hdr.Size = st.Size
	case unix.S_IFLNK:
		hdr.Typeflag = tar.TypeSymlink
		n, err := unix.Readlinkat(fd, "", p.buf)
		if err != nil {
			return err
		}
		hdr.Linkname = string(p.buf[:n])
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	default:
		return nil // a socket, for which tars have no form
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		inode := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := p.links[inode]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
			return p.out.WriteHeader(hdr)
		}
		p.links[inode] = name
	}
	opaque, err := p.xattrs(hdr, fd)
	if err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeReg && hdr.Size > 0 {
		return p.contents(name, hdr)
	}
	if err := p.out.WriteHeader(hdr); err != nil {
		return err
	}
	if opaque {
		return p.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name + "/" + whiteoutOpaque, Mode: hdr.Mode & 0o777, Uid: hdr.Uid, Gid: hdr.Gid, ModTime: hdr.ModTime.Truncate(time.Second)})
	}
	return nil
}

// overflowID is whom a container sees as the owner of what belongs to none of its users: the kernel's default.
const overflowID = 65534

// owner is a file's owner as the container sees it.
func (p *packer) owner(st *unix.Stat_t) (uid, gid int) {
	ids := p.opt.IDMap
	if ids.Empty() {
		return int(st.Uid), int(st.Gid)
	}
	rootUID, rootGID := ids.RootPair()
	uid, _, err := ids.ToContainer(int(st.Uid), rootGID)
	if err != nil {
		uid = overflowID
	}
	if _, gid, err = ids.ToContainer(rootUID, int(st.Gid)); err != nil {
		gid = overflowID
	}
	return uid, gid
}

// xattrs adds the extended attributes that belong to a layer: capabilities and those of users. It reports whether
// they say that the directory is opaque.
func (p *packer) xattrs(hdr *tar.Header, fd int) (opaque bool, err error) {
	file := fmt.Sprintf("/proc/self/fd/%d", fd) // leads to the file itself, symbolic link or not
	n, err := unix.Listxattr(file, p.buf)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
			return false, nil
		}
		return false, fmt.Errorf("list attributes: %w", err)
	}
	for key := range strings.SplitSeq(string(p.buf[:n]), "\x00") {
		isOpaque := p.opt.Overlay && key == p.opt.OpaqueXattr
		if !isOpaque && (key != "security.capability" && !strings.HasPrefix(key, "user.") || strings.HasPrefix(key, "user.overlay.")) {
			continue
		}
		n, err := unix.Getxattr(file, key, p.buf)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("read attribute %s: %w", key, err)
		}
		if isOpaque {
			opaque = hdr.Typeflag == tar.TypeDir && string(p.buf[:n]) == "y"
			continue
		}
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		value := p.buf[:n]
		if key == "security.capability" {
			value = globalCapability(value)
		}
		hdr.PAXRecords[xattrRecord+key] = string(value)
	}
	return opaque, nil
}

// globalCapability takes the user namespace out of a file's capabilities (revision 3 of vfs_cap_data in
// linux/capability.h): its root's id on this host means nothing anywhere else.
func globalCapability(value []byte) []byte {
	const revisionAt, size2, size3 = 3, 20, 24
	if len(value) == size3 && value[revisionAt] == 3 {
		value[revisionAt] = 2
		return value[:size2]
	}
	return value
}

// contents packs a regular file. One that grows meanwhile is cut where it ended, and one that shrinks is an error.
func (p *packer) contents(name string, hdr *tar.Header) error {
	fd, err := p.open(name, unix.O_RDONLY|unix.O_NONBLOCK)
	if isGone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return err // replaced meanwhile
	}
	if err := p.out.WriteHeader(hdr); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{p.out}, io.LimitReader(f, hdr.Size), p.buf)
	if err == nil && n < hdr.Size {
		err = fmt.Errorf("file became shorter while it was read: %w", io.ErrUnexpectedEOF)
	}
	return err
}

func (p *packer) whiteout(name string, at time.Time) error {
	dir, base := path.Split(name)
	return p.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteoutPrefix + base, Mode: 0o600, ModTime: at.Truncate(time.Second)})
}
