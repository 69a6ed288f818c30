package logs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"stated.dev/stated/internal/jsonquote"
)

// maxJSONLine bounds one line of a json-file log. Docker keeps at most 16 KiB of output in a record, which escaping
// can grow six times; what is longer than this was not written by a log driver and is passed over.
const maxJSONLine = 8 << 20

// jsonEncoder writes {"log":…,"stream":…,"attrs":…,"time":…} and a newline.
type jsonEncoder struct {
	attrs []byte // `,"attrs":{…}`, or empty
}

func newJSONEncoder(attrs map[string]string) (*jsonEncoder, error) {
	if len(attrs) == 0 {
		return &jsonEncoder{}, nil
	}
	b, err := json.Marshal(attrs)
	if err != nil {
		return nil, fmt.Errorf("encode log attributes: %w", err)
	}
	return &jsonEncoder{attrs: append([]byte(`,"attrs":`), b...)}, nil
}

func (e *jsonEncoder) append(dst []byte, stream string, t time.Time, line []byte) ([]byte, error) {
	t = t.UTC()
	if y := t.Year(); y < 0 || y >= 10000 {
		return dst, errors.New("encode log record: year outside of [0,9999]")
	}
	dst = append(dst, '{')
	if len(line) > 0 {
		dst = append(dst, `"log":`...)
		dst = jsonquote.Append(dst, line, quoting)
		dst = append(dst, ',')
	}
	if stream != "" {
		dst = append(dst, `"stream":`...)
		dst = jsonquote.Append(dst, stream, quoting)
		dst = append(dst, ',')
	}
	if len(e.attrs) > 0 {
		dst = append(dst, e.attrs[1:]...)
		dst = append(dst, ',')
	}
	dst = append(dst, `"time":"`...)
	dst = t.AppendFormat(dst, time.RFC3339Nano)
	return append(dst, '"', '}', '\n'), nil
}

// quoting is that of Docker's log writer: what is special to HTML is escaped, and of the control characters only newline and
// carriage return have their short form.
var quoting = jsonquote.Escaping("\n\r")

type jsonFormat struct{}

func (jsonFormat) next(buf []byte) (Record, int, bool, error) {
	end := bytes.IndexByte(buf, '\n')
	if end < 0 {
		if len(buf) > maxJSONLine {
			return Record{}, 0, false, errLost
		}
		return Record{}, 0, false, nil
	}
	rec, err := decodeJSONLine(buf[:end])
	return rec, end + 1, err == nil, nil
}

// decodeJSONLine decodes one line, without its newline. Lines as the encoder writes them, without attributes, take a
// short way; everything else goes through encoding/json.
func decodeJSONLine(line []byte) (Record, error) {
	if rec, ok := decodePlain(line); ok {
		return rec, nil
	}
	var r struct {
		Log    string            `json:"log"`
		Stream string            `json:"stream"`
		Attrs  map[string]string `json:"attrs"`
		Time   time.Time         `json:"time"`
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return Record{}, fmt.Errorf("decode log record: %w", err)
	}
	if r.Time.IsZero() {
		return Record{}, errors.New("decode log record: no time")
	}
	return Record{Stream: r.Stream, Time: r.Time, Line: []byte(r.Log), Attrs: r.Attrs}, nil
}

func decodePlain(line []byte) (Record, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"log":"`))
	if !ok {
		return Record{}, false
	}
	text, rest, ok := cutJSONString(rest)
	if !ok {
		return Record{}, false
	}
	if rest, ok = bytes.CutPrefix(rest, []byte(`,"stream":"`)); !ok {
		return Record{}, false
	}
	var stream string
	switch {
	case bytes.HasPrefix(rest, []byte(`stdout"`)):
		stream = "stdout"
	case bytes.HasPrefix(rest, []byte(`stderr"`)):
		stream = "stderr"
	default:
		return Record{}, false
	}
	if rest, ok = bytes.CutPrefix(rest[len(`stdout"`):], []byte(`,"time":"`)); !ok {
		return Record{}, false
	}
	if rest, ok = bytes.CutSuffix(rest, []byte(`"}`)); !ok {
		return Record{}, false
	}
	var t time.Time
	if err := t.UnmarshalText(rest); err != nil || t.IsZero() {
		return Record{}, false
	}
	return Record{Stream: stream, Time: t, Line: text}, true
}

// cutJSONString decodes the string whose opening quote has been taken off. It gives up on what encoding/json would
// refuse or mend.
func cutJSONString(s []byte) (text, rest []byte, ok bool) {
	end := bytes.IndexByte(s, '"')
	if end < 0 {
		return nil, nil, false
	}
	text = make([]byte, 0, end)
	done := 0
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"':
			text = append(text, s[done:i]...)
			return text, s[i+1:], utf8.Valid(text)
		case c < 0x20:
			return nil, nil, false
		case c != '\\':
			i++
			continue
		}
		text = append(text, s[done:i]...)
		if i+1 >= len(s) {
			return nil, nil, false
		}
		i += 2
		switch e := s[i-1]; e {
		case '"', '\\', '/':
			text = append(text, e)
		case 'n':
			text = append(text, '\n')
		case 'r':
			text = append(text, '\r')
		case 't':
			text = append(text, '\t')
		case 'b':
			text = append(text, '\b')
		case 'f':
			text = append(text, '\f')
		case 'u':
			r, ok := hex4(s[i:])
			if !ok || utf16.IsSurrogate(r) {
				return nil, nil, false
			}
			text = utf8.AppendRune(text, r)
			i += 4
		default:
			return nil, nil, false
		}
		done = i
	}
	return nil, nil, false
}

func hex4(s []byte) (rune, bool) {
	if len(s) < 4 {
		return 0, false
	}
	var r rune
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// tail looks for newlines from the end.
func (jsonFormat) tail(r io.ReaderAt, size int64, want int) (int64, int, error) {
	end, err := lastNewline(r, size)
	if err != nil || want == 0 || end == 0 {
		return end, 0, err
	}
	// Each newline before the final one ends the record before the one counted.
	found := 0
	chunk := make([]byte, 32<<10)
	for pos := end - 1; pos > 0; {
		n := min(pos, int64(len(chunk)))
		part := chunk[:n]
		if err := readFull(r, part, pos-n); err != nil {
			return 0, 0, err
		}
		for i := bytes.LastIndexByte(part, '\n'); i >= 0; i = bytes.LastIndexByte(part[:i], '\n') {
			if found++; found == want {
				return pos - n + int64(i) + 1, found, nil
			}
		}
		pos -= n
	}
	return 0, found + 1, nil
}

func (jsonFormat) intact(r io.ReaderAt, size int64) (int64, error) { return lastNewline(r, size) }

// lastNewline returns the offset behind the last newline in the first size bytes, 0 when there is none.
func lastNewline(r io.ReaderAt, size int64) (int64, error) {
	chunk := make([]byte, min(size, 4<<10))
	for pos := size; pos > 0; {
		n := min(pos, int64(len(chunk)))
		if err := readFull(r, chunk[:n], pos-n); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(chunk[:n], '\n'); i >= 0 {
			return pos - n + int64(i) + 1, nil
		}
		pos -= n
	}
	return 0, nil
}

func readFull(r io.ReaderAt, p []byte, offset int64) error {
	n, err := r.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF // the file was cut while it was read
	}
	return err
}
