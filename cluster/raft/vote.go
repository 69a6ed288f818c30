package raft

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/fault"
)

// The file of votes holds what a voter must not forget: its name, its term and whom it voted for. It has two slots,
// written in turn and in place, so that a change is one flush and finds room on a full disk.
const (
	slotSize   = 4096
	slotHeader = 16 // sequence, length, CRC-32C of all else
)

// voteRetry is how long a write that failed is left alone.
const voteRetry = time.Second

// votes is raft's stable store.
type votes struct {
	path    string
	file    *os.File
	faults  *faults
	running func() bool     // raft's goroutines run: they are parked instead of told of an error
	closing <-chan struct{} // closed when they are to end

	mu       sync.Mutex // guards what follows, and the file; held over its flush
	sequence uint64
	values   map[string][]byte
}

// openVotes opens the vote, or makes one unless the log has begun.
func openVotes(dir string, begun bool, f *faults) (_ *votes, err error) {
	v := &votes{faults: f, path: filepath.Join(dir, "vote"), values: map[string][]byte{}}
	data, err := os.ReadFile(v.path)
	if errors.Is(err, fs.ErrNotExist) {
		if begun {
			return nil, damaged(v.path, 0, "there are entries, and the vote is missing")
		}
		data = make([]byte, 2*slotSize)
		if err := atomicfile.Write(v.path, data, 0o600); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, fmt.Errorf("read the vote: %w", err)
	}
	found := !begun && zero(data) && len(data) == 2*slotSize // no vote has been cast yet
	for at := 0; at+slotSize <= len(data); at += slotSize {
		sequence, values, ok := parseSlot(data[at : at+slotSize])
		if ok && sequence > v.sequence {
			v.sequence, v.values, found = sequence, values, true
		}
	}
	if !found {
		return nil, damaged(v.path, 0, "neither copy of the vote is whole")
	}
	if v.file, err = os.OpenFile(v.path, os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("open the vote: %w", err)
	}
	return v, nil
}

func parseSlot(slot []byte) (sequence uint64, values map[string][]byte, ok bool) {
	n := binary.LittleEndian.Uint32(slot[8:])
	if n > slotSize-slotHeader {
		return 0, nil, false
	}
	body := slot[slotHeader : slotHeader+n]
	if crc32.Update(crc32.Checksum(slot[:12], castagnoli), castagnoli, body) != binary.LittleEndian.Uint32(slot[12:]) {
		return 0, nil, false
	}
	if json.Unmarshal(body, &values) != nil || values == nil {
		return 0, nil, false
	}
	return binary.LittleEndian.Uint64(slot), values, true
}

// write makes values durable.
func (v *votes) writeLocked(values map[string][]byte) error {
	body, err := json.Marshal(values)
	if err != nil {
		return err
	}
	if len(body) > slotSize-slotHeader {
		return fmt.Errorf("the vote would take %d bytes", len(body))
	}
	slot := make([]byte, slotSize)
	binary.LittleEndian.PutUint64(slot, v.sequence+1)
	binary.LittleEndian.PutUint32(slot[8:], uint32(len(body)))
	binary.LittleEndian.PutUint32(slot[12:], crc32.Update(crc32.Checksum(slot[:12], castagnoli), castagnoli, body))
	copy(slot[slotHeader:], body)
	if _, err := v.file.WriteAt(slot, int64((v.sequence+1)%2)*slotSize); err != nil {
		return fmt.Errorf("write the vote: %w", err)
	}
	if err := fault.Point("raft.vote.written"); err != nil {
		return err
	}
	v.faults.flushes.Add(1)
	if err := unix.Fdatasync(int(v.file.Fd())); err != nil {
		return fmt.Errorf("write the vote: %w", err)
	}
	v.sequence, v.values = v.sequence+1, values
	return nil
}

// Set makes a value durable. While raft runs it tries until that is done or the log is closed: on an error raft would
// end the process.
func (v *votes) Set(key, value []byte) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if string(v.values[string(key)]) == string(value) {
		return nil
	}
	values := map[string][]byte{string(key): append([]byte(nil), value...)}
	for k, old := range v.values {
		if k != string(key) {
			values[k] = old
		}
	}
	for {
		err := v.writeLocked(values)
		if err == nil || !v.running() {
			return err
		}
		v.faults.set(err)
		select {
		case <-time.After(voteRetry):
		case <-v.closing:
			runtime.Goexit() // nothing may be said in the name of a vote that was not kept
		}
	}
}

// Get returns a value, nil when it has none.
func (v *votes) Get(key []byte) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.values[string(key)], nil
}

// SetUint64 is Set for a number.
func (v *votes) SetUint64(key []byte, value uint64) error {
	return v.Set(key, binary.LittleEndian.AppendUint64(nil, value))
}

// GetUint64 is Get for a number, 0 when it has none.
func (v *votes) GetUint64(key []byte) (uint64, error) {
	data, err := v.Get(key)
	if err != nil || len(data) == 0 {
		return 0, err
	}
	return binary.LittleEndian.Uint64(data), nil
}
