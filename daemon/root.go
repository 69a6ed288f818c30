package daemon

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/adopt"
	"stated.dev/stated/internal/atomicfile"
)

// stateDir is what is ours below a data root.
const stateDir = ".stated"

// lockRoot takes the data root for this process. A root that dockerd made is backed up before anything in it is
// opened for writing; one that a live dockerd uses is refused.
func lockRoot(root string, log *slog.Logger) (*os.File, error) {
	if adopt.IsDockers(root) {
		if err := adopt.LiveDockerd(root); err != nil {
			return nil, err
		}
		dir, err := adopt.Backup(root, time.Now())
		if err != nil {
			return nil, err
		}
		log.Info("the data root was made by dockerd; its records have been copied", "to", dir)
	}
	if err := os.MkdirAll(filepath.Join(root, stateDir), 0o700); err != nil {
		return nil, fmt.Errorf("prepare the data root: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(root, stateDir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data root: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(f) // for the message only
		_ = f.Close()              // nothing was written
		return nil, fmt.Errorf("the data root %s is in use by another stated (pid %s): stop it, or choose another --data-root", root, strings.TrimSpace(string(holder)))
	}
	err = adopt.LiveDockerd(root)
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		_ = f.Close() // the first error is the one to report
		return nil, fmt.Errorf("lock the data root: %w", err)
	}
	return f, nil
}

// readEngineID reads the engine's id, "" when there is none.
func readEngineID(root string) (string, error) {
	data, err := os.ReadFile(filepath.Join(root, "engine-id"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the engine id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// loadEngineID reads the engine's id, or makes one for a new data root.
func (d *Daemon) loadEngineID() (err error) {
	if d.engineID, err = readEngineID(d.cfg.Root); err != nil || d.engineID != "" {
		return err
	}
	d.engineID = uuid.NewString()
	return atomicfile.Write(filepath.Join(d.cfg.Root, "engine-id"), []byte(d.engineID), 0o600)
}
