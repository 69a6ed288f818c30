package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// found is what one driver answered at the start.
type found struct {
	volumes map[string]Info
	err     error
}

// open locks the database, starts the drivers, and brings records and drivers together: one scan of the database and
// one listing for each driver.
func (s *Store) open(ctx context.Context, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o701); err != nil {
		return err
	}
	if err := os.MkdirAll(s.stateDir, 0o700); err != nil {
		return err
	}
	rescued, err := rescueMetadata(dir, s.stateDir)
	if err != nil {
		return err
	}
	if rescued != "" {
		s.setAside(Problem{Driver: metadataFile, Text: rescued})
	}
	if s.meta, err = openMetadata(dir); err != nil {
		return err
	}
	dropped, err := s.meta.openLog(s.stateDir, rescued != "")
	if err != nil {
		_ = s.meta.close(ctx) // the first error is the one to report
		return err
	}
	for _, name := range dropped {
		s.setAside(Problem{Volume: name, Text: "a change of its record was dropped: another daemon has written " + metadataFile + " since"})
	}
	if rescued == "" {
		if err := s.meta.keepGoodCopy(s.stateDir); err != nil { // on a full disk the copy before has to do
			s.setAside(Problem{Driver: metadataFile, Text: err.Error()})
		}
	}
	s.meta.sync = s.syncDrivers
	if err := s.restore(ctx); err != nil {
		_ = s.meta.close(ctx) // the first error is the one to report
		return err
	}
	return nil
}

func (s *Store) restore(ctx context.Context) error {
	s.buried.Store(true) // until they have been looked at
	listed, err := s.startDrivers(ctx)
	if err != nil {
		return err
	}
	var records []record
	marks := map[string]mark{}
	err = s.meta.scan(
		func(r record) { records = append(records, r) },
		func(name string, mk mark) { marks[name] = mk },
		func(name string, err error) {
			s.setAside(Problem{Volume: name, Text: fmt.Sprintf("the record in %s cannot be read: %v", metadataFile, err)})
		})
	if err != nil {
		return fmt.Errorf("read volume records: %w", err)
	}

	var changes []*change
	unasked := map[string][]string{} // driver -> its volumes, whose state is unknown
	keep := map[string]mark{}
	for _, r := range records {
		if f := listed[r.Driver]; r.Driver != "" && (s.drivers[r.Driver] == nil || f.err != nil) {
			s.keepUnasked(r, marks[r.Name])
			unasked[r.Driver] = append(unasked[r.Driver], r.Name)
			if mk, marked := marks[r.Name]; marked {
				keep[r.Name] = mk
			}
			delete(marks, r.Name)
			continue
		}
		changes = append(changes, s.restoreRecord(ctx, r, listed, marks[r.Name])...)
		delete(marks, r.Name)
	}
	s.completeRemovals(ctx, listed, marks)
	changes = append(changes, s.adoptUnrecorded(ctx, listed)...)
	if err := s.commitRestored(ctx, changes, keep); err != nil {
		return fmt.Errorf("update volume records: %w", err)
	}
	s.sweepTombstones()
	s.finishCopyUps(ctx)
	s.sweepSnapshots()
	s.seekDrivers(unasked)
	return nil
}

// startDrivers starts all drivers at once and lists their volumes. Only an owned driver's failure stops the start.
func (s *Store) startDrivers(ctx context.Context) (map[string]found, error) {
	var (
		mu     sync.Mutex // guards listed
		listed = map[string]found{}
		wg     sync.WaitGroup
	)
	for _, d := range s.sortedDrivers() {
		wg.Go(func() {
			volumes, err := startDriver(ctx, d, s.deadline)
			mu.Lock()
			defer mu.Unlock()
			listed[d.Name()] = found{volumes: volumes, err: err}
		})
	}
	wg.Wait()
	for name, f := range listed {
		switch {
		case f.err == nil:
		case s.owned(name):
			return nil, fmt.Errorf("start volume driver %s: %w", name, f.err)
		default:
			s.setAside(Problem{Driver: name, Text: f.err.Error()})
		}
	}
	return listed, nil
}

func startDriver(ctx context.Context, d Driver, deadline time.Duration) (map[string]Info, error) {
	if !d.Traits().Owned {
		bounded, cancel := context.WithTimeout(ctx, deadline)
		defer cancel()
		ctx = bounded
	}
	if err := d.Start(ctx); err != nil {
		return nil, err
	}
	list, err := d.List(ctx)
	if err != nil {
		return nil, err
	}
	volumes := make(map[string]Info, len(list))
	for _, info := range list {
		volumes[info.Name] = info
	}
	return volumes, nil
}

// keepUnasked takes in a volume whose driver is not there or did not answer. Its state is unknown; the driver is asked
// when it is used.
func (s *Store) keepUnasked(r record, mk mark) {
	e := &entry{name: r.Name, driver: r.Driver, scope: "local", labels: r.Labels, options: r.Options, recorded: true,
		unfinished: mk.Op == markCreate}
	if d := s.drivers[r.Driver]; d != nil {
		e.scope = d.Traits().Scope
	} else if s.finder == nil {
		_, err := s.driver(s.ctx, r.Driver)
		s.setAside(Problem{Volume: r.Name, Driver: r.Driver, Text: err.Error()})
	}
	s.entries[r.Name] = e
}

