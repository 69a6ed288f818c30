package overlay2

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A view is a directory as overlayfs merges it from several layers: the directories of that path, nearest first.
// Its empty value is a path that no layer has.
type view []string

// A found path is what a view has under a name.
type found struct {
	exists bool
	path   string      // of the nearest layer that has it
	stat   unix.Stat_t // of that one
	dir    view        // when it is a directory
}

func (f found) isDir() bool { return f.exists && f.stat.Mode&unix.S_IFMT == unix.S_IFDIR }

// isWhiteout reports whether overlayfs takes the file for a deletion.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// lookup returns what the view has under one name.
func (d *Driver) lookup(v view, name string) (found, error) {
	var f found
	for _, dir := range v {
		path := dir + "/" + name
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return f, &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		if isWhiteout(&st) {
			break
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if !f.exists {
			f.exists, f.path, f.stat = true, path, st
		} else if !isDir {
			break // hidden by the directory above it
		}
		if !isDir {
			break
		}
		f.dir = append(f.dir, path)
		if attr(path, d.opaque) == "y" {
			break
		}
	}
	return f, nil
}

// find is lookup for a path of several names.
func (d *Driver) find(v view, path string) (found, error) {
	var f found
	for elem := range strings.SplitSeq(path, "/") {
		var err error
		if f, err = d.lookup(v, elem); err != nil || !f.exists {
			return f, err
		}
		v = f.dir
	}
	return f, nil
}

// names returns the names that the view has.
func (d *Driver) names(v view) (map[string]struct{}, error) {
	all := map[string]struct{}{}
	for _, dir := range v {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			all[e.Name()] = struct{}{}
		}
	}
	for name := range all {
		f, err := d.lookup(v, name)
		if err != nil {
			return nil, err
		}
		if !f.exists {
			delete(all, name)
		}
	}
	return all, nil
}

// below returns the view of a layer's root without the layer itself.
func (d *Driver) below(id string) (view, error) {
	lowers, err := d.lowers(id)
	return view(lowers), err
}

func (d *Driver) diffPath(id string) string { return filepath.Join(d.home, id, diffDir) }
