package logs

import (
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"stated.dev/stated/internal/ids"
	"stated.dev/stated/internal/protofield"
)

// A record of the driver local is a protobuf message between two copies of its length (4 bytes, big endian), so that
// a file can be read from both ends. The messages, by Docker's field numbers:
//
//	LogEntry                { source 1 string, time_nano 2 int64, line 3 bytes, partial 4 bool,
//	                          partial_log_metadata 5 PartialLogEntryMetadata, attrs 6 repeated LogAttr }
//	PartialLogEntryMetadata { last 1 bool, id 2 string, ordinal 3 int32 }
//	LogAttr                 { key 1 string, value 2 string }
//
// No message is empty: zeroes are what a power cut can leave at the end of a file. The line is stored without its
// newline; a record that is not marked partial, or is the last of its parts, had one.
const (
	lengthSize = 4
	// maxLocalMessage is Docker's bound for a message: it refuses to read longer ones.
	maxLocalMessage = 1_000_000
)

type localEncoder struct {
	attrs   []byte // all LogAttr fields, encoded once
	message []byte // the message being built
	parts   []*partial
}

// partial is a line that has come in parts and has not ended yet.
type partial struct {
	stream  string
	id      string
	ordinal uint64
}

func newLocalEncoder(attrs map[string]string) *localEncoder {
	e := &localEncoder{}
	for _, key := range slices.Sorted(maps.Keys(attrs)) {
		var attr []byte
		attr = appendString(attr, 1, key)
		attr = appendString(attr, 2, attrs[key])
		e.attrs = protowire.AppendTag(e.attrs, 6, protowire.BytesType)
		e.attrs = protowire.AppendBytes(e.attrs, attr)
	}
	return e
}

func (e *localEncoder) append(dst []byte, stream string, t time.Time, line []byte) ([]byte, error) {
	last := len(line) > 0 && line[len(line)-1] == '\n'
	if last {
		line = line[:len(line)-1]
	}
	m := appendString(e.message[:0], 1, stream)
	m = protowire.AppendTag(m, 2, protowire.VarintType) // even 0, so that the message is never empty
	m = protowire.AppendVarint(m, uint64(t.UnixNano()))
	if len(line) > 0 {
		m = protowire.AppendTag(m, 3, protowire.BytesType)
		m = protowire.AppendBytes(m, line)
	}
	if p := e.part(stream, last); p != nil {
		var meta []byte
		if last {
			meta = protowire.AppendTag(meta, 1, protowire.VarintType)
			meta = protowire.AppendVarint(meta, 1)
		}
		meta = appendString(meta, 2, p.id)
		meta = protowire.AppendTag(meta, 3, protowire.VarintType)
		meta = protowire.AppendVarint(meta, p.ordinal)
		m = protowire.AppendTag(m, 4, protowire.VarintType)
		m = protowire.AppendVarint(m, 1)
		m = protowire.AppendTag(m, 5, protowire.BytesType)
		m = protowire.AppendBytes(m, meta)
	}
	m = append(m, e.attrs...)
	e.message = m
	if len(m) > maxLocalMessage {
		return dst, errors.New("encode log record: longer than 1 MB")
	}
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(m)))
	dst = append(dst, m...)
	return binary.BigEndian.AppendUint32(dst, uint32(len(m))), nil
}

// part returns the parts that a record of stream belongs to, or nil when it is a whole line.
func (e *localEncoder) part(stream string, last bool) *partial {
	i := slices.IndexFunc(e.parts, func(p *partial) bool { return p.stream == stream })
	if i < 0 {
		if last {
			return nil
		}
		i = len(e.parts)
		e.parts = append(e.parts, &partial{stream: stream, id: ids.New()})
	}
	p := e.parts[i]
	p.ordinal++
	if last {
		e.parts = slices.Delete(e.parts, i, i+1)
	}
	return p
}

func appendString(dst []byte, field protowire.Number, s string) []byte {
	if s == "" {
		return dst
	}
	dst = protowire.AppendTag(dst, field, protowire.BytesType)
	return protowire.AppendString(dst, s)
}

type localFormat struct{}

