package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"

	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/sandbox"
)

// unknownExit is the exit code of a container whose end nobody saw, as dockerd's.
const unknownExit = 255

// restored is what the restore found out about one container before it acts.
type restored struct {
	c     *Container
	task  runtime.Task
	state runtime.State
	fate  fate
	later bool // it is started or removed in the background
}

// fate is what becomes of a container at the start of the daemon.
type fate int

const (
	idle     fate = iota // it does not run and did not
	alive                // it runs
	died                 // it ran when the last daemon looked, and does not now
	aborted              // a start was under way that nobody was told of
	setAside             // its state cannot be known, or another daemon runs it: it is left alone
)

// Restore finds every container of the data root again: what still runs is taken up, what has ended is recorded, and
// the restart policies are applied. Nothing that concerns one container stops the others.
func (s *Service) Restore(ctx context.Context) error {
	list, err := s.load(ctx)
	if err != nil {
		return err
	}
	found, err := s.survey(ctx, list)
	if err != nil {
		return err
	}
	if err := s.restoreNetworks(ctx, found); err != nil {
		return err
	}
	if s.mountsLeft() {
		if err := each(found, func(f *restored) { s.unmountIdle(ctx, f) }); err != nil {
			return err
		}
	}
	if err := each(found, func(f *restored) { s.settle(ctx, f) }); err != nil {
		return err
	}
	s.dropFrozenNotes(found)
	if err := s.dropOrphans(ctx); err != nil {
		s.log.Error("cannot clean up the runtime directory", "err", err)
	}
	if err := s.pins.Clear(); err != nil { // no start is under way: those that were have been undone
		s.log.Error("cannot clean up after starts that did not end", "err", err)
	}
	// Who shares another container's namespaces starts after it. Who needs a plug-in is not waited for: it may not be
	// there yet, or hang. Neither is, then, who may share the namespaces of such a one.
	far := slices.ContainsFunc(found, (*restored).needsPlugin)
	for _, wanted := range []bool{false, true} {
		if err := each(found, func(f *restored) {
			if f.hasPeer() == wanted {
				f.later = f.needsPlugin() || (wanted && far)
				s.resume(ctx, f)
			}
		}); err != nil {
			return err
		}
	}
	return nil
}

// hasPeer reports whether the container, if it may be started, shares a namespace with another one.
func (f *restored) hasPeer() bool {
	if f.fate == idle && !f.c.brief.Load().Active {
		return false // its record need not be read for this
	}
	hc := f.c.rec().HostConfig
	return hc.NetworkMode.IsContainer() || hc.PidMode.IsContainer() || hc.IpcMode.IsContainer()
}

// each runs f for every item, a bounded number at a time.
func each(list []*restored, f func(*restored)) error {
	var g errgroup.Group
	g.SetLimit(8 * goruntime.NumCPU())
	for _, item := range list {
		g.Go(func() error {
			f(item)
			return nil
		})
	}
	return g.Wait()
}

