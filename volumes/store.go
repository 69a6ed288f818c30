// Package volumes keeps named directories and who uses them.
//
// It hands out paths; it never mounts anything into a container and knows no container but by the id under which it
// holds a volume. What a volume is made of is the driver's affair.
//
// The records of volumes, in metadata.db and in the log before it, are the truth: creation stages a volume on disk,
// records it and then publishes it; removal takes the record away and then deletes. What a crash leaves in between is
// completed or swept when the store opens.
//
// Locks: one per name, held over the driver's calls for that name and over the commit; below it mu, which guards the
// maps and is never held over I/O. Inspecting and listing volumes of an owned driver takes no name lock.
package volumes

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
)

// Publisher takes the store's events. It must not call back into the store.
type Publisher interface {
	Publish(typ events.Type, action events.Action, id string, attrs map[string]string)
}

// Options is what Open needs.
type Options struct {
	// Dir holds metadata.db and the local driver's volumes: <data root>/volumes.
	Dir string
	// StateDir holds what Docker's layout has no place for. Empty: <data root>/.stated/volumes.
	StateDir string
	// Drivers by name. There must be one named DefaultDriver.
	Drivers map[string]Driver
	// Finder finds drivers that are not among Drivers. Nil: there are no others.
	Finder Finder
	// DriverDeadline bounds how long a driver that is not owned may hold up the start, a listing, or the search for a
	// name that no record knows. Zero: 10 seconds.
	DriverDeadline time.Duration
	// StartPatience is for how long after Open a driver is looked for that a record names. Open does not wait for it;
	// who asks for that driver does. Zero: 15 seconds.
	StartPatience time.Duration
	// Events may be nil.
	Events Publisher
	// References, when not nil, returns the true references from the records of all containers that exist or are being
	// created: volume name to container ids. The store asks before it answers that a volume is in use, and holds no
	// lock meanwhile.
	References func(ctx context.Context) map[string][]string
	// Freeze, when not nil, holds the running containers that use a volume still. An export asks for it, and holds no
	// lock meanwhile.
	Freeze func(ctx context.Context, volume string) (Frozen, error)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Store keeps the volumes of one data root.
type Store struct {
	meta       *metadata
	stateDir   string
	drivers    map[string]Driver
	finder     Finder // nil: none
	deadline   time.Duration
	patience   time.Duration
	events     Publisher
	references func(ctx context.Context) map[string][]string
	freeze     func(ctx context.Context, volume string) (Frozen, error)
	now        func() time.Time
	pruning    atomic.Bool
	stocking   atomic.Bool
	buried     atomic.Bool // there may be tombstones
	// sought has a channel for each driver that the start looks for, closed when that ends. It is fixed when Open
	// returns.
	sought map[string]chan struct{}

	// ctx lives as long as the store; the work in the background ends by it, and tasks waits for that.
	ctx   context.Context
	stop  context.CancelFunc
	tasks sync.WaitGroup

	names nameLocks

	mu       sync.RWMutex // guards the maps and the entries' references; taken after a name lock, never held over I/O
	entries  map[string]*entry
	problems map[string]Problem
	exports  map[string]int // how many are under way, by volume
}

// Problem is a volume, or a driver, that was set aside.
type Problem struct {
	Volume string // empty when the trouble is a driver's
	Driver string
	Text   string
}

type discard struct{}

func (discard) Publish(events.Type, events.Action, string, map[string]string) {}

// Open opens the store in opts.Dir, which it creates when missing, and reconciles records and drivers. It waits up to
// a second for another process that has the database open. A bad volume is noted in Problems; a bad database is an
// error.
func Open(ctx context.Context, opts Options) (*Store, error) {
	s := &Store{
		stateDir:   opts.StateDir,
		drivers:    opts.Drivers,
		finder:     opts.Finder,
		deadline:   cmp.Or(opts.DriverDeadline, driverDeadline),
		patience:   cmp.Or(opts.StartPatience, startPatience),
		sought:     map[string]chan struct{}{},
		events:     opts.Events,
		references: opts.References,
		freeze:     opts.Freeze,
		now:        opts.Now,
		entries:    map[string]*entry{},
		problems:   map[string]Problem{},
		exports:    map[string]int{},
	}
	if s.stateDir == "" {
		s.stateDir = filepath.Join(filepath.Dir(opts.Dir), ".stated", "volumes")
	}
	if s.events == nil {
		s.events = discard{}
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.drivers[DefaultDriver] == nil {
		return nil, fmt.Errorf("open volume store %s: there is no driver %q", opts.Dir, DefaultDriver)
	}
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.open(ctx, opts.Dir); err != nil {
		s.stop()
		return nil, fmt.Errorf("open volume store %s: %w", opts.Dir, err)
	}
	return s, nil
}

// Close commits what is pending, leaves the database as dockerd would, and unlocks it. An operation that is still
// under way, which a caller should have waited for, is completed by the next Open.
func (s *Store) Close() error {
	s.stop()
	s.tasks.Wait()
	return s.meta.close(context.Background())
}

// Problems returns what was set aside, sorted by volume.
func (s *Store) Problems() []Problem {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]Problem, 0, len(s.problems))
	for _, p := range s.problems {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Driver, b.Driver))
	})
	return list
}

