package containers

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sync/errgroup"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/daemon/containers/settings"
	"stated.dev/stated/daemon/logs"
	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/internal/ids"
)

// Config is what the service needs to know of the daemon.
type Config struct {
	Dir       string // R/containers
	IndexPath string // the rebuildable summary of all records
	ExecRoot  string
	Root      string // the data root, for the rule on binds of it
	// UID and GID are root's in containers with remapped users, and own what the daemon makes for containers to use.
	UID, GID  int
	LogDriver string // default log driver
	LogOpts   map[string]string
	// Host is what the daemon and the machine contribute to every container's runtime spec.
	Host         ocispec.Host
	CgroupDriver string // "cgroupfs" or "systemd"
	// Settings is what requests are checked against.
	Settings    settings.Host
	StopTimeout time.Duration // between stop signal and kill, where the container says nothing
	LiveRestore bool
	Notifier    *logs.Notifier // shared by all who follow logs; may be nil
	// Sockets are the paths on which the API is served.
	Sockets []string
}

// Service is the life of all containers: their records, verbs and processes.
type Service struct {
	cfg      Config
	layers   Layers
	images   Images
	volumes  Volumes
	networks Networks
	pins     Pins
	runtime  runtime.Runtime
	journal  Journal
	events   Publisher
	log      *slog.Logger

	// ctx lives as long as the service; monitors and restart timers end by it, and tasks waits for them.
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu     sync.RWMutex          // guards the maps; taken alone
	byID   map[string]*Container // every container, broken ones included
	names  map[string]string     // name without slash -> id
	execs  map[string]*exec      // exec id -> exec; guarded by mu
	claims map[string][]string   // volumes of containers that are being created, by container id

	closing  atomic.Bool // the daemon stops its containers
	pruning  sync.Mutex  // held while a prune runs
	problems problemList
}

// New returns a service without containers; Restore fills it.
func New(cfg Config, layers Layers, images Images, volumes Volumes, networks Networks, pins Pins, rt runtime.Runtime, j Journal, pub Publisher, log *slog.Logger) *Service {
	ctx, cancel := context.WithCancel(context.Background())
	return &Service{
		cfg: cfg, layers: layers, images: images, volumes: volumes, networks: networks, pins: pins, runtime: rt, journal: j,
		events: pub, log: log, ctx: ctx, cancel: cancel,
		byID: map[string]*Container{}, names: map[string]string{}, execs: map[string]*exec{}, claims: map[string][]string{},
	}
}

// Close ends monitors and timers. Containers run on, unless live restore is off: then they are stopped, and the next
// start applies their restart policies.
func (s *Service) Close() error {
	var err error
	if !s.cfg.LiveRestore {
		err = s.stopAll()
	}
	s.cancel()
	s.tasks.Wait()
	if indexErr := s.writeIndex(); indexErr != nil {
		s.log.Warn("cannot write the index of containers; the next start takes longer", "err", indexErr)
	}
	return err
}

// stopAll ends every container as a shutdown does: no restart policy acts, and nobody counts it as a user's stop.
func (s *Service) stopAll() error {
	s.closing.Store(true)
	var g errgroup.Group
	for _, c := range s.all() {
		c.cancelRestart()
		if r := c.live(); r != nil {
			g.Go(func() error { return s.end(s.ctx, c, r, api.StopRequest{}) })
		}
	}
	return g.Wait()
}

// Container is one container in memory. Its record is replaced whole by commits and read without a lock.
type Container struct {
	id  string
	dir string

	record atomic.Pointer[Record] // nil until somebody asks for it by rec
	brief  atomic.Pointer[brief]  // never nil
	decode sync.Mutex             // held while the record is read for the first time
	broken atomic.Pointer[string] // why the record cannot be used; nil when it can

	// verb serialises what starts, changes or removes the container. It is held over I/O and guards no field; who
	// only signals, waits or reads does not take it.
	verb chan struct{}

	commitMu  sync.Mutex // one commit of the record at a time; held over the journal, which calls nobody
	unwritten bool       // the record is newer than its file, and rewrite is at it; guarded by commitMu

	mu        sync.Mutex // guards the fields below; a leaf
	run       *run       // the present or last run; nil before the first start
	removed   chan struct{}
	gone      bool // un-recorded; written with commitMu held as well
	waiters   map[*waiter]struct{}
	execIDs   []string
	pending   []*pendingStream // attached before the start
	restart   restartState
	cached    cachedJSON
	inspected []byte // encoded answer of inspect, nil when it must be made anew
	drops     int    // how often the two were dropped

	stopProbes context.CancelFunc // ends the health checks of the run; nil when there are none
}

// run is one life of the container's task.
type run struct {
	handle     atomic.Pointer[runtime.Task] // replaced when the shim has to be found again
	root       string                       // the mounted root file system
	exited     chan struct{}                // closed when the exit stands in the record
	cleaned    chan struct{}                // closed when everything the run held is released
	exit       runtime.Exit                 // valid once exited is closed
	netns      string
	hold       atomic.Pointer[hold] // of Freeze; set and cleared under the verb lock
	stopped    atomic.Bool          // a user asked it to end
	restarting atomic.Bool          // it ends because of a verb that goes on with it: --rm does not apply
}

