package volumes

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"stated.dev/stated/internal/atomicfile"
)

// tombstoneLife is how long labels and options of a vanished volume are kept for its return. A driver may have said
// "unknown" in error.
const tombstoneLife = 24 * time.Hour

const tombstoneDir = "tombstones"

// maxTombstoneName leaves room in a file's name for what stands around the volume's.
const maxTombstoneName = 200

// tombstonePath is where the tombstone of a volume is or would be. Plug-ins take names that are too long for a file.
func (s *Store) tombstonePath(name string) string {
	file := url.PathEscape(name)
	if len(file) > maxTombstoneName {
		file = fmt.Sprintf("sha256-%x", sha256.Sum256([]byte(name)))
	}
	return filepath.Join(s.stateDir, tombstoneDir, file+".json")
}

func (s *Store) writeTombstone(r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("keep what is known of vanished volume %s: %w", r.Name, err)
	}
	path := s.tombstonePath(r.Name)
	s.buried.Store(true)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("keep what is known of vanished volume %s: %w", r.Name, err)
	}
	slog.Warn("volume has vanished from its driver", "volume", r.Name, "driver", r.Driver, "kept", path)
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("keep what is known of vanished volume %s: %w", r.Name, err)
	}
	return nil
}

// tombstone returns what is known of a volume that vanished less than tombstoneLife ago.
func (s *Store) tombstone(name string) (record, bool) {
	path := s.tombstonePath(name)
	st, err := os.Stat(path)
	if err != nil || s.now().Sub(st.ModTime()) > tombstoneLife {
		return record{}, false
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return record{}, false
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil || r.Name != name {
		return record{}, false
	}
	return r, true
}

func (s *Store) dropTombstone(name string) {
	if !s.buried.Load() {
		return
	}
	if err := os.Remove(s.tombstonePath(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Warn("cannot remove the tombstone of a volume", "volume", name, "error", err)
	}
}

// sweepTombstones removes those that nothing came back to, and learns whether there are any.
func (s *Store) sweepTombstones() {
	dir := filepath.Join(s.stateDir, tombstoneDir)
	list, err := os.ReadDir(dir)
	if err != nil {
		s.buried.Store(!errors.Is(err, fs.ErrNotExist))
		return
	}
	s.buried.Store(len(list) > 0)
	for _, e := range list {
		if info, err := e.Info(); err == nil && s.now().Sub(info.ModTime()) > tombstoneLife {
			_ = os.Remove(filepath.Join(dir, e.Name())) // the next start finds it again
		}
	}
}
