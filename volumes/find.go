package volumes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// driverDeadline bounds how long a driver that is not owned may hold up the start, a listing, or the search for a
	// name that no record knows. Calls for its own volumes have the driver's own limits.
	driverDeadline = 10 * time.Second
	// startPatience is for how long after the start a driver is looked for that a record names.
	startPatience = 15 * time.Second
	seekInterval  = 250 * time.Millisecond
)

// A Finder finds drivers that come and go while the store is open. None of them is owned.
type Finder interface {
	// Find returns the driver of that name, started. One that is not there is an errdefs.ErrNotFound; any other error
	// means that it is there and cannot be used now. It may take as long as a call to that driver, and nobody who
	// asks for another name waits meanwhile.
	Find(ctx context.Context, name string) (Driver, error)
	// All returns the drivers that can be used, sorted by name. It may leave out what did not answer lately, and does so
	// with what does not answer within the limit.
	All(ctx context.Context, limit time.Duration) []Driver
}

// driver returns a driver by name; "" is the default one. Shortly after the start it waits for one that a record
// names.
func (s *Store) driver(ctx context.Context, name string) (Driver, error) {
	if name == "" {
		name = DefaultDriver
	}
	if d := s.drivers[name]; d != nil {
		return d, nil
	}
	if s.finder == nil {
		return nil, errdefs.ErrNotFound.WithMessage(
			fmt.Sprintf("error looking up volume plugin %s: plugin %q not found", name, name))
	}
	if ended := s.sought[name]; ended != nil {
		select {
		case <-ended:
		case <-ctx.Done():
			return nil, fmt.Errorf("error looking up volume plugin %s: %w", name, ctx.Err())
		}
	}
	return s.finder.Find(ctx, name)
}

// foreignDrivers returns the drivers that are not owned and can be used now, sorted by name.
func (s *Store) foreignDrivers(ctx context.Context) []Driver {
	var list []Driver
	for _, d := range s.sortedDrivers() {
		if !d.Traits().Owned {
			list = append(list, d)
		}
	}
	if s.finder == nil {
		return list
	}
	for _, d := range s.finder.All(ctx, s.deadline) {
		if s.drivers[d.Name()] == nil {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b Driver) int { return cmp.Compare(a.Name(), b.Name()) })
	return list
}

// seekDrivers looks in the background for the drivers of recorded volumes that could not be asked at the start. Until
// one is found its volumes are problems.
func (s *Store) seekDrivers(volumes map[string][]string) {
	if s.finder == nil {
		return
	}
	for driver := range volumes {
		if s.drivers[driver] == nil {
			s.sought[driver] = make(chan struct{})
			s.noteUnreachable(driver, volumes[driver], errors.New("it has not answered since the start"))
		}
	}
	for driver, ended := range s.sought {
		s.tasks.Go(func() {
			err := s.seek(driver, volumes[driver])
			close(ended)
			if err == nil {
				s.settle(driver, volumes[driver])
			}
		})
	}
}

// seek waits until the driver can be used, for as long as the start is patient.
func (s *Store) seek(driver string, volumes []string) error {
	ctx, cancel := context.WithTimeout(s.ctx, s.patience)
	defer cancel()
	tick := time.NewTicker(seekInterval)
	defer tick.Stop()
	for first := true; ; first = false {
		_, err := s.finder.Find(ctx, driver)
		if err == nil {
			return nil
		}
		if first {
			s.unreachable(driver, volumes, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return err
		}
	}
}

// settle asks a driver about its recorded volumes, as their next user would. It stops at the first that the driver
// cannot be asked about: then their users will.
func (s *Store) settle(driver string, volumes []string) {
	for i, name := range volumes {
		_, _, err := s.get(s.ctx, name, GetRequest{Driver: driver})
		switch {
		case s.ctx.Err() != nil:
			return
		case err != nil && !errors.Is(err, ErrNoSuchVolume) && !errdefs.IsConflict(err): // somebody may have made it anew
			s.unreachable(driver, volumes[i:], err)
			return
		}
	}
}

// unreachable notes that a driver cannot be asked about volumes. They stay as they are.
func (s *Store) unreachable(driver string, volumes []string, cause error) {
	slog.Warn("volume driver unreachable; its volumes are kept", "driver", driver, "volumes", len(volumes), "err", cause)
	s.noteUnreachable(driver, volumes, cause)
}

func (s *Store) noteUnreachable(driver string, volumes []string, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range volumes {
		s.problems[driver+"/"+name] = Problem{Volume: name, Driver: driver, Text: "driver unreachable: " + cause.Error()}
	}
}

// reached takes back what is noted of e, whose driver has answered, and asks in the background about its other volumes.
func (s *Store) reached(e *entry) {
	s.mu.RLock()
	_, noted := s.problems[e.driver+"/"+e.name]
	s.mu.RUnlock()
	if !noted || s.owned(e.driver) {
		return
	}
	var others []string
	s.mu.Lock()
	for key, p := range s.problems {
		if p.Driver == e.driver && p.Volume != "" {
			delete(s.problems, key)
			if p.Volume != e.name {
				others = append(others, p.Volume)
			}
		}
	}
	s.mu.Unlock()
	if len(others) > 0 && s.ctx.Err() == nil {
		s.tasks.Go(func() { s.settle(e.driver, others) })
	}
}
