package raft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/fault"
)

// A segment is a file of the log: a header, then batches. docs/formats/log.md draws both. All numbers are little-endian.
const (
	segmentMagic   = "stated\x00L"
	segmentVersion = 1
	segmentHeader  = 24
	segmentSuffix  = ".log"

	batchMagic  = 0x68637462 // "btch"
	batchHeader = 24
	recordFrame = 4 // the length before each record
)

const (
	segmentLimit = 16 << 20 // a segment that is longer is followed by a new one
	roomStep     = 1 << 20  // how much of the disk is set aside at once
	roomReserve  = 64 << 10 // of it, kept for the entries by which a leader begins, which need room on a full disk too
)

// searchBudget bounds what is read again and again to find out whether damage or a torn write ends a segment.
const searchBudget = 1 << 30

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// segment is an open file of the log. Its owner guards it.
type segment struct {
	file    *os.File
	path    string
	first   uint64   // index of its first record, also when it has none
	offsets []uint32 // of each record's length
	end     int64    // of the last batch
	sum     uint32   // checksum of the last batch, or of the header
	zeroed  int64    // from end to here the file holds zeros
}

// last is the index of the last record, first-1 when there is none.
func (s *segment) last() uint64 { return s.first + uint64(len(s.offsets)) - 1 }

func segmentPath(dir string, first uint64) string {
	return filepath.Join(dir, fmt.Sprintf("%020d%s", first, segmentSuffix))
}

// createSegment makes a segment of some records, with room for n bytes more, in place of one that begins with the same
// index. It is there whole or not at all, also after a power cut.
func createSegment(dir string, first uint64, records [][]byte, n int64) (_ *segment, err error) {
	path := segmentPath(dir, first)
	f, err := os.CreateTemp(dir, ".tmp-")
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	s := &segment{file: f, path: path, first: first, end: segmentHeader, zeroed: segmentHeader}
	defer func() {
		if err != nil {
			_ = f.Close()           // the first error is the one to report
			_ = os.Remove(f.Name()) // the next start removes it otherwise
			err = fmt.Errorf("create %s: %w", path, err)
		}
	}()
	header := make([]byte, 0, segmentHeader)
	header = append(header, segmentMagic...)
	header = binary.LittleEndian.AppendUint32(header, segmentVersion)
	header = binary.LittleEndian.AppendUint64(header, first)
	s.sum = crc32.Checksum(header, castagnoli)
	header = binary.LittleEndian.AppendUint32(header, s.sum)
	if len(records) > 0 {
		header = appendBatch(header, first, s.sum, records)
		if _, err := s.scan(header); err != nil {
			return nil, err
		}
		s.zeroed = s.end
	}
	if _, err = f.WriteAt(header, 0); err != nil {
		return nil, err
	}
	if err = s.extend(s.end + n); err != nil {
		return nil, err
	}
	if err = f.Sync(); err != nil {
		return nil, err
	}
	if err = fault.Point("raft.segment.written"); err != nil {
		return nil, err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return nil, err
	}
	return s, atomicfile.SyncDir(dir)
}

// openSegment reads a segment whole, and says whether it ends in a torn write, which only the last one may.
func openSegment(path string, first uint64) (_ *segment, torn bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, false, fmt.Errorf("open the log: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close() // the first error is the one to report
		}
	}()
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, false, fmt.Errorf("read the log: %w", err)
	}
	s := &segment{file: f, path: path, first: first, zeroed: int64(len(data))}
	torn, err = s.scan(data)
	return s, torn, err
}

// damaged says what is wrong with a file of the log, where, and what to do.
func damaged(path string, offset int, what string) error {
	return fmt.Errorf("%s at byte %d: %s: %w. Nothing was changed: restore the directory of the log as a whole from a backup",
		path, offset, what, ErrDamaged)
}

// scan finds the records. Behind the last whole batch there may be zeros, or one write that was cut short: a batch is
// written and flushed before the next one is begun, so a whole batch behind one that is not means damage.
func (s *segment) scan(data []byte) (torn bool, err error) {
	if len(data) < segmentHeader || string(data[:len(segmentMagic)]) != segmentMagic ||
		crc32.Checksum(data[:segmentHeader-4], castagnoli) != binary.LittleEndian.Uint32(data[segmentHeader-4:]) {
		return false, damaged(s.path, 0, "the header is not a log's")
	}
	if v := binary.LittleEndian.Uint32(data[8:]); v != segmentVersion {
		return false, newer(s.path, "format", uint64(v))
	}
	if binary.LittleEndian.Uint64(data[12:]) != s.first {
		return false, damaged(s.path, 12, "the file has another one's name")
	}
	s.sum = binary.LittleEndian.Uint32(data[segmentHeader-4:])
	pos := segmentHeader
	for {
		body, ok := batchAt(data[pos:])
		if !ok || batchFirst(data[pos:]) != s.last()+1 || binary.LittleEndian.Uint32(data[pos+16:]) != s.sum {
			break
		}
		s.sum = binary.LittleEndian.Uint32(data[pos+20:])
		at := pos + batchHeader
		for rest := body; len(rest) > 0; {
			if len(rest) < recordFrame || int64(binary.LittleEndian.Uint32(rest)) > int64(len(rest)-recordFrame) {
				return false, damaged(s.path, at, "a record is longer than its batch")
			}
			n := recordFrame + int(binary.LittleEndian.Uint32(rest))
			s.offsets = append(s.offsets, uint32(at))
			rest, at = rest[n:], at+n
		}
		pos += batchSize(len(body))
	}
	s.end = int64(pos)
	rest := data[pos:]
	if zero(rest) {
		return false, nil
	}
	budget := searchBudget
	for at := 0; at+batchHeader <= len(rest); at += 8 {
		if binary.LittleEndian.Uint32(rest[at:]) != batchMagic || batchFirst(rest[at:]) < s.last()+1 {
			continue
		}
		if budget -= min(int(binary.LittleEndian.Uint32(rest[at+4:])), len(rest)-at); budget < 0 {
			return false, damaged(s.path, pos, "the entries end, and whether others follow cannot be told in reasonable time")
		}
		if _, ok := batchAt(rest[at:]); ok {
			return false, damaged(s.path, pos, fmt.Sprintf("an entry is damaged, and sound ones follow at byte %d", pos+at))
		}
	}
	return true, nil
}

