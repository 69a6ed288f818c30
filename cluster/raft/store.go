package raft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	hraft "github.com/hashicorp/raft"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/fault"
)

// faults tells those who wait for the disk why it does not answer, and counts what it was asked for.
type faults struct {
	flushes atomic.Uint64
	raised  chan struct{} // has an element after set

	mu  sync.Mutex // guards err
	err error
}

func newFaults() *faults { return &faults{raised: make(chan struct{}, 1)} }

func (f *faults) set(err error) {
	f.mu.Lock()
	f.err = err
	f.mu.Unlock()
	select {
	case f.raised <- struct{}{}:
	default: // it was raised before
	}
}

func (f *faults) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = nil
}

// last is why the disk refused the last write, nil when it did not.
func (f *faults) last() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// store is raft's log store: segments that follow each other without a gap.
type store struct {
	dir     string
	keys    keyring
	faults  *faults
	waiting func() int      // how many proposals are under way
	running func() bool     // raft's goroutines run: they are parked instead of told of an error
	closing <-chan struct{} // closed when they are to end

	unfinished []string // files that tidy removes
	torn       *segment // whose end tidy cuts off; nil when there is none

	written     atomic.Int64  // bytes of batches since the start
	grown       chan struct{} // has an element after an append
	lastCommand atomic.Uint64 // highest index of a command, 0 when there is none
	floor       atomic.Uint64 // entries above it are kept when raft wants to drop old ones

	appending sync.Mutex // one append or removal at a time; held over flushes, taken before mu
	dirty     int64      // what a failed append may have left behind the last segment's end reaches to here
	buf       []byte     // of batches
	records   [][]byte   // of a batch, in recs
	recs      []byte

	mu       sync.RWMutex // guards what follows and the segments; held over a flush only where entries at the end go
	segments []*segment
	promised int64 // bytes that proposals under way may need

	cacheMu sync.Mutex // guards the piece of a segment that was read last; taken after mu
	cached  *segment
	cacheAt int64
	cache   []byte
}

// openStore opens the log in dir, which it makes when there is none, and reads all of it: what cannot be read is
// found out here. It changes nothing of what is there; tidy does.
func openStore(dir string, keys keyring, f *faults) (_ *store, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the log: %w", err)
	}
	s := &store{dir: dir, keys: keys, faults: f, grown: make(chan struct{}, 1), waiting: func() int { return 0 }}
	defer func() {
		if err != nil {
			_ = s.close() // the first error is the one to report
		}
	}()
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	for _, e := range list { // in the order of the names, which is that of the indexes
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".tmp-") {
			s.unfinished = append(s.unfinished, path)
			continue
		}
		first, err := strconv.ParseUint(strings.TrimSuffix(e.Name(), segmentSuffix), 10, 64)
		if err != nil || path != segmentPath(dir, first) {
			continue // not ours
		}
		if n := len(s.segments); n > 0 && s.segments[n-1].last()+1 != first {
			before := s.segments[n-1]
			return nil, damaged(before.path, int(before.end), fmt.Sprintf("its entries end with index %d, and %s begins with %d", before.last(), filepath.Base(path), first))
		}
		seg, torn, err := openSegment(path, first)
		if err != nil {
			return nil, err
		}
		if s.segments, s.torn = append(s.segments, seg), nil; torn {
			s.torn = seg
		}
	}
	return s, nil
}

// tidy removes what was not finished and cuts off a torn end, once it is known that the log is sound.
func (s *store) tidy() error {
	for _, path := range s.unfinished {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove a segment that was not finished: %w", err)
		}
	}
	if s.torn != nil && s.tail() == s.torn {
		// What is left of it must not be taken for a part of what comes next.
		if err := s.torn.cut(s.torn.zeroed); err != nil {
			return fmt.Errorf("cut the torn end off %s: %w", s.torn.path, err)
		}
	}
	s.unfinished, s.torn = nil, nil
	return nil
}

// each calls f with every entry from an index on, which f must not keep. It is for a store that nobody else has yet.
func (s *store) each(from uint64, f func(l *hraft.Log) error) error {
	var l hraft.Log
	for _, seg := range s.segments {
		if seg.last() < from {
			continue
		}
		list, err := seg.records(seg.last() + 1)
		if err != nil {
			return err
		}
		for index := max(from, seg.first); index <= seg.last(); index++ {
			if err = s.keys.parseRecord(list[index-seg.first], index, &l); err == nil {
				err = f(&l)
			}
			if err != nil {
				return fmt.Errorf("%s: entry %d: %w", seg.path, index, err)
			}
		}
	}
	return nil
}

