package kvstore

import (
	"encoding/binary"
	"math"
	"time"
	"unsafe"
)

// A record is a file of the tree: its value and its indexes in one piece of memory without pointers, behind one pointer. A
// struct with a string in it would cost 40 bytes a key more, and the collector two objects instead of one.
//
// The layout is: uvarint of (length of the value × 2, plus 1 when it expires), uvarint createdIndex, uvarint (modifiedIndex −
// createdIndex), for what expires varint seconds and uvarint nanoseconds since 1970, the value. Records are written once,
// by newRecord, which is why reading them needs no bounds.
type record struct{ p unsafe.Pointer }

// attributes are what a file and a directory have in common.
type attributes struct {
	created, modified uint64
	expire            time.Time // zero for what is permanent
}

func newRecord(a attributes, value string) record {
	return newRecordBytes(a, unsafe.Slice(unsafe.StringData(value), len(value)))
}

// newRecordBytes copies the value.
func newRecordBytes(a attributes, value []byte) record {
	var head [5 * binary.MaxVarintLen64]byte
	h := binary.AppendUvarint(head[:0], uint64(len(value))<<1|flag(!a.expire.IsZero()))
	h = binary.AppendUvarint(h, a.created)
	h = binary.AppendUvarint(h, a.modified-a.created)
	if !a.expire.IsZero() {
		h = appendTime(h, a.expire)
	}
	b := make([]byte, len(h)+len(value))
	copy(b[copy(b, h):], value)
	return record{unsafe.Pointer(unsafe.SliceData(b))}
}

// read takes a record apart. The value is the record's own memory.
func (r record) read() (a attributes, value string) {
	at := 0
	next := func() (v uint64) {
		for shift := 0; ; shift += 7 {
			c := *(*byte)(unsafe.Add(r.p, at))
			at++
			v |= uint64(c&0x7f) << shift
			if c < 0x80 {
				return v
			}
		}
	}
	size := next()
	a.created = next()
	a.modified = a.created + next()
	if size&1 != 0 {
		sec := unzigzag(next())
		a.expire = time.Unix(sec, int64(next())).UTC()
	}
	if size>>1 == 0 {
		return a, "" // there is nothing at the place behind the head, so nothing may point there
	}
	return a, unsafe.String((*byte)(unsafe.Add(r.p, at)), int(size>>1))
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
