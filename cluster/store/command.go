package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/internal/sessions"
)

// Action is what was done with an object. The numbers are stored.
type Action uint8

// The actions.
const (
	Create Action = 1
	Update Action = 2
	Delete Action = 3
	Commit Action = 255 // only in events: all of a transaction has been told
)

// A command is a byte with the version, then as uvarints the client, its sequence, the least sequence that the client still
// waits for, and the number of actions. An action is a byte with what is done, one with the kind, the length of what
// follows, and an encoded object; for a removal the uvarint of the version and the ID. The version of a new object in its
// update is that which it is based on.
const commandVersion = 1

// commandRoom is more than what a command has beside its actions.
const commandRoom = 64

// encoded is an action as it is in a command.
type encoded []byte

func appendAction(b []byte, a Action, o objects.Object) (encoded, error) {
	var body []byte
	var err error
	if a == Delete {
		body = append(binary.AppendUvarint(nil, o.Head().Meta.Version.Index), o.Head().ID...)
	} else if body, err = objects.Append(nil, o); err != nil {
		return nil, err
	}
	b = binary.AppendUvarint(append(b, byte(a), byte(o.Kind())), uint64(len(body)))
	return append(b, body...), nil
}

// encode encodes the changes that have not been yet.
func (d *draft) encode() error {
	for _, c := range d.changes[len(d.encoded):] {
		e, err := appendAction(nil, c.action, c.object)
		if err != nil {
			return err
		}
		d.encoded = append(d.encoded, e)
		d.bytes += len(e)
	}
	return nil
}

// sizeFrom is how many bytes the changes from the n-th on have.
func (d *draft) sizeFrom(n int) (size int) {
	for _, e := range d.encoded[n:] {
		size += len(e)
	}
	return size
}

// command has its name and its actions.
type command struct {
	sessions.Name
	actions []action
}

// action is one of a command's.
type action struct {
	action  Action
	kind    objects.Kind
	object  objects.Object // nil for a removal
	id      string         // of what is removed
	version uint64         // that it had
}

// append appends the command with actions that are encoded already.
func (c *command) append(b []byte, actions []encoded) []byte {
	b = append(b, commandVersion)
	for _, n := range []uint64{c.Client, c.Sequence, c.Acked, uint64(len(actions))} {
		b = binary.AppendUvarint(b, n)
	}
	for _, a := range actions {
		b = append(b, a...)
	}
	return b
}

// largest names the change that takes up most.
func (d *draft) largest() string {
	most := 0
	for i := range d.encoded {
		if len(d.encoded[i]) > len(d.encoded[most]) {
			most = i
		}
	}
	o := d.changes[most].object
	return fmt.Sprintf("%s %s (%q) alone has %d", o.Kind(), o.Head().ID, o.Name(), len(d.encoded[most]))
}

// reader reads numbers and bytes until something is missing.
type reader struct {
	b   []byte
	err error
}

var errShort = errors.New("it ends too early")

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.b, r.err = nil, errShort
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.b, r.err = nil, errShort
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) byte() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

// decodeCommand returns errDamaged or ErrUnknownAction for what this version cannot carry out. It keeps no reference to b.
func decodeCommand(b []byte) (*command, error) {
	r := reader{b: b}
	if r.byte() != commandVersion {
		return nil, errDamaged
	}
	c := &command{Name: sessions.Name{Client: r.uvarint(), Sequence: r.uvarint(), Acked: r.uvarint()}}
	for n := r.uvarint(); n > 0 && r.err == nil; n-- {
		a := action{action: Action(r.byte()), kind: objects.Kind(r.byte())}
		body := r.bytes(r.uvarint())
		if r.err != nil {
			break
		}
		switch {
		case a.action < Create || a.action > Delete || !a.kind.Known():
			return nil, ErrUnknownAction
		case a.action == Delete:
			at := reader{b: body}
			a.version = at.uvarint()
			a.id, r.err = string(at.b), at.err
		default:
			var err error
			if a.object, err = objects.Decode(a.kind, body); err != nil {
				return nil, errDamaged
			}
		}
		c.actions = append(c.actions, a)
	}
	if r.err != nil || len(r.b) > 0 {
		return nil, errDamaged
	}
	return c, nil
}
