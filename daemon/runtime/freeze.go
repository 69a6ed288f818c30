package runtime

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// Freezer holds a container's processes still by the kernel's freezer alone, for moments: neither its shim nor the OCI
// runtime is asked, and neither learns of it, so that State goes on to say "running". For longer there is Pause.
type Freezer interface {
	// Frozen reports whether the container's cgroup is told to be frozen, by whomever.
	Frozen() (bool, error)
	// Freeze returns once every process is still. It waits for that no longer than two seconds; when it fails they go
	// on. A cgroup that is gone has no processes, and is no error.
	Freeze(ctx context.Context) error
	// Thaw lets the processes go on. One that is not frozen, or gone, is no error.
	Thaw() error
}

const (
	// freezeLimit bounds how long processes may take until they are still. Only one that waits in the kernel for a
	// device or a server, without end, takes more than some milliseconds.
	freezeLimit = 2 * time.Second
	// refreeze is after how many looks version 1 is told again. A process that is born meanwhile can leave its cgroup in
	// between for good; to thaw it and to freeze it again helps.
	refreeze = 50
)

// Freezer finds the container's cgroup, which must be mounted where this process can see it; else it is an
// errdefs.ErrNotImplemented.
func (t *task) Freezer(ctx context.Context) (Freezer, error) {
	paths, err := t.cgroup(ctx)
	if err != nil {
		return nil, t.wrap("find the freezer of", err)
	}
	f := &freezer{dir: paths.unified, file: "cgroup.freeze", frozen: "1", thawed: "0"}
	if paths.version == 1 {
		f = &freezer{dir: paths.v1["freezer"], file: "freezer.state", frozen: "FROZEN", thawed: "THAWED", isV1: true}
	}
	dir, ok := cgroupNamed(f.dir, t.id)
	if ok {
		f.dir = dir
		_, err = os.Stat(f.path())
		ok = err == nil
	}
	if !ok {
		return nil, t.wrap("find the freezer of", fmt.Errorf("its cgroup %q: %w", f.dir, errdefs.ErrNotImplemented))
	}
	return f, nil
}

// cgroupNamed returns the cgroup that has id in its name, at or above dir. Init may have gone into one below, which does
// not have all processes of the container.
func cgroupNamed(dir, id string) (string, bool) {
	at := strings.Index(dir, id)
	if at < 0 {
		return "", false
	}
	if end := strings.IndexByte(dir[at:], '/'); end >= 0 {
		dir = dir[:at+end]
	}
	return dir, true
}

// freezer is the cgroup of a container.
type freezer struct {
	dir            string
	file           string // what is told, and answers on version 1
	frozen, thawed string
	isV1           bool
}

func (f *freezer) path() string { return filepath.Join(f.dir, f.file) }

func (f *freezer) Frozen() (bool, error) {
	file := f.path()
	if f.isV1 {
		file = filepath.Join(f.dir, "freezer.self_freezing") // freezer.state has those above in it, too
	}
	data, err := os.ReadFile(file)
	if isGone(err) {
		return false, nil
	}
	return string(bytes.TrimSpace(data)) == "1", err
}

func (f *freezer) Freeze(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	err := f.tell(f.frozen)
	pause := 50 * time.Microsecond
	for looks := 1; err == nil; looks++ {
		var still bool
		if still, err = f.still(); still {
			return nil
		}
		if err == nil && f.isV1 && looks%refreeze == 0 {
			err = errors.Join(f.tell(f.thawed), f.tell(f.frozen))
		}
		if err == nil {
			err = wait(ctx, pause)
		}
		pause = min(2*pause, 2*time.Millisecond)
	}
	if isGone(err) {
		return nil
	}
	return errors.Join(fmt.Errorf("freeze the cgroup %s: %w", f.dir, err), f.Thaw())
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// still reports whether every process is.
func (f *freezer) still() (bool, error) {
	if f.isV1 {
		state, err := os.ReadFile(f.path())
		return string(bytes.TrimSpace(state)) == f.frozen, err
	}
	events, err := os.ReadFile(filepath.Join(f.dir, "cgroup.events"))
	return bytes.Contains(events, []byte("frozen 1\n")), err
}

func (f *freezer) Thaw() error {
	if err := f.tell(f.thawed); err != nil && !isGone(err) {
		return fmt.Errorf("thaw the cgroup %s: %w", f.dir, err)
	}
	return nil
}

// tell writes to the cgroup. The file is the kernel's, and is not made where it is not.
func (f *freezer) tell(word string) error {
	file, err := os.OpenFile(f.path(), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(word)
	return errors.Join(err, file.Close())
}

// isGone reports whether a cgroup has been removed, before or after its file was opened.
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}
