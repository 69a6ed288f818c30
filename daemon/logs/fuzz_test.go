package logs

import (
	"bytes"
	"encoding/json"
	"slices"
	"testing"
	"time"
	"unicode/utf8"
)

// FuzzJSONLine checks that the short way reads what encoding/json reads, or leaves it to it.
func FuzzJSONLine(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","time":"2026-03-01T11:00:00.12Z"}`))
	f.Add([]byte(`{"log":"\u003c\ud83d\ude00\t\/","stream":"stderr","attrs":{"a":"b"},"time":"2026-03-01T11:00:00Z"}`))
	f.Add([]byte(`{"log":"\ufffd` + "\xff" + `","stream":"stdout","time":"2026-03-01T11:00:00+01:00"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		rec, ok := decodePlain(line)
		if !ok {
			_, _ = decodeJSONLine(line) // must not panic
			return
		}
		var want struct {
			Log    string    `json:"log"`
			Stream string    `json:"stream"`
			Time   time.Time `json:"time"`
		}
		if err := json.Unmarshal(line, &want); err != nil {
			t.Fatalf("%q was read, though: %v", line, err)
		}
		if string(rec.Line) != want.Log || rec.Stream != want.Stream || !rec.Time.Equal(want.Time) {
			t.Fatalf("%q: got %+v, want %+v", line, rec, want)
		}
	})
}

// FuzzEncode checks that every line comes back in both formats; json-file mends what is not UTF-8.
func FuzzEncode(f *testing.F) {
	f.Add([]byte("a<b>&\"\\\t\n"), "stdout", int64(0))
	f.Add([]byte("\xff\u2028\x7f"), "stderr", int64(1e18))
	f.Fuzz(func(t *testing.T, line []byte, stream string, nano int64) {
		if len(line) > 64<<10 || bytes.IndexByte(line, '\n') >= 0 && bytes.IndexByte(line, '\n') != len(line)-1 {
			return
		}
		when := time.Unix(0, nano).UTC()
		j, _ := newJSONEncoder(nil)
		encoded, err := j.append(nil, stream, when, line)
		if err != nil {
			t.Fatal(err)
		}
		rec, taken, ok, err := jsonFormat{}.next(encoded)
		if err != nil || !ok || taken != len(encoded) {
			t.Fatalf("%q: %d of %d bytes, %v", encoded, taken, len(encoded), err)
		}
		if mended := string([]rune(string(line))); string(rec.Line) != mended || rec.Stream != string([]rune(stream)) || !rec.Time.Equal(when) {
			t.Fatalf("%q came back as %+v", line, rec)
		}
		if !utf8.Valid(encoded) {
			t.Fatalf("%q is not UTF-8", encoded)
		}

		encoded, err = newLocalEncoder(nil).append(nil, stream, when, line)
		if err != nil {
			t.Fatal(err)
		}
		rec, taken, ok, err = localFormat{}.next(encoded)
		if err != nil || !ok || taken != len(encoded) || !slices.Equal(rec.Line, line) || rec.Stream != stream || !rec.Time.Equal(when) {
			t.Fatalf("%q came back as %+v, %v", line, rec, err)
		}
	})
}

// FuzzFormats feeds both decoders anything: they must end, stay within it, and agree on where records are.
func FuzzFormats(f *testing.F) {
	for _, driver := range []string{JSONFile, Local} {
		enc, _ := Options{Driver: driver, Attrs: map[string]string{"a": "b"}}.encoder()
		var data []byte
		for _, line := range []string{"one\n", "part", "two\n"} {
			data, _ = enc.append(data, "stdout", time.Unix(1, 1), []byte(line))
		}
		f.Add(data)
		f.Add(data[:len(data)-3])
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, fm := range []format{jsonFormat{}, localFormat{}} {
			r := bytes.NewReader(data)
			size := int64(len(data))
			good, err := fm.intact(r, size)
			if err != nil || good < 0 || good > size {
				t.Fatalf("intact: %d of %d, %v", good, size, err)
			}
			count, pos := 0, 0
			for {
				_, taken, _, err := fm.next(data[pos:])
				if taken == 0 || err != nil {
					break
				}
				pos += taken
				count++
			}
			for _, want := range []int{0, 1, 3} {
				offset, found, err := fm.tail(r, size, want)
				if err != nil || offset < 0 || offset > size || found > want {
					t.Fatalf("tail %d: offset %d of %d, %d found, %v", want, offset, size, found, err)
				}
				if _, isJSON := fm.(jsonFormat); isJSON && found != min(want, count) {
					t.Fatalf("tail %d: %d found of %d", want, found, count)
				}
			}
		}
	})
}
