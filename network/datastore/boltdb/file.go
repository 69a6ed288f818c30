package boltdb

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/boltcheck"
)

// goodSuffix names the copy that a clean start leaves in the state directory.
const goodSuffix = ".good"

// checkFile verifies the file's pages before bbolt maps them: bbolt trusts them, and a damaged file can make it
// panic, loop or take all memory. It holds the file's lock meanwhile.
func (s *Store) checkFile(ctx context.Context, wait time.Duration) error {
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open network store: %w", err)
	}
	defer f.Close()
	if err := flock(ctx, f, wait); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return alreadyOpen(s.path)
		}
		return fmt.Errorf("lock network store %s: %w", s.path, err)
	}
	damage := boltcheck.File(f)
	if damage == nil {
		return nil
	}
	aside := fmt.Sprintf("%s.damaged-%d", s.beside, time.Now().UnixNano())
	if err := os.Rename(s.path, aside); err != nil {
		return fmt.Errorf("move damaged network store aside: %w", err)
	}
	s.repair = fmt.Sprintf("network store %s was damaged (%v); it lies at %s now", s.path, damage, aside)
	if good, err := os.Open(s.beside + goodSuffix); err == nil {
		bad := boltcheck.File(good)
		_ = good.Close() // only read
		if bad == nil {
			if err := copyFile(s.beside+goodSuffix, s.path); err != nil {
				return fmt.Errorf("restore network store from its copy: %w", err)
			}
			s.repair += "; the copy of the last clean start took its place"
		}
	}
	slog.ErrorContext(ctx, "network store repaired", "report", s.repair)
	return nil
}

// flock takes the exclusive lock that bbolt takes, waiting at most wait.
func flock(ctx context.Context, f *os.File, wait time.Duration) error {
	deadline := time.NewTimer(wait)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond) // the kernel offers no lock wait with a time limit
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-deadline.C:
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// lockHolder finds the process that holds the lock on path, or 0.
func lockHolder(path string) int {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	inode := ":" + strconv.FormatUint(st.Ino, 10)
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE 1234 fe:00:5678 0 EOF
		if len(f) >= 6 && f[1] == "FLOCK" && f[3] == "WRITE" && strings.HasSuffix(f[5], inode) {
			pid, _ := strconv.Atoi(f[4]) // a pid of another pid namespace reads 0
			return pid
		}
	}
	return 0
}

func (s *Store) keepGoodCopy() error {
	return s.db.View(func(tx *bolt.Tx) error {
		tmp := s.beside + goodSuffix + ".tmp"
		if err := tx.CopyFile(tmp, 0o644); err != nil {
			return err
		}
		return os.Rename(tmp, s.beside+goodSuffix)
	})
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o644)
}

// healLocked writes the file anew when somebody has removed or replaced it under us: what is open is an inode
// without a name then, and everything written to it would be lost at the next start.
func (s *Store) healLocked() error {
	st, err := os.Stat(s.path)
	if err == nil && os.SameFile(st, s.file) {
		return nil
	}
	if err == nil {
		aside := fmt.Sprintf("%s.foreign-%d", s.path, time.Now().UnixNano())
		if err := os.Rename(s.path, aside); err != nil {
			return fmt.Errorf("move foreign network store aside: %w", err)
		}
	}
	slog.Error("network store vanished; writing it anew", "path", s.path)
	tmp := s.path + ".tmp"
	if err := s.db.View(func(tx *bolt.Tx) error { return tx.CopyFile(tmp, 0o644) }); err != nil {
		return fmt.Errorf("write vanished network store: %w", err)
	}
	fresh, file, err := openBolt(tmp, time.Second)
	if err != nil {
		return fmt.Errorf("reopen network store: %w", err)
	}
	if err := os.Rename(tmp, s.path); err != nil {
		_ = fresh.Close() // the old one stays in use
		return fmt.Errorf("name network store: %w", err)
	}
	old := s.db
	s.db, s.file = fresh, file
	return old.Close()
}

// openBolt opens path and returns the identity of the file that was opened.
func openBolt(path string, wait time.Duration) (*bolt.DB, fs.FileInfo, error) {
	var info fs.FileInfo
	db, err := bolt.Open(path, 0o644, &bolt.Options{
		Timeout: wait,
		OpenFile: func(name string, flag int, mode fs.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, mode)
			if err != nil {
				return nil, err
			}
			if info, err = f.Stat(); err != nil {
				_ = f.Close() // the first error is the one to report
				return nil, err
			}
			return f, nil
		},
	})
	return db, info, err
}