func (localFormat) next(buf []byte) (Record, int, bool, error) {
	if len(buf) < lengthSize {
		return Record{}, 0, false, nil
	}
	n := binary.BigEndian.Uint32(buf)
	if n == 0 || n > maxLocalMessage {
		return Record{}, 0, false, errLost
	}
	total := int(n) + 2*lengthSize
	if len(buf) < total {
		return Record{}, 0, false, nil
	}
	if binary.BigEndian.Uint32(buf[total-lengthSize:]) != n {
		return Record{}, 0, false, errLost
	}
	rec, err := decodeLocal(buf[lengthSize : total-lengthSize])
	return rec, total, err == nil, nil
}

func decodeLocal(m []byte) (Record, error) {
	var rec Record
	rec.Time = time.Unix(0, 0).UTC() // as an absent field means
	isPartial, last := false, false
	err := protofield.Each(m, func(field protowire.Number, value uint64, bytes []byte) error {
		switch field {
		case 1:
			rec.Stream = string(bytes)
		case 2:
			rec.Time = time.Unix(0, int64(value)).UTC()
		case 3:
			rec.Line = append(make([]byte, 0, len(bytes)+1), bytes...)
		case 4:
			isPartial = value != 0
		case 5:
			return protofield.Each(bytes, func(field protowire.Number, value uint64, _ []byte) error {
				if field == 1 {
					last = value != 0
				}
				return nil
			})
		case 6:
			var key, val string
			err := protofield.Each(bytes, func(field protowire.Number, _ uint64, bytes []byte) error {
				switch field {
				case 1:
					key = string(bytes)
				case 2:
					val = string(bytes)
				}
				return nil
			})
			if err != nil {
				return err
			}
			if rec.Attrs == nil {
				rec.Attrs = map[string]string{}
			}
			rec.Attrs[key] = val
		}
		return nil
	})
	if err != nil {
		return Record{}, err
	}
	if !isPartial || last {
		rec.Line = append(rec.Line, '\n')
	}
	return rec, nil
}

// tail walks back from length to length. Where they do not agree, because a record is being written or was torn, it
// looks for the last whole record from the front.
func (f localFormat) tail(r io.ReaderAt, size int64, want int) (int64, int, error) {
	if want == 0 {
		end, err := f.intact(r, size)
		return end, 0, err
	}
	offset, found, err := f.walkBack(r, size, want)
	if err != nil || offset >= 0 {
		return offset, found, err
	}
	end, err := f.walk(r, size)
	if err != nil {
		return 0, 0, err
	}
	offset, found, err = f.walkBack(r, end, want)
	return max(offset, 0), found, err
}

// walkBack returns an offset of -1 when the lengths do not agree.
func (localFormat) walkBack(r io.ReaderAt, size int64, want int) (offset int64, found int, err error) {
	var b [lengthSize]byte
	for offset = size; found < want && offset > 0; found++ {
		if offset < 2*lengthSize {
			return -1, 0, nil
		}
		if err := readFull(r, b[:], offset-lengthSize); err != nil {
			return 0, 0, err
		}
		n := binary.BigEndian.Uint32(b[:])
		start := offset - 2*lengthSize - int64(n)
		if start < 0 || n == 0 || n > maxLocalMessage {
			return -1, 0, nil
		}
		if err := readFull(r, b[:], start); err != nil {
			return 0, 0, err
		}
		if binary.BigEndian.Uint32(b[:]) != n {
			return -1, 0, nil
		}
		offset = start
	}
	return offset, found, nil
}

// walk returns where the last record that can be reached from the front ends.
func (localFormat) walk(r io.ReaderAt, size int64) (int64, error) {
	var b [lengthSize]byte
	for offset := int64(0); ; {
		if size-offset < 2*lengthSize {
			return offset, nil
		}
		if err := readFull(r, b[:], offset); err != nil {
			return 0, err
		}
		n := binary.BigEndian.Uint32(b[:])
		end := offset + 2*lengthSize + int64(n)
		if n == 0 || n > maxLocalMessage || end > size {
			return offset, nil
		}
		if err := readFull(r, b[:], end-lengthSize); err != nil {
			return 0, err
		}
		if binary.BigEndian.Uint32(b[:]) != n {
			return offset, nil
		}
		offset = end
	}
}

// intact trusts the end of the file when its last record's lengths agree, and walks from the front otherwise.
func (f localFormat) intact(r io.ReaderAt, size int64) (int64, error) {
	offset, _, err := f.walkBack(r, size, 1)
	if err != nil {
		return 0, err
	}
	if offset >= 0 {
		return size, nil
	}
	return f.walk(r, size)
}
