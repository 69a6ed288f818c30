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
		e.setTime(info.CreatedAt)
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
	foreign, failed, warnings := s.listForeign(ctx)
	if err := ctx.Err(); err != nil {
		return nil, nil, &OpError{Op: "list", Err: err}
	}
	var picked []*entry
	s.mu.RLock()
	for _, e := range s.entries {
		gone := s.drivers[e.driver] != nil && !s.drivers[e.driver].Traits().Owned && !failed[e.driver] && foreign[e.name] == nil
		if !gone && pick(e) {
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
	for driver, name := range s.orphans() {
		warnings = append(warnings, fmt.Sprintf("list %s: volume driver of %s and perhaps others is not available", driver, name))
	}
	s.mu.RUnlock()
	slices.SortFunc(picked, func(a, b *entry) int { return cmp.Compare(a.name, b.name) })
	slices.Sort(warnings)
	return picked, warnings, nil
}

// orphans returns one volume for each driver that is recorded but not there. The caller holds mu.
func (s *Store) orphans() map[string]string {
	var orphans map[string]string
	for key, p := range s.problems {
		if e := s.entries[p.Volume]; e != nil && s.drivers[e.driver] == nil && key == e.driver+"/"+e.name {
			if orphans == nil {
				orphans = map[string]string{}
			}
			if old, ok := orphans[e.driver]; !ok || e.name < old {
				orphans[e.driver] = e.name
			}
		}
	}
	return orphans
}

// listForeign asks all drivers that are not owned at once. Failed names those that did not answer.
func (s *Store) listForeign(ctx context.Context) (volumes map[string]*entry, failed map[string]bool, warnings []string) {
	var (
		mu sync.Mutex // guards the results
		wg sync.WaitGroup
	)
	volumes, failed = map[string]*entry{}, map[string]bool{}
	for _, d := range s.sortedDrivers() {
		if d.Traits().Owned {
			continue
		}
		wg.Go(func() {
			list, err := d.List(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[d.Name()] = true
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
	return volumes, failed, warnings
}