// setAside notes a problem and logs it: nobody else hears of it unless he asks.
func (s *Store) setAside(p Problem) {
	slog.Warn("volume set aside", "volume", p.Volume, "driver", p.Driver, "problem", p.Text)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems[p.Driver+"/"+p.Volume] = p
}

// GetRequest narrows Get.
type GetRequest struct {
	Driver string // when set, the volume must be this driver's
	Ref    string // when set, a container id that holds the volume from now on
}

// Get returns a volume, with its driver's status.
func (s *Store) Get(ctx context.Context, name string, req GetRequest) (Volume, error) {
	e, info, err := s.get(ctx, name, req)
	if err != nil {
		return Volume{}, err
	}
	v := e.volume()
	v.Status = info.Status
	return v, nil
}

func (s *Store) get(ctx context.Context, name string, req GetRequest) (*entry, Info, error) {
	unlock, err := s.names.lock(ctx, name)
	if err != nil {
		return nil, Info{}, &OpError{Op: "get", Name: name, Err: err}
	}
	defer unlock()
	e, info, err := s.lookup(ctx, name, req.Driver)
	if err != nil {
		return nil, Info{}, &OpError{Op: "get", Name: name, Err: err}
	}
	s.hold(e, req.Ref)
	return e, info, nil
}

// Inspect returns the JSON of a volume as the API shows it, with a newline at its end. Volumes of owned drivers are
// answered from memory.
func (s *Store) Inspect(ctx context.Context, name string) (json.RawMessage, error) {
	if e := s.entry(name); e != nil {
		if encoded := e.encoded.Load(); encoded != nil {
			return *encoded, nil
		}
	}
	e, info, err := s.get(ctx, name, GetRequest{})
	if err != nil {
		return nil, err
	}
	return s.encode(e, info.Status), nil
}

// encode returns the JSON of e, and keeps it where nothing in it can change.
func (s *Store) encode(e *entry, status map[string]any) json.RawMessage {
	if encoded := e.encoded.Load(); encoded != nil {
		return *encoded
	}
	v := e.volume()
	v.Status = status
	encoded := v.encode()
	if s.owned(e.driver) && e.knowsTime() {
		e.encoded.Store(&encoded)
	}
	return encoded
}

func (s *Store) entry(name string) *entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.entries[name]
}

func (s *Store) owned(driver string) bool {
	d := s.drivers[driver]
	return d != nil && d.Traits().Owned
}

// lookup finds the volume that name stands for. The caller holds the name's lock.
func (s *Store) lookup(ctx context.Context, name, driver string) (*entry, Info, error) {
	e := s.entry(name)
	if e == nil {
		return s.probe(ctx, name, driver)
	}
	if driver != "" && driver != e.driver {
		text := "found volume driver does not match passed in driver"
		if e.recorded {
			text = "provided volume driver does not match stored driver"
		}
		return nil, Info{}, errdefs.ErrConflict.WithMessage(text)
	}
	info, err := s.ask(ctx, e)
	switch {
	case err != nil:
		return nil, Info{}, err
	case info == nil:
		if err := s.forget(ctx, e); err != nil {
			return nil, Info{}, err
		}
		return nil, Info{}, ErrNoSuchVolume
	}
	return e, *info, nil
}

