// Package atomicfile replaces files whole: a reader sees the old bytes or the new ones, never a part.
package atomicfile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces path with data and returns when both the file and its directory entry are on disk.
func Write(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, true)
}

// WriteNoSync replaces path with data without waiting for the disk. After a power cut the file holds the old
// bytes, the new ones, or none; use it only where something else can repair it.
func WriteNoSync(path string, data []byte, mode fs.FileMode) error {
	return write(path, data, mode, false)
}

func write(path string, data []byte, mode fs.FileMode, sync bool) error {
	st, err := stage(filepath.Dir(path), path, data, mode, sync)
	if err != nil {
		return err
	}
	if err := st.Place(); err != nil {
		st.Discard()
		return err
	}
	if sync {
		return SyncDir(filepath.Dir(path))
	}
	return nil
}

// Staged is the new content of a file, not in its place yet.
type Staged struct{ temp, path string }

// Stage writes what is to replace path into a temporary file in dir, on the same file system, without waiting for the
// disk. What may fail for want of space fails here; Place only renames.
func Stage(dir, path string, data []byte, mode fs.FileMode) (Staged, error) {
	return stage(dir, path, data, mode, false)
}

// Place puts the content in its place.
func (s Staged) Place() error {
	if err := os.Rename(s.temp, s.path); err != nil {
		return fmt.Errorf("replace %s: %w", s.path, err)
	}
	return nil
}

// Discard drops content that was not placed.
func (s Staged) Discard() { _ = os.Remove(s.temp) } // litter is harmless

func stage(dir, path string, data []byte, mode fs.FileMode, sync bool) (_ Staged, err error) {
	f, err := os.CreateTemp(dir, ".tmp-"+filepath.Base(path)+"-")
	if err != nil {
		return Staged{}, fmt.Errorf("replace %s: %w", path, err)
	}
	st := Staged{temp: f.Name(), path: path}
	defer func() {
		if err != nil {
			_ = f.Close() // the first error is the one to report
			st.Discard()
			err = fmt.Errorf("replace %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return st, err
	}
	if err = f.Chmod(mode); err != nil {
		return st, err
	}
	if sync {
		if err = f.Sync(); err != nil {
			return st, err
		}
	}
	return st, f.Close()
}

// SyncDir makes the entries of dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
