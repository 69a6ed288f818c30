package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/journal"
	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/builtin"
	"stated.dev/stated/graphdriver/layer"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network"
	"stated.dev/stated/volumes"
)

// HandBack makes a data root whole for dockerd after a power cut, with the daemon stopped: it brings the journal's
// changes into Docker's files, repairs what the driver had not written yet, and syncs everything. It returns a
// sentence for everything it did.
func HandBack(ctx context.Context, cfg Config, log *slog.Logger) (done []string, err error) {
	if err := cfg.fillAndCheck(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(cfg.Root, stateDir)); err != nil {
		return nil, fmt.Errorf("stated has not run on the data root %s: there is nothing to hand back", cfg.Root)
	}
	lock, err := lockRoot(cfg.Root, log)
	if err != nil {
		return nil, err
	}
	var opened closers
	opened.add(lock)
	defer func() { err = errors.Join(err, opened.Close()) }()
	j, report, err := journal.Open(cfg.Root, filepath.Join(cfg.Root, stateDir), log)
	if err != nil {
		return nil, err
	}
	opened.add(j)
	for _, path := range report.Replayed {
		done = append(done, "brought "+path+" to its last state")
	}
	for _, path := range report.Kept {
		done = append(done, "left "+path+" alone: somebody else has written it since")
	}
	// Opening the store brings its log into metadata.db and makes the directories that a power cut took.
	store, err := volumes.Open(ctx, volumeOptions(cfg))
	if err != nil {
		return done, err
	}
	opened.add(store)
	for _, p := range store.Problems() {
		done = append(done, fmt.Sprintf("volume %s: %s", cmp.Or(p.Volume, p.Driver), p.Text))
	}
	driver, err := graphdriver.Open(ctx, cfg.graphOptions(), builtin.Table())
	if err != nil {
		return done, err
	}
	opened.add(driver)
	layers, err := layer.Open(ctx, filepath.Join(cfg.Root, "image", driver.String()), driver)
	if err != nil {
		return done, err
	}
	opened.add(layers)
	notes, err := layers.Repair(ctx)
	done = append(done, notes...)
	if err != nil {
		return done, fmt.Errorf("repair the layers: %w", err)
	}
	return done, nil // closing the journal syncs the file system and empties it
}

// CleanUp removes what a stopped daemon without running containers has left outside its data root: bridges, packet
// rules, network namespaces, mounts and the runtime directory. The data root keeps all it has. It returns what it
// removed.
func CleanUp(ctx context.Context, cfg Config, log *slog.Logger) (removed []string, err error) {
	if err := cfg.fillAndCheck(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(cfg.Root, stateDir)); err == nil {
		lock, err := lockRoot(cfg.Root, log)
		if err != nil {
			return nil, err
		}
		defer lock.Close()
	}
	if err := refuseRunning(ctx, cfg); err != nil {
		return nil, err
	}
	var errs []error
	if id, err := readEngineID(cfg.Root); err != nil {
		errs = append(errs, err)
	} else if id != "" {
		list, err := network.Leave(ctx, id)
		removed = append(removed, list...)
		errs = append(errs, err)
	}
	errs = append(errs, pinDir(cfg.ExecRoot).Clear()) // first: unmounted like others they might take more with them
	mounts, err := mountsBelow(cfg.Root, cfg.ExecRoot)
	errs = append(errs, err)
	for _, path := range mounts {
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
			continue
		}
		removed = append(removed, "mount "+path)
	}
	// What is still mounted must not be emptied.
	if left, err := mountsBelow(cfg.ExecRoot); err == nil && len(left) == 0 {
		if _, err := os.Stat(cfg.ExecRoot); err == nil {
			errs = append(errs, os.RemoveAll(cfg.ExecRoot))
			removed = append(removed, "directory "+cfg.ExecRoot)
		}
	}
	return append(removed, runtime.RemoveEmptyCgroups(cmp.Or(cfg.CgroupParent, "docker"))...), errors.Join(errs...)
}

// refuseRunning names the containers that run, if any do.
func refuseRunning(ctx context.Context, cfg Config) (err error) {
	if _, err := os.Stat(cfg.ExecRoot); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	rt, err := runtime.New(runtime.Options{ExecRoot: cfg.ExecRoot, ShimPath: cfg.ShimPath, RuncPath: cfg.RuncPath})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rt.Close()) }()
	list, err := rt.List(ctx)
	if err != nil {
		return fmt.Errorf("list the containers that may run: %w", err)
	}
	var running []string
	for _, id := range list {
		task, err := rt.Reconnect(ctx, id)
		if err == nil {
			var st runtime.State
			if st, err = task.State(ctx); err == nil && st.Status == runtime.StatusStopped {
				continue
			}
		}
		// A shim that does not answer may have a container.
		if !errdefs.IsNotFound(err) {
			running = append(running, containerName(cfg.Root, id))
		}
	}
	if len(running) > 0 {
		slices.Sort(running)
		return fmt.Errorf("these containers run: %s; stop them first, with the daemon running", strings.Join(running, ", "))
	}
	return nil
}

// containerName is how a user knows a container.
func containerName(root, id string) string {
	var r struct{ Name string }
	data, err := os.ReadFile(filepath.Join(root, "containers", id, "config.v2.json"))
	if err != nil || json.Unmarshal(data, &r) != nil || r.Name == "" {
		return ids.Short(id)
	}
	return strings.TrimPrefix(r.Name, "/")
}

// mountsBelow lists the mount points below the directories, the last mounted first.
func mountsBelow(dirs ...string) ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		path := unescape.Replace(f[4])
		if slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(path, dir+"/") }) {
			list = append(list, path)
		}
	}
	slices.Reverse(list)
	return list, nil
}

// unescape undoes what mountinfo does to white space and backslashes.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