// load reads every record of the data root and registers its container.
func (s *Service) load(ctx context.Context) ([]*Container, error) {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	all := make([]*Container, len(entries))
	indexed := s.readIndex()
	var stale atomic.Bool
	var g errgroup.Group
	g.SetLimit(4 * goruntime.NumCPU())
	for i, e := range entries {
		if !e.IsDir() || !ids.Valid(e.Name()) {
			continue
		}
		g.Go(func() error {
			if c := s.fromIndex(indexed, e.Name()); c != nil {
				all[i] = c
				return nil
			}
			stale.Store(true)
			if removeUnrecorded(filepath.Join(s.cfg.Dir, e.Name())) {
				return nil
			}
			c, err := s.loadOne(e.Name())
			if err != nil {
				s.log.Error("container not restored", "container", e.Name(), "err", err)
				s.problems.add(e.Name(), err)
				c = s.brokenContainer(e.Name(), err)
			}
			all[i] = c
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var list []*Container
	for _, c := range all {
		if c == nil {
			continue
		}
		s.register(c)
		if c.isBroken() {
			continue
		}
		if err := s.reserve(c.brief.Load().Name, c.id); err != nil {
			s.log.Error("container not restored", "container", c.id, "err", err)
			s.problems.add(c.id, err)
			c.setBroken(err)
			continue
		}
		list = append(list, c)
	}
	if stale.Load() {
		// The next start may be after a kill: it shall not have to decode everything again.
		s.tasks.Go(func() {
			if err := s.writeIndex(); err != nil {
				s.log.Warn("cannot write the index of containers; the next start takes longer", "err", err)
			}
		})
	}
	return list, ctx.Err()
}

// fromIndex returns a container whose record need not be read, or nil.
func (s *Service) fromIndex(indexed map[string]indexEntry, id string) *Container {
	e, ok := indexed[id]
	if !ok || e.Brief.Driver != s.layers.DriverName() {
		return nil
	}
	dir := filepath.Join(s.cfg.Dir, id)
	config, host, err := stampsOf(dir)
	if err != nil || config != e.Config || host != e.Host {
		return nil
	}
	c := emptyContainer(dir, id)
	c.brief.Store(e.Brief)
	return c
}

func (s *Service) loadOne(id string) (*Container, error) {
	r, err := readRecord(filepath.Join(s.cfg.Dir, id), id)
	if err != nil {
		return nil, err
	}
	if r.Driver != s.layers.DriverName() {
		return nil, fmt.Errorf("its layers are of graph driver %q; start with -s %s to use it", r.Driver, r.Driver)
	}
	return newContainer(s.cfg.Dir, r), nil
}

// brokenContainer stands for one whose record cannot be used. Nothing of it is touched.
func (s *Service) brokenContainer(id string, cause error) *Container {
	c := newContainer(s.cfg.Dir, brokenRecord(id, cause))
	c.setBroken(cause)
	return c
}

// brokenRecord tells those who ask why there is no other.
func brokenRecord(id string, cause error) *Record {
	return &Record{ID: id, Name: "/" + id, Config: &types.ContainerConfig{}, HostConfig: &container.HostConfig{},
		NetworkSettings: &NetworkSettings{}, State: State{Dead: true, Error: cause.Error()}}
}

func (c *Container) setBroken(cause error) {
	text := cause.Error()
	c.broken.Store(&text)
}

func (c *Container) isBroken() bool { return c.broken.Load() != nil }

// survey asks the shims what really runs.
func (s *Service) survey(ctx context.Context, list []*Container) ([]*restored, error) {
	dirs, err := s.runtime.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list tasks: %w", err)
	}
	hasShim := map[string]bool{}
	for _, id := range dirs {
		hasShim[id] = true
	}
	found := make([]*restored, 0, len(list))
	for _, c := range list {
		found = append(found, &restored{c: c})
	}
	return found, each(found, func(f *restored) {
		if running := f.c.brief.Load().Running; running || hasShim[f.c.id] {
			s.ask(ctx, f, hasShim[f.c.id])
		}
	})
}

// ask decides one container's fate from its record and its shim.
func (s *Service) ask(ctx context.Context, f *restored, hasShim bool) {
	rec := f.c.rec()
	if f.c.isBroken() {
		f.fate = setAside // it was readable when the index was written
		s.note(f.c, errors.New(rec.State.Error))
		return
	}
	if !hasShim {
		if rec.State.Running && runsElsewhere(rec) {
			f.fate = setAside
			s.note(f.c, fmt.Errorf("it is run by another daemon as process %d and was left alone", rec.State.Pid))
			return
		}
		f.fate = died
		f.state.Exit = runtime.Exit{Code: unknownExit, At: time.Now()}
		return
	}
	task, err := s.runtime.Reconnect(ctx, f.c.id)
	if err == nil {
		f.task = task
		f.state, err = task.State(ctx)
	}
	switch {
	case errdefs.IsNotFound(err) && !rec.State.Running:
		f.fate = aborted
	case errdefs.IsNotFound(err) && runsElsewhere(rec):
		f.fate = setAside
		s.note(f.c, fmt.Errorf("its shim is gone but its process %d lives, so it was left alone", rec.State.Pid))
	case errdefs.IsNotFound(err):
		f.fate = died
		f.state.Exit = runtime.Exit{Code: unknownExit, At: time.Now()}
	case err != nil:
		f.fate = setAside
		s.note(f.c, fmt.Errorf("its shim does not answer, so it was left alone: %w", err))
	case rec.State.Running && !rec.State.Restarting && (f.state.Status == runtime.StatusRunning || f.state.Status == runtime.StatusPaused):
		f.fate = alive
	case rec.State.Running && f.state.Status == runtime.StatusStopped:
		f.fate = died
	default:
		f.fate = aborted
	}
}

// runsElsewhere reports whether the recorded process lives and belongs to this container, as its cgroup tells.
func runsElsewhere(r *Record) bool {
	if r.State.Pid <= 0 {
		return false
	}
	cgroup, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(r.State.Pid), "cgroup"))
	return err == nil && bytes.Contains(cgroup, []byte(r.ID))
}

