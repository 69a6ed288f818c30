package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// open opens the log and wants these entries.
func open(t *testing.T, path string, want ...string) *Log {
	t.Helper()
	l, entries, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if got := fmt.Sprintf("%q", entries); got != fmt.Sprintf("%q", want) {
		t.Fatalf("entries %s, want %q", got, want)
	}
	return l
}

func add(t *testing.T, l *Log, entries ...string) {
	t.Helper()
	var list [][]byte
	for _, e := range entries {
		list = append(list, []byte(e))
	}
	if err := l.Append(list...); err != nil {
		t.Fatal(err)
	}
}

func TestEntriesUntilReset(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := open(t, path)
	add(t, l, "one", "")
	add(t, l, "three")
	l = open(t, path, "one", "", "three")
	add(t, l, "new") // as long as "one": what follows it is of the generation before
	l = open(t, path, "new")
	l.Reset()
	l = open(t, path, "new") // nothing was written
	if err := l.Clear(); err != nil {
		t.Fatal(err)
	}
	l = open(t, path)
	add(t, l, string(make([]byte, 2*Reserve)), "last")
	open(t, path, string(make([]byte, 2*Reserve)), "last")
}

// TestFailedAppend fails an append whose bytes come to the disk all the same. What is appended in its place, and of the
// same length, is not followed by the rest of it.
func TestFailedAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := open(t, path)
	add(t, l, "first")
	end, sum := l.end, l.sum
	add(t, l, "refused", "refused too")
	l.end, l.sum = end, sum // as after an error
	add(t, l, "granted")
	open(t, path, "first", "granted")
}

// TestDamage cuts and damages a log at every byte: what is left is a front part of what was appended.
func TestDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l := open(t, path)
	add(t, l, "alpha", "beta")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	length := 2*headerSize + len("alphabeta")
	for at := range length {
		for what, data := range map[string][]byte{
			"cut":     whole[:at],
			"flipped": append(append(bytes.Clone(whole[:at]), whole[at]^0x40), whole[at+1:]...),
			"zeroed":  append(bytes.Clone(whole[:at]), make([]byte, len(whole)-at)...),
		} {
			entries := decode(data)
			if len(entries) > 1 || len(entries) == 1 && (string(entries[0]) != "alpha" || at < headerSize+len("alpha")) {
				t.Errorf("%s at %d: entries %q", what, at, entries)
			}
		}
	}
}

func TestTooLarge(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "log"))
	if err := l.Append(make([]byte, maxEntry+1)); err == nil {
		t.Error("an entry over the limit was taken")
	}
}

// TestFullDisk opens a log where there is no room for the reserve: it takes what fits, and says when nothing does.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatalf("mount a small tmpfs, which takes root: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }) // with all that is in it
	path := filepath.Join(dir, "log")
	l := open(t, path)
	var want []string
	for n := 0; ; n++ {
		e := fmt.Sprint(n, " ", string(make([]byte, 1000)))
		err := l.Append([]byte(e))
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil || n > 64 {
			t.Fatalf("entry %d: %v", n, err)
		}
		want = append(want, e)
	}
	if len(want) == 0 {
		t.Error("nothing fits")
	}
	open(t, path, want...)
}

func FuzzDecode(f *testing.F) {
	frame, sum := appendFrame(nil, 0, 7, []byte("a"))
	frame, _ = appendFrame(frame, sum, 7, []byte("b"))
	f.Add(frame)
	f.Add(make([]byte, 40))
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		var sum uint32
		if len(data) < headerSize {
			return
		}
		for _, e := range decode(data) {
			again, sum = appendFrame(again, sum, binary.LittleEndian.Uint64(data[8:]), e)
		}
		if !bytes.HasPrefix(data, again) {
			t.Errorf("%x decodes to what encodes as %x", data, again)
		}
	})
}