// sizeAfter returns how many bytes the entries behind an index take.
func (s *store) sizeAfter(index uint64) (n int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, seg := range s.segments {
		switch {
		case len(seg.offsets) == 0 || index >= seg.last():
		case index < seg.first:
			n += seg.end - segmentHeader
		default:
			n += seg.end - int64(seg.offsets[index+1-seg.first])
		}
	}
	return n
}

// IsMonotonic says that the log has no gaps.
func (s *store) IsMonotonic() bool { return true }

// FirstIndex returns the first index, 0 when the log is empty.
func (s *store) FirstIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.segments) == 0 || len(s.segments[0].offsets) == 0 {
		return 0, nil
	}
	return s.segments[0].first, nil
}

// LastIndex returns the last index, 0 when the log is empty.
func (s *store) LastIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.lastLocked(), nil
}

func (s *store) lastLocked() uint64 {
	if n := len(s.segments); n > 0 && (n > 1 || len(s.segments[0].offsets) > 0) {
		return s.segments[n-1].last()
	}
	return 0
}

// GetLog reads an entry.
func (s *store) GetLog(index uint64, l *hraft.Log) error {
	err := s.get(index, l)
	if err != nil && !errors.Is(err, hraft.ErrLogNotFound) && s.running() {
		s.park(err)
	}
	return err
}

func (s *store) get(index uint64, l *hraft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, found := slices.BinarySearchFunc(s.segments, index, func(seg *segment, index uint64) int {
		switch {
		case index < seg.first:
			return 1
		case index > seg.last() || len(seg.offsets) == 0:
			return -1
		}
		return 0
	})
	if !found {
		return hraft.ErrLogNotFound
	}
	seg := s.segments[i]
	if err := s.readLocked(seg, int64(seg.offsets[index-seg.first]), index, l); err != nil {
		return fmt.Errorf("%s: entry %d: %w", seg.path, index, err)
	}
	return nil
}

// readLocked reads the record of an index, which begins at an offset.
func (s *store) readLocked(seg *segment, at int64, index uint64, l *hraft.Log) error {
	s.cacheMu.Lock()
	defer s.cacheMu.Unlock()
	header, err := s.bytesLocked(seg, at, recordFrame)
	if err != nil {
		return err
	}
	record, err := s.bytesLocked(seg, at+recordFrame, int64(binary.LittleEndian.Uint32(header)))
	if err != nil {
		return err
	}
	if err := s.keys.parseRecord(record, index, l); err != nil {
		return err
	}
	l.Data = slices.Clone(l.Data)
	return nil
}

// bytesLocked returns some bytes of a segment, by way of a piece that is kept: replay reads one record after the other.
func (s *store) bytesLocked(seg *segment, at, n int64) ([]byte, error) {
	if at+n > seg.end {
		return nil, fmt.Errorf("it ends behind the log's end: %w", ErrDamaged)
	}
	if s.cached != seg || at < s.cacheAt || at+n > s.cacheAt+int64(len(s.cache)) {
		size := min(max(n, 64<<10), seg.end-at)
		s.cached, s.cacheAt, s.cache = nil, at, slices.Grow(s.cache[:0], int(size))[:size]
		if _, err := seg.file.ReadAt(s.cache, at); err != nil {
			return nil, err
		}
		s.cached = seg
	}
	return s.cache[at-s.cacheAt:][:n], nil
}

// park holds a goroutine of raft that asked for what the disk refuses: told of the error, raft would end the process.
func (s *store) park(err error) {
	s.faults.set(err)
	<-s.closing
	runtime.Goexit()
}

// promise sets room aside for a record of n bytes of data, so that the append finds it. The caller gives it back.
func (s *store) promise(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := recordRoom(n)
	if err := s.roomLocked(s.promised + size + roomReserve); err != nil {
		s.faults.set(err)
		return err
	}
	s.promised += size
	return nil
}

// settle gives back what promise set aside.
func (s *store) settle(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.promised -= recordRoom(n)
}

// recordRoom is what an entry of n bytes may take in the log, if it has a batch of its own.
func recordRoom(n int) int64 {
	return int64(batchSize(recordFrame + recordHeader + sealOverhead + n))
}

// roomLocked sees to it that the last segment has room for n bytes.
func (s *store) roomLocked(n int64) error {
	if len(s.segments) == 0 {
		return nil // the first append makes one
	}
	seg := s.segments[len(s.segments)-1]
	return seg.extend(seg.end + n)
}

// StoreLog appends an entry.
func (s *store) StoreLog(l *hraft.Log) error { return s.StoreLogs([]*hraft.Log{l}) }