// note puts a reason into the container's State.Error in memory, the log and the list of problems. The record on disk
// stays as it is: the reason may be gone at the next start.
func (s *Service) note(c *Container, reason error) {
	s.log.Error("container not restored", "container", c.id, "err", reason)
	s.problems.add(c.id, reason)
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	next := c.rec().clone()
	next.State.Error = reason.Error()
	c.set(next)
	c.dropCache()
}

// SetAside notes that something of a container is missing or damaged, which others found out. A container that is not
// known is none of our business.
func (s *Service) SetAside(id string, reason error) {
	s.mu.RLock()
	c := s.byID[id]
	s.mu.RUnlock()
	if c != nil && !c.isBroken() {
		s.note(c, fmt.Errorf("its root file system: %w", reason))
	}
}

// restoreNetworks takes up the sandboxes of what runs; the controller removes all others.
func (s *Service) restoreNetworks(ctx context.Context, found []*restored) error {
	active := map[string]string{}
	tasks := map[string]runtime.Task{}
	for _, f := range found {
		if f.fate != alive && f.fate != setAside {
			continue
		}
		rec := f.c.rec()
		id := rec.NetworkSettings.SandboxID
		if id == "" || rec.HostConfig.NetworkMode.IsContainer() {
			continue
		}
		active[id] = f.c.id
		tasks[f.c.id] = f.task
	}
	return s.networks.Restore(ctx, active, func(id string) sandbox.PortHolder {
		if task := tasks[id]; task != nil {
			return task
		}
		return nil
	})
}

// mountsLeft reports whether anything at all is mounted below the data root, as it is beside running containers and
// after a daemon that was killed, but not after a reboot or a clean stop.
func (s *Service) mountsLeft() bool {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(s.cfg.Root))
	if err != nil {
		return true // then every container is looked at
	}
	return slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return m.Mountpoint != s.cfg.Root })
}

// unmountIdle takes down what a start had mounted when the last daemon was killed in it, before it had begun to start
// a shim.
func (s *Service) unmountIdle(ctx context.Context, f *restored) {
	if f.fate != idle {
		return
	}
	layers := []string{f.c.id}
	for _, image := range f.c.brief.Load().Images {
		layers = append(layers, image.Layer)
	}
	if slices.ContainsFunc(layers, func(name string) bool { _, mounted := s.layers.MountedRW(name); return mounted }) {
		s.cleanUp(ctx, f.c, nil, "", nil)
	}
}

