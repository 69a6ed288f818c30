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

	// Prefix is the directory of the tar in which everything is.
	Prefix string
	// AllXattrs packs every extended attribute, and not only those that belong to a layer.
	AllXattrs bool
	// LeftOut, when set, hears of what a tar has no form for.
	LeftOut func(name string)
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

// WriteTree writes an entry for dir itself and for everything below it to out, ordered by path, and does not close out.
// As with PackTree, dir may change meanwhile.
func WriteTree(ctx context.Context, out *tar.Writer, dir string, opt PackOptions) (Packed, error) {
	root, err := openRoot(dir)
	if err != nil {
		return Packed{}, err
	}
	defer unix.Close(root)
	p := newPacker(root, out, opt)
	if err := p.opened(".", root); err != nil {
		return Packed{}, fmt.Errorf("pack %s: %w", dir, err)
	}
	err = p.tree(ctx, ".")
	return p.packed, err
}

// Packed says what WriteTree wrote.
type Packed struct {
	Entries int64
	Bytes   int64 // contents of the files
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
		p := newPacker(root, tar.NewWriter(pw), opt)
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

	packed Packed
}

func newPacker(root int, out *tar.Writer, opt PackOptions) *packer {
	return &packer{root: root, opt: opt, out: out, links: map[[2]uint64]string{}, buf: make([]byte, chunkSize)}
}

// open opens a path for reading without following any symbolic link.
func (p *packer) open(name string, flags uint64) (int, error) {
	return openOneTree(p.root, name, flags)
}

func (p *packer) writeHeader(hdr *tar.Header) error {
	p.packed.Entries++
	p.packed.Bytes += hdr.Size
	return p.out.WriteHeader(hdr)
}

func (p *packer) leaveOut(what string) {
	if p.opt.LeftOut != nil {
		p.opt.LeftOut(what)
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
		Name:    path.Join(p.opt.Prefix, name),
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
		p.leaveOut("socket " + name) // tars have no form for it
		return nil
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		inode := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := p.links[inode]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
			return p.writeHeader(hdr)
		}
		p.links[inode] = hdr.Name
	}
	opaque, err := p.xattrs(hdr, fd)
	if err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeReg && hdr.Size > 0 {
		return p.contents(fd, hdr)
	}
	if err := p.writeHeader(hdr); err != nil {
		return err
	}
	if opaque {
		return p.writeHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name + "/" + whiteoutOpaque, Mode: hdr.Mode & 0o777, Uid: hdr.Uid, Gid: hdr.Gid, ModTime: hdr.ModTime.Truncate(time.Second)})
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
		if !isOpaque && !p.packsXattr(key) {
			continue
		}
		if strings.Contains(key, "=") {
			p.leaveOut("attribute " + key + " of " + hdr.Name) // it would end the name in the tar
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
		if key == "security.capability" && !p.opt.AllXattrs { // where owners stay as they are, so does whose capabilities they are
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

func (p *packer) packsXattr(key string) bool {
	if p.opt.AllXattrs {
		return key != ""
	}
	return key == "security.capability" || strings.HasPrefix(key, "user.") && !strings.HasPrefix(key, "user.overlay.")
}

// contents packs the regular file that fd, a mere path, leads to: it is the same file, whatever has its name by now. One
// that grows meanwhile is cut where it ended, and one that shrinks is an error.
func (p *packer) contents(fd int, hdr *tar.Header) error {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.writeHeader(hdr); err != nil {
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
	return p.writeHeader(&tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteoutPrefix + base, Mode: 0o600, ModTime: at.Truncate(time.Second)})
}
