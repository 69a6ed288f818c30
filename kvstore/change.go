package kvstore

import (
	"strconv"
	"strings"
	"time"
)

// change carries out one command under the store's lock.
type change struct {
	s    *Store
	c    Command // by value: a pointer beside fields that go into events would put the command on the heap
	path string  // clean
	now  time.Time
	// index is the store's, before the change.
	index uint64
}

func (m *change) fail(code int, cause string) *Error { return NewError(code, cause, m.index) }

func (m *change) lookup() (e entry, code, stop int) { return m.s.tree.root.Load().find(m.path) }

// outcome is an event with all that it points to, in one piece of memory.
type outcome struct {
	event      Event
	node, prev Node
}

func (m *change) outcome(action Action, created uint64) *outcome {
	index := m.index + 1
	o := &outcome{event: Event{Action: action, EtcdIndex: index}}
	o.node = Node{Key: m.path, ModifiedIndex: index, CreatedIndex: created}
	o.event.Node = &o.node
	return o
}

// replaces records what was there before.
func (o *outcome) replaces(e entry, now time.Time) {
	a, value := e.read()
	o.prev = Node{Key: o.node.Key, Value: value, Dir: e.dir != nil, ModifiedIndex: a.modified, CreatedIndex: a.created}
	o.prev.expires(a.expire, now)
	o.event.PrevNode = &o.prev
}

func (n *Node) expires(at, now time.Time) {
	if !at.IsZero() {
		n.Expiration, n.TTL = at, secondsLeft(at, now)
	}
}

// write puts a file or directory at the path, publishes the new tree and tells of it.
func (m *change) write(o *outcome, e entry, expire time.Time, refresh bool) *Event {
	index := m.index + 1
	m.s.changeLocked(index, func(t *tree) { t.put(m.path, e, attributes{created: index, modified: index}) })
	if o.node.Dir = e.dir != nil; !o.node.Dir {
		_, o.node.Value = e.file.read()
	}
	o.node.expires(expire, m.now)
	m.s.expiry.set(m.path, expire)
	o.event.Refresh = refresh
	m.s.history.add(&o.event)
	if !refresh {
		m.s.hub.notify(&o.event)
	}
	return &o.event
}

// take removes what is at the path, with all that is below it.
func (m *change) take(action Action, e entry) *Event {
	a, _ := e.read()
	o := m.outcome(action, a.created)
	o.node.Dir = e.dir != nil
	o.replaces(e, m.now)
	m.s.changeLocked(m.index+1, func(t *tree) { t.remove(m.path) })
	m.s.expiry.set(m.path, time.Time{})
	m.s.history.add(&o.event)
	if e.dir != nil && (m.s.hub.count > 0 || len(m.s.expiry.heap) > 0) {
		m.forget(&o.event, m.path, e.dir)
	}
	m.s.hub.notify(&o.event)
	return &o.event
}

// forget takes all paths below a removed directory out of the heap, and tells who watches exactly them.
func (m *change) forget(event *Event, path string, dir *dir) {
	dir.each(func(name string, e entry) {
		below := path + "/" + name
		if e.dir != nil {
			m.forget(event, below, e.dir)
		}
		m.s.expiry.set(below, time.Time{})
		m.s.hub.visit(below, event, true)
	})
}

func (m *change) create() (*Event, *Error) {
	if m.c.Unique {
		digits := strconv.FormatUint(m.index+1, 10)
		m.path = clean(m.path + "/" + "00000000000000000000"[:max(0, 20-len(digits))] + digits)
	}
	if m.s.readOnly[m.path] {
		return nil, m.fail(CodeRootReadOnly, "/")
	}
	e, code, stop := m.lookup()
	switch code {
	case 0:
		return nil, m.fail(CodeKeyExists, m.path)
	case CodeNotDir:
		m.s.stats.SetFail++ // etcd counts a set for every file that stands in the way of a create
		return nil, m.fail(code, m.path[:stop])
	}
	return m.place(ActionCreate, e, false, m.c.Value), nil
}