// settle brings record and host into agreement, and rebuilds the references to volumes.
func (s *Service) settle(ctx context.Context, f *restored) {
	s.restoreVolumes(ctx, f)
	if f.fate == idle && !f.c.brief.Load().Active {
		return
	}
	rec := f.c.rec()
	switch f.fate {
	case alive:
		s.adopt(ctx, f)
	case died:
		s.recordDeath(ctx, f)
	case aborted:
		s.abort(ctx, f)
	case idle:
		if hasRuntimeState(rec) {
			if _, err := s.commit(ctx, f.c, func(r *Record) { r.clearRuntime() }); err != nil {
				s.log.Error("cannot clear stale network settings", "container", f.c.id, "err", err)
			}
		}
	}
	_ = fault.Point("containers.restore.settled") // an injected error changes nothing here
}

func hasRuntimeState(r *Record) bool {
	if r.NetworkSettings.SandboxID != "" && !r.HostConfig.NetworkMode.IsContainer() {
		return true
	}
	for _, m := range r.MountPoints {
		if m.IsVolume() && m.ID != "" {
			return true
		}
	}
	return false
}

// restoreVolumes looks up each volume of the record, so that its users are known before the API answers. A missing one
// is that container's trouble alone: its start will fail with the same words.
func (s *Service) restoreVolumes(ctx context.Context, f *restored) {
	for _, v := range f.c.brief.Load().Volumes {
		err := s.volumes.Claim(ctx, v.Name, v.Driver, f.c.id)
		if err == nil && (f.fate == alive || f.fate == setAside) { // what is left alone may run and use it
			if m := f.c.rec().MountPoints[v.Destination]; m != nil && m.ID != "" {
				err = s.volumes.LiveRestore(ctx, v.Name, m.ID)
			}
		}
		if err != nil {
			s.note(f.c, fmt.Errorf("volume at %s: %w", v.Destination, err))
		}
	}
}

// adopt takes up a container that kept running.
func (s *Service) adopt(ctx context.Context, f *restored) {
	rec := f.c.rec()
	root, mounted := s.layers.MountedRW(f.c.id)
	if !mounted {
		s.note(f.c, errors.New("its root file system is not mounted where it should be; exec may fail until it is restarted"))
	}
	r := newRun(f.task, root, rec.NetworkSettings.SandboxKey)
	frozen := s.isNotedFrozen(f.c.id)
	if paused := f.state.Status == runtime.StatusPaused; paused != rec.State.Paused && !frozen {
		s.observe(f.c, func(next *Record) { next.State.Paused = paused })
	}
	s.began(f.c, r)
	if frozen {
		if err := s.thawLeft(ctx, f.c, r); err != nil {
			s.note(f.c, fmt.Errorf("an export of its volume had paused it, and it does not go on: %w", err))
		}
	}
	if err := s.restoreExecs(ctx, f.c, r); err != nil {
		s.log.Error("cannot take up the execs of a container", "container", f.c.id, "err", err)
	}
}

// recordDeath deals with a container that ended while no daemon looked: the same as an end seen by one, but without
// waiting for the restart policy's delay.
func (s *Service) recordDeath(ctx context.Context, f *restored) {
	rec := f.c.rec()
	exit := f.state.Exit
	mounted := mountedVolumes(rec)
	s.observe(f.c, func(next *Record) {
		if !rec.State.Restarting {
			next.setStopped(exit)
		}
		next.State.Running, next.State.Restarting, next.State.Paused, next.State.Pid = false, false, false, 0
		next.clearRuntime()
	})
	near, far := byDistance(mounted)
	s.cleanUp(ctx, f.c, f.task, "", near) // its sandbox is gone: the controller was not told that it lives
	if len(far) > 0 {
		s.tasks.Go(func() { s.unmountVolumes(s.ctx, f.c, far) })
	}
}

// byDistance parts volumes of this host from those of plug-ins, which may take minutes to answer: the start waits for
// none of them.
func byDistance(list []volumeMount) (near, far []volumeMount) {
	for _, v := range list {
		if isFar(v.driver) {
			far = append(far, v)
		} else {
			near = append(near, v)
		}
	}
	return near, far
}

func isFar(driver string) bool { return driver != "" && driver != "local" }

