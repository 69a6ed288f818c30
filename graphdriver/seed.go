package graphdriver

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// SeedKind is the kind of a seed.
type SeedKind int

const (
	SeedDir SeedKind = iota
	SeedFile
	SeedSymlink
)

// A Seed is a path that a layer has to have as a directory, an empty file or a symbolic link, with real directories
// above it.
type Seed struct {
	Path   string // relative to the layer's root
	Kind   SeedKind
	Target string // of a symbolic link
}

// SeedMode is the mode of the directories and files that are made for seeds.
const SeedMode = 0o755

// Plant makes the seeds in a mounted layer. A file or symbolic link that stands where a directory of a path has to
// be gives way, as does one at the path of a file or link; a directory at the path of any seed stays as it is.
func Plant(dir string, seeds []Seed, uid, gid int) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open layer: %w", err)
	}
	defer root.Close()
	for _, s := range seeds {
		if err := plant(root, s, uid, gid); err != nil {
			return fmt.Errorf("make %s in layer: %w", s.Path, err)
		}
	}
	return nil
}

func plant(root *os.Root, s Seed, uid, gid int) error {
	at := ""
	for elem := range strings.SplitSeq(s.Path, "/") {
		at = path.Join(at, elem)
		fi, err := root.Lstat(at)
		isDir := err == nil && fi.IsDir()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err == nil && !isDir {
			if err := root.Remove(at); err != nil {
				return err
			}
		}
		if isDir {
			continue
		}
		switch {
		case at != s.Path || s.Kind == SeedDir:
			err = root.Mkdir(at, SeedMode)
		case s.Kind == SeedSymlink:
			if err := root.Symlink(s.Target, at); err != nil {
				return err
			}
			return root.Lchown(at, uid, gid)
		default:
			var f *os.File
			f, err = root.OpenFile(at, os.O_CREATE|os.O_EXCL|os.O_WRONLY, SeedMode)
			if err == nil {
				err = f.Close()
			}
		}
		if err == nil {
			err = root.Chmod(at, SeedMode) // whatever the process's umask
		}
		if err == nil {
			err = root.Lchown(at, uid, gid)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
