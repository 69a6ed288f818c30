// Package etcdfile finds the v2 keys in what an etcd 3 leaves on disk: the newest snapshot of a data directory, or of a
// backup of one, is the document that kvstore recovers from.
//
// It replays no log: a directory whose log has changes behind its snapshot is refused with what to do about it. It never
// writes, and does not look at the keys of the v3 API.
package etcdfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"stated.dev/stated/internal/protofield"
)

// ErrChangesInLog is returned for a directory whose log holds changes that are in no snapshot.
var ErrChangesInLog = errors.New("changes are in its log alone, which is not read: start that etcd on the directory once more with --enable-v2 --snapshot-count=1, " +
	"which takes a snapshot of all that there is, stop it when it answers, and import its data directory")

// Read returns the document in a file or directory: the document itself, a snapshot (.snap), or a data directory, as etcd
// itself and "ETCDCTL_API=2 etcdctl backup" make it.
func Read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return readDir(path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	document, err := Document(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return document, nil
}

// ReadFrom is Read for a stream, which is no directory.
func ReadFrom(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	return Document(b)
}

// Document returns the document that is, or is in, the content of a file.
func Document(b []byte) ([]byte, error) {
	if isDocument(b) {
		return b, nil
	}
	s, err := parseSnapshot(b)
	if err != nil {
		return nil, fmt.Errorf("it is neither a JSON document nor a snapshot of an etcd: %w", err)
	}
	return s.document, nil
}

func isDocument(b []byte) bool {
	text := strings.TrimLeft(string(b[:min(len(b), 64)]), " \t\r\n")
	return strings.HasPrefix(text, "{")
}

func readDir(path string) ([]byte, error) {
	dir := path
	if sub := filepath.Join(path, "member"); exists(sub) {
		dir = sub
	}
	names, err := list(filepath.Join(dir, "snap"), ".snap")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	logs, err := list(filepath.Join(dir, "wal"), ".wal")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no data directory of an etcd: it has neither wal nor member/wal; name the directory that holds \"member\"", path)
	}
	if err != nil {
		return nil, err
	}
	var s snapshot // of an etcd that never took one, and so has everything in its log
	if len(names) > 0 {
		newest := names[len(names)-1]
		b, err := os.ReadFile(newest)
		if err != nil {
			return nil, err
		}
		if s, err = parseSnapshot(b); err != nil {
			return nil, fmt.Errorf("%s: %w", newest, err)
		}
	}
	l := log{after: s.index}
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := l.read(b); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	if n := l.changes(); n > 0 {
		return nil, fmt.Errorf("%s: %d %w", path, n, ErrChangesInLog)
	}
	if s.document == nil {
		return nil, fmt.Errorf("%s has no v2 keys", path)
	}
	return s.document, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// list returns the files of a directory whose names end as given. Their names order them.
func list(dir, suffix string) (paths []string, err error) {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) && !e.IsDir() {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(paths)
	return paths, err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type snapshot struct {
	document []byte
	index    uint64
}

// parseSnapshot reads a .snap file: a message of the checksum (1) and the data (2), which is a message of the store (1)
// and of metadata (2), in which 2 is the index.
func parseSnapshot(b []byte) (s snapshot, err error) {
	outer, err := parse(b)
	if err != nil {
		return s, err
	}
	data := outer.bytes[2]
	if data == nil || uint64(crc32.Checksum(data, castagnoli)) != outer.numbers[1] {
		return s, errors.New("the checksum is wrong")
	}
	inner, err := parse(data)
	if err != nil {
		return s, err
	}
	metadata, err := parse(inner.bytes[2])
	if err != nil {
		return s, err
	}
	if s = (snapshot{inner.bytes[1], metadata.numbers[2]}); !isDocument(s.document) {
		return s, errors.New("the snapshot has no v2 store in it: the etcd runs without --enable-v2, or in a version that has no v2 API")
	}
	return s, nil
}

// message is a protobuf message's last value of each field with a low number.
type message struct {
	numbers [32]uint64
	bytes   [32][]byte
}

func parse(b []byte) (m message, err error) {
	err = protofield.Each(b, func(field protowire.Number, number uint64, bytes []byte) error {
		if int(field) >= len(m.numbers) {
			return nil
		}
		m.numbers[field] = number
		if bytes != nil {
			m.bytes[field] = slices.Clip(bytes)
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("it is damaged: %w", err)
	}
	return m, err
}

// log is what matters of a write-ahead log.
type log struct {
	after   uint64 // the index of the snapshot
	crc     uint32
	changed map[uint64]bool // by index: whether the entry may change keys
}

// The kinds of records.
const (
	recordEntry = 2
	recordCRC   = 4
)

// read reads one file. A record is 8 bytes little-endian, of which the lowest 56 bits are its length and the highest
// byte, when its top bit is set, the length of the padding behind it; then a message of kind (1), running checksum (2) and
// data (3). The room at the end of a file is zero.
func (l *log) read(b []byte) error {
	for len(b) >= 8 {
		head := binary.LittleEndian.Uint64(b)
		if head == 0 {
			return nil
		}
		size, padding := head&(1<<56-1), uint64(0)
		if head>>63 != 0 {
			padding = head >> 56 & 7
		}
		b = b[8:]
		if size > uint64(len(b)) || padding > uint64(len(b))-size {
			return nil // the last write was not finished
		}
		if err := l.record(b[:size]); err != nil {
			return err
		}
		b = b[size+padding:]
	}
	return nil
}

func (l *log) record(b []byte) error {
	r, err := parse(b)
	if err != nil {
		return err
	}
	if r.numbers[1] == recordCRC {
		if l.crc != 0 && uint64(l.crc) != r.numbers[2] {
			return errors.New("it does not go on where the file before it ends")
		}
		l.crc = uint32(r.numbers[2])
		return nil
	}
	l.crc = crc32.Update(l.crc, castagnoli, r.bytes[3])
	if uint64(l.crc) != r.numbers[2] {
		return errors.New("a record's checksum is wrong")
	}
	if r.numbers[1] != recordEntry {
		return nil
	}
	e, err := parse(r.bytes[3])
	if err != nil {
		return err
	}
	index := e.numbers[3]
	if index <= l.after {
		return nil
	}
	if l.changed == nil {
		l.changed = make(map[uint64]bool)
	}
	// A change of members has kind 1 or 2; an entry without data is a leader's first.
	l.changed[index] = e.numbers[1] == 0 && len(e.bytes[4]) > 0 && mayChangeKeys(e.bytes[4])
	return nil
}

// mayChangeKeys looks at a request of the v2 API: 2 is the method, 3 the path. It may be wrapped, as field 2, in a request
// of both APIs. What it does not understand may change keys.
func mayChangeKeys(b []byte) bool {
	request, err := parse(b)
	if err != nil {
		return true
	}
	if wrapped := request.bytes[2]; wrapped != nil && request.bytes[3] == nil {
		if inner, err := parse(wrapped); err == nil && inner.bytes[2] != nil {
			request = inner
		}
	}
	method, path := string(request.bytes[2]), string(request.bytes[3])
	switch {
	case method == "QGET", method == "SYNC": // SYNC removes what is overdue; that stays overdue
		return false
	case method == "":
		return len(request.bytes[2]) > 0 || path != "" // a request of the v3 API
	}
	return path != "/0" && !strings.HasPrefix(path, "/0/")
}

// changes counts the entries behind the snapshot that may change keys.
func (l *log) changes() (n int) {
	for _, may := range l.changed {
		if may {
			n++
		}
	}
	return n
}