// ask returns what e's driver tells of it, or nil when the driver does not know it any more. The caller holds the
// name's lock.
func (s *Store) ask(ctx context.Context, e *entry) (*Info, error) {
	if s.owned(e.driver) && e.knowsTime() {
		return &Info{Name: e.name, Mountpoint: e.path()}, nil
	}
	d, info, err := s.askDriver(ctx, e.driver, e.name)
	if err != nil {
		return nil, err
	}
	if e.unfinished {
		if info == nil {
			made, err := s.stageAndPublish(ctx, d, e.name, e.options)
			if err != nil {
				return nil, fmt.Errorf("complete the creation of volume %s: %w", e.name, err)
			}
			info = &made
		}
		e.unfinished = false
		s.meta.settle(e.name)
	}
	s.reached(e)
	if info != nil {
		e.learn(*info, d)
	}
	return info, nil
}

// askDriver returns what the driver tells of a volume; nil if it does not know it.
func (s *Store) askDriver(ctx context.Context, driver, name string) (Driver, *Info, error) {
	d, err := s.driver(ctx, driver)
	if err == nil {
		var info Info
		if info, err = d.Get(ctx, name); err == nil {
			return d, &info, nil
		}
		if errdefs.IsNotFound(err) {
			return d, nil, nil
		}
	}
	return nil, nil, fmt.Errorf("error while checking if volume %q exists in driver %q: %w", name, driver, err)
}

// probe asks the drivers that are not owned for a volume that the store does not know, or only the named one, and
// takes it in. Volumes of owned drivers are all known.
func (s *Store) probe(ctx context.Context, name, driver string) (*entry, Info, error) {
	d, info, err := s.whereIs(ctx, name, driver)
	switch {
	case err != nil:
		return nil, Info{}, err
	case info == nil:
		return nil, Info{}, ErrNoSuchVolume
	}
	e, err := s.takeIn(record{Name: name, Driver: d.Name()}, d, *info)
	return e, *info, err
}

// whereIs asks the named driver for a volume, or all that are not owned at once: then the first by name has it, and one
// that fails or takes long has not.
func (s *Store) whereIs(ctx context.Context, name, driver string) (Driver, *Info, error) {
	if driver != "" {
		return s.askDriver(ctx, driver, name)
	}
	list := s.foreignDrivers(ctx)
	if len(list) == 0 {
		return nil, nil, ctx.Err()
	}
	infos := make([]*Info, len(list))
	bounded, cancel := context.WithTimeout(ctx, s.deadline)
	defer cancel()
	var wg sync.WaitGroup
	for i, d := range list {
		wg.Go(func() {
			if info, err := d.Get(bounded, name); err == nil {
				infos[i] = &info
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, nil, err // what was not asked for to its end is not unknown
	}
	for i, info := range infos {
		if info != nil {
			return list[i], info, nil
		}
	}
	return nil, nil, nil
}

// takeIn records a volume that a driver turned out to have. Labels and options come back from its tombstone, if it
// has been missing for less than a day. The caller holds the name's lock.
func (s *Store) takeIn(r record, d Driver, info Info) (*entry, error) {
	if old, ok := s.tombstone(r.Name); ok && old.Driver == r.Driver {
		r = old
	}
	if err := s.meta.commit(&change{name: r.Name, record: &r}); err != nil {
		return nil, err
	}
	s.dropTombstone(r.Name)
	e := newEntry(r, d, info)
	e.recorded = true
	s.setEntry(e)
	return e, nil
}

// forget drops a volume that its driver does not know any more, and keeps what was known of it as a tombstone. The
// caller holds the name's lock.
func (s *Store) forget(_ context.Context, e *entry) error {
	if err := s.writeTombstone(*e.record()); err != nil {
		return err
	}
	if err := s.meta.commit(&change{name: e.name}); err != nil {
		return fmt.Errorf("error removing volume metadata: %w", err)
	}
	s.dropEntry(e)
	return nil
}

func (s *Store) setEntry(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[e.name] = e
}

// dropEntry takes e out of the map, unless another volume has the name by now.
func (s *Store) dropEntry(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.entries[e.name] == e {
		delete(s.entries, e.name)
	}
}

func (s *Store) sortedDrivers() []Driver {
	list := make([]Driver, 0, len(s.drivers))
	for _, d := range s.drivers {
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b Driver) int { return cmp.Compare(a.Name(), b.Name()) })
	return list
}
