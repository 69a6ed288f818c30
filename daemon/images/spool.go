package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Bounds of an image archive. An image has at most maxLayers layers and three documents, so the first is room for
// hundreds of images.
const (
	maxEntries = 1 << 16
	maxLinks   = 8 // symbolic links in a row
)

// archive is an image archive on disk. The names that lead into it say where in the temporary file their bytes lie;
// nothing of it is ever unpacked under a name of its own.
type archive struct {
	file    *os.File // has no name: it is gone with the last descriptor
	entries map[string]entry
}

// entry is a file of the archive, or a link to one.
type entry struct {
	offset, size int64
	link         string // cleaned path in the archive; empty: a file
}

// spool reads an archive, compressed or not, to its end. Layers come before the documents that say what they are in
// most archives, so their bytes have to wait somewhere; a file without a name costs little more than the page cache.
func spool(ctx context.Context, r io.Reader, dir string) (_ *archive, err error) {
	plain, err := decompress(contextReader{ctx, r})
	if err != nil {
		return nil, invalidArchive(ctx, err)
	}
	defer plain.Close()
	file, err := tempFile(dir)
	if err != nil {
		return nil, fmt.Errorf("spool image archive: %w", err)
	}
	a := &archive{file: file, entries: map[string]entry{}}
	defer func() {
		if err != nil {
			_ = a.Close() // the first error is the one to report
		}
	}()
	tr := tar.NewReader(plain)
	buf := make([]byte, copySize)
	var end int64
	for count := 0; ; count++ {
		header, err := tr.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, invalidArchive(ctx, err)
		}
		if count == maxEntries {
			return nil, badArchive("more than %d entries", maxEntries)
		}
		if err := a.add(header, end); err != nil {
			return nil, err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		n, err := copyFile(file, tr, buf)
		if err != nil {
			return nil, invalidArchive(ctx, err)
		}
		if n != header.Size {
			return nil, badArchive("%s: %d bytes instead of %d", header.Name, n, header.Size)
		}
		end += n
	}
}

// copyFile copies without the detour that io.Copy takes through the reader's or the file's own methods.
func copyFile(dst *os.File, src io.Reader, buf []byte) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, buf)
}

// add notes one entry whose bytes, if it has any, begin at offset.
func (a *archive) add(header *tar.Header, offset int64) error {
	name, err := cleanName(header.Name)
	if err != nil {
		return err
	}
	switch header.Typeflag {
	case tar.TypeReg:
		for key := range header.PAXRecords {
			if strings.HasPrefix(key, "GNU.sparse.") {
				return badArchive("%s: sparse files are not accepted", header.Name)
			}
		}
		a.entries[name] = entry{offset: offset, size: header.Size}
	case tar.TypeSymlink:
		if path.IsAbs(header.Linkname) {
			return badArchive("%s: link to %s leads out of the archive", header.Name, header.Linkname)
		}
		target, err := cleanName(path.Join(path.Dir(name), header.Linkname))
		if err != nil {
			return badArchive("%s: link to %s leads out of the archive", header.Name, header.Linkname)
		}
		a.entries[name] = entry{link: target}
	case tar.TypeLink:
		target, err := cleanName(header.Linkname)
		if err != nil {
			return badArchive("%s: link to %s leads out of the archive", header.Name, header.Linkname)
		}
		a.entries[name] = entry{link: target}
	case tar.TypeDir, tar.TypeXGlobalHeader:
	default:
		return badArchive("%s: entries of type %q are not accepted", header.Name, header.Typeflag)
	}
	return nil
}

// cleanName returns the one form of a path in the archive, and refuses paths that lead out of it.
func cleanName(name string) (string, error) {
	clean := path.Clean(name)
	if path.IsAbs(clean) || clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(name, 0) {
		return "", badArchive("entry %q leads out of the archive", name)
	}
	return clean, nil
}

// has reports whether there is an entry of this name.
func (a *archive) has(name string) bool {
	_, found := a.entries[name]
	return found
}

// open returns the bytes of the file that name leads to.
func (a *archive) open(name string) (*io.SectionReader, error) {
	at, err := cleanName(name)
	if err != nil {
		return nil, err
	}
	for range maxLinks {
		e, found := a.entries[at]
		switch {
		case !found:
			return nil, badArchive("%s is missing", name)
		case e.link == "":
			return io.NewSectionReader(a.file, e.offset, e.size), nil
		}
		at = e.link
	}
	return nil, badArchive("%s: too many links", name)
}

// read returns the bytes of a document.
func (a *archive) read(name string) ([]byte, error) {
	r, err := a.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > maxConfig {
		return nil, badArchive("%s has %d bytes, more than %d", name, r.Size(), maxConfig)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read %s from image archive: %w", name, err)
	}
	return data, nil
}

// discard drops the bytes of the archive from the page cache and the disk.
func (a *archive) discard() error {
	if err := a.file.Truncate(0); err != nil {
		return fmt.Errorf("drop image archive: %w", err)
	}
	return nil
}

// Close gives the space on disk back.
func (a *archive) Close() error { return a.file.Close() }

// tempFile returns a file without a name in dir. It is gone when it is closed, also by the end of the process.
func tempFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir+"/(unnamed)"), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	f, err := os.CreateTemp(dir, "archive-") // the file system knows no O_TMPFILE
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close() // the first error is the one to report
		return nil, err
	}
	return f, nil
}

// contextReader ends reading when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

func badArchive(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage("invalid image archive: " + fmt.Sprintf(format, args...))
}

// invalidArchive classes an error of reading an archive: it is the archive's unless the host or the client is to blame.
func invalidArchive(ctx context.Context, err error) error {
	var errno unix.Errno
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("read image archive: %w", context.Cause(ctx))
	case errors.As(err, &errno):
		return fmt.Errorf("spool image archive: %w", err)
	}
	return badArchive("%v", err)
}
