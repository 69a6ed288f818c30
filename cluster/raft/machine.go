package raft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"

	hraft "github.com/hashicorp/raft"

	"stated.dev/stated/internal/fault"
)

// A Machine is a state machine that is fed by the log: on every voter it sees the same commands in the same order, and so
// has the same state.
//
// Calls to a machine never overlap, but what Snapshot returns is written while Apply goes on. A command may come twice:
// who proposes it must not rely on an ErrOutcomeUnknown meaning that it did not come. A machine that minds gives its
// commands a client's name and number, and drops repeats.
type Machine interface {
	// Apply changes the state by a command and returns what Propose is to return on the host that proposed it. It depends
	// on nothing but the state, the index and the command: not on the clock, chance, or the host. It keeps no reference to
	// command. It does not panic; if it does, the log stops, because the state cannot be trusted any more.
	Apply(index uint64, command []byte) any

	// Snapshot returns the state as it is, without copying it: it takes the same short time however large that is.
	Snapshot() (Section, error)

	// Restore replaces the state with one that was written as a Section of that version. After an error the state is as
	// it was before. It refuses a version that it does not know.
	Restore(version uint32, r io.Reader) error
}

// Section is a machine's state at one moment.
type Section struct {
	Version uint32                  // of what Write writes
	Write   func(w io.Writer) error // called once at most, from another goroutine
	Release func()                  // called at the end, if it is there
}

// Slot is a machine's place in the log. Neither number nor name of a machine may ever change, or be given to another.
type Slot struct {
	ID      byte   // stored with each command
	Name    string // of its section in snapshots
	Machine Machine
}

// outcome is what the machines' side makes of an entry.
type outcome struct {
	value any
	err   error
}

// fsm is raft's side of the machines. raft calls it from one goroutine.
type fsm struct {
	slots  []Slot
	byID   [256]Machine
	mark   func()        // a snapshot's state is being taken
	failed chan struct{} // closed when the machines cannot be trusted any more

	applied atomic.Uint64 // index of the last command

	mu     sync.Mutex // guards what follows
	err    error      // why failed is closed
	moved  chan struct{}
	waited bool // somebody waits for moved
}

func newFSM(slots []Slot) (*fsm, error) {
	f := &fsm{slots: slots, failed: make(chan struct{}), moved: make(chan struct{}), mark: func() {}}
	names := map[string]bool{}
	for _, s := range slots {
		if s.Machine == nil || s.Name == "" || f.byID[s.ID] != nil || names[s.Name] {
			return nil, fmt.Errorf("machine %d (%q) is missing, or has another one's number or name", s.ID, s.Name)
		}
		f.byID[s.ID], names[s.Name] = s.Machine, true
	}
	return f, nil
}

// check says whether an entry can be applied.
func (f *fsm) check(l *hraft.Log) error {
	if l.Type != hraft.LogCommand {
		return nil
	}
	id, _, err := parseEntry(l.Data)
	if err == nil && f.byID[id] == nil {
		err = fmt.Errorf("it is for machine %d, which this version of stated does not have: start the version that wrote it, or a later one: %w", id, ErrVersion)
	}
	return err
}

// Apply is for raft.
func (f *fsm) Apply(l *hraft.Log) any { return f.ApplyBatch([]*hraft.Log{l})[0] }

// ApplyBatch is for raft.
func (f *fsm) ApplyBatch(logs []*hraft.Log) []any {
	results := make([]any, len(logs))
	for i, l := range logs {
		if l.Type == hraft.LogCommand {
			results[i] = f.apply(l)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.waited {
		f.waited = false
		close(f.moved)
		f.moved = make(chan struct{})
	}
	return results
}

func (f *fsm) apply(l *hraft.Log) (out outcome) {
	if err := f.failure(); err != nil {
		return outcome{err: err}
	}
	defer func() {
		if p := recover(); p != nil {
			out = outcome{err: f.fail(fmt.Errorf("the machine of entry %d panicked: %v\n%s", l.Index, p, debug.Stack()))}
		}
	}()
	if err := f.check(l); err != nil {
		return outcome{err: f.fail(fmt.Errorf("entry %d: %w", l.Index, err))}
	}
	if err := fault.Point("raft.apply"); err != nil {
		return outcome{err: f.fail(err)}
	}
	id, command, _ := parseEntry(l.Data)
	value := f.byID[id].Apply(l.Index, command)
	f.applied.Store(l.Index)
	return outcome{value: value}
}

// fail stops the machines: after one entry that was left out every other one would make another state.
func (f *fsm) fail(err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = fmt.Errorf("%w: %w", ErrStopped, err)
		close(f.failed)
	}
	return f.err
}

func (f *fsm) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// wait returns when the command at an index has been applied.
func (f *fsm) wait(ctx context.Context, index uint64, lost <-chan struct{}) error {
	if f.applied.Load() >= index {
		return nil // as nearly always, and who applies need not tell anybody
	}
	for {
		f.mu.Lock()
		moved, err := f.moved, f.err
		f.waited = true
		f.mu.Unlock()
		switch {
		case f.applied.Load() >= index:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-moved:
		case <-f.failed:
		case <-lost:
			return ErrNotLeading
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Snapshot is for raft.
func (f *fsm) Snapshot() (hraft.FSMSnapshot, error) {
	if err := f.failure(); err != nil {
		return nil, err
	}
	s := &state{slots: f.slots}
	for _, slot := range f.slots {
		section, err := slot.Machine.Snapshot()
		if err != nil {
			s.Release()
			return nil, fmt.Errorf("take a snapshot of %s: %w", slot.Name, err)
		}
		s.sections = append(s.sections, section)
	}
	f.mark()
	return s, nil
}

// Restore is for raft.
func (f *fsm) Restore(r io.ReadCloser) error {
	return readSections(r, func(name string, version uint32, r io.Reader) error {
		for _, slot := range f.slots {
			if slot.Name == name {
				return slot.Machine.Restore(version, r)
			}
		}
		return fmt.Errorf("this version of stated has no such machine: start the version that wrote it, or a later one: %w", ErrVersion)
	})
}

// state is that of all machines at one index.
type state struct {
	slots    []Slot
	sections []Section
}

// Persist is for raft.
func (s *state) Persist(sink hraft.SnapshotSink) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, sink.Cancel())
		}
	}()
	for i, section := range s.sections {
		if err := writeSection(sink, s.slots[i].Name, section); err != nil {
			return fmt.Errorf("write the snapshot of %s: %w", s.slots[i].Name, err)
		}
	}
	if err := writeLast(sink, len(s.sections)); err != nil {
		return err
	}
	return sink.Close()
}

// Release is for raft.
func (s *state) Release() {
	for _, section := range s.sections {
		if section.Release != nil {
			section.Release()
		}
	}
}
