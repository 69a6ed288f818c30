package kvstore

import (
	"encoding/binary"
	"math"
	"time"
	"unsafe"
)

// A record is a file of the tree: its name, its value and its indexes in one piece of memory without pointers, behind one
// pointer. A struct with strings in it would cost 48 bytes a key more, and the collector three objects instead of one.
//
// The layout is: a byte with the kind and the record's flags, uvarint length of the name, the name, uvarint length of the
// value, uvarint createdIndex, for what was modified since uvarint (modifiedIndex − createdIndex), for what expires varint
// seconds and uvarint nanoseconds since 1970, the value. Records are written once, by newRecord, which is why reading them
// needs no bounds.
type record struct{ p unsafe.Pointer }

// The flags of a record, beside its kind.
const (
	recordExpires  = 4
	recordModified = 8
)

// attributes are what a file and a directory have in common.
type attributes struct {
	created, modified uint64
	expire            time.Time // zero for what is permanent
}

// newRecord copies the name and the value.
func newRecord[T string | []byte](name string, a attributes, value T) record {
	var head [4 * binary.MaxVarintLen64]byte
	h := binary.AppendUvarint(head[:0], uint64(len(value)))
	h = binary.AppendUvarint(h, a.created)
	flags := byte(kindFile)
	if a.modified != a.created {
		flags |= recordModified
		h = binary.AppendUvarint(h, a.modified-a.created)
	}
	if !a.expire.IsZero() {
		flags |= recordExpires
		h = appendTime(h, a.expire)
	}
	var size [binary.MaxVarintLen64]byte
	s := binary.AppendUvarint(size[:0], uint64(len(name)))
	b := make([]byte, 1+len(s)+len(name)+len(h)+len(value))
	b[0] = flags
	at := 1
	at += copy(b[at:], s)
	at += copy(b[at:], name)
	at += copy(b[at:], h)
	copy(b[at:], value)
	return record{unsafe.Pointer(unsafe.SliceData(b))}
}

// uvarint reads the number at an offset, and returns the offset behind it.
func (r record) uvarint(at int) (v uint64, next int) {
	for shift := 0; ; shift += 7 {
		c := *(*byte)(unsafe.Add(r.p, at))
		at++
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, at
		}
	}
}

// text returns a part of the record's own memory.
func (r record) text(at int, size uint64) string {
	if size == 0 {
		return "" // there may be nothing at that place, so nothing may point there
	}
	return unsafe.String((*byte)(unsafe.Add(r.p, at)), int(size))
}

func (r record) name() string {
	size, at := r.uvarint(1)
	return r.text(at, size)
}

// read takes a record apart. The value is the record's own memory.
func (r record) read() (a attributes, value string) {
	flags := *(*byte)(r.p)
	n, at := r.uvarint(1)
	size, at := r.uvarint(at + int(n))
	a.created, at = r.uvarint(at)
	a.modified = a.created
	if flags&recordModified != 0 {
		n, at = r.uvarint(at)
		a.modified += n
	}
	if flags&recordExpires != 0 {
		var sec uint64
		sec, at = r.uvarint(at)
		n, at = r.uvarint(at)
		a.expire = time.Unix(unzigzag(sec), int64(n)).UTC()
	}
	return a, r.text(at, size)
}

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func zigzag(v int64) uint64   { return uint64(v)<<1 ^ uint64(v>>63) }
func unzigzag(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }

func appendTime(b []byte, t time.Time) []byte {
	b = binary.AppendUvarint(b, zigzag(t.Unix()))
	return binary.AppendUvarint(b, uint64(t.Nanosecond()))
}

// The bounds of an expire time: earlier ones mean never, and later ones cannot be written in RFC 3339.
var (
	minExpire = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	maxExpire = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// tidyExpire returns the time as it is kept: in UTC, without a monotonic reading, zero for what never expires.
func tidyExpire(t time.Time) time.Time {
	switch {
	case t.Before(minExpire):
		return time.Time{}
	case t.After(maxExpire):
		return maxExpire
	}
	return t.UTC().Round(0)
}

// secondsLeft rounds up.
func secondsLeft(expire, now time.Time) int64 {
	left := expire.Sub(now)
	if left == math.MaxInt64 { // saturated: count in seconds
		return expire.Unix() - now.Unix() + int64(flag(expire.Nanosecond() > now.Nanosecond()))
	}
	s := left / time.Second
	if left%time.Second > 0 {
		s++
	}
	return int64(s)
}
