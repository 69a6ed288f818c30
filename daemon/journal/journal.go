// Package journal is the commit record of containers and their layers: one append and one flush make a change of
// several files durable and whole, and Docker's files follow by rename without a flush each.
//
// The files of a change are written aside first, so that a full disk fails it before it is begun; then its entry is
// flushed, and the files are renamed. It is acknowledged once they are in place. The journal is cut after a syncfs of
// the data root; until then it can bring the files back after a power cut. It replays an entry only onto a file that
// is missing, empty, damaged, or whose content it knows: anything else was written by somebody else since, and is kept.
//
// It never reads or judges what the files mean. Lock order: Journal.mu is a leaf and is not held over a flush; it is
// held over the retry of a rename that failed.
package journal

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/fault"
)

// cutSize is the length in bytes at which the journal is rotated and the data root synced in the background. As much is
// set aside on the disk for each journal, so that what frees space can be committed on a full one.
const cutSize = 8 << 20

// syncRetry is the time between attempts to sync the data root.
const syncRetry = time.Minute

// maxEntry bounds one entry; a longer length in the file is damage.
const maxEntry = 64 << 20

// headerSize is the length of the frame before each entry: payload length and CRC-32C, both little-endian.
const headerSize = 8

// Change is one step of an entry: a file written, or a directory tree removed.
type Change struct {
	// Path is absolute and below the data root, or relative to it.
	Path string
	// Data and Mode are what the file shall hold. The directory is made (0710) when it is missing.
	Data []byte
	Mode fs.FileMode
	// Remove says to remove the tree at Path instead.
	Remove bool
}

// entry is what one append holds.
type entry struct {
	Seq     uint64
	Boot    string // the kernel's boot id when it was written
	Applied uint64 // every entry up to this one had its files in place when this one was written
	Changes []step
}

type step struct {
	Path   string      `json:"path"`
	Mode   fs.FileMode `json:"mode,omitempty"`
	Data   []byte      `json:"data,omitempty"`
	Before string      `json:"before,omitempty"` // digest of the bytes it replaced
	Remove bool        `json:"remove,omitempty"`
}

// Journal commits changes below one data root.
type Journal struct {
	root string // the data root
	dir  string // where the journal's own files are
	boot string
	log  *slog.Logger

	mu      sync.Mutex // guards the fields below
	file    *os.File
	size    int64
	seq     uint64
	open    map[uint64]bool   // entries appended whose files are not all in place
	owed    map[uint64][]step // what of them could not be put in place when it should have been
	batch   *batch            // collects while the last one is flushed; nil when nobody waits
	flusher bool              // somebody is flushing
	known   map[string]string // path -> digest of what we last wrote there, for Before
	cutting sync.WaitGroup    // background cuts
	last    uint64            // the last entry that may be in the old journal
	drained chan struct{}     // closed when all those have their files in place; nil when no cut waits for that
	closed  bool

	closing chan struct{} // closed by Close; nobody waits for files any more
}

// batch is a group of entries that share one append and one flush.
type batch struct {
	buf  []byte
	done chan struct{}
	err  error
}

// Report tells what Open did with entries that the last process left.
type Report struct {
	Replayed []string // paths written or removed again
	Kept     []string // paths that somebody else has written since; our entry was dropped
	Torn     bool     // the last append was incomplete and was cut
	Rebooted bool     // entries were left by a process of an earlier boot: the power may have been cut
}

// Open reads the journal of the data root, replays what is needed, and starts an empty one. The directory dir holds
// the journal's own files and is made when missing.
func Open(root, dir string, log *slog.Logger) (*Journal, Report, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, Report{}, fmt.Errorf("open journal: read boot id: %w", err)
	}
	j := &Journal{root: root, dir: dir, boot: strings.TrimSpace(string(boot)), log: log,
		open: map[uint64]bool{}, owed: map[uint64][]step{}, known: map[string]string{},
		closing: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, Report{}, fmt.Errorf("open journal: %w", err)
	}
	if err := os.RemoveAll(j.stagePath()); err != nil {
		return nil, Report{}, fmt.Errorf("open journal: %w", err)
	}
	if err := os.Mkdir(j.stagePath(), 0o700); err != nil {
		return nil, Report{}, fmt.Errorf("open journal: %w", err)
	}
	report, err := j.replay()
	if err != nil {
		return nil, report, fmt.Errorf("open journal in %s: %w", dir, err)
	}
	if len(report.Replayed) > 0 {
		if err := j.syncRoot(); err != nil {
			return nil, report, fmt.Errorf("open journal: %w", err)
		}
	}
	if err := j.startFile(); err != nil {
		return nil, report, fmt.Errorf("open journal: %w", err)
	}
	_ = os.Remove(j.oldPath()) // everything in it is on disk now
	return j, report, nil
}

