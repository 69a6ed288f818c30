package volumes

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"sync"

	"stated.dev/stated/internal/filters"
)

// List returns the volumes that pass the filters dangling, name, driver and label, by name. A driver that fails, or
// that is not there, is a warning, and its volumes are listed as last known.
func (s *Store) List(ctx context.Context, f filters.Args) ([]Volume, []string, error) {
	if err := f.Validate("dangling", "name", "driver", "label"); err != nil {
		return nil, nil, err
	}
	pick, err := s.selection(f)
	if err != nil {
		return nil, nil, err
	}
	entries, warnings, err := s.listEntries(ctx, pick)
	if err != nil {
		return nil, nil, err
	}
	list := make([]Volume, 0, len(entries))
	for _, e := range entries {
		s.learnTime(ctx, e)
		list = append(list, e.volume())
	}
	return list, warnings, nil
}

// ListEncoded is List with each volume as the API shows it, encoded once for as long as the volume lives.
func (s *Store) ListEncoded(ctx context.Context, f filters.Args) ([]json.RawMessage, []string, error) {
	if err := f.Validate("dangling", "name", "driver", "label"); err != nil {
		return nil, nil, err
	}
	pick, err := s.selection(f)
	if err != nil {
		return nil, nil, err
	}
	entries, warnings, err := s.listEntries(ctx, pick)
	if err != nil {
		return nil, nil, err
	}
	list := make([]json.RawMessage, 0, len(entries))
	for _, e := range entries {
		s.learnTime(ctx, e)
		list = append(list, s.encode(e, nil))
	}
	return list, warnings, nil
}

// learnTime asks an owned driver for the creation time of a volume that nobody has looked at since the start.
func (s *Store) learnTime(ctx context.Context, e *entry) {
	if !s.owned(e.driver) || e.knowsTime() {
		return
	}
	if info, err := s.drivers[e.driver].Get(ctx, e.name); err == nil { // without a time it is listed with none
		e.learn(info, s.drivers[e.driver])
	}
}

// selection turns filters into a test of one volume. It is called with mu held.
func (s *Store) selection(f filters.Args) (func(e *entry) bool, error) {
	wantDangling, err := f.Bool("dangling", false)
	if err != nil {
		return nil, err
	}
	var patterns []*regexp.Regexp
	for _, name := range f["name"] {
		if re, err := regexp.Compile(name); err == nil { // what is no pattern can still equal a name
			patterns = append(patterns, re)
		}
	}
	named := func(name string) bool {
		return f.Match("name", name) || slices.ContainsFunc(patterns, func(re *regexp.Regexp) bool { return re.MatchString(name) })
	}
	return func(e *entry) bool {
		return f.Match("driver", e.driver) &&
			named(e.name) &&
			f.MatchLabels("label", e.labels) &&
			!(f.Has("label!") && f.MatchLabels("label!", e.labels)) &&
			(!f.Has("dangling") || (len(e.refs) == 0) == wantDangling)
	}, nil
}

// listEntries returns the volumes that pick holds for, by name.
func (s *Store) listEntries(ctx context.Context, pick func(*entry) bool) ([]*entry, []string, error) {
	foreign, listed, warnings := s.listForeign(ctx)
	if err := ctx.Err(); err != nil {
		return nil, nil, &OpError{Op: "list", Err: err}
	}
	var picked []*entry
	orphans := map[string]string{} // driver that was not asked -> the first of its volumes
	s.mu.RLock()
	for _, e := range s.entries {
		answered, asked := listed[e.driver]
		if !asked && !s.owned(e.driver) {
			if first, ok := orphans[e.driver]; !ok || e.name < first {
				orphans[e.driver] = e.name
			}
		}
		if gone := answered && foreign[e.name] == nil; !gone && pick(e) {
			picked = append(picked, e)
		}
	}
	for name, e := range foreign {
		known := s.entries[name]
		switch {
		case known == nil:
			if pick(e) {
				picked = append(picked, e)
			}
		case known.driver != e.driver:
			warnings = append(warnings, fmt.Sprintf("volume name %s already exists for driver %s, not including volume returned by %s",
				name, known.driver, e.driver))
		}
	}
	s.mu.RUnlock()
	for driver, name := range orphans {
		warnings = append(warnings, fmt.Sprintf("list %s: volume driver of %s and perhaps others is not available", driver, name))
	}
	for _, e := range picked {
		if f := foreign[e.name]; f != nil && f != e && f.driver == e.driver {
			e.learnFrom(f)
			s.reached(e)
		}
	}
	slices.SortFunc(picked, func(a, b *entry) int { return cmp.Compare(a.name, b.name) })
	slices.Sort(warnings)
	return picked, warnings, nil
}

// localEntries returns the local volumes that pick holds for, by name. It asks no driver.
func (s *Store) localEntries(pick func(*entry) bool) []*entry {
	var picked []*entry
	s.mu.RLock()
	for _, e := range s.entries {
		if e.driver == DefaultDriver && pick(e) {
			picked = append(picked, e)
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(picked, func(a, b *entry) int { return cmp.Compare(a.name, b.name) })
	return picked
}

// listForeign asks all drivers that are not owned at once. Listed tells of those that were asked whether they answered
// in time.
func (s *Store) listForeign(ctx context.Context) (volumes map[string]*entry, listed map[string]bool, warnings []string) {
	var (
		mu sync.Mutex // guards the results
		wg sync.WaitGroup
	)
	volumes, listed = map[string]*entry{}, map[string]bool{}
	drivers := s.foreignDrivers(ctx)
	bounded, cancel := context.WithTimeout(ctx, s.deadline)
	defer cancel()
	for _, d := range drivers {
		wg.Go(func() {
			list, err := d.List(bounded)
			mu.Lock()
			defer mu.Unlock()
			listed[d.Name()] = err == nil
			if err != nil {
				warnings = append(warnings, (&OpError{Op: "list", Name: d.Name(), Err: err}).Error())
				return
			}
			for _, info := range list {
				if other := volumes[info.Name]; other != nil && other.driver < d.Name() {
					continue
				}
				volumes[info.Name] = newEntry(record{Name: info.Name, Driver: d.Name()}, d, info)
			}
		})
	}
	wg.Wait()
	return volumes, listed, warnings
}
