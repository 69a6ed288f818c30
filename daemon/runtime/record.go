package runtime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/internal/ids"
)

// What a shim leaves behind: the lock tells whether it lives, the exit record how its container ended, and runc's
// state which process was init.

// exitUnknown is the code of a container whose end nobody saw; it is Docker's.
const exitUnknown = 255

// pidFile is written by runc once init exists.
const pidFile = "init.pid"

// takeLock takes the lock of a runtime directory, to be inherited by the shim. A held one is an ErrAlreadyExists.
func takeLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, shimapi.LockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lk); err != nil {
		_ = f.Close() // nothing was written
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return nil, fmt.Errorf("a shim runs: %w", errdefs.ErrAlreadyExists)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// isLocked reports whether the shim of a runtime directory lives.
func isLocked(dir string) bool {
	f, err := os.OpenFile(filepath.Join(dir, shimapi.LockFile), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close() // only looked at
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return true // never take a shim for dead by mistake
	}
	return lk.Type != unix.F_UNLCK
}

// wasUsed reports whether a container existed in a runtime directory.
func wasUsed(dir string) bool {
	for _, name := range []string{shimapi.ExitFile, pidFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// lastState tells how a container without a shim ended. One whose init runs on without it is an ErrUnavailable:
// it is set aside.
func (r *Shims) lastState(id, dir string) (State, error) {
	data, err := os.ReadFile(filepath.Join(dir, shimapi.ExitFile))
	if err == nil {
		var exit shimapi.Exit
		if err := json.Unmarshal(data, &exit); err != nil {
			return State{}, fmt.Errorf("read the exit record of %s: %w", ids.Short(id), err)
		}
		return State{Status: StatusStopped, Pid: exit.Pid, StartedAt: exit.StartedAt, Exit: toExit(exit)}, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return State{}, fmt.Errorf("read the exit record of %s: %w", ids.Short(id), err)
	}
	if _, err := os.Lstat(filepath.Join(dir, pidFile)); err != nil {
		return State{}, fmt.Errorf("container %s has neither shim nor exit record: %w", ids.Short(id), errdefs.ErrNotFound)
	}
	if pid := r.orphanedInit(id, dir); pid != 0 {
		return State{}, fmt.Errorf("shim of %s is gone, but its process %d runs: set aside: %w",
			ids.Short(id), pid, errdefs.ErrUnavailable)
	}
	return State{Status: StatusStopped, Exit: Exit{Code: exitUnknown, At: time.Now().UTC()}}, nil
}

// orphanedInit returns the pid of a container's init when it lives, by runc's record of its pid and start time.
func (r *Shims) orphanedInit(id, dir string) int {
	var info shimapi.Info
	if data, err := os.ReadFile(filepath.Join(dir, shimapi.InfoFile)); err == nil {
		if json.Unmarshal(data, &info) == nil && info.BootID != shimapi.BootID() {
			return 0 // of an earlier boot
		}
	}
	data, err := os.ReadFile(filepath.Join(r.runcState(id), "state.json"))
	if err != nil {
		return 0
	}
	var state struct {
		Pid   int    `json:"init_process_pid"`
		Start uint64 `json:"init_process_start"`
	}
	if err := json.Unmarshal(data, &state); err != nil || state.Pid == 0 {
		return 0
	}
	if start, err := shimapi.StartTime(state.Pid); err != nil || start != state.Start || isZombie(state.Pid) {
		return 0
	}
	return state.Pid
}

func isZombie(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	_, rest, ok := bytes.Cut(data[bytes.LastIndexByte(data, ')')+1:], []byte(" "))
	return ok && len(rest) > 0 && (rest[0] == 'Z' || rest[0] == 'X')
}

func (r *Shims) runcState(id string) string {
	return filepath.Join(r.root, shimapi.Namespace, id)
}

// deleteDead removes what is left of a container whose shim is gone.
func (r *Shims) deleteDead(ctx context.Context, id, dir string) error {
	if pid := r.orphanedInit(id, dir); pid != 0 {
		return fmt.Errorf("its process %d runs without a shim: %w", pid, errdefs.ErrUnavailable)
	}
	if _, err := os.Lstat(r.runcState(id)); err == nil {
		out, err := exec.CommandContext(ctx, r.runcPath, "--root", filepath.Dir(r.runcState(id)),
			"delete", "--force", id).CombinedOutput()
		if err != nil {
			return fmt.Errorf("delete from runc: %w: %s", err, bytes.TrimSpace(out))
		}
	}
	return removeDir(dir)
}

// removeDir takes a runtime directory away. It is out of sight at once, and whole or gone after a crash.
func removeDir(dir string) error {
	gone := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+"-"+ids.Short(ids.New()))
	if err := os.Rename(dir, gone); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove the runtime directory: %w", err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("remove the runtime directory: %w", err)
	}
	return nil
}

// shimLog returns the end of what a shim said, for an error's text.
func shimLog(dir string) string {
	data, err := os.ReadFile(filepath.Join(dir, shimapi.LogFile))
	if err != nil || len(data) == 0 {
		return ""
	}
	const enough = 1 << 10
	return ": " + strings.TrimSpace(string(data[max(0, len(data)-enough):]))
}

func toExit(e shimapi.Exit) Exit {
	return Exit{Code: e.Code, At: e.Time, OOMKilled: e.OOMKilled}
}
