package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/util"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/ids"
)

// slice is the cgroup of all shims: outside the daemon's, so that what ends or limits the daemon leaves them alone.
const slice = "stated-shims.slice"

const cgroupRoot = "/sys/fs/cgroup"

// placeLimit bounds what systemd may take to answer.
const placeLimit = 3 * time.Second

// placement puts shims where they outlive the daemon's unit: with systemd each into a transient scope, else into a
// cgroup of the slice's name. A shim that cannot be moved stays in the daemon's cgroup, with a warning.
type placement struct {
	systemd bool
	unified string   // the cgroup directory that a shim is born into, or empty
	v1      []string // further directories that it is moved to
}

func newPlacement() *placement {
	p := &placement{systemd: util.IsRunningSystemd()}
	if p.systemd {
		return p
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		slog.Warn("shims stay in the daemon's cgroup", "error", err)
		return p
	}
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		names, path, _ := strings.Cut(rest, ":")
		if names == "" {
			p.findUnified()
			continue
		}
		// Nothing ends or limits what is in the root of a hierarchy.
		if path != "/" {
			p.addV1(strings.TrimPrefix(names, "name="))
		}
	}
	return p
}

func (p *placement) findUnified() {
	for _, root := range []string{cgroupRoot, filepath.Join(cgroupRoot, "unified")} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		p.unified = filepath.Join(root, slice)
		return
	}
}

func (p *placement) addV1(names string) {
	root := filepath.Join(cgroupRoot, names)
	dir := filepath.Join(root, slice)
	if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
		slog.Warn("shims stay in the daemon's cgroup", "hierarchy", names, "error", err)
		return
	}
	// A new cpuset takes no process before it has processors and memory.
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		if have, err := os.ReadFile(filepath.Join(dir, name)); err == nil && len(strings.TrimSpace(string(have))) == 0 {
			if all, err := os.ReadFile(filepath.Join(root, name)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, name), all, 0) // the move will say when it did not help
			}
		}
	}
	p.v1 = append(p.v1, dir)
}

// prepare makes a process be born in the slice where the kernel can do that. What it returns is called once the process
// was started. The slice is made anew if somebody has removed it, as may happen while no shim is in it.
func (p *placement) prepare(attr *syscall.SysProcAttr) (done func()) {
	done = func() {}
	if p.unified == "" {
		return done
	}
	err := os.Mkdir(p.unified, 0o755)
	if err != nil && !os.IsExist(err) {
		slog.Warn("a shim stays in the daemon's cgroup", "error", err)
		return done
	}
	dir, err := os.Open(p.unified)
	if err != nil {
		slog.Warn("a shim stays in the daemon's cgroup", "error", err)
		return done
	}
	attr.UseCgroupFD, attr.CgroupFD = true, int(dir.Fd())
	return func() { _ = dir.Close() } // a handle
}

// move puts a shim where prepare could not.
func (p *placement) move(ctx context.Context, pid int, id, execRoot string) {
	if p.systemd {
		if err := startScope(ctx, pid, id, execRoot); err != nil {
			slog.Warn("shim stays in the daemon's unit", "container", ids.Short(id), "error", err)
		}
	}
	for _, dir := range p.v1 {
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		if err != nil {
			slog.Warn("shim stays in the daemon's cgroup", "container", ids.Short(id), "error", err)
		}
	}
}

// startScope asks systemd for a scope around a shim. Two daemons on one host may run containers of the same id, so
// the scope's name has a part that is the exec root's.
func startScope(ctx context.Context, pid int, id, execRoot string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), placeLimit)
	defer cancel()
	conn, err := systemd.NewSystemdConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("connect to systemd: %w", err)
	}
	defer conn.Close()
	sum := sha256.Sum256([]byte(execRoot))
	name := "stated-shim-" + ids.Short(id) + "-" + hex.EncodeToString(sum[:4]) + "-" + strconv.Itoa(pid) + ".scope"
	done := make(chan string, 1)
	_, err = conn.StartTransientUnitContext(ctx, name, "replace", []systemd.Property{
		systemd.PropDescription("shim of container " + ids.Short(id)),
		systemd.PropSlice(slice),
		systemd.PropPids(uint32(pid)),
	}, done)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("start %s: %s", name, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("start %s: %w", name, ctx.Err())
	}
}
