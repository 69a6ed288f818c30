package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Table is the daemon's table in the network namespace of the calling process.
type Table struct {
	name string

	mu    sync.Mutex     // guards wish; held over the table's own transactions
	wish  map[id]Element // what the kernel is to hold
	valid bool           // the kernel held wish after our last transaction
	conn  *nftables.Conn // kept open: closing one waits until the kernel has freed what was deleted
}

// New returns the table called name. It does nothing to the kernel until Sync.
func New(name string) *Table {
	return &Table{name: name, wish: map[id]Element{}}
}

func (t *Table) ref() *nftables.Table {
	return &nftables.Table{Name: t.name, Family: nftables.TableFamilyINet}
}

// Sync makes the kernel hold exactly want: it reads what is there and corrects the difference in one transaction,
// or does nothing when there is none. A table that is missing or has been tampered with is built anew.
func (t *Table) Sync(ctx context.Context, want []Element) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wish = map[id]Element{}
	for _, e := range want {
		t.wish[e.id()] = e
	}
	return t.syncLocked(ctx)
}

// Update adds and deletes elements in one transaction. Deletions of what is not there are no error, and an
// element that is added again takes the new data.
func (t *Table) Update(ctx context.Context, add, del []Element) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	adds, dels := t.applyLocked(add, del)
	if len(adds)+len(dels) == 0 {
		return nil
	}
	if !t.valid {
		return t.syncLocked(ctx)
	}
	conn, err := t.connLocked()
	if err != nil {
		return err
	}
	if err = t.queue(conn, adds, dels); err == nil {
		err = t.flushLocked(conn)
	}
	if err == nil {
		return nil
	}
	// Somebody has changed the table under us: put all of it right.
	if syncErr := t.syncLocked(ctx); syncErr != nil {
		t.applyLocked(dels, adds)
		return errors.Join(fmt.Errorf("change table %s: %w", t.name, err), syncErr)
	}
	return nil
}

func (t *Table) connLocked() (*nftables.Conn, error) {
	if t.conn == nil {
		conn, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return nil, fmt.Errorf("open nftables: %w", err)
		}
		t.conn = conn
	}
	return t.conn, nil
}

// flushLocked sends what is queued. After a failure answers may be left in the socket, so it is not used again.
func (t *Table) flushLocked(conn *nftables.Conn) error {
	err := conn.Flush()
	if err != nil {
		_ = conn.CloseLasting() // the first error is the one to report
		t.conn = nil
	}
	return err
}

// Close drops the connection to the kernel and leaves the table as it is.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == nil {
		return nil
	}
	err := t.conn.CloseLasting()
	t.conn = nil
	return err
}

// applyLocked changes the wish and returns what really changes.
func (t *Table) applyLocked(add, del []Element) (adds, dels []Element) {
	for _, e := range del {
		if t.wish[e.id()] == e { // else it belongs to somebody else by now
			delete(t.wish, e.id())
			dels = append(dels, e)
		}
	}
	for _, e := range add {
		old, found := t.wish[e.id()]
		if found && old == e {
			continue
		}
		if found {
			dels = append(dels, old)
		}
		t.wish[e.id()] = e
		adds = append(adds, e)
	}
	return adds, dels
}

// queue adds the changes to a transaction; deletions first, so that an element can change its data.
func (t *Table) queue(conn *nftables.Conn, add, del []Element) error {
	byName := map[string]*nftables.Set{}
	for _, s := range sets(t.ref()) {
		byName[s.Name] = s
	}
	for name, list := range group(del) {
		for part := range slices.Chunk(list, maxElements) {
			if err := conn.SetDeleteElements(byName[name], part); err != nil {
				return err
			}
		}
	}
	for name, list := range group(add) {
		for part := range slices.Chunk(list, maxElements) {
			if err := conn.SetAddElements(byName[name], part); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxElements keeps a message's list of elements below the 64 KiB that a netlink attribute can have.
const maxElements = 250

func group(list []Element) map[string][]nftables.SetElement {
	out := map[string][]nftables.SetElement{}
	for _, e := range list {
		out[e.set] = append(out[e.set], e.kernel())
	}
	return out
}

func (t *Table) syncLocked(_ context.Context) error {
	t.valid = false
	conn, err := t.connLocked()
	if err != nil {
		return err
	}
	have, intact, err := t.read(conn)
	if err != nil {
		return fmt.Errorf("read table %s: %w", t.name, err)
	}
	if !intact {
		t.rebuild(conn)
		have = nil
	}
	add, del := diff(have, t.wish)
	if err := t.queue(conn, add, del); err != nil {
		return fmt.Errorf("prepare table %s: %w", t.name, err)
	}
	if !intact || len(add)+len(del) > 0 {
		if err := t.flushLocked(conn); err != nil {
			return fmt.Errorf("write table %s: %w", t.name, err)
		}
	}
	t.valid = true
	return nil
}

// rebuild queues the deletion of the table, if it is there, and its making.
func (t *Table) rebuild(conn *nftables.Conn) {
	table := t.ref()
	conn.AddTable(table) // so that the deletion finds one
	conn.DelTable(table)
	conn.AddTable(table)
	for _, s := range sets(table) {
		_ = conn.AddSet(s, nil) // fails only for sets with elements
	}
	chains := layout()
	for _, c := range chains {
		conn.AddChain(&nftables.Chain{Table: table, Name: c.name, Type: c.kind, Hooknum: c.hook, Priority: c.priority})
	}
	conn.AddChain(&nftables.Chain{Table: table, Name: layoutMark()})
	for _, c := range chains {
		for _, exprs := range c.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Table: table, Name: c.name}, Exprs: exprs})
		}
	}
}

// read returns the elements that the kernel holds, and whether the table has our layout.
func (t *Table) read(conn *nftables.Conn) (have map[id]Element, intact bool, err error) {
	table := t.ref()
	if _, err := conn.ListTableOfFamily(t.name, nftables.TableFamilyINet); err != nil {
		return nil, false, nil // absent, or unreadable: building it anew tells
	}
	if _, err := conn.ListChain(table, layoutMark()); err != nil {
		return nil, false, nil
	}
	for _, c := range layout() {
		rules, err := conn.GetRules(table, &nftables.Chain{Table: table, Name: c.name})
		if err != nil || len(rules) != len(c.rules) {
			return nil, false, nil
		}
	}
	have = map[id]Element{}
	for _, s := range sets(table) {
		elements, err := conn.GetSetElements(s)
		if errors.Is(err, unix.ENOENT) {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, err
		}
		for _, k := range elements {
			e := Element{set: s.Name, key: string(k.Key)}
			if s.DataType.Name == nftables.TypeVerdict.Name {
				e.verdict = k.Comment
			} else {
				e.data = string(k.Val)
			}
			have[e.id()] = e
		}
	}
	return have, true, nil
}

// Destroy removes the table.
func (t *Table) Destroy(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.valid = false
	t.wish = map[id]Element{}
	conn, err := t.connLocked()
	if err != nil {
		return err
	}
	conn.AddTable(t.ref())
	conn.DelTable(t.ref())
	if err := t.flushLocked(conn); err != nil {
		return fmt.Errorf("remove table %s: %w", t.name, err)
	}
	return nil
}
