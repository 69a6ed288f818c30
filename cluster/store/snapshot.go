package store

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/internal/sessions"
)

// Snapshot is a store's state at one moment.
type Snapshot struct {
	state   *state
	applied uint64
	clients []sessions.Client[Result]
}

// Snapshot freezes the present state. It takes the same time however many objects there are.
func (s *Store) Snapshot() *Snapshot {
	s.machine.Lock()
	defer s.machine.Unlock()
	return &Snapshot{s.state.Load(), s.sessions.Applied(), s.sessions.Clients()}
}

// Version is the index of the last change in it.
func (p *Snapshot) Version() uint64 { return p.state.version }

// Release lets go of the state. The snapshot cannot be written afterwards.
func (p *Snapshot) Release() { *p = Snapshot{} }

// A snapshot is 5 bytes of magic and version, and records. A record is its length as uvarint and as many bytes. The first
// is the head: the version of the state and what is known of clients. Each other one is a byte with a kind and an encoded
// object. An empty record and the number of objects as uvarint end it.
const snapshotMagic = "stco\x01"

// maxRecord bounds what is believed of a length.
const maxRecord = 1 << 30

// WriteTo writes the snapshot, which Restore reads. It goes through the tables in the order of their kinds.
func (p *Snapshot) WriteTo(w io.Writer) (written int64, err error) {
	if p.state == nil {
		return 0, errors.New("write a snapshot of the cluster's objects: it was released")
	}
	out := bufio.NewWriterSize(w, 64<<10)
	record := func(b []byte) {
		if err != nil {
			return
		}
		head := binary.AppendUvarint(nil, uint64(len(b)))
		_, _ = out.Write(head) // Flush returns the error
		_, err = out.Write(b)
		written += int64(len(head) + len(b))
	}
	_, _ = out.WriteString(snapshotMagic) // Flush returns the error
	record(p.appendClients(binary.AppendUvarint(nil, p.state.version)))
	txn := p.state.db.Txn(false)
	var buf []byte
	n := uint64(0)
	for k := objects.Kind(1); k.Known() && err == nil; k++ {
		all, failed := txn.Get(k.String(), indexID+prefix, "")
		if failed != nil {
			return written, fmt.Errorf("write a snapshot of the cluster's objects: %w", failed)
		}
		for raw := all.Next(); raw != nil && err == nil; raw = all.Next() {
			if buf, err = objects.Append(append(buf[:0], byte(k)), raw.(objects.Object)); err == nil {
				record(buf)
				n++
			}
		}
	}
	record(nil)
	if err == nil {
		end := binary.AppendUvarint(nil, n)
		_, err = out.Write(end)
		written += int64(len(snapshotMagic) + len(end))
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return written, fmt.Errorf("write a snapshot of the cluster's objects: %w", err)
	}
	return written, nil
}

func (p *Snapshot) appendClients(b []byte) []byte {
	b = binary.AppendUvarint(b, p.applied)
	b = binary.AppendUvarint(b, uint64(len(p.clients)))
	for _, c := range p.clients {
		for _, n := range []uint64{c.ID, c.Acked, c.Used, uint64(len(c.Results))} {
			b = binary.AppendUvarint(b, n)
		}
		for _, sequence := range slices.Sorted(maps.Keys(c.Results)) {
			r := c.Results[sequence]
			b = binary.AppendUvarint(b, sequence)
			b = binary.AppendUvarint(b, r.Index)
			b = append(b, byte(slices.Index(verdicts, r.Err)))
		}
	}
	return b
}

func (r *reader) clients() sessions.Table[Result] {
	applied := r.uvarint()
	var list []sessions.Client[Result]
	for n := r.uvarint(); n > 0 && r.err == nil; n-- {
		c := sessions.Client[Result]{ID: r.uvarint(), Acked: r.uvarint(), Used: r.uvarint(), Results: map[uint64]Result{}}
		for n := r.uvarint(); n > 0 && r.err == nil; n-- {
			sequence, index, verdict := r.uvarint(), r.uvarint(), int(r.byte())
			if verdict >= len(verdicts) {
				r.err = errors.New("it has an error that is not known here")
				break
			}
			c.Results[sequence] = Result{index, verdicts[verdict]}
		}
		list = append(list, c)
	}
	return sessions.Load(applied, list)
}

