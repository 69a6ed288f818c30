package adopt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// IsDockers reports whether the root holds Docker's files and stated has never run on it.
func IsDockers(root string) bool {
	if _, err := os.Lstat(filepath.Join(root, ".stated")); err == nil {
		return false
	}
	for _, dir := range []string{"containers", "image", "volumes", "network"} {
		if _, err := os.Lstat(filepath.Join(root, dir)); err == nil {
			return true
		}
	}
	return false
}

// Backup copies the databases, the names of images and the records of containers to .stated/backup-<time> below the
// root, and returns that directory. The copy is durable when it returns, and whole or not there. .stated comes into
// being with it, so that a start that was cut short makes the backup the next time.
func Backup(root string, now time.Time) (_ string, err error) {
	name := "backup-" + now.UTC().Format("20060102T150405Z")
	tmp := filepath.Join(root, ".stated.new")
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("back up the records: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("back up the records of %s: %w", root, err), os.RemoveAll(tmp))
		}
	}()
	dir := filepath.Join(tmp, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	var paths []string
	for _, pattern := range []string{"engine-id", "volumes/metadata.db", "network/files/local-kv.db", "image/*/repositories.json", "containers/*/*.json"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return "", err
		}
		paths = append(paths, found...)
	}
	for _, path := range paths {
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return "", err
		}
		if err := copyInto(path, filepath.Join(dir, rel)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if err := syncFilesystem(tmp); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, filepath.Join(root, ".stated")); err != nil {
		return "", err
	}
	return filepath.Join(root, ".stated", name), syncFilesystem(root)
}

// copyInto copies a regular file with its mode and time.
func copyInto(from, to string) error {
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := copyPlain(from, to, info.Mode().Perm()); err != nil {
		return err
	}
	return os.Chtimes(to, info.ModTime(), info.ModTime())
}

// copyPlain copies without a flush: the file system is synced once for all.
func copyPlain(from, to string, mode fs.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, mode)
}

func syncFilesystem(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
