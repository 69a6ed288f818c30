package raft

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	hraft "github.com/hashicorp/raft"
)

// FuzzSections: any bytes are read as a snapshot's stream or refused as damage.
func FuzzSections(f *testing.F) {
	var good bytes.Buffer
	err := writeSection(&good, "a", Section{Version: 3, Write: func(w io.Writer) error { _, err := w.Write([]byte("state")); return err }})
	if err = errors.Join(err, writeLast(&good, 1)); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		err := readSections(bytes.NewReader(data), func(_ string, _ uint32, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
		if err != nil && !errors.Is(err, ErrDamaged) {
			t.Error(err)
		}
	})
}

// FuzzSegment: any bytes are read as a segment or refused as damage, and what is read can be read again.
func FuzzSegment(f *testing.F) {
	s, err := createSegment(f.TempDir(), 7, [][]byte{[]byte("one"), []byte("two")}, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = s.file.Close() }) // nothing is written to it
	data, err := os.ReadFile(s.path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(data[:s.end:s.end], make([]byte, 64)...))
	f.Add(appendBatch(data[:s.end:s.end], 9, s.sum, [][]byte{[]byte("three")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &segment{path: "x", first: 7}
		if _, err := s.scan(data); err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrVersion) {
				t.Error(err)
			}
			return
		}
		again := &segment{path: "x", first: 7}
		if torn, err := again.scan(data[:s.end]); torn || err != nil || again.end != s.end {
			t.Errorf("read again it ends at %d instead of %d (%t, %v)", again.end, s.end, torn, err)
		}
	})
}

// FuzzRecord: any bytes are read as a record or refused.
func FuzzRecord(f *testing.F) {
	ring, err := newKeyring([][]byte{make([]byte, KeySize)})
	if err != nil {
		f.Fatal(err)
	}
	for _, k := range []keyring{nil, ring} {
		record, err := k.appendRecord(nil, &hraft.Log{Index: 5, Term: 2, Data: entry(1, []byte("x"))})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(record)
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		var l hraft.Log
		if ring.parseRecord(record, 5, &l) == nil {
			_, _, _ = parseEntry(l.Data) // it must not panic
		}
	})
}