func (j *Journal) path() string    { return filepath.Join(j.dir, "journal") }
func (j *Journal) oldPath() string { return filepath.Join(j.dir, "journal.old") }

// stagePath is where files wait for their entry to be on disk. Open empties it.
func (j *Journal) stagePath() string { return filepath.Join(j.dir, "staged") }

// startFile makes an empty journal take the place of the current one.
func (j *Journal) startFile() error {
	tmp := j.path() + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, cutSize) // a file system that cannot may run full earlier
	if err := os.Rename(tmp, j.path()); err != nil {
		_ = f.Close() // nothing was written
		return err
	}
	if err := atomicfile.SyncDir(j.dir); err != nil {
		_ = f.Close() // nothing was written
		return err
	}
	if j.file != nil {
		_ = j.file.Close() // every byte in it was flushed when it was written
	}
	j.file, j.size = f, 0
	return nil
}

// Commit makes changes durable as a whole and puts their files in place. When it returns nil they survive a power
// cut; when it returns an error, either all of them or none will be found after the next start. For want of space it
// fails with none of them done.
// Callers do not commit two changes of one path at the same time.
func (j *Journal) Commit(ctx context.Context, changes ...Change) error {
	steps, err := j.steps(changes)
	if err != nil {
		return err
	}
	staged, err := j.stage(steps)
	defer func() {
		for _, st := range staged {
			st.Discard() // nothing is left of one that was placed
		}
	}()
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	j.learn(steps)
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return errors.New("commit: the journal is closed")
	}
	j.seq++
	seq := j.seq
	for i := range steps {
		steps[i].Before = j.known[steps[i].Path]
	}
	frame, err := encode(entry{Seq: seq, Boot: j.boot, Applied: j.appliedLocked(), Changes: steps})
	if err != nil {
		j.mu.Unlock()
		return fmt.Errorf("commit: %w", err)
	}
	j.open[seq] = true
	err = j.appendLocked(frame) // unlocks while it waits
	if err != nil {
		j.doneLocked(seq)
		j.mu.Unlock()
		return fmt.Errorf("commit: %w", err)
	}
	for _, s := range steps {
		if s.Remove {
			j.forgetLocked(s.Path)
		} else {
			j.known[s.Path] = digest(s.Data)
		}
	}
	j.mu.Unlock()

	if err := fault.Point("journal.commit.appended"); err != nil {
		return err
	}
	for i, s := range steps {
		if err := j.place(s, staged); err != nil {
			j.mu.Lock()
			j.owed[seq] = steps[i:]
			j.mu.Unlock()
			return fmt.Errorf("commit: %w", err)
		}
		if err := fault.Point("journal.commit.applying"); err != nil {
			return err
		}
	}
	j.mu.Lock()
	j.doneLocked(seq)
	j.settleLocked()
	j.mu.Unlock()
	return nil
}

// stage writes the files of steps aside, by path.
func (j *Journal) stage(steps []step) (map[string]atomicfile.Staged, error) {
	staged := map[string]atomicfile.Staged{}
	for _, s := range steps {
		if s.Remove {
			continue
		}
		path := filepath.Join(j.root, s.Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o710); err != nil {
			return staged, err
		}
		st, err := atomicfile.Stage(j.stagePath(), path, s.Data, s.Mode)
		if err != nil {
			return staged, err
		}
		staged[s.Path] = st
	}
	return staged, nil
}

// place is apply for a step whose file is staged.
func (j *Journal) place(s step, staged map[string]atomicfile.Staged) error {
	if st, ok := staged[s.Path]; ok && st.Place() == nil {
		return nil
	}
	return j.apply(s) // its directory went away, or is another file system
}

