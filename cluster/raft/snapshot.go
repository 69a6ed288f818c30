package raft

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	hraft "github.com/hashicorp/raft"

	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/fault"
)

// A snapshot's file is a header, its description as JSON, and the stream, which is sealed in blocks when the host has a key.
const (
	snapshotMagic   = "stated\x00S"
	snapshotVersion = 1
	snapshotHeader  = 32 // magic, version, flags, length of the description, size of the stream (8), CRC-32C of all else
	snapshotSuffix  = ".snap"
	damagedSuffix   = ".damaged"
	snapshotsKept   = 2
	maxDescription  = 1 << 20
)

// description is what raft wants to know of a snapshot.
type description struct {
	Index, Term        uint64
	Configuration      []byte // as raft encodes it
	ConfigurationIndex uint64
	Received           bool // from another voter, so that the log need not reach up to it
}

// kept is a snapshot in its place.
type kept struct {
	description
	id   string // its file's name
	size int64  // of the stream
}

// snapshots is raft's snapshot store: two files, the newer of which is what a start begins with.
type snapshots struct {
	dir    string
	keys   keyring
	faults *faults
	log    *slog.Logger
	store  *store // nil while the log is being opened

	unfinished, bad []string // names that tidy removes and sets aside

	newest atomic.Int64 // bytes of the newest one's stream

	mu   sync.Mutex // guards list
	list []kept     // newest first
}

