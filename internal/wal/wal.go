// Package wal is a log of entries that are durable once Append has returned, until Reset. An append is one write and
// one flush of blocks that the file has already. It knows nothing of what entries mean, and takes no care that only one
// process has the file. It is not safe for concurrent use: who wants appends to share a flush gives them at once.
package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/atomicfile"
)

// Each entry is framed by its length, the log's generation and a CRC-32C, all little-endian. The checksum is that of the
// frame before, continued over the generation and the entry, so that an append that failed leaves nothing that could
// follow a later one. A reset begins a new generation, a random number, at the front of the file without a flush: what is
// left of older ones behind it does not count, and what a power cut brings back of them was settled before the reset.
const headerSize = 16

// Reserve is how much of the disk a new log takes at once, in bytes. More than that may be appended.
const Reserve = 256 << 10

// maxEntry bounds an entry; a longer length in the file is damage.
const maxEntry = 16 << 20

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Log is an open log.
type Log struct {
	file       *os.File
	end        int64  // of the entries
	sum        uint32 // of the last one
	generation uint64
}

// Open opens or creates the log at path and returns its entries. An append that was cut short is not among them. The
// caller settles them before it appends: from the next Append on they are gone.
func Open(path string) (_ *Log, entries [][]byte, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close() // the first error is the one to report
		}
	}()
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", path, err)
	}
	l := &Log{file: f}
	l.Reset()
	if len(data) < Reserve {
		// Zeros that are written now cost no change of the file's size or extents later. On a full disk it is the append
		// that fails.
		_, err := f.WriteAt(make([]byte, Reserve-len(data)), int64(len(data)))
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			return nil, nil, fmt.Errorf("set aside %d bytes for %s: %w", Reserve, path, err)
		}
		if err := errors.Join(f.Sync(), atomicfile.SyncDir(filepath.Dir(path))); err != nil {
			return nil, nil, err
		}
	}
	return l, decode(data), nil
}

// Append makes entries durable, all or none. After an error they may be found by the next Open, or not.
func (l *Log) Append(entries ...[]byte) error {
	var buf []byte
	sum := l.sum
	for _, e := range entries {
		if len(e) > maxEntry {
			return fmt.Errorf("an entry of %d bytes is larger than %d", len(e), maxEntry)
		}
		buf, sum = appendFrame(buf, sum, l.generation, e)
	}
	_, err := l.file.WriteAt(buf, l.end)
	if err == nil {
		err = unix.Fdatasync(int(l.file.Fd()))
	}
	if err != nil {
		return fmt.Errorf("append to %s: %w", l.file.Name(), err)
	}
	l.end, l.sum = l.end+int64(len(buf)), sum
	return nil
}

// Reset drops all entries. They may come back after a power cut before the next Append.
func (l *Log) Reset() {
	l.generation = rand.Uint64()
	l.end, l.sum = 0, 0
}

// Clear is Reset, durably.
func (l *Log) Clear() error {
	l.Reset()
	_, err := l.file.WriteAt(make([]byte, headerSize), 0)
	if err == nil {
		err = unix.Fdatasync(int(l.file.Fd()))
	}
	if err != nil {
		return fmt.Errorf("clear %s: %w", l.file.Name(), err)
	}
	return nil
}

// Close closes the file.
func (l *Log) Close() error { return l.file.Close() }

func appendFrame(buf []byte, sum uint32, generation uint64, entry []byte) ([]byte, uint32) {
	at := len(buf)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(entry)))
	buf = append(buf, 0, 0, 0, 0)
	buf = binary.LittleEndian.AppendUint64(buf, generation)
	buf = append(buf, entry...)
	sum = crc32.Update(sum, castagnoli, buf[at+8:])
	binary.LittleEndian.PutUint32(buf[at+4:], sum)
	return buf, sum
}

// decode returns the whole entries at the front of data that are of one generation.
func decode(data []byte) (entries [][]byte) {
	var generation uint64
	var sum uint32
	for len(data) >= headerSize {
		n := binary.LittleEndian.Uint32(data)
		if n > maxEntry || int(n) > len(data)-headerSize {
			break
		}
		body := data[8 : headerSize+int(n)]
		g := binary.LittleEndian.Uint64(body)
		sum = crc32.Update(sum, castagnoli, body)
		if sum != binary.LittleEndian.Uint32(data[4:]) || len(entries) > 0 && g != generation {
			break
		}
		generation = g
		entries = append(entries, body[8:])
		data = data[headerSize+int(n):]
	}
	return entries
}