// doneLocked notes that an entry has its files in place, or will never have.
func (j *Journal) doneLocked(seq uint64) {
	delete(j.open, seq)
	if j.drained != nil && j.oldestLocked() > j.last {
		close(j.drained)
		j.drained = nil
	}
}

// settleLocked tries again to put in place what could not be, where nothing newer has been said of it since.
func (j *Journal) settleLocked() {
	for seq, steps := range j.owed {
		for len(steps) > 0 && (!j.lastWordLocked(steps[0]) || j.apply(steps[0]) == nil) {
			steps = steps[1:]
		}
		if j.owed[seq] = steps; len(steps) == 0 {
			delete(j.owed, seq)
			j.doneLocked(seq)
		}
	}
}

// lastWordLocked reports whether no later entry is about the path of s.
func (j *Journal) lastWordLocked(s step) bool {
	if !s.Remove {
		return j.known[s.Path] == digest(s.Data)
	}
	for known := range j.known {
		if known == s.Path || strings.HasPrefix(known, s.Path+"/") {
			return false
		}
	}
	return true
}

// appliedLocked is the number up to which every entry's files are in place.
func (j *Journal) appliedLocked() uint64 {
	return min(j.seq, j.oldestLocked()) - 1
}

// oldestLocked is the number of the oldest open entry, or one that no entry has yet.
func (j *Journal) oldestLocked() uint64 {
	oldest := j.seq + 1
	for seq := range j.open {
		oldest = min(oldest, seq)
	}
	return oldest
}

func (j *Journal) forgetLocked(path string) {
	for known := range j.known {
		if known == path || strings.HasPrefix(known, path+"/") {
			delete(j.known, known)
		}
	}
}

// appendLocked writes frame as part of the next batch and returns when that is on disk. The first who finds nobody
// flushing flushes for all who come meanwhile.
func (j *Journal) appendLocked(frame []byte) error {
	if j.batch == nil {
		j.batch = &batch{done: make(chan struct{})}
	}
	mine := j.batch
	mine.buf = append(mine.buf, frame...)
	if j.flusher {
		j.mu.Unlock()
		<-mine.done
		j.mu.Lock()
		return mine.err
	}
	j.flusher = true
	for j.batch != nil {
		if j.size >= cutSize {
			j.cutLocked()
		}
		b := j.batch
		j.batch = nil
		file := j.file
		j.mu.Unlock()
		_, b.err = file.Write(b.buf)
		if b.err == nil {
			b.err = unix.Fdatasync(int(file.Fd()))
		}
		close(b.done)
		j.mu.Lock()
		j.size += int64(len(b.buf))
		if b.err != nil {
			// A torn append would hide what follows it: cut the file back to what is known to be whole.
			j.size -= int64(len(b.buf))
			if err := file.Truncate(j.size); err != nil {
				j.log.Error("cannot cut a torn journal append", "file", file.Name(), "err", err)
			}
		}
	}
	j.flusher = false
	return mine.err
}

// cutLocked starts a new file. The old one goes once all its entries have their files in place and the data root is
// synced. It is called by who flushes, between two batches.
func (j *Journal) cutLocked() {
	if _, err := os.Lstat(j.oldPath()); err == nil {
		return // the last cut is not through yet
	}
	if err := os.Rename(j.path(), j.oldPath()); err != nil {
		j.log.Error("cannot rotate the journal", "err", err)
		return
	}
	if err := j.startFile(); err != nil {
		j.log.Error("cannot start a new journal", "err", err)
		if err := os.Rename(j.oldPath(), j.path()); err != nil { // it is still the one that is written
			j.log.Error("cannot rotate the journal back", "err", err)
		}
		return
	}
	drained := make(chan struct{})
	j.last, j.drained = j.seq, drained
	j.cutting.Go(func() {
		select {
		case <-drained:
		case <-j.closing:
			return // Close does the rest
		}
		for err := j.syncRoot(); err != nil; err = j.syncRoot() {
			j.log.Error("cannot sync the data root; the old journal is kept until that works", "err", err)
			retry := time.NewTimer(syncRetry)
			select {
			case <-retry.C:
			case <-j.closing:
				retry.Stop()
				return
			}
		}
		if err := os.Remove(j.oldPath()); err != nil {
			j.log.Error("cannot remove the old journal", "err", err)
		}
	})
}