// openSnapshots lists the snapshots and reads the newest wholly. One that is damaged is left out, if the log and the
// one before it make up for it: reaches says whether the log has all that follows an index. It changes nothing of what is
// there; tidy does.
func openSnapshots(dir string, keys keyring, f *faults, log *slog.Logger, reaches func(index uint64) bool) (*snapshots, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of snapshots: %w", err)
	}
	s := &snapshots{dir: dir, keys: keys, faults: f, log: log}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the snapshots: %w", err)
	}
	var names []string
	for _, e := range entries {
		switch {
		case strings.HasPrefix(e.Name(), ".tmp-"):
			s.unfinished = append(s.unfinished, e.Name())
		case strings.HasSuffix(e.Name(), snapshotSuffix):
			names = append(names, e.Name())
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(b, a) })
	var damage error
	for _, name := range names {
		k, err := s.verify(name, len(s.list) == 0)
		if errors.Is(err, ErrDamaged) {
			s.bad, damage = append(s.bad, name), errors.Join(damage, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		s.list = append(s.list, k)
	}
	base := uint64(0)
	if len(s.list) > 0 {
		base = s.list[0].Index
		s.newest.Store(s.list[0].size)
	}
	if damage != nil && !reaches(base) {
		return nil, fmt.Errorf("%w. The log does not reach back far enough to do without it. Nothing was changed: restore the directory of the log as a whole from a backup", damage)
	}
	return s, nil
}

// tidy removes what was not finished and sets damaged snapshots aside, once it is known that the rest is sound.
func (s *snapshots) tidy() error {
	for _, name := range s.unfinished {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil {
			return fmt.Errorf("remove a snapshot that was not finished: %w", err)
		}
	}
	for _, name := range s.bad {
		s.log.Warn("a snapshot is damaged; the one before it and the log make up for it", "snapshot", filepath.Join(s.dir, name), "set aside as", name+damagedSuffix)
		if err := os.Rename(filepath.Join(s.dir, name), filepath.Join(s.dir, name+damagedSuffix)); err != nil {
			return fmt.Errorf("set a damaged snapshot aside: %w", err)
		}
	}
	s.unfinished, s.bad = nil, nil
	return nil
}

// SetAside are the damaged snapshots that this start or an earlier one set aside, as paths.
func (l *Log) SetAside() []string {
	list, _ := filepath.Glob(filepath.Join(l.snapshots.dir, "*"+snapshotSuffix+damagedSuffix)) // the pattern is a good one
	return list
}

// verify reads a snapshot's head, and all of it if that is asked for by being the newest.
func (s *snapshots) verify(name string, whole bool) (kept, error) {
	k, r, err := s.open(name)
	if err != nil {
		return kept{}, err
	}
	defer r.Close()
	if whole {
		err = readSections(r, func(_ string, _ uint32, r io.Reader) error {
			_, err := io.Copy(io.Discard, r)
			return err
		})
		if err != nil {
			return kept{}, fmt.Errorf("snapshot %s: %w", filepath.Join(s.dir, name), err)
		}
	}
	return k, nil
}

// stream is an open snapshot.
type stream struct {
	io.Reader
	io.Closer
}

func (s *snapshots) open(name string) (_ kept, _ io.ReadCloser, err error) {
	path := filepath.Join(s.dir, name)
	f, err := os.Open(path)
	if err != nil {
		return kept{}, nil, fmt.Errorf("open a snapshot: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close() // read-only
			err = fmt.Errorf("snapshot %s: %w", path, err)
		}
	}()
	header := make([]byte, snapshotHeader)
	if _, err := io.ReadFull(f, header); err != nil {
		return kept{}, nil, cutShort(err)
	}
	if string(header[:len(snapshotMagic)]) != snapshotMagic {
		return kept{}, nil, fmt.Errorf("its header is not a snapshot's: %w", ErrDamaged)
	}
	n := binary.LittleEndian.Uint32(header[16:])
	if n > maxDescription {
		return kept{}, nil, fmt.Errorf("a description of %d bytes: %w", n, ErrDamaged)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(f, body); err != nil {
		return kept{}, nil, cutShort(err)
	}
	if crc32.Update(crc32.Checksum(header[:28], castagnoli), castagnoli, body) != binary.LittleEndian.Uint32(header[28:]) {
		return kept{}, nil, fmt.Errorf("its header's checksum does not match: %w", ErrDamaged)
	}
	version, flags := binary.LittleEndian.Uint32(header[8:]), binary.LittleEndian.Uint32(header[12:])
	if version != snapshotVersion || flags&^flagSealed != 0 {
		return kept{}, nil, fmt.Errorf("its version %d with flags %#x is not known to this version of stated: start the version that wrote it, or a later one: %w", version, flags, ErrVersion)
	}
	k := kept{id: name, size: int64(binary.LittleEndian.Uint64(header[20:]))}
	if err := json.Unmarshal(body, &k.description); err != nil {
		return kept{}, nil, fmt.Errorf("its description: %w: %w", err, ErrDamaged)
	}
	if name != snapshotName(k.Index, k.Term) {
		return kept{}, nil, fmt.Errorf("the file has another one's name: %w", ErrDamaged)
	}
	var r io.Reader = bufio.NewReaderSize(f, chunkSize)
	if flags&flagSealed != 0 {
		r = &sealedReader{r: r, keys: s.keys, index: k.Index}
	}
	return k, stream{io.LimitReader(r, k.size), f}, nil
}

func snapshotName(index, term uint64) string {
	return fmt.Sprintf("%020d-%020d%s", index, term, snapshotSuffix)
}

func (k kept) meta() *hraft.SnapshotMeta {
	return &hraft.SnapshotMeta{Version: 1, ID: k.id, Index: k.Index, Term: k.Term, Size: k.size,
		Configuration: hraft.DecodeConfiguration(k.Configuration), ConfigurationIndex: k.ConfigurationIndex}
}

// List returns the snapshots, newest first.
func (s *snapshots) List() ([]*hraft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*hraft.SnapshotMeta
	for _, k := range s.list {
		list = append(list, k.meta())
	}
	return list, nil
}

// Open returns a snapshot's stream.
func (s *snapshots) Open(id string) (*hraft.SnapshotMeta, io.ReadCloser, error) {
	k, r, err := s.open(id)
	if err != nil {
		return nil, nil, err
	}
	return k.meta(), r, nil
}

// Create begins a snapshot.
func (s *snapshots) Create(_ hraft.SnapshotVersion, index, term uint64, c hraft.Configuration, configurationIndex uint64, _ hraft.Transport) (hraft.SnapshotSink, error) {
	last, err := s.store.LastIndex()
	if err != nil {
		return nil, err
	}
	k := &sink{s: s, kept: kept{id: snapshotName(index, term), description: description{
		Index: index, Term: term, Configuration: hraft.EncodeConfiguration(c), ConfigurationIndex: configurationIndex, Received: last < index}}}
	if k.body, err = json.Marshal(k.kept.description); err != nil {
		return nil, err
	}
	if k.file, err = os.CreateTemp(s.dir, ".tmp-"); err != nil {
		return nil, fmt.Errorf("begin a snapshot: %w", err)
	}
	if _, err := k.file.Write(append(make([]byte, snapshotHeader), k.body...)); err != nil {
		return nil, errors.Join(fmt.Errorf("begin a snapshot: %w", err), k.Cancel())
	}
	k.buffered = bufio.NewWriterSize(k.file, chunkSize)
	k.stream = k.buffered
	if len(s.keys) > 0 {
		k.sealed = &sealedWriter{w: k.buffered, keys: s.keys, index: index}
		k.stream = k.sealed
	}
	return k, nil
}

// sink is a snapshot that is being written.
type sink struct {
	s        *snapshots
	kept     kept
	body     []byte // the description
	file     *os.File
	buffered *bufio.Writer
	sealed   *sealedWriter // nil without a key
	stream   io.Writer
	done     bool
}

func (k *sink) ID() string { return k.kept.id }

func (k *sink) Write(p []byte) (int, error) {
	n, err := k.stream.Write(p)
	k.kept.size += int64(n)
	return n, err
}

// Cancel drops the snapshot.
func (k *sink) Cancel() error {
	if k.done {
		return nil
	}
	k.done = true
	return errors.Join(k.file.Close(), os.Remove(k.file.Name()))
}

// Close puts the snapshot in its place and removes those that are too old.
func (k *sink) Close() (err error) {
	if k.done {
		return nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("finish a snapshot: %w", err), k.Cancel())
		}
	}()
	header := make([]byte, 0, snapshotHeader)
	header = append(header, snapshotMagic...)
	header = binary.LittleEndian.AppendUint32(header, snapshotVersion)
	flags := uint32(0)
	if k.sealed != nil {
		flags |= flagSealed
		if err := k.sealed.flush(); err != nil {
			return err
		}
	}
	header = binary.LittleEndian.AppendUint32(header, flags)
	header = binary.LittleEndian.AppendUint32(header, uint32(len(k.body)))
	header = binary.LittleEndian.AppendUint64(header, uint64(k.kept.size))
	header = binary.LittleEndian.AppendUint32(header, crc32.Update(crc32.Checksum(header, castagnoli), castagnoli, k.body))
	if err := k.buffered.Flush(); err != nil {
		return err
	}
	if _, err := k.file.WriteAt(header, 0); err != nil {
		return err
	}
	k.s.faults.flushes.Add(2)
	if err := k.file.Sync(); err != nil {
		return err
	}
	if err := fault.Point("raft.snapshot.written"); err != nil {
		return err
	}
	if err := os.Rename(k.file.Name(), filepath.Join(k.s.dir, k.kept.id)); err != nil {
		return err
	}
	k.done = true
	if err := errors.Join(k.file.Close(), atomicfile.SyncDir(k.s.dir)); err != nil {
		return err
	}
	if err := fault.Point("raft.snapshot.placed"); err != nil {
		return err
	}
	k.s.placed(k.kept)
	return nil
}

