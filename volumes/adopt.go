package volumes

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Claim says that a container's record names a volume.
type Claim struct {
	Container   string // its name, or id where it has none
	Destination string
	Volume      string
	Driver      string
	// Anonymous says that the volume was made for this container, which knows its labels.
	Anonymous bool
	Labels    map[string]string
}

// AdoptRequest narrows Adopt.
type AdoptRequest struct {
	Names  []string // empty: all that have no record, and all that are claimed
	Claims []Claim
	DryRun bool // nothing is recorded
}

// AdoptionState says what became of a volume.
type AdoptionState string

const (
	AdoptionKept      AdoptionState = "kept"      // it has had a record all along
	AdoptionRecorded  AdoptionState = "recorded"  // it has one now
	AdoptionPossible  AdoptionState = "possible"  // it would have one but for DryRun
	AdoptionMissing   AdoptionState = "missing"   // its data is not there
	AdoptionUncertain AdoptionState = "uncertain" // its driver cannot be asked
)

// Adoption is what Adopt found out about a volume, in sentences for people.
type Adoption struct {
	Name, Driver string
	State        AdoptionState
	Found        []string // what is where
	Missing      []string // and what brings it
	Lost         []string // what nobody knows any more
}

// Adopt gives volumes without a record one, from what their drivers have and the containers tell. Options come from the
// driver, labels from where they are known for certain: a record that was there within a day, or the only container that
// can have asked for them. It makes no data and removes nothing.
func (s *Store) Adopt(ctx context.Context, req AdoptRequest) ([]Adoption, error) {
	claims := map[string][]Claim{}
	for _, c := range req.Claims {
		claims[c.Volume] = append(claims[c.Volume], c)
	}
	names := slices.Clone(req.Names)
	unrecorded, err := s.unrecorded(ctx)
	if err != nil {
		return nil, fmt.Errorf("adopt volumes: %w", err)
	}
	if len(names) == 0 {
		names = append(slices.Collect(maps.Keys(claims)), unrecorded...)
	}
	slices.Sort(names)
	var list []Adoption
	for _, name := range slices.Compact(names) {
		a, err := s.adopt(ctx, name, claims[name], req)
		if err != nil {
			return list, fmt.Errorf("adopt volume %s: %w", name, err)
		}
		list = append(list, a)
	}
	return list, nil
}

// unrecorded lists the volumes of owned drivers that have no record, those that appeared since the start too.
func (s *Store) unrecorded(ctx context.Context) ([]string, error) {
	var names []string
	for _, d := range s.sortedDrivers() {
		if !d.Traits().Owned {
			continue
		}
		if r, ok := d.(Rescanner); ok {
			if err := r.Rescan(ctx); err != nil {
				return nil, err
			}
		}
		listed, err := d.List(ctx)
		if err != nil {
			return nil, err
		}
		for _, info := range listed {
			if e := s.entry(info.Name); e == nil || !e.recorded {
				names = append(names, info.Name)
			}
		}
	}
	return names, nil
}

func (s *Store) adopt(ctx context.Context, name string, claims []Claim, req AdoptRequest) (Adoption, error) {
	unlock, err := s.names.lock(ctx, name)
	if err != nil {
		return Adoption{}, err
	}
	adopted, a, err := s.adoptLocked(ctx, name, claims, req)
	unlock()
	if adopted != nil {
		s.holdUsers(ctx, adopted)
	}
	return a, err
}