// Close syncs the data root and leaves an empty journal: dockerd may start on the root afterwards. When files could not
// be put in place the journal is kept, and the next Open tries again.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.settleLocked()
	owed := len(j.owed)
	j.mu.Unlock()
	close(j.closing)
	j.cutting.Wait()
	if err := j.syncRoot(); err != nil {
		return fmt.Errorf("close journal: %w", err)
	}
	if owed > 0 {
		return errors.Join(fmt.Errorf("close journal: %d entries could not be put in place and are kept", owed), j.file.Close())
	}
	_ = os.Remove(j.oldPath()) // may not be there
	if err := j.file.Truncate(0); err != nil {
		return fmt.Errorf("close journal: %w", err)
	}
	return j.file.Close()
}

func (j *Journal) syncRoot() error {
	d, err := os.Open(j.root)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("sync the file system of %s: %w", j.root, err)
	}
	return nil
}

// learn finds out what the files of steps hold that this process has not written, so that the entry may be replayed
// over those bytes.
func (j *Journal) learn(steps []step) {
	for _, s := range steps {
		if s.Remove {
			continue
		}
		j.mu.Lock()
		_, known := j.known[s.Path]
		j.mu.Unlock()
		if known {
			continue
		}
		data, err := os.ReadFile(filepath.Join(j.root, s.Path))
		if err != nil {
			continue // a new file; or one that is replaced however it looks, if it cannot be read then either
		}
		j.mu.Lock()
		j.known[s.Path] = digest(data)
		j.mu.Unlock()
	}
}

func (j *Journal) steps(changes []Change) ([]step, error) {
	steps := make([]step, 0, len(changes))
	for _, c := range changes {
		rel, err := j.relative(c.Path)
		if err != nil {
			return nil, fmt.Errorf("commit: %w", err)
		}
		steps = append(steps, step{Path: rel, Mode: c.Mode, Data: c.Data, Remove: c.Remove})
	}
	return steps, nil
}

func (j *Journal) relative(path string) (string, error) {
	rel := path
	if filepath.IsAbs(path) {
		var err error
		if rel, err = filepath.Rel(j.root, path); err != nil {
			return "", err
		}
	}
	if !filepath.IsLocal(rel) || rel == "." {
		return "", fmt.Errorf("%s is not below the data root %s", path, j.root)
	}
	return filepath.Clean(rel), nil
}

func (j *Journal) apply(s step) error {
	path := filepath.Join(j.root, s.Path)
	if s.Remove {
		return os.RemoveAll(path)
	}
	err := atomicfile.WriteNoSync(path, s.Data, s.Mode)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(filepath.Dir(path), 0o710); err == nil {
			err = atomicfile.WriteNoSync(path, s.Data, s.Mode)
		}
	}
	return err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encode(e entry) ([]byte, error) {
	payload, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	if len(payload) > maxEntry {
		return nil, fmt.Errorf("an entry of %d bytes is larger than %d", len(payload), maxEntry)
	}
	frame := make([]byte, headerSize, headerSize+len(payload))
	binary.LittleEndian.PutUint32(frame, uint32(len(payload)))
	binary.LittleEndian.PutUint32(frame[4:], crc32.Checksum(payload, castagnoli))
	return append(frame, payload...), nil
}

// decode returns the whole entries at the front of data, and whether bytes follow that are no whole entry.
func decode(data []byte) (entries []entry, torn bool) {
	for len(data) > 0 {
		if len(data) < headerSize {
			return entries, true
		}
		n := binary.LittleEndian.Uint32(data)
		if n > maxEntry || int(n) > len(data)-headerSize {
			return entries, true
		}
		payload := data[headerSize : headerSize+int(n)]
		var e entry
		if crc32.Checksum(payload, castagnoli) != binary.LittleEndian.Uint32(data[4:]) || json.Unmarshal(payload, &e) != nil {
			return entries, true
		}
		entries = append(entries, e)
		data = data[headerSize+int(n):]
	}
	return entries, false
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