// restoreRecord takes a recorded volume in and returns what its record needs to change.
func (s *Store) restoreRecord(ctx context.Context, r record, listed map[string]found, mk mark) []*change {
	var changes []*change
	if r.Driver == "" { // written by a very old daemon, or by one that died early
		r.Driver = whoHas(r.Name, listed)
		if _, known := listed[r.Driver].volumes[r.Name]; !known && s.finder != nil {
			return nil // a driver that is to be found may have it, and will be asked by its first user
		}
		changes = append(changes, &change{name: r.Name, record: &r})
	}
	d := s.drivers[r.Driver]
	info, known := listed[r.Driver].volumes[r.Name]
	if !known && mk.Op == markImport {
		return []*change{{name: r.Name}} // nobody was told of it, and its data is gone
	}
	if mk.Op == markCreate && (!known || isBroken(ctx, d, r.Name)) {
		// The creation was recorded, perhaps even acknowledged, but its directory did not reach the disk.
		var err error
		if info, err = s.stageAndPublish(ctx, d, r.Name, r.Options); err != nil {
			s.setAside(Problem{Volume: r.Name, Driver: r.Driver, Text: "complete its creation: " + err.Error()})
		}
		known = err == nil
	}
	if !known {
		if err := s.writeTombstone(r); err != nil { // the record has to do for one
			s.setAside(Problem{Volume: r.Name, Driver: r.Driver, Text: err.Error()})
			return nil
		}
		return []*change{{name: r.Name}}
	}
	s.entries[r.Name] = newRecorded(r, d, info)
	if len(r.Options) > 0 {
		s.checkVolume(ctx, d, r.Name)
	}
	return changes
}

// checkVolume notes a volume that cannot be mounted. It is asked of the volumes that may have mount options, so that a
// start does not touch every volume.
func (s *Store) checkVolume(ctx context.Context, d Driver, name string) {
	if !d.Traits().Owned {
		return
	}
	if info, err := d.Get(ctx, name); err == nil && info.Broken != nil {
		s.setAside(Problem{Volume: name, Driver: d.Name(), Text: info.Broken.Error()})
	}
}

func isBroken(ctx context.Context, d Driver, name string) bool {
	info, err := d.Get(ctx, name)
	return err == nil && info.Broken != nil
}

func newRecorded(r record, d Driver, info Info) *entry {
	e := newEntry(r, d, info)
	e.recorded = true
	return e
}

// whoHas returns the driver that lists name, the default one if none does.
func whoHas(name string, listed map[string]found) string {
	holder := DefaultDriver
	for driver, f := range listed {
		if _, has := f.volumes[name]; has && (holder == DefaultDriver || driver < holder) {
			holder = driver
		}
	}
	return holder
}

// completeRemovals deletes what is left of volumes whose records are gone, and keeps them out of the listing.
func (s *Store) completeRemovals(ctx context.Context, listed map[string]found, marks map[string]mark) {
	for name, mk := range marks {
		if mk.Op != markRemove || mk.Token == "" {
			continue
		}
		for driver, f := range listed {
			d := s.drivers[driver]
			if _, left := f.volumes[name]; !left || !d.Traits().Owned {
				continue
			}
			err := d.Remove(ctx, name, mk.Token)
			if err != nil && !errdefs.IsNotFound(err) {
				s.setAside(Problem{Volume: name, Driver: driver, Text: "complete its removal: " + err.Error()})
			}
			if _, err := d.Get(ctx, name); errdefs.IsNotFound(err) {
				delete(f.volumes, name)
			}
		}
	}
}

// adoptUnrecorded takes in what owned drivers have and no record tells of: directories that appeared while no daemon
// ran. One that comes back within a day gets its labels back, and a record; the others get one when they are used.
func (s *Store) adoptUnrecorded(ctx context.Context, listed map[string]found) []*change {
	var changes []*change
	for _, d := range s.sortedDrivers() {
		if !d.Traits().Owned {
			continue
		}
		for name, info := range listed[d.Name()].volumes {
			if s.entries[name] != nil {
				continue
			}
			r := record{Name: name, Driver: d.Name()}
			old, buried := s.tombstone(name)
			if buried && old.Driver == r.Driver {
				r = old
				changes = append(changes, &change{name: name, record: &r})
				s.dropTombstone(name)
			}
			e := newEntry(r, d, info)
			e.recorded = buried
			s.entries[name] = e
			s.checkVolume(ctx, d, name)
		}
	}
	return changes
}

// commitRestored writes what the start changed, and drops the marks, all of which have been acted upon but for those to
// keep.
func (s *Store) commitRestored(ctx context.Context, changes []*change, keep map[string]mark) error {
	marked, err := s.meta.hasMarks()
	if err != nil || (!marked && len(changes) == 0) {
		return err
	}
	if marked {
		if err := s.syncDrivers(ctx); err != nil {
			return err
		}
	}
	return s.meta.replaceMarks(changes, keep)
}

func (s *Store) syncDrivers(ctx context.Context) error {
	var errs []error
	for _, d := range s.sortedDrivers() {
		if d.Traits().Owned {
			errs = append(errs, d.Sync(ctx))
		}
	}
	return errors.Join(errs...)
}

// stageAndPublish makes a volume whose record is written already.
func (s *Store) stageAndPublish(ctx context.Context, d Driver, name string, options map[string]string) (Info, error) {
	staged, err := d.Stage(ctx, name, options)
	if err != nil {
		return Info{}, err
	}
	return staged.Publish(ctx)
}
