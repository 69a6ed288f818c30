package containers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/logs"
	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/sandbox"
)

// Start runs a created or ended container.
func (s *Service) Start(ctx context.Context, ref string, req api.StartRequest) error {
	c, err := s.lookup(ref)
	if err != nil {
		return err
	}
	if req.Checkpoint != "" {
		return errdefs.ErrNotImplemented.WithMessage("starting from a checkpoint is not built yet in stated")
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if c.isBroken() {
		return errdefs.ErrConflict.WithMessage("container cannot be started: " + *c.broken.Load())
	}
	state := c.rec().State
	switch {
	case state.Paused:
		return errdefs.ErrConflict.WithMessage("cannot start a paused container, try unpause instead")
	case state.Running && !state.Restarting:
		return types.ErrNotModified
	case state.Restarting:
		return types.ErrNotModified
	case state.Dead:
		return errdefs.ErrConflict.WithMessage("container is marked for removal and cannot be started")
	}
	c.mu.Lock()
	c.restart = restartState{}
	c.mu.Unlock()
	return s.start(ctx, c)
}

// start brings the container up; the caller holds the verb lock. Once begun it does not end with the client: a start
// is whole or undone.
func (s *Service) start(ctx context.Context, c *Container) (err error) {
	ctx = context.WithoutCancel(ctx)
	if prev := c.currentRun(); prev != nil {
		<-prev.cleaned
	}
	defer func() {
		if err != nil {
			err = s.startFailed(ctx, c, err)
		}
	}()
	if err := s.completePaths(ctx, c); err != nil {
		return err
	}
	rec := c.rec()
	var (
		undo   undoList
		undoMu sync.Mutex // guards undo while the branches run
		failed = func(f func() error) {
			undoMu.Lock()
			defer undoMu.Unlock()
			undo.add(f)
		}
		h       = newHolder()
		plan    *mountPlan
		sb      *sandbox.Sandbox
		root    string
		shmPath string
	)
	defer undo.runOn(&err)
	defer func() {
		if plan == nil {
			return
		}
		if err := plan.releasePins(); err != nil {
			s.log.Error("cannot let go of what a container has mounted", "container", c.id, "err", err)
		}
	}()
	took := newTimeline()
	attach := func(netns string) (err error) {
		if sb, err = s.attachNetworks(ctx, rec, h, netns); err != nil || sb == nil {
			return err
		}
		failed(func() error { return s.networks.Release(ctx, sb.ID) })
		took.mark("network")
		return nil
	}
	late := s.ownsNetwork(rec)

	// The shim, the root file system with its mounts, and the network do not wait for each other.
	var branches errgroup.Group
	branches.Go(func() error {
		task, err := s.spawn(ctx, c, rec)
		took.mark("shim")
		if err == nil {
			failed(func() error { return endTask(ctx, task) }) // before others build on it: undone after theirs
		}
		h.set(task, err)
		if err != nil {
			return err
		}
		return s.attachPending(ctx, c, task)
	})
	branches.Go(func() (err error) {
		if root, err = s.layers.MountRW(ctx, rec.ID, rec.MountLabel); err != nil {
			return fmt.Errorf("mount the root file system: %w", err)
		}
		failed(func() error { return s.layers.UnmountRW(ctx, rec.ID) })
		if plan, err = s.setupMounts(ctx, c, rec); err != nil {
			return err
		}
		failed(func() error {
			s.unmountVolumes(ctx, c, plan.volumes)
			return s.unmountImages(ctx, rec)
		})
		if shmPath, err = s.mountShm(rec); err != nil {
			return err
		}
		failed(func() error { return s.unmountShm(rec) })
		took.mark("root")
		return nil
	})
	branches.Go(func() error {
		if late {
			return nil
		}
		return attach("")
	})
	if err := branches.Wait(); err != nil {
		return err
	}
	if rec.HostConfig.NetworkMode.IsContainer() {
		borrowed, err := s.borrowHostname(rec)
		if err != nil {
			return err
		}
		rec = borrowed
	}
	if err := fault.Point("containers.start.prepared"); err != nil {
		return err
	}
	task, err := h.get(ctx)
	if err != nil {
		return err
	}
	netns, err := s.netns(rec, sb)
	if err != nil {
		return err
	}
	if late {
		err = s.touchNetworkFiles(rec, plan.files)
	} else {
		err = s.setupNames(ctx, rec, sb, plan, task)
	}
	if err != nil {
		return err
	}
	spec, err := s.buildSpec(ctx, rec, root, shmPath, netns, plan)
	if err != nil {
		return err
	}
	took.mark("spec")
	pid, err := task.Create(ctx, spec)
	took.mark("create")
	if err != nil {
		return translateStartError(plan.named(err), rec.Path)
	}
	if err := fault.Point("containers.start.created"); err != nil {
		return err
	}
	if late {
		if err := attach(processNamespace(pid, "net")); err != nil {
			return err
		}
		netns = sb.Key
		if err := s.setupNames(ctx, rec, sb, plan, task); err != nil {
			return err
		}
	}
	if err := task.Start(ctx); err != nil {
		return translateStartError(err, rec.Path)
	}
	if err := fault.Point("containers.start.started"); err != nil {
		return err
	}
	took.mark("start")
	at := time.Now()
	if _, err := s.commit(ctx, c, func(r *Record) {
		if !r.State.Restarting {
			r.RestartCount = 0 // a user's start, or that of the daemon, counts anew
		}
		r.setRunning(pid, at)
		r.HasBeenManuallyStopped = false
		r.Config = rec.Config
		r.recordNetworks(sb)
		r.adoptNetworkPeer(s)
		for dest, change := range plan.changes {
			r.MountPoints[dest].ID, r.MountPoints[dest].Source = change.id, change.source
		}
		r.initHealth()
	}); err != nil {
		return err
	}
	took.mark("record")
	s.log.Debug("container started", "container", c.id, "after", took)
	s.began(c, newRun(task, root, netns))
	_ = s.attachPending(ctx, c, task) // who came since the shim was there; each is told what fails
	s.publish(c, events.ActionStart, nil)
	return nil
}

// began takes up a run that is recorded as running: it is watched from now on.
func (s *Service) began(c *Container, r *run) {
	c.mu.Lock()
	c.run = r
	c.mu.Unlock()
	s.startHealth(c, r)
	s.tasks.Go(func() { s.monitor(c, r) })
}

// startFailed records why a start did not happen. The exit code follows Docker: 127 for a command that is not there,
// 126 for one that cannot be executed, 128 for all else.
func (s *Service) startFailed(ctx context.Context, c *Container, cause error) error {
	code := startExitCode(cause)
	s.observe(c, func(r *Record) {
		r.setFailed(code, cause.Error())
		r.clearRuntime()
	})
	c.failPending(cause)
	if c.rec().HostConfig.AutoRemove {
		if err := s.remove(ctx, c, removeOptions{volumes: true}); err != nil {
			s.log.Error("cannot remove a container that failed to start", "container", c.id, "err", err)
		}
	}
	c.wakeExited(code, restartDecision{})
	return cause
}

// startError is a failure to run the container's command.
type startError struct {
	code int
	error
}

func (e *startError) Unwrap() error { return e.error }

func startExitCode(err error) int {
	var se *startError
	if errors.As(err, &se) {
		return se.code
	}
	return 128
}

// translateStartError finds out from the runtime's text what was wrong with the command; the runtime has no codes.
func translateStartError(err error, path string) error {
	text := err.Error()
	if i := strings.Index(text, "OCI runtime create failed"); i >= 0 {
		text = "failed to create shim task: " + text[i:] // the step before it is ours, and users know Docker's
	}
	message := "failed to create task for container: " + text
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(text, p) {
				return true
			}
		}
		return false
	}
	switch {
	case has("executable file not found", "no such file or directory", "system cannot find the file specified") && has(path, "exec"):
		return &startError{code: 127, error: errdefs.ErrInvalidArgument.WithMessage(message)}
	case has("error mounting", "failed to fulfil mount request") && has("not a directory"):
		message += ": Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type"
		return &startError{code: 127, error: errdefs.ErrInvalidArgument.WithMessage(message)}
	case has("permission denied", "is a directory", "not a directory", "exec format error"):
		return &startError{code: 126, error: errdefs.ErrInvalidArgument.WithMessage(message)}
	}
	return &startError{code: 128, error: errors.New(message)}
}

