package shim

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
)

// memLog keeps records in memory.
type memLog struct {
	records []memRecord
	flushed int
	closed  bool
	fail    error
}

type memRecord struct {
	stream string
	at     time.Time
	text   string
}

func (m *memLog) Write(stream string, t time.Time, line []byte) error {
	if m.fail != nil {
		return m.fail
	}
	m.records = append(m.records, memRecord{stream, t, string(line)})
	return nil
}

func (m *memLog) Flush() error { m.flushed = len(m.records); return nil }
func (m *memLog) Close() error { m.closed = true; return nil }

func (m *memLog) texts(stream string) []string {
	var t []string
	for _, r := range m.records {
		if r.stream == stream {
			t = append(t, r.text)
		}
	}
	return t
}

func TestSinkCutsLines(t *testing.T) {
	long := strings.Repeat("x", maxPiece)
	for name, c := range map[string]struct{ in, want []string }{
		"lines":            {[]string{"a\nb\n"}, []string{"a\n", "b\n"}},
		"a line in pieces": {[]string{"a", "b", "c\nd"}, []string{"abc\n", "d"}},
		"empty lines":      {[]string{"\n\n"}, []string{"\n", "\n"}},
		"a full piece":     {[]string{long + "\n"}, []string{long, "\n"}},
		"one less":         {[]string{long[1:] + "\n"}, []string{long[1:] + "\n"}},
		"a long line":      {[]string{long + "yy\nz\n"}, []string{long, "yy\n", "z\n"}},
		"grown slowly":     {[]string{long[:9], long[9:] + "y", "y\n"}, []string{long, "yy\n"}},
		"no end":           {[]string{"a"}, []string{"a"}},
		"nothing":          {nil, nil},
	} {
		m := &memLog{}
		s := &sink{w: m}
		for _, p := range c.in {
			s.write(stdout, []byte(p))
		}
		s.close()
		if got := m.texts("stdout"); strings.Join(got, "|") != strings.Join(c.want, "|") {
			t.Errorf("%s: got %.40q, want %.40q", name, got, c.want)
		}
		if !m.closed {
			t.Errorf("%s: the log is open", name)
		}
	}
}

func TestSinkKeepsStreamsApart(t *testing.T) {
	m := &memLog{}
	s := &sink{w: m}
	s.write(stdout, []byte("out "))
	s.write(stderr, []byte("err\n"))
	s.write(stdout, []byte("put\n"))
	if got := m.texts("stdout"); len(got) != 1 || got[0] != "out put\n" {
		t.Errorf("stdout %q", got)
	}
	if got := m.texts("stderr"); len(got) != 1 || got[0] != "err\n" {
		t.Errorf("stderr %q", got)
	}
	if m.flushed != 2 {
		t.Errorf("%d records are flushed", m.flushed)
	}
}

func TestSinkPiecesShareATime(t *testing.T) {
	m := &memLog{}
	s := &sink{w: m}
	s.write(stdout, bytes.Repeat([]byte("x"), maxPiece))
	s.write(stdout, []byte("rest\nnext\n"))
	if !m.records[0].at.Equal(m.records[1].at) {
		t.Error("pieces of one line have different times")
	}
	if m.records[2].at.Equal(m.records[0].at) {
		t.Error("the next line has the time of the one before")
	}
}

func TestSinkSurvivesFailures(t *testing.T) {
	m := &memLog{fail: errors.New("no space")}
	s := &sink{w: m}
	s.write(stdout, []byte("lost\n"))
	m.fail = nil
	s.write(stdout, []byte("kept\n"))
	if got := m.texts("stdout"); len(got) != 1 || got[0] != "kept\n" {
		t.Errorf("records %q", got)
	}
	s.close()
	s.write(stdout, []byte("late\n"))
	if len(m.records) != 1 {
		t.Error("a record came after the end")
	}
}

// FuzzSink checks that records joined are what was written, however it is cut, and that none is too long.
func FuzzSink(f *testing.F) {
	f.Add([]byte("a\nbb\n\nccc"), 2)
	f.Add(bytes.Repeat([]byte("x"), 2*maxPiece+1), 1000)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		if step <= 0 || step > 1<<20 {
			return
		}
		m := &memLog{}
		s := &sink{w: m}
		for rest := data; len(rest) > 0; {
			n := min(step, len(rest))
			s.write(stdout, rest[:n])
			rest = rest[n:]
		}
		s.close()
		got := m.texts("stdout")
		if strings.Join(got, "") != string(data) {
			t.Fatal("records differ from what was written")
		}
		for _, r := range got {
			if len(r) > maxPiece || len(r) == 0 || strings.Contains(r[:len(r)-1], "\n") {
				t.Fatalf("record %.40q of %d bytes", r, len(r))
			}
		}
	})
}