// needsPlugin reports whether the container has a volume of a plug-in.
func (f *restored) needsPlugin() bool {
	return slices.ContainsFunc(f.c.brief.Load().Volumes, func(v volumeClaim) bool { return isFar(v.Driver) })
}

// abort undoes a start that was not acknowledged when the last daemon ended.
func (s *Service) abort(ctx context.Context, f *restored) {
	if f.task != nil {
		if err := endTask(ctx, f.task); err != nil {
			s.note(f.c, fmt.Errorf("its half-started process does not end: %w", err))
			return
		}
	}
	rec := f.c.rec()
	if rec.State.Running || hasRuntimeState(rec) {
		s.observe(f.c, func(next *Record) {
			next.State.Running, next.State.Restarting, next.State.Pid = false, false, 0
			next.clearRuntime()
		})
	}
	s.cleanUp(ctx, f.c, nil, "", nil)
}

// resume applies the restart policy, and removes what asked to be removed at its end. In the background the policy goes on
// with a start that fails.
func (s *Service) resume(ctx context.Context, f *restored) {
	if f.fate == alive || f.fate == setAside || (f.fate == idle && !f.c.brief.Load().Active) {
		return
	}
	rec := f.c.rec()
	switch {
	case rec.HostConfig.AutoRemove && rec.HasBeenStartedBefore:
		remove := func(ctx context.Context) {
			if err := s.removeAuto(ctx, f.c, nil); err != nil {
				s.log.Error("cannot remove a container that asked for it", "container", f.c.id, "err", err)
			}
		}
		if f.later {
			s.tasks.Go(func() { remove(s.ctx) })
		} else {
			remove(ctx)
		}
	case startsAtBoot(rec) && f.later:
		s.observe(f.c, func(next *Record) { next.State.Running, next.State.Restarting = true, true })
		s.restartLater(f.c, 0)
	case startsAtBoot(rec):
		if err := f.c.lock(ctx); err != nil {
			return
		}
		defer f.c.unlock()
		if err := s.start(ctx, f.c); err != nil {
			s.problems.add(f.c.id, err)
			s.log.Error("restart failed", "container", f.c.id, "err", err)
		}
	}
}

// startsAtBoot is the restart rule for the start of the daemon.
func startsAtBoot(r *Record) bool {
	if !r.HasBeenStartedBefore || r.State.Dead || r.NetworkSettings.HasSwarmEndpoint {
		return false
	}
	switch policy := r.HostConfig.RestartPolicy; policy.Name {
	case container.RestartPolicyAlways:
		return true
	case container.RestartPolicyUnlessStopped:
		return !r.HasBeenManuallyStopped
	case container.RestartPolicyOnFailure:
		return r.State.ExitCode != 0 && !r.HasBeenManuallyStopped && (policy.MaximumRetryCount == 0 || r.RestartCount < policy.MaximumRetryCount)
	}
	return false
}

// dropOrphans removes the tasks of containers that are no more. One whose directory is still there, but cannot be
// read, is left alone.
func (s *Service) dropOrphans(ctx context.Context) error {
	list, err := s.runtime.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range list {
		if _, err := os.Lstat(filepath.Join(s.cfg.Dir, id)); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		task, err := s.runtime.Reconnect(ctx, id)
		if err == nil {
			err = endTask(ctx, task)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("task of removed container %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// OwnsLayer reports whether the writable layer of that name is that of a container that exists, or one of its image
// mounts.
func (s *Service) OwnsLayer(name string) bool {
	id, _, _ := strings.Cut(name, "-")
	return s.Exists(id)
}

// IDs lists the containers that have a record, readable or not.
func (s *Service) IDs() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Keys(s.byID))
}

// Exists reports whether a container of that id has a record, readable or not, or is being created.
func (s *Service) Exists(id string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, ok := s.byID[id]; ok {
		return true
	}
	for _, holder := range s.names { // a name is reserved before anything is made
		if holder == id {
			return true
		}
	}
	return false
}