// placed lists a snapshot and drops the oldest. From now on the log may be cut up to the older of two: so that one of them
// may be damaged.
func (s *snapshots) placed(k kept) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = slices.DeleteFunc(s.list, func(old kept) bool { return old.id == k.id })
	s.list = append([]kept{k}, s.list...)
	s.newest.Store(k.size)
	for len(s.list) > snapshotsKept {
		old := s.list[len(s.list)-1]
		if err := os.Remove(filepath.Join(s.dir, old.id)); err != nil {
			s.log.Warn("an old snapshot cannot be removed", "error", err)
		}
		s.list = s.list[:len(s.list)-1]
	}
	s.store.floor.Store(s.floorLocked())
}

// floorLocked is the index up to which the log may be dropped.
func (s *snapshots) floorLocked() uint64 {
	if n := len(s.list); n > 1 || n == 1 && s.list[0].Received {
		return s.list[n-1].Index
	}
	return 0
}

// A sealed stream is blocks, each with its length and checksum before it. A block is bound to its number and to the
// snapshot's index. The checksum tells damage from a key that is not the right one.
const (
	sealedBlock = 64 << 10
	blockHeader = 8
)

type sealedWriter struct {
	w      io.Writer
	keys   keyring
	index  uint64
	number uint64
	plain  []byte
}

func (s *sealedWriter) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), sealedBlock-len(s.plain))
		s.plain = append(s.plain, rest[:n]...)
		rest = rest[n:]
		if len(s.plain) == sealedBlock {
			if err := s.flush(); err != nil {
				return len(p) - len(rest), err
			}
		}
	}
	return len(p), nil
}

func (s *sealedWriter) flush() error {
	if len(s.plain) == 0 {
		return nil
	}
	block := s.keys.seal(make([]byte, blockHeader, blockHeader+len(s.plain)+sealOverhead), s.plain, blockPlace(s.index, s.number))
	binary.LittleEndian.PutUint32(block, uint32(len(block)-blockHeader))
	binary.LittleEndian.PutUint32(block[4:], crc32.Checksum(block[blockHeader:], castagnoli))
	s.number++
	s.plain = s.plain[:0]
	_, err := s.w.Write(block)
	return err
}

func blockPlace(index, number uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, index), number)
}

type sealedReader struct {
	r      io.Reader
	keys   keyring
	index  uint64
	number uint64
	plain  []byte
}

func (s *sealedReader) Read(p []byte) (int, error) {
	if len(s.plain) == 0 {
		var header [blockHeader]byte
		if _, err := io.ReadFull(s.r, header[:]); err != nil {
			return 0, err // io.EOF among them: what was sealed says where it ends
		}
		n := binary.LittleEndian.Uint32(header[:])
		if n > sealedBlock+sealOverhead {
			return 0, fmt.Errorf("a sealed block of %d bytes: %w", n, ErrDamaged)
		}
		block := make([]byte, n)
		if _, err := io.ReadFull(s.r, block); err != nil {
			return 0, cutShort(err)
		}
		if crc32.Checksum(block, castagnoli) != binary.LittleEndian.Uint32(header[4:]) {
			return 0, fmt.Errorf("a sealed block's checksum does not match: %w", ErrDamaged)
		}
		plain, err := s.keys.open(block, blockPlace(s.index, s.number))
		if err != nil {
			return 0, err
		}
		s.number++
		s.plain = plain
	}
	n := copy(p, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}