// spawn starts the container's shim. One that an earlier run left, because it could not be deleted then, goes first.
func (s *Service) spawn(ctx context.Context, c *Container, r *Record) (runtime.Task, error) {
	logCfg, err := s.shimLog(r)
	if err != nil {
		return nil, err
	}
	req := runtime.SpawnRequest{
		ID: r.ID, Tty: r.Config.Tty, OpenStdin: r.Config.OpenStdin, StdinOnce: r.Config.StdinOnce,
		Log: logCfg, CgroupDriver: s.cfg.CgroupDriver, UID: s.cfg.UID, GID: s.cfg.GID,
	}
	task, err := s.runtime.Spawn(ctx, req)
	if errdefs.IsAlreadyExists(err) {
		if err := s.dropTask(ctx, c); err != nil {
			return nil, err
		}
		task, err = s.runtime.Spawn(ctx, req)
	}
	if err != nil {
		return nil, fmt.Errorf("start the shim: %w", err)
	}
	return task, nil
}

// setupNames writes the network files and starts the resolver.
func (s *Service) setupNames(ctx context.Context, r *Record, sb *sandbox.Sandbox, plan *mountPlan, task runtime.Task) error {
	if r.HostConfig.NetworkMode.IsContainer() {
		return s.borrowNetworkFiles(r, plan)
	}
	resolver, err := s.writeNetworkFiles(ctx, r, sb, plan.files)
	if err != nil {
		return fmt.Errorf("write the network files: %w", err)
	}
	if !resolver.Embedded {
		return nil
	}
	resolver.Config.NetNS = sb.Key
	if err := task.ServeDNS(ctx, resolver.Config); err != nil {
		return fmt.Errorf("start the resolver: %w", err)
	}
	return nil
}

