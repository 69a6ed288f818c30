package store

import (
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hashicorp/go-memdb"

	"stated.dev/stated/cluster/objects"
)

// ReadTx sees the store as it was when the transaction began. It may be used from several goroutines, and for as long as
// one likes.
type ReadTx struct {
	store   *Store
	txn     *memdb.Txn
	editor  *editor // nil where nothing is changed
	counts  *counts
	version uint64
}

func (tx *ReadTx) reader() *ReadTx { return tx }

// Version is the index in the log of the last change that the transaction sees, 0 when there was none.
func (tx *ReadTx) Version() uint64 { return tx.version }

func (tx *ReadTx) get(k objects.Kind, id string) objects.Object {
	var o objects.Object
	if tx.editor != nil {
		o = tx.editor.get(k, id)
	} else {
		o = first(tx.txn, k, indexID, id+terminator)
	}
	if checked && o != nil {
		tx.store.seals.check(o)
	}
	return o
}

func first(txn *memdb.Txn, k objects.Kind, index, key string) objects.Object {
	raw, err := txn.First(k.String(), index, key)
	if raw == nil || err != nil { // an error is possible only for an index that is not there
		return nil
	}
	return raw.(objects.Object)
}

// counts are how many objects there are of each kind.
type counts [objects.KindCount]int

// change is one thing that a transaction did.
type change struct {
	action Action
	object objects.Object // new, or what was removed
	old    objects.Object // of an update
	caller objects.Object // to be told of its version
}

// Tx is a transaction that may change the store. It is for the goroutine and the time of its callback.
type Tx struct {
	ReadTx
	stamp   time.Time // zero without a proposer
	changes []change
	over    bool
}

func (tx *Tx) create(o objects.Object) error {
	if tx.over {
		return ErrOver
	}
	c := objects.Copy(o)
	if !tx.stamp.IsZero() {
		m := &c.Head().Meta
		m.CreatedAt, m.UpdatedAt = tx.stamp, tx.stamp
	}
	if err := tx.editor.create(c); err != nil {
		return err
	}
	tx.changes = append(tx.changes, change{Create, c, nil, o})
	return nil
}

func (tx *Tx) update(o objects.Object) error {
	if tx.over {
		return ErrOver
	}
	c := objects.Copy(o)
	if !tx.stamp.IsZero() {
		m := &c.Head().Meta
		if old := tx.get(o.Kind(), c.Head().ID); old != nil {
			m.CreatedAt = old.Head().Meta.CreatedAt
		}
		m.UpdatedAt = tx.stamp
	}
	old, err := tx.editor.update(c)
	if err != nil {
		return err
	}
	tx.changes = append(tx.changes, change{Update, c, old, o})
	return nil
}

func (tx *Tx) remove(k objects.Kind, id string) error {
	if tx.over {
		return ErrOver
	}
	old, err := tx.editor.remove(k, id, nil)
	if err != nil {
		return err
	}
	tx.changes = append(tx.changes, change{Delete, old, nil, nil})
	return nil
}

// editor changes a database by the rules. They are checked twice: when a callback makes a change and, with a proposer,
// when the log brings it.
type editor struct {
	base      *memdb.Txn // what was there before
	txn       *memdb.Txn // what is there now
	counts    counts
	versioned bool
	index     uint64 // where in the log the changes are, and 0 when they are not yet there

	// What is different between base and txn. Asking txn would be right, too, but memdb then copies again what it has
	// copied already.
	changed map[key]objects.Object // by ID; nil for what is gone
	owners  map[key]string         // by unique name: the ID, or nothing
	dirty   [objects.KindCount]bool
}

// key is an ID or a name in lower case.
type key struct {
	kind objects.Kind
	text string
}

// edit begins to change a database, which is nobody else's.
func edit(db *memdb.MemDB, c counts) *editor {
	return &editor{base: db.Txn(false), txn: db.Txn(true), counts: c, changed: map[key]objects.Object{}, owners: map[key]string{}}
}

func (e *editor) get(k objects.Kind, id string) objects.Object {
	if o, ok := e.changed[key{k, id}]; ok {
		return o
	}
	return first(e.base, k, indexID, id+terminator)
}

