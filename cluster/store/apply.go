package store

import (
	"cmp"
	"context"
	"fmt"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/internal/sessions"
)

// Result is what Apply makes of a command.
type Result struct {
	Index uint64 // that its objects have as their version
	Err   error  // why it changed nothing
}

// Apply carries out a committed command and returns its Result, which depends on nothing but the command and those before
// it. It keeps no reference to the command. It never panics but in a build that checks; bytes that are no command have a
// Result with an error.
func (s *Store) Apply(index uint64, b []byte) any {
	c, err := decodeCommand(b)
	if err != nil {
		return Result{Err: err}
	}
	s.machine.Lock()
	defer s.machine.Unlock()
	r, verdict := s.sessions.Begin(c.Name)
	switch verdict {
	case sessions.Late:
		return Result{Err: errRepeat}
	case sessions.New:
		if r.Err = s.carryOut(index, c.actions); r.Err == nil {
			r.Index = index
		}
		s.sessions.End(c.Name, r)
	}
	return r
}

// carryOut makes all the changes or none. Index 0 is for a store without a log.
func (s *Store) carryOut(index uint64, actions []action) error {
	if len(actions) == 0 {
		return nil
	}
	base := s.state.Load()
	db := base.db.Snapshot()
	e := edit(db, base.counts)
	e.versioned, e.index = index != 0, index
	happened := make([]Event, 0, len(actions)+1)
	for _, a := range actions {
		event := Event{Action: a.action, Kind: a.kind, Object: a.object}
		var err error
		switch a.action {
		case Create:
			err = e.create(a.object)
		case Update:
			event.Old, err = e.update(a.object)
		case Delete:
			event.Object, err = e.remove(a.kind, a.id, &a.version)
		}
		if err != nil {
			return err
		}
		happened = append(happened, event)
	}
	e.txn.Commit()
	s.commit(&state{db, e.counts, max(index, base.version)}, happened, index)
	return nil
}

// propose proposes a draft's changes and waits until they have been applied here, or were not because of the result's error.
func (s *Store) propose(ctx context.Context, d *draft) (Result, error) {
	r, err := s.proposeActions(ctx, d)
	if err != nil || r.Err != nil {
		return r, err
	}
	for _, c := range d.changes {
		if c.caller != nil {
			m := c.object.Head().Meta
			m.Version.Index = r.Index
			c.caller.Head().Meta = m
		}
	}
	return r, nil
}

// overtaken says whether a command changed nothing because of other changes that came first.
func (r Result) overtaken() bool { return r.Err != nil && r.Err != errDamaged && r.Err != errRepeat }

func (s *Store) proposeActions(ctx context.Context, d *draft) (Result, error) {
	if err := d.encode(); err != nil {
		return Result{}, err
	}
	if n := d.bytes + commandRoom; n > MaxTransactionBytes {
		return Result{}, fmt.Errorf("propose %d changes in %d bytes, of which %s: %w", len(d.changes), n, d.largest(), ErrRequestTooLarge)
	}
	c := &command{Name: s.names.Begin()}
	defer s.names.Finish(c.Name)
	answer, err := s.proposer.Propose(ctx, c.append(make([]byte, 0, d.bytes+commandRoom), d.encoded))
	if err != nil {
		return Result{}, err
	}
	r, ok := answer.(Result)
	if !ok {
		return Result{}, fmt.Errorf("the log answered a proposal with a %T", answer)
	}
	return r, nil
}

// proposeFirst proposes what comes before a draft's split, and returns the rest: based on that.
func (s *Store) proposeFirst(ctx context.Context, d *draft) (*draft, error) {
	n := d.split
	before := &draft{changes: d.changes[:n:n], encoded: d.encoded[:n:n], bytes: d.bytes - d.sizeFrom(n)}
	r, err := s.propose(ctx, before)
	if err = cmp.Or(err, r.Err); err != nil {
		return nil, err
	}
	type name struct {
		kind objects.Kind
		id   string
	}
	changed := map[name]bool{}
	for _, c := range before.changes {
		changed[name{c.object.Kind(), c.object.Head().ID}] = true
	}
	rest := &draft{changes: d.changes[n:]}
	for i, c := range rest.changes {
		if changed[name{c.object.Kind(), c.object.Head().ID}] {
			o := objects.Copy(c.object)
			o.Head().Meta.Version.Index = r.Index
			rest.changes[i].object = o
		}
	}
	return rest, nil
}

// StoreAction is one change of a store by another's.
type StoreAction struct {
	Action Action
	Object objects.Object // of a removal, the ID is enough
}

// ApplyActions makes changes that were made elsewhere, all or none, without versions: of a store without a proposer only.
func (s *Store) ApplyActions(ctx context.Context, actions ...StoreAction) error {
	if s.proposer != nil {
		return ErrReplicated
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	list := make([]action, len(actions))
	for i, a := range actions {
		if a.Action < Create || a.Action > Delete || a.Object == nil {
			return ErrUnknownAction
		}
		list[i] = action{action: a.Action, kind: a.Object.Kind(), object: objects.Copy(a.Object), id: a.Object.Head().ID}
	}
	return s.carryOut(0, list)
}

// Replay makes a change of another store's through Update. It takes those of nodes, services, tasks and networks; the event
// of a commit changes nothing.
func (s *Store) Replay(ctx context.Context, e Event) error {
	switch e.Kind {
	case objects.KindNode, objects.KindService, objects.KindTask, objects.KindNetwork:
	default:
		if e.Action == Commit {
			return nil
		}
		return ErrUnknownEvent
	}
	return s.Update(ctx, func(tx *Tx) error {
		switch e.Action {
		case Create:
			return tx.create(objects.Copy(e.Object))
		case Update:
			return tx.update(objects.Copy(e.Object))
		case Delete:
			return tx.remove(e.Kind, e.Object.Head().ID)
		}
		return ErrUnknownEvent
	})
}