// StoreLogs appends entries durably, by one flush. After an error none of them is in the log, unless that is
// ErrOutcomeUnknown.
func (s *store) StoreLogs(logs []*hraft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	if s.waiting() > len(logs) {
		// Others are proposing, and those who were told of the last batch are about to. What they propose while the disk is
		// not asked yet makes the next batch larger, so that there are fewer flushes.
		runtime.Gosched()
	}
	s.appending.Lock()
	defer s.appending.Unlock()
	err := s.appendLocked(logs)
	if err == nil {
		s.faults.clear()
		return nil
	}
	err = fmt.Errorf("append to the log: %w", err)
	if s.dirty > 0 {
		if cutErr := s.cutLocked(); cutErr != nil {
			err = fmt.Errorf("%w; what was written of it cannot be taken back: %w", err, cutErr)
			s.faults.set(err) // not with what comes: that is of these entries, and the fault is told to others
			return fmt.Errorf("%w: %w", err, ErrOutcomeUnknown)
		}
	}
	s.faults.set(err)
	return err
}

// cutLocked takes back what a failed append left.
func (s *store) cutLocked() error {
	s.faults.flushes.Add(1)
	if err := s.tail().cut(s.dirty); err != nil {
		return err
	}
	s.dirty = 0
	return nil
}

// tail is the last segment. Only who holds appending changes which one that is.
func (s *store) tail() *segment {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.segments) == 0 {
		return nil
	}
	return s.segments[len(s.segments)-1]
}

