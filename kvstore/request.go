package kvstore

import (
	"encoding/binary"
	"errors"
	"time"

	"stated.dev/stated/internal/sessions"
)

// GetRequest says how much of a directory a Get returns.
type GetRequest struct {
	Recursive bool // the whole subtree instead of the direct children
	Sorted    bool // children by key, ascending; without it their order is not promised
}

// WatchRequest says what a watcher wants to see.
type WatchRequest struct {
	Recursive bool   // events below the path, too
	Stream    bool   // all events instead of the first one
	Since     uint64 // the first index of interest; 0 means only what happens from now on
}

// Op is what a command does. The numbers are part of the encoding.
type Op uint8

// The operations.
const (
	OpCreate           Op = 1
	OpSet              Op = 2
	OpUpdate           Op = 3
	OpCompareAndSwap   Op = 4
	OpDelete           Op = 5
	OpCompareAndDelete Op = 6
	OpExpire           Op = 7 // removes all keys that are due at Time
	OpImport           Op = 8 // a piece of an import; the last one replaces the tree but for the directory Path
)

// Command is one change. What it does depends on the command and on the store before it, and on nothing else, as long as
// its Time is set.
type Command struct {
	Op        Op
	Path      string
	Dir       bool // create, set: a directory; delete: a directory may be removed
	Unique    bool // create: a new key in order below Path
	Recursive bool // delete: with all that is below; implies Dir
	Refresh   bool // set, update, compareAndSwap: keep the value, replace the time to live, tell no watcher
	Value     string
	Expire    time.Time // when the key expires; zero, or before the year 2000, for never
	PrevValue string    // compareAndSwap, compareAndDelete: "" does not compare
	PrevIndex uint64    // compareAndSwap, compareAndDelete: 0 does not compare

	// Time is how late it is, by the clock of whoever proposed the command. It never goes back in the store: a command
	// with an earlier time than one before it has the time of that one. For OpExpire it is the cut-off. When it is zero the
	// event's time to live is reckoned by Options.Now.
	Time time.Time
	// Estimate says that Time was not stamped by the leader. Such a time does not move the store's clock.
	Estimate bool

	// Client and Sequence name the command, so that a repeat after an ambiguous failure does nothing and has the first
	// result. A Client of 0 has no name. Acked says that the client awaits no result of a sequence below it.
	Client, Sequence, Acked uint64

	Piece Piece // import

	// TTL, when not nil, replaces Expire by Time plus TTL. It is not encoded: Replica.Do and Store.Do set Expire first.
	TTL *time.Duration
}

func (c *Command) name() sessions.Name {
	return sessions.Name{Client: c.Client, Sequence: c.Sequence, Acked: c.Acked}
}

// commandVersion is the first byte of an encoded command.
const commandVersion = 1

// The bits of a command's second number, which say what it is and which fields follow.
const (
	hasDir = 1 << iota
	hasUnique
	hasRecursive
	hasRefresh
	hasEstimate
	hasValue
	hasExpire
	hasPrevValue
	hasPrevIndex
	hasTime
	hasName
	hasPiece
	commandBits = iota
)