// newer says that something was written by a later version of stated.
func newer(path, what string, version uint64) error {
	return fmt.Errorf("%s: %s %d is not known to this version of stated: start the version that wrote it, or a later one: %w", path, what, version, ErrVersion)
}

func zero(data []byte) bool {
	for len(data) > 0 {
		n := min(len(data), len(zeros))
		if !bytes.Equal(data[:n], zeros[:n]) {
			return false
		}
		data = data[n:]
	}
	return true
}

func batchFirst(data []byte) uint64 { return binary.LittleEndian.Uint64(data[8:]) }

// batchSize is what a batch takes in the file: batches begin at multiples of eight.
func batchSize(body int) int { return (batchHeader + body + 7) &^ 7 }

// batchAt returns the body of the batch at the front of data, and whether there is a whole one.
func batchAt(data []byte) (body []byte, ok bool) {
	if len(data) < batchHeader || binary.LittleEndian.Uint32(data) != batchMagic {
		return nil, false
	}
	n := int64(binary.LittleEndian.Uint32(data[4:]))
	if n > int64(len(data)-batchHeader) {
		return nil, false
	}
	body = data[batchHeader : batchHeader+n]
	sum := crc32.Update(crc32.Checksum(data[:20], castagnoli), castagnoli, body)
	return body, sum == binary.LittleEndian.Uint32(data[20:])
}

// appendBatch appends a batch of records to buf, which begins at a multiple of eight. The checksum before it is a part
// of it, so that what a failed write left behind never fits in.
func appendBatch(buf []byte, first uint64, before uint32, records [][]byte) []byte {
	at := len(buf)
	buf = append(buf, make([]byte, batchHeader)...)
	for _, r := range records {
		buf = binary.LittleEndian.AppendUint32(buf, uint32(len(r)))
		buf = append(buf, r...)
	}
	header, body := buf[at:at+batchHeader], buf[at+batchHeader:]
	binary.LittleEndian.PutUint32(header, batchMagic)
	binary.LittleEndian.PutUint32(header[4:], uint32(len(body)))
	binary.LittleEndian.PutUint64(header[8:], first)
	binary.LittleEndian.PutUint32(header[16:], before)
	binary.LittleEndian.PutUint32(header[20:], crc32.Update(crc32.Checksum(header[:20], castagnoli), castagnoli, body))
	return append(buf, make([]byte, batchSize(len(body))-batchHeader-len(body))...)
}

// writeAt writes to the file. Its errors name it as it is called now, not as it was created.
func (s *segment) writeAt(data []byte, at int64) error {
	_, err := s.file.WriteAt(data, at)
	if err == nil {
		return nil
	}
	if failed := new(fs.PathError); errors.As(err, &failed) {
		err = failed.Err
	}
	return fmt.Errorf("write %s: %w", s.path, err)
}

// zeros is what room is set aside with.
var zeros [roomStep]byte

// extend writes zeros up to a size, so that a batch there changes neither the file's size nor its extents, and finds
// room on a disk that has become full.
func (s *segment) extend(to int64) error {
	for s.zeroed < to {
		if err := s.writeAt(zeros[:], s.zeroed); err != nil {
			return fmt.Errorf("set aside room: %w", err)
		}
		s.zeroed += roomStep
	}
	return nil
}

// cut writes zeros over what lies between the end and to, durably.
func (s *segment) cut(to int64) error {
	st, err := s.file.Stat()
	if err != nil {
		return err
	}
	if to = min(to, st.Size()); to > s.end {
		if err := s.writeAt(make([]byte, to-s.end), s.end); err != nil {
			return err
		}
	}
	return unix.Fdatasync(int(s.file.Fd()))
}

// records reads the records before an index.
func (s *segment) records(index uint64) ([][]byte, error) {
	data := make([]byte, s.end)
	if _, err := s.file.ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("read %s: %w", s.path, err)
	}
	list := make([][]byte, 0, index-s.first)
	for _, at := range s.offsets[:index-s.first] {
		n := binary.LittleEndian.Uint32(data[at:])
		list = append(list, data[at+recordFrame:at+recordFrame+n])
	}
	return list, nil
}