func newContainer(dir string, r *Record) *Container {
	c := emptyContainer(filepath.Join(dir, r.ID), r.ID)
	c.set(r)
	return c
}

// emptyContainer has no record and no brief yet.
func emptyContainer(dir, id string) *Container {
	return &Container{
		id: id, dir: dir, verb: make(chan struct{}, 1), removed: make(chan struct{}),
		waiters: map[*waiter]struct{}{},
	}
}

func newRun(task runtime.Task, root, netns string) *run {
	r := &run{root: root, netns: netns, exited: make(chan struct{}), cleaned: make(chan struct{})}
	r.handle.Store(&task)
	return r
}

// task is what the run is spoken to by.
func (r *run) task() runtime.Task { return *r.handle.Load() }

// lock takes the verb lock, or gives up when ctx ends or the container has been removed meanwhile.
func (c *Container) lock(ctx context.Context) error {
	select {
	case c.verb <- struct{}{}:
		if c.isGone() {
			c.unlock()
			return c.errGone()
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another operation on container %s: %w", ids.Short(c.id), ctx.Err())
	}
}

func (c *Container) unlock() { <-c.verb }

// currentRun returns the run that is alive or was last, or nil.
func (c *Container) currentRun() *run {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.run
}

// live returns the run when its process has not ended, else nil.
func (c *Container) live() *run {
	r := c.currentRun()
	if r == nil {
		return nil
	}
	select {
	case <-r.exited:
		return nil
	default:
		return r
	}
}

// lookup resolves a full id, a name with or without slash, or a unique prefix of an id.
func (s *Service) lookup(ref string) (*Container, error) {
	if ref == "" {
		return nil, errdefs.ErrInvalidArgument.WithMessage("invalid name or ID supplied: \"\"")
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c, ok := s.byID[ref]; ok {
		return c, nil
	}
	if id, ok := s.names[strings.TrimPrefix(ref, "/")]; ok {
		if c, ok := s.byID[id]; ok {
			return c, nil
		}
	}
	var found *Container
	if isHexPrefix(ref) {
		for id, c := range s.byID {
			if strings.HasPrefix(id, ref) {
				if found != nil {
					return nil, errdefs.ErrInvalidArgument.WithMessage("multiple IDs found with provided prefix: " + ref)
				}
				found = c
			}
		}
	}
	if found == nil {
		return nil, errdefs.ErrNotFound.WithMessage("No such container: " + ref)
	}
	return found, nil
}

func isHexPrefix(s string) bool {
	return len(s) <= ids.Len && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'f')
	})
}

// reserve takes a name for id, or says who has it.
func (s *Service) reserve(name, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if holder, taken := s.names[name]; taken && holder != id {
		return errdefs.ErrConflict.WithMessage(fmt.Sprintf(
			"Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.",
			"/"+name, holder))
	}
	s.names[name] = id
	return nil
}

func (s *Service) releaseName(name, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[name] == id {
		delete(s.names, name)
	}
}

// register makes a container visible.
func (s *Service) register(c *Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[c.id] = c
}

func (s *Service) unregister(c *Container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, c.id)
	name := c.brief.Load().Name
	if s.names[name] == c.id {
		delete(s.names, name)
	}
	for id, e := range s.execs {
		if e.container == c {
			delete(s.execs, id)
		}
	}
}

// all returns every container, newest first.
func (s *Service) all() []*Container {
	s.mu.RLock()
	list := slices.Collect(maps.Values(s.byID))
	s.mu.RUnlock()
	slices.SortFunc(list, func(a, b *Container) int {
		ra, rb := a.brief.Load(), b.brief.Load()
		if d := rb.Created.Compare(ra.Created); d != 0 {
			return d
		}
		return cmp.Compare(a.id, b.id)
	})
	return list
}

// publish tells of a container's event, with the attributes Docker gives: image, name, labels and the extra ones.
func (s *Service) publish(c *Container, action events.Action, extra map[string]string) {
	r := c.rec()
	attrs := make(map[string]string, len(r.Config.Labels)+len(extra)+2)
	maps.Copy(attrs, r.Config.Labels)
	if r.Config.Image != "" {
		attrs["image"] = r.Config.Image
	}
	attrs["name"] = r.name()
	maps.Copy(attrs, extra)
	s.events.Publish(events.ContainerEventType, action, r.ID, attrs)
}

// Problem is something that concerns one container and did not stop the start.
type Problem struct {
	ID     string
	Reason string
}

type problemList struct {
	mu   sync.Mutex // guards list
	list []Problem
}

func (p *problemList) add(id string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list = append(p.list, Problem{ID: id, Reason: err.Error()})
}

// Problems lists what the restore found wrong, and left as it was.
func (s *Service) Problems() []Problem {
	s.problems.mu.Lock()
	defer s.problems.mu.Unlock()
	return slices.Clone(s.problems.list)
}

// undoList collects what must be taken back when a later step fails.
type undoList []func() error

func (u *undoList) add(f func() error) { *u = append(*u, f) }

// runOn runs the list backwards when *err is set, and adds what fails to it.
func (u *undoList) runOn(err *error) {
	if *err == nil {
		return
	}
	for _, f := range slices.Backward(*u) {
		if e := f(); e != nil {
			*err = errors.Join(*err, fmt.Errorf("undo: %w", e))
		}
	}
}