// completePaths records where a container's own files lie: dockerd leaves that to the first start, and a container that
// was brought from another data root remembers that one's.
func (s *Service) completePaths(ctx context.Context, c *Container) error {
	r := c.rec()
	dir := filepath.Join(s.cfg.Dir, r.ID)
	borrowed := r.HostConfig.NetworkMode.IsContainer() // then the network files are another container's
	own := func(path string) bool { return path != "" && (borrowed || filepath.Dir(path) == dir) }
	// Of the logs only that driver's has its path in the record.
	hasLog := r.HostConfig.LogConfig.Type != logs.JSONFile || r.LogPath != "" && filepath.Dir(r.LogPath) == dir
	if own(r.HostnamePath) && own(r.HostsPath) && own(r.ResolvConfPath) && hasLog {
		return nil
	}
	_, err := s.commit(ctx, c, func(next *Record) {
		for path, name := range map[*string]string{&next.HostnamePath: "hostname", &next.HostsPath: "hosts", &next.ResolvConfPath: "resolv.conf"} {
			if !own(*path) {
				*path = filepath.Join(dir, name)
			}
		}
		if !hasLog {
			next.LogPath = logPath(dir, r.ID, logs.JSONFile)
		}
	})
	return err
}

// borrowNetworkFiles mounts the files of the container whose network this one shares.
func (s *Service) borrowNetworkFiles(r *Record, plan *mountPlan) error {
	peer, err := s.runningPeer(r.HostConfig.NetworkMode.ConnectedContainer(), "network")
	if err != nil {
		return err
	}
	for i, m := range plan.mounts {
		switch m.Source {
		case r.HostnamePath:
			plan.mounts[i].Source = peer.HostnamePath
		case r.HostsPath:
			plan.mounts[i].Source = peer.HostsPath
		case r.ResolvConfPath:
			plan.mounts[i].Source = peer.ResolvConfPath
		}
	}
	return nil
}

// borrowHostname gives a container the host name of the one whose network it shares.
func (s *Service) borrowHostname(r *Record) (*Record, error) {
	peer, err := s.runningPeer(r.HostConfig.NetworkMode.ConnectedContainer(), "network")
	if err != nil {
		return nil, err
	}
	next := r.clone()
	cfg := *r.Config
	cfg.Hostname, cfg.Domainname = peer.Config.Hostname, peer.Config.Domainname
	next.Config = &cfg
	return next, nil
}

// adoptNetworkPeer records the paths of the container whose network this one shares.
func (r *Record) adoptNetworkPeer(s *Service) {
	if !r.HostConfig.NetworkMode.IsContainer() {
		return
	}
	if peer, err := s.runningPeer(r.HostConfig.NetworkMode.ConnectedContainer(), "network"); err == nil {
		r.HostnamePath, r.HostsPath, r.ResolvConfPath = peer.HostnamePath, peer.HostsPath, peer.ResolvConfPath
	}
}

// runningPeer returns the record of the running container whose namespace is to be joined.
func (s *Service) runningPeer(ref, what string) (*Record, error) {
	peer, err := s.lookup(ref)
	if err != nil && what == "network" {
		return nil, errors.New("joining network namespace of container: " + err.Error())
	}
	if err != nil {
		return nil, errors.New("failed to join " + what + " namespace: " + err.Error())
	}
	rec := peer.rec()
	if !rec.State.Running && what == "network" {
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("cannot join network namespace of a non running container: container %s is %s", rec.name(), rec.State.status()))
	}
	if !rec.State.Running {
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("failed to join %s namespace: container %s is not running", what, rec.ID))
	}
	if rec.State.Restarting {
		return nil, errdefs.ErrConflict.WithMessage(fmt.Sprintf("Container %s is restarting, wait until the container is running", rec.ID))
	}
	return rec, nil
}