// named returns the object of a kind with unique names.
func (e *editor) named(k objects.Kind, name string) objects.Object {
	name = strings.ToLower(name)
	id, ok := e.owners[key{k, name}]
	switch {
	case !ok:
		return first(e.base, k, indexName, name+terminator)
	case id == "":
		return nil
	}
	return e.get(k, id)
}

// put replaces one object by another, either of which may be nil.
func (e *editor) put(old, o objects.Object) error {
	is := o
	if is == nil {
		is = old
	}
	k, id := is.Kind(), is.Head().ID
	if definitions[k].names == uniqueNames {
		if old != nil {
			e.owners[key{k, strings.ToLower(old.Name())}] = ""
		}
		if o != nil {
			e.owners[key{k, strings.ToLower(o.Name())}] = id
		}
	}
	e.changed[key{k, id}], e.dirty[k] = o, true
	if o == nil {
		e.counts[k]--
		return e.txn.Delete(k.String(), old)
	}
	if old == nil {
		e.counts[k]++
	}
	return e.txn.Insert(k.String(), o)
}

// undo takes changes back.
func (e *editor) undo(changes []change) error {
	for _, c := range slices.Backward(changes) {
		var err error
		switch c.action {
		case Create:
			err = e.put(c.object, nil)
		case Update:
			err = e.put(c.object, c.old)
		case Delete:
			err = e.put(nil, c.object)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *editor) create(o objects.Object) error {
	if err := e.check(o); err != nil {
		return err
	}
	if e.get(o.Kind(), o.Head().ID) != nil {
		return ErrExist
	}
	if err := e.free(o); err != nil {
		return err
	}
	return e.insert(nil, o)
}

func (e *editor) update(o objects.Object) (old objects.Object, err error) {
	if o.Kind() == objects.KindExtension {
		return nil, ErrImmutable
	}
	if err := e.check(o); err != nil {
		return nil, err
	}
	if old = e.get(o.Kind(), o.Head().ID); old == nil {
		return nil, ErrNotExist
	}
	if !e.follows(old, o.Head().Meta.Version.Index) {
		return nil, ErrSequenceConflict
	}
	if err := e.free(o); err != nil {
		return nil, err
	}
	return old, e.insert(old, o)
}

// remove removes an object, if it is of a version where one is given.
func (e *editor) remove(k objects.Kind, id string, version *uint64) (objects.Object, error) {
	old := e.get(k, id)
	if old == nil {
		return nil, ErrNotExist
	}
	if version != nil && !e.follows(old, *version) {
		return nil, ErrSequenceConflict
	}
	if k == objects.KindExtension && first(e.txn, objects.KindResource, indexType, old.Name()+terminator) != nil {
		return nil, ErrInUse
	}
	return old, e.put(old, nil)
}

// follows says whether a change of the object began with what is there. In the log, an object that has the very index was
// changed by the same command before.
func (e *editor) follows(old objects.Object, version uint64) bool {
	is := old.Head().Meta.Version.Index
	return !e.versioned || is == version || e.index != 0 && is == e.index
}

func (e *editor) insert(old, o objects.Object) error {
	if e.index != 0 {
		o.Head().Meta.Version.Index = e.index
	}
	return e.put(old, o)
}

// check says whether the object could be in the store at all.
func (e *editor) check(o objects.Object) error {
	id, name := o.Head().ID, o.Name()
	if id == "" || strings.Contains(id, terminator) || !utf8.ValidString(id) {
		return ErrNoID
	}
	if name == "" && definitions[o.Kind()].names == uniqueNames || strings.Contains(name, terminator) {
		return ErrNoName
	}
	switch o := o.(type) {
	case *objects.Extension:
		if objects.Builtin(name) {
			return ErrNameConflict
		}
	case *objects.Resource:
		extension := e.named(objects.KindExtension, o.Type)
		if extension == nil || extension.Name() != o.Type {
			return ErrNoKind
		}
	}
	return nil
}

// free says whether the object can have its name.
func (e *editor) free(o objects.Object) error {
	if definitions[o.Kind()].names == anyNames {
		return nil
	}
	owner := e.named(o.Kind(), o.Name())
	if owner != nil && owner.Head().ID != o.Head().ID {
		return ErrNameConflict
	}
	return nil
}
