package raft

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockDir makes a directory and locks it against other processes, until the file is closed.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the log: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the log: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := io.ReadAll(f) // for the message only
		_ = f.Close()              // nothing was written
		if err != unix.EWOULDBLOCK {
			return nil, fmt.Errorf("lock the log in %s: %w", dir, err)
		}
		return nil, fmt.Errorf("the log in %s is in use by another process (pid %s): stop it first: %w", dir, strings.TrimSpace(string(holder)), ErrLocked)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	}
	if err != nil {
		_ = f.Close() // the first error is the one to report
		return nil, fmt.Errorf("lock the log in %s: %w", dir, err)
	}
	return f, nil
}