func (s *store) appendLocked(logs []*hraft.Log) error {
	if s.dirty > 0 {
		if err := s.cutLocked(); err != nil {
			return err
		}
	}
	if err := s.encodeLocked(logs); err != nil {
		return err
	}
	first, commands := logs[0].Index, uint64(0)
	for i, l := range logs {
		if l.Index != first+uint64(i) {
			return fmt.Errorf("entry %d follows %d", l.Index, first+uint64(i)-1)
		}
		if l.Type == hraft.LogCommand {
			commands = l.Index
		}
	}
	seg, err := s.tailForLocked(first, int64(len(s.recs)+batchHeader+8+recordFrame*len(logs)))
	if err != nil {
		return err
	}
	s.buf = appendBatch(s.buf[:0], first, seg.sum, s.records)
	s.dirty = seg.end + int64(len(s.buf))
	if err := seg.writeAt(s.buf, seg.end); err != nil {
		return err
	}
	if commands > 0 {
		if err := fault.Point("raft.propose.written"); err != nil {
			return err
		}
	}
	s.faults.flushes.Add(1)
	if err := unix.Fdatasync(int(seg.file.Fd())); err != nil {
		return fmt.Errorf("flush %s: %w", seg.path, err)
	}
	if commands > 0 {
		if err := fault.Point("raft.propose.flushed"); err != nil {
			return err
		}
		s.lastCommand.Store(commands)
	}
	s.dirty = 0
	s.written.Add(int64(len(s.buf)))
	select {
	case s.grown <- struct{}{}:
	default: // who looks will see this, too
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := seg.end + batchHeader
	for _, r := range s.records {
		seg.offsets = append(seg.offsets, uint32(at))
		at += recordFrame + int64(len(r))
	}
	seg.end += int64(len(s.buf))
	seg.sum = binary.LittleEndian.Uint32(s.buf[20:])
	return nil
}

// encodeLocked puts the entries' records into s.records.
func (s *store) encodeLocked(logs []*hraft.Log) error {
	var err error
	s.recs = s.recs[:0]
	ends := make([]int, len(logs))
	for i, l := range logs {
		if s.recs, err = s.keys.appendRecord(s.recs, l); err != nil {
			return fmt.Errorf("entry %d: %w", l.Index, err)
		}
		ends[i] = len(s.recs)
	}
	s.records = s.records[:0]
	at := 0
	for _, end := range ends {
		s.records = append(s.records, s.recs[at:end])
		at = end
	}
	return nil
}

// tailForLocked returns the segment to which a batch of at most n bytes that begins with an index is appended, with room
// for it.
func (s *store) tailForLocked(first uint64, n int64) (*segment, error) {
	if last, _ := s.LastIndex(); last != 0 && first != last+1 {
		return nil, fmt.Errorf("entry %d follows %d", first, last)
	}
	seg := s.tail()
	empty := seg == nil || seg.last()+1 != first // an empty log may go on anywhere
	if empty || seg.end >= segmentLimit {
		fresh, err := s.rotateLocked(first, n)
		if err == nil {
			return fresh, nil
		}
		if empty || !errors.Is(err, unix.ENOSPC) {
			return nil, err
		}
		// The full disk may have room where the old one ends.
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return seg, s.roomLocked(n)
}

func (s *store) rotateLocked(first uint64, n int64) (*segment, error) {
	s.mu.RLock()
	room := s.promised
	s.mu.RUnlock()
	s.faults.flushes.Add(2)
	fresh, err := createSegment(s.dir, first, nil, n+room+roomReserve)
	if err != nil {
		_ = os.Remove(segmentPath(s.dir, first)) // it holds nothing, and would be in the way of what follows
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.segments); n > 0 && len(s.segments[n-1].offsets) == 0 { // without a record, and so the only one
		s.dropLocked(s.segments[n-1])
		s.segments = s.segments[:n-1]
	}
	s.segments = append(s.segments, fresh)
	return fresh, fault.Point("raft.segment.begun")
}

// dropLocked forgets a segment's file, which is in the way of nothing if it stays.
func (s *store) dropLocked(seg *segment) {
	s.cacheMu.Lock()
	s.cached = nil
	s.cacheMu.Unlock()
	_ = os.Remove(seg.path) // the caller looks whether it is there where that matters
	_ = seg.file.Close()    // nothing is written to it any more
}

// DeleteRange removes entries at the front of the log or at its end. At the front it keeps what the older snapshot needs
// to be followed, and what shares a segment with entries that stay.
func (s *store) DeleteRange(from, to uint64) error {
	s.appending.Lock()
	defer s.appending.Unlock()
	if s.dirty > 0 {
		if err := s.cutLocked(); err != nil {
			return fmt.Errorf("take back what was not flushed: %w", err)
		}
	}
	first, _ := s.FirstIndex()
	last, _ := s.LastIndex()
	switch {
	case first == 0 || from > last || to < first || from > to:
		return nil
	case from <= first && to >= last:
		return s.removeLocked(func(*segment) bool { return true })
	case from <= first:
		to = min(to, s.floor.Load())
		tail := s.tail()
		return s.removeLocked(func(seg *segment) bool { return seg != tail && seg.last() <= to })
	case to >= last:
		return s.truncateLocked(from)
	}
	return fmt.Errorf("entries %d to %d are neither the first nor the last of %d to %d", from, to, first, last)
}

// removeLocked removes the segments at the front that are not wanted any more, oldest first, so that there is never a gap.
func (s *store) removeLocked(unwanted func(*segment) bool) error {
	n, err := s.dropFront(unwanted)
	if n == 0 || err != nil {
		return err
	}
	s.faults.flushes.Add(1)
	return atomicfile.SyncDir(s.dir)
}

// dropFront removes the files of segments at the front, and returns how many.
func (s *store) dropFront(unwanted func(*segment) bool) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.segments = slices.Clone(s.segments[n:]) }()
	for n < len(s.segments) && unwanted(s.segments[n]) {
		path := s.segments[n].path
		s.dropLocked(s.segments[n])
		n++
		if _, err := os.Lstat(path); err == nil {
			return n, fmt.Errorf("%s cannot be removed", path)
		}
		if err := fault.Point("raft.segment.removed"); err != nil {
			return n, err
		}
	}
	return n, nil
}

// truncateLocked removes the entries from an index on, newest segment first.
func (s *store) truncateLocked(from uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := len(s.segments) - 1; n > 0 && s.segments[n].first >= from; n-- {
		s.dropLocked(s.segments[n])
		s.segments = s.segments[:n]
		if err := atomicfile.SyncDir(s.dir); err != nil {
			return err
		}
	}
	seg := s.segments[len(s.segments)-1]
	if seg.last() < from {
		return nil
	}
	kept, err := seg.records(from)
	if err != nil {
		return err
	}
	s.faults.flushes.Add(2)
	fresh, err := createSegment(s.dir, seg.first, kept, roomReserve)
	if err != nil {
		return err
	}
	s.cacheMu.Lock()
	s.cached = nil
	s.cacheMu.Unlock()
	_ = seg.file.Close() // its name is the new one's
	s.segments[len(s.segments)-1] = fresh
	if s.lastCommand.Load() >= from {
		s.lastCommand.Store(from - 1)
	}
	return nil
}

// size returns how many bytes the segments take on disk.
func (s *store) size() (n int64) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, seg := range s.segments {
		n += seg.zeroed
	}
	return n
}

func (s *store) close() (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seg := range s.segments {
		err = errors.Join(err, seg.file.Close())
	}
	s.segments = nil
	return err
}