// buildSpec describes the container to the runtime.
func (s *Service) buildSpec(ctx context.Context, r *Record, root, shmPath, netns string, plan *mountPlan) (*specs.Spec, error) {
	in := ocispec.Input{
		ID: r.ID, Config: r.Config, HostConfig: r.HostConfig, Path: r.Path, Args: r.Args, Rootfs: root,
		Mounts: plan.mounts, ShmPath: shmPath,
		Join: ocispec.Namespaces{Net: netns},
		Security: ocispec.Security{
			ProcessLabel: r.ProcessLabel, MountLabel: r.MountLabel, AppArmorProfile: r.AppArmorProfile,
			SeccompProfile: r.SeccompProfile, NoNewPrivileges: r.NoNewPrivileges, WritableCgroups: r.WritableCgroups,
		},
		Annotations: map[string]string{
			"org.criu.config": filepath.Join(s.cfg.ExecRoot, "containers", r.ID, "criu.conf"),
		},
		Host: s.cfg.Host,
	}
	if mode := r.HostConfig.NetworkMode; mode.IsContainer() {
		peer, err := s.runningPeer(mode.ConnectedContainer(), "network")
		if err != nil {
			return nil, err
		}
		in.Join.User = s.peerUsers(r, peer)
	}
	if mode := r.HostConfig.PidMode; mode.IsContainer() {
		peer, err := s.runningPeer(mode.Container(), "PID")
		if err != nil {
			return nil, err
		}
		in.Join.PID, in.Join.User = processNamespace(peer.State.Pid, "pid"), s.peerUsers(r, peer)
	}
	switch mode := r.HostConfig.IpcMode; {
	case mode.IsContainer():
		peer, err := s.runningPeer(mode.Container(), "IPC")
		if err != nil {
			return nil, err
		}
		if !needsShm(peer) {
			return nil, errdefs.ErrInvalidArgument.WithMessage("can't join IPC of container " + ids.Short(peer.ID) + ": non-shareable IPC (hint: use IpcMode:shareable for the donor container)")
		}
		in.Join.IPC, in.Join.User = processNamespace(peer.State.Pid, "ipc"), s.peerUsers(r, peer)
		in.ShmPath = filepath.Join(s.cfg.Dir, peer.ID, "mounts", "shm")
	case mode.IsHost():
		if _, err := os.Stat("/dev/shm"); err != nil {
			return nil, fmt.Errorf("share the host's /dev/shm: %w", err)
		}
		in.ShmPath = "/dev/shm"
	}
	if err := s.ensureWorkdir(r, root); err != nil {
		return nil, err
	}
	spec, err := ocispec.Build(in)
	if err != nil {
		return nil, err // about what the user asked for, in Docker's words
	}
	return spec, nil
}

// ensureWorkdir makes the working directory where the image does not have it, as Docker does.
func (s *Service) ensureWorkdir(r *Record, root string) error {
	if r.Config.WorkingDir == "" {
		return nil
	}
	if err := ocispec.EnsureWorkdir(root, r.Config.WorkingDir, s.cfg.UID, s.cfg.GID); err != nil {
		return fmt.Errorf("make the working directory: %w", err)
	}
	return nil
}

// timeline notes how long after its beginning the steps of a start ended.
type timeline struct {
	began time.Time

	mu    sync.Mutex // guards marks
	marks []slog.Attr
}

func newTimeline() *timeline { return &timeline{began: time.Now()} }

func (t *timeline) mark(step string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks = append(t.marks, slog.Duration(step, time.Since(t.began)))
}

// LogValue implements slog.LogValuer.
func (t *timeline) LogValue() slog.Value {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slog.GroupValue(t.marks...)
}

// taskEnd is how long processes may take to vanish after SIGKILL when a task is thrown away.
const taskEnd = 10 * time.Second

// endTask kills whatever runs in a task, in whichever state it is, and deletes it.
func endTask(ctx context.Context, task runtime.Task) error {
	ctx, cancel := context.WithTimeout(ctx, taskEnd)
	defer cancel()
	state, err := task.State(ctx)
	if err != nil {
		return err
	}
	if state.Status == runtime.StatusRunning || state.Status == runtime.StatusPaused {
		if err := task.Kill(ctx, int(unix.SIGKILL), true); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		if state.Status == runtime.StatusPaused {
			if err := task.Resume(ctx); err != nil {
				return err // a frozen process cannot die on cgroup v1
			}
		}
		if _, err := task.Wait(ctx); err != nil {
			return err
		}
	}
	return task.Delete(ctx)
}