// adoptLocked returns the new entry of a volume that it has recorded. The caller holds the name's lock.
func (s *Store) adoptLocked(ctx context.Context, name string, claims []Claim, req AdoptRequest) (*entry, Adoption, error) {
	e := s.entry(name)
	a := Adoption{Name: name, Driver: driverOf(e, claims)}
	d, info, err := s.askDriver(ctx, a.Driver, name)
	switch {
	case err != nil:
		a.State, a.Missing = AdoptionUncertain, []string{err.Error()}
		return nil, a, nil
	case info == nil || info.Broken != nil:
		a.State = AdoptionMissing
		what := s.Missing(name, a.Driver)
		if info != nil {
			what = info.Broken.Error()
		}
		a.Missing = missingFor(claims, name, what)
		if old, buried := s.tombstone(name); buried && info == nil {
			a.Found = append(a.Found, fmt.Sprintf("its labels and options are known for a day, and come back with its directory: %s", describePairs(old.Labels)))
		}
		return nil, a, nil
	}
	a.Found = describeFound(*info, claims)
	if e != nil && e.recorded {
		a.State = AdoptionKept
		return nil, a, nil
	}
	r := s.rebuilt(&a, *info, claims)
	if req.DryRun {
		a.State = AdoptionPossible
		return nil, a, nil
	}
	recorded, err := s.takeInAs(r, d, *info)
	if err != nil {
		return nil, a, err
	}
	s.replaceEntry(e, recorded)
	a.State = AdoptionRecorded
	return recorded, a, nil
}

// replaceEntry lets recorded take the place of e, which may be nil, with those who hold it.
func (s *Store) replaceEntry(e, recorded *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e != nil {
		recorded.refs, recorded.referenced = e.refs, e.referenced
	}
	s.entries[recorded.name] = recorded
}

// driverOf is the driver that a volume is of: by its record, else by those who claim it, else the default one.
func driverOf(e *entry, claims []Claim) string {
	if e != nil && e.recorded {
		return e.driver
	}
	for _, c := range claims {
		if c.Driver != "" {
			return c.Driver
		}
	}
	if e != nil {
		return e.driver
	}
	return DefaultDriver
}

// rebuilt makes the record anew, and notes in a what is lost of it.
func (s *Store) rebuilt(a *Adoption, info Info, claims []Claim) record {
	r := record{Name: a.Name, Driver: a.Driver, Options: info.Options}
	if old, buried := s.tombstone(a.Name); buried && old.Driver == r.Driver {
		a.Found = append(a.Found, "the record that it had until lately: "+describePairs(old.Labels))
		return old
	}
	for _, c := range claims {
		if c.Anonymous {
			r.Labels = map[string]string{AnonymousLabel: ""}
			maps.Copy(r.Labels, c.Labels)
			a.Found = append(a.Found, "labels in the record of container "+c.Container+", for which it was made")
			return r
		}
	}
	lost := "labels, if it had any: nothing tells of them"
	for _, c := range claims {
		if len(c.Labels) > 0 {
			lost += fmt.Sprintf(" but that container %s asked for %s", c.Container, describePairs(c.Labels))
		}
	}
	a.Lost = append(a.Lost, lost)
	if !s.owned(a.Driver) {
		a.Lost = append(a.Lost, "options, if it had any: only its driver knows them")
	}
	return r
}

// Missing says what is to be brought for a volume that its driver does not have, and how.
func (s *Store) Missing(name, driver string) string {
	if driver == "" {
		driver = DefaultDriver
	}
	if r, ok := s.drivers[driver].(Rescanner); ok {
		return fmt.Sprintf("directory %s is missing; copy it there, or create it with docker volume create %s", r.Place(name), name)
	}
	return fmt.Sprintf("driver %s has no volume of that name; bring it there, or create it with docker volume create -d %s %s", driver, driver, name)
}

// missingFor says it for each container that needs the volume.
func missingFor(claims []Claim, name, what string) []string {
	if len(claims) == 0 {
		return []string{what}
	}
	var list []string
	for _, c := range claims {
		list = append(list, fmt.Sprintf("container %s needs volume %s at %s: %s", c.Container, name, c.Destination, what))
	}
	return list
}

// describeFound says what is there of a volume.
func describeFound(info Info, claims []Claim) []string {
	var list []string
	if info.Mountpoint != "" {
		list = append(list, "directory "+info.Mountpoint)
	}
	if len(info.Options) > 0 {
		list = append(list, "options "+describePairs(info.Options))
	}
	for _, c := range claims {
		list = append(list, fmt.Sprintf("used by container %s at %s", c.Container, c.Destination))
	}
	return list
}

func describePairs(labels map[string]string) string {
	if len(labels) == 0 {
		return "none"
	}
	var list []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, key+"="+labels[key])
	}
	return strings.Join(list, ", ")
}