// Append appends the command's binary form to b. docs/formats/kv.md describes it.
func (c Command) Append(b []byte) []byte {
	c.Expire = tidyExpire(c.Expire)
	if c.Time.Year() < 0 || c.Time.Year() > 9999 {
		c.Time = time.Time{} // no clock says so
	}
	bits := uint64(0)
	for bit, set := range [commandBits]bool{c.Dir, c.Unique, c.Recursive, c.Refresh, c.Estimate, c.Value != "", !c.Expire.IsZero(),
		c.PrevValue != "", c.PrevIndex != 0, !c.Time.IsZero(), c.Client != 0 || c.Sequence != 0 || c.Acked != 0,
		c.Op == OpImport} {
		bits |= flag(set) << bit
	}
	b = append(b, commandVersion, byte(c.Op))
	b = binary.AppendUvarint(b, bits)
	b = appendString(b, c.Path)
	if bits&hasValue != 0 {
		b = appendString(b, c.Value)
	}
	if bits&hasExpire != 0 {
		b = appendTime(b, c.Expire)
	}
	if bits&hasPrevValue != 0 {
		b = appendString(b, c.PrevValue)
	}
	if bits&hasPrevIndex != 0 {
		b = binary.AppendUvarint(b, c.PrevIndex)
	}
	if bits&hasTime != 0 {
		b = appendTime(b, c.Time)
	}
	if bits&hasName != 0 {
		b = binary.AppendUvarint(b, c.Client)
		b = binary.AppendUvarint(b, c.Sequence)
		b = binary.AppendUvarint(b, c.Acked)
	}
	if bits&hasPiece != 0 {
		b = binary.AppendUvarint(b, c.Piece.Import)
		b = binary.AppendUvarint(b, c.Piece.Number)
		b = binary.AppendUvarint(b, c.Piece.Count<<1|flag(c.Piece.Replace))
		b = appendString(b, c.Piece.Data)
	}
	return b
}

// DecodeCommand reads what Append wrote. It never panics, and it allocates no more than the length of its input.
func DecodeCommand(b []byte) (Command, error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != commandVersion {
		return Command{}, errors.New("decode a command of the key store: it has a version that is not known here")
	}
	c := Command{Op: Op(d.byte())}
	bits := d.uvarint()
	c.Dir, c.Unique, c.Recursive = bits&hasDir != 0, bits&hasUnique != 0, bits&hasRecursive != 0
	c.Refresh, c.Estimate = bits&hasRefresh != 0, bits&hasEstimate != 0
	c.Path = d.string()
	if bits&hasValue != 0 {
		c.Value = d.string()
	}
	if bits&hasExpire != 0 {
		c.Expire = d.time()
	}
	if bits&hasPrevValue != 0 {
		c.PrevValue = d.string()
	}
	if bits&hasPrevIndex != 0 {
		c.PrevIndex = d.uvarint()
	}
	if bits&hasTime != 0 {
		c.Time = d.time()
	}
	if bits&hasName != 0 {
		c.Client, c.Sequence, c.Acked = d.uvarint(), d.uvarint(), d.uvarint()
	}
	if bits&hasPiece != 0 {
		c.Piece.Import, c.Piece.Number = d.uvarint(), d.uvarint()
		count := d.uvarint()
		c.Piece.Count, c.Piece.Replace = count>>1, count&1 != 0
		c.Piece.Data = d.string()
	}
	switch {
	case d.err != nil:
		return Command{}, d.err
	case len(d.b) > 0 || bits>>commandBits != 0:
		return Command{}, errors.New("decode a command of the key store: it has parts that are not known here")
	case c.Op < OpCreate || c.Op > OpImport:
		return Command{}, errors.New("decode a command of the key store: its operation is not known here")
	case (c.Op == OpImport) != (bits&hasPiece != 0), c.Op == OpImport && c.Piece.Import == 0:
		return Command{}, errors.New("decode a command of the key store: a piece of an import is missing, or is where none belongs")
	}
	return c, nil
}

func appendString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

// decoder takes a slice of bytes apart. After the first failure it returns zero values.
type decoder struct {
	b   []byte
	err error
}

var errShort = errors.New("decode the key store's bytes: they end early or hold a number that cannot be")

func (d *decoder) fail() {
	if d.err == nil {
		d.err = errShort
	}
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	s := d.b[:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) string() string { return string(d.bytes()) }

// time reads a time between the years 0 and 9999.
func (d *decoder) time() time.Time {
	sec, nsec := unzigzag(d.uvarint()), d.uvarint()
	if sec < -62167219200 || sec >= 253402300800 || nsec >= 1e9 {
		d.fail()
		return time.Time{}
	}
	return time.Unix(sec, int64(nsec)).UTC()
}
