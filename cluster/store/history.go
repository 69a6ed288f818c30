package store

import "sort"

// history is the end of the log as events, each transaction's followed by its commit. What is dropped is dropped by
// transactions.
type history struct {
	limit  int
	events []Event
	floor  uint64 // changes up to this version are not there
}

func (h *history) add(version uint64, events []Event) {
	for _, e := range events {
		e.Old = nil
		h.events = append(h.events, e)
	}
	h.events = append(h.events, Event{Action: Commit, Version: version})
	if len(h.events) <= 2*h.limit {
		return
	}
	// Half of it is dropped at once, so that moving the rest costs nothing.
	at := len(h.events) - h.limit
	for h.events[at-1].Action != Commit {
		at--
		if at == 0 {
			return // one transaction is all there is
		}
	}
	h.floor = h.events[at-1].Version
	h.events = append([]Event(nil), h.events[at:]...)
}

// restart forgets everything up to a version.
func (h *history) restart(version uint64) { h.events, h.floor = nil, version }

// sinceLocked returns the events of all commits after one version, up to another if that is not 0. known is what the
// proposer has said: what came last may have changed nothing here.
func (s *Store) sinceLocked(from, to, known uint64) ([]Event, error) {
	h, newest := &s.history, max(known, s.state.Load().version)
	switch {
	case from > newest || to > newest:
		return nil, ErrFuture
	case from < h.floor:
		return nil, ErrCompacted
	}
	// The index of the first event behind the last commit that is not after a version.
	behind := func(version uint64) int {
		at := sort.Search(len(h.events), func(i int) bool {
			for h.events[i].Action != Commit {
				i++
			}
			return h.events[i].Version > version
		})
		return at
	}
	end := len(h.events)
	if to != 0 {
		end = behind(to)
	}
	begin := behind(from)
	return h.events[min(begin, end):end:end], nil
}

// Changes is a transaction of the past.
type Changes struct {
	Version uint64
	Actions []StoreAction
}

// ChangesBetween returns the transactions after one version, up to and including another. It returns ErrCompacted when not all
// are kept.
func (s *Store) ChangesBetween(from, to uint64) ([]Changes, error) {
	if s.proposer == nil {
		return nil, ErrUnversioned
	}
	known, _ := s.proposer.Version() // which may wait for Apply, so nothing is locked here
	s.mu.Lock()
	events, err := s.sinceLocked(from, to, known)
	s.mu.Unlock() // events that are in the history never change
	if err != nil {
		return nil, err
	}
	var list []Changes
	var actions []StoreAction
	for _, e := range events {
		if a, ok := e.StoreAction(); ok {
			actions = append(actions, a)
			continue
		}
		list = append(list, Changes{e.Version, actions})
		actions = nil
	}
	return list, nil
}