func (m *change) set() (*Event, *Error) {
	e, code, stop := m.lookup()
	if code == CodeNotDir || code != 0 && m.c.Refresh {
		return nil, m.fail(code, m.path[:stop])
	}
	if m.s.readOnly[m.path] {
		return nil, m.fail(CodeRootReadOnly, "/")
	}
	if e.dir != nil {
		return nil, m.fail(CodeNotFile, m.path)
	}
	value := m.c.Value
	if m.c.Refresh {
		_, value = e.read()
	}
	return m.place(ActionSet, e, code == 0, value), nil
}

// place makes a new file or directory, in the place of the file e when there was one.
func (m *change) place(action Action, e entry, existed bool, value string) *Event {
	index := m.index + 1
	o := m.outcome(action, index)
	if existed {
		o.replaces(e, m.now)
	}
	a := attributes{created: index, modified: index, expire: tidyExpire(m.c.Expire)}
	if m.c.Dir {
		e = entry{dir: newDir(strings.Clone(base(m.path)), a)}
	} else {
		e = entry{file: newRecord(base(m.path), a, value)}
	}
	return m.write(o, e, a.expire, m.c.Refresh)
}

func (m *change) update() (*Event, *Error) {
	e, err := m.existing()
	if err != nil {
		return nil, err
	}
	if e.dir != nil && m.c.Value != "" {
		return nil, m.fail(CodeNotFile, m.path)
	}
	return m.replace(ActionUpdate, e), nil
}

func (m *change) compareAndSwap() (*Event, *Error) {
	e, err := m.existing()
	if err == nil {
		err = m.compare(e)
	}
	if err != nil {
		return nil, err
	}
	return m.replace(ActionCompareAndSwap, e), nil
}

// existing finds what is at a path that may be written.
func (m *change) existing() (entry, *Error) {
	if m.s.readOnly[m.path] {
		return entry{}, m.fail(CodeRootReadOnly, "/")
	}
	return m.find()
}

func (m *change) find() (entry, *Error) {
	e, code, stop := m.lookup()
	if code != 0 {
		return entry{}, m.fail(code, m.path[:stop])
	}
	return e, nil
}

// compare tests what the command asks of a file before it is changed.
func (m *change) compare(e entry) *Error {
	if e.dir != nil {
		return m.fail(CodeNotFile, m.path)
	}
	a, value := e.file.read()
	cause := ""
	if m.c.PrevValue != "" && m.c.PrevValue != value {
		cause = "[" + m.c.PrevValue + " != " + value + "]"
	}
	if m.c.PrevIndex != 0 && m.c.PrevIndex != a.modified {
		if cause != "" {
			cause += " "
		}
		cause += "[" + strconv.FormatUint(m.c.PrevIndex, 10) + " != " + strconv.FormatUint(a.modified, 10) + "]"
	}
	if cause != "" {
		return m.fail(CodeCompareFailed, cause)
	}
	return nil
}

// replace gives what is at the path a new value and a new time to live. A directory has no value, and its own modifiedIndex stays.
func (m *change) replace(action Action, e entry) *Event {
	a, value := e.read()
	o := m.outcome(action, a.created)
	o.replaces(e, m.now)
	a.expire = tidyExpire(m.c.Expire)
	if e.dir != nil {
		d := *e.dir
		d.attributes = a
		e.dir = &d
	} else {
		if !m.c.Refresh {
			value = m.c.Value
		}
		a.modified = m.index + 1
		e.file = newRecord(base(m.path), a, value)
	}
	return m.write(o, e, a.expire, m.c.Refresh)
}

func (m *change) delete() (*Event, *Error) {
	e, err := m.existing()
	if err != nil {
		return nil, err
	}
	if e.dir != nil {
		if !m.c.Dir && !m.c.Recursive {
			return nil, m.fail(CodeNotFile, m.path)
		}
		if !m.c.Recursive && !e.dir.isEmpty() {
			return nil, m.fail(CodeDirNotEmpty, m.path)
		}
	}
	return m.take(ActionDelete, e), nil
}

func (m *change) compareAndDelete() (*Event, *Error) {
	e, err := m.find()
	if err == nil {
		err = m.compare(e)
	}
	if err != nil {
		return nil, err
	}
	return m.take(ActionCompareAndDelete, e), nil
}
