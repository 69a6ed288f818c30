package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/boltcheck"
)

// rescueMetadata moves a damaged database aside and puts the copy of the last start in its place, or in that of a missing
// one, or nothing: then the volumes are found again by their directories, without their labels. It returns a sentence that says so, or "". A
// database that another process has open is left to bbolt, which will refuse it.
func rescueMetadata(dir, stateDir string) (string, error) {
	path := filepath.Join(dir, metadataFile)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if boltcheck.Path(goodCopy(stateDir)) != nil {
			return "", nil // a new data root, or one that somebody brought without it
		}
		return path + " was missing; the copy of the last start took its place", useGoodCopy(path, stateDir)
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil {
		return "", nil
	}
	damage := boltcheck.File(f)
	if damage == nil {
		return "", nil
	}
	aside := filepath.Join(stateDir, fmt.Sprintf("%s.damaged-%d", metadataFile, time.Now().UnixNano()))
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("set aside the damaged %s: %w", path, err)
	}
	text := fmt.Sprintf("%s was damaged (%v) and lies at %s now", path, damage, aside)
	if boltcheck.Path(goodCopy(stateDir)) != nil {
		return text + "; volumes are known by their directories, without labels", nil
	}
	return text + "; the copy of the last start took its place", useGoodCopy(path, stateDir)
}

func useGoodCopy(path, stateDir string) error {
	data, err := os.ReadFile(goodCopy(stateDir))
	if err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("restore %s from its copy: %w", path, err)
	}
	return nil
}

func goodCopy(stateDir string) string { return filepath.Join(stateDir, metadataFile+".good") }

// keepGoodCopy copies the database, so that a later start can do without it.
func (m *metadata) keepGoodCopy(stateDir string) error {
	tmp := goodCopy(stateDir) + ".tmp"
	if err := m.db.View(func(tx *bbolt.Tx) error { return tx.CopyFile(tmp, 0o600) }); err != nil {
		_ = os.Remove(tmp) // what there is of it only takes up space
		return fmt.Errorf("copy the volumes' database: %w", err)
	}
	return os.Rename(tmp, goodCopy(stateDir))
}
