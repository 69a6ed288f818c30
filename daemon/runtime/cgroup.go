package runtime

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// cgroupPaths are the directories of a container's cgroup.
type cgroupPaths struct {
	version int
	unified string            // version 2
	v1      map[string]string // version 1, by controller
}

// cgroup finds the container's cgroup by its init, once.
func (t *task) cgroup(ctx context.Context) (*cgroupPaths, error) {
	t.mu.Lock()
	known := t.cgroups
	t.mu.Unlock()
	if known != nil {
		return known, nil
	}
	st, err := t.State(ctx)
	if err != nil {
		return nil, err
	}
	if st.Pid == 0 || st.Status == StatusStopped || st.Status == StatusSpawned {
		return nil, fmt.Errorf("container is %s: %w", st.Status, errdefs.ErrFailedPrecondition)
	}
	found, err := cgroupOf(st.Pid)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.cgroups = found
	t.mu.Unlock()
	return found, nil
}

func cgroupOf(pid int) (*cgroupPaths, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find the cgroup of process %d: %w", pid, err)
	}
	p := &cgroupPaths{version: 2, v1: map[string]string{}}
	for line := range strings.Lines(string(data)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		names, path, _ := strings.Cut(rest, ":")
		if names == "" {
			p.unified = filepath.Join(cgroupRoot, path)
			continue
		}
		dir := filepath.Join(cgroupRoot, strings.TrimPrefix(names, "name="), path)
		for name := range strings.SplitSeq(names, ",") {
			if !strings.HasPrefix(name, "name=") {
				p.version = 1
				p.v1[name] = dir
			}
		}
	}
	return p, nil
}

// Pids lists the processes of the container's cgroup and those below it.
func (t *task) Pids(ctx context.Context) ([]int, error) {
	paths, err := t.cgroup(ctx)
	if err != nil {
		return nil, t.wrap("list processes of", err)
	}
	root := paths.unified
	if paths.version == 1 {
		// runc has made it in every hierarchy; any of those it always joins will do.
		for _, name := range []string{"devices", "freezer", "memory", "pids", "cpu"} {
			if dir := paths.v1[name]; dir != "" {
				root = dir
				break
			}
		}
	}
	var pids []int
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // gone in the meantime
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		pids, err = appendPids(pids, filepath.Join(path, "cgroup.procs"))
		return err
	})
	return pids, t.wrap("list processes of", err)
}

func appendPids(pids []int, path string) ([]int, error) {
	f, err := os.Open(path)
	if err != nil {
		if os.IsNotExist(err) {
			return pids, nil
		}
		return pids, err
	}
	defer f.Close() // only read
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		pid, err := strconv.Atoi(sc.Text())
		if err != nil {
			return pids, fmt.Errorf("read %s: %w", path, err)
		}
		if pid != 0 { // 0 is a process of another pid namespace
			pids = append(pids, pid)
		}
	}
	return pids, sc.Err()
}