// Restore replaces the state by one that was written as a snapshot, and tells watchers what is different. When the stream
// is damaged the store stays as it was. Objects that are the same stay in their place in memory. Reads go on meanwhile, and
// without a proposer updates wait.
func (s *Store) Restore(rd io.Reader) error {
	version, known, raw, err := readSnapshot(rd)
	var list []objects.Object
	if err == nil {
		list, err = decodeAll(raw)
	}
	if err != nil {
		return fmt.Errorf("restore a snapshot of the cluster's objects: %w", err)
	}
	if s.proposer == nil {
		s.update <- struct{}{}
		defer func() { <-s.update }()
	}
	s.machine.Lock()
	defer s.machine.Unlock()
	old := s.state.Load()
	next, happened, err := s.rebuild(old, version, list)
	if err != nil {
		return fmt.Errorf("restore a snapshot of the cluster's objects: %w", err)
	}
	s.sessions = known
	if checked {
		s.seals.replace(happened)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state.Store(next)
	s.history.restart(version)
	if len(happened) > 0 {
		s.queue.Publish(append(happened, Event{Action: Commit, Version: version})...)
	}
	return nil
}

// rebuild makes the state of some objects, and the events that lead there: first what is gone, from the last table to the
// first, then what is different, then what is new.
func (s *Store) rebuild(old *state, version uint64, list []objects.Object) (*state, []Event, error) {
	next := &state{db: empty(), version: version}
	txn, before := next.db.Txn(true), old.db.Txn(false)
	type name struct {
		kind objects.Kind
		id   bool
		text string
	}
	seen := make(map[name]bool, 2*len(list))
	same := func(id name) bool {
		twice := seen[id]
		seen[id] = true
		return twice
	}
	rules := editor{base: before}
	var updated, created, gone []Event
	for _, o := range list {
		k, id := o.Kind(), o.Head().ID
		if err := rules.check(o); err != nil && err != ErrNoKind { // no type: its extension may come later
			return nil, nil, fmt.Errorf("%s %q: %w", k, id, err)
		}
		if same(name{k, true, id}) || definitions[k].names == uniqueNames && same(name{k, false, strings.ToLower(o.Name())}) {
			return nil, nil, fmt.Errorf("%s %q or its name is there twice", k, id)
		}
		is := first(before, k, indexID, id+terminator)
		switch {
		case is == nil:
			created = append(created, Event{Action: Create, Kind: k, Object: o})
		case s.equal(is, o):
			o = is
		default:
			updated = append(updated, Event{Action: Update, Kind: k, Object: o, Old: is})
		}
		next.counts[k]++
		if err := txn.Insert(k.String(), o); err != nil {
			return nil, nil, err
		}
	}
	for k := objects.Kind(objects.KindCount - 1); k > 0; k-- {
		all, err := before.Get(k.String(), indexID+prefix, "")
		if err != nil {
			return nil, nil, err
		}
		for raw := all.Next(); raw != nil; raw = all.Next() {
			if o := raw.(objects.Object); !seen[name{k, true, o.Head().ID}] {
				gone = append(gone, Event{Action: Delete, Kind: k, Object: o})
			}
		}
	}
	txn.Commit()
	return next, slices.Concat(gone, updated, created), nil
}

// equal says whether two objects of one ID are the same. In a store that is changed through a log, those of one version are.
func (s *Store) equal(a, b objects.Object) bool {
	if v := a.Head().Meta.Version.Index; s.proposer != nil && v != 0 {
		return v == b.Head().Meta.Version.Index
	}
	x, err := objects.Append(nil, a)
	y, also := objects.Append(nil, b)
	return err == nil && also == nil && bytes.Equal(x, y)
}

// readSnapshot takes the stream apart and leaves the objects encoded.
func readSnapshot(rd io.Reader) (version uint64, known sessions.Table[Result], raw [][]byte, err error) {
	in := bufio.NewReaderSize(rd, 64<<10)
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(in, magic); err != nil {
		return 0, known, nil, early(err)
	}
	if string(magic) != snapshotMagic {
		return 0, known, nil, errors.New("it is no snapshot of objects, or one of a version that is not known here")
	}
	head, err := readRecord(in)
	if err != nil {
		return 0, known, nil, err
	}
	r := reader{b: head}
	version, known = r.uvarint(), r.clients()
	if r.err != nil {
		return 0, known, nil, r.err
	}
	for {
		b, err := readRecord(in)
		if err != nil {
			return 0, known, nil, err
		}
		if len(b) == 0 {
			break
		}
		raw = append(raw, b)
	}
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return 0, known, nil, early(err)
	}
	if n != uint64(len(raw)) {
		return 0, known, nil, fmt.Errorf("it has %d objects and should have %d", len(raw), n)
	}
	if _, err := in.ReadByte(); err != io.EOF {
		return 0, known, nil, errors.Join(err, errors.New("there is something behind its end"))
	}
	return version, known, raw, nil
}

func readRecord(in *bufio.Reader) ([]byte, error) {
	n, err := binary.ReadUvarint(in)
	switch {
	case err != nil:
		return nil, early(err)
	case n > maxRecord:
		return nil, fmt.Errorf("it has a record of %d bytes", n)
	case n <= 64<<10:
		b := make([]byte, n)
		_, err := io.ReadFull(in, b)
		return b, early(err)
	}
	var b bytes.Buffer // which grows with what is really there
	_, err = io.CopyN(&b, in, int64(n))
	return b.Bytes(), early(err)
}

// early makes the end of a stream an error.
func early(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// decodeAll decodes objects on all processors, and keeps their order.
func decodeAll(raw [][]byte) ([]objects.Object, error) {
	list := make([]objects.Object, len(raw))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	const piece = 512
	for from := 0; from < len(raw); from += piece {
		to := min(from+piece, len(raw))
		g.Go(func() (err error) {
			for i := from; i < to; i++ {
				if list[i], err = objects.Decode(objects.Kind(raw[i][0]), raw[i][1:]); err != nil {
					return err
				}
				raw[i] = nil
			}
			return nil
		})
	}
	return list, g.Wait()
}
