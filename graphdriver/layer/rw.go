package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
)

// initSeeds are what every container finds in its tree: the places where something is mounted over. They stand in a
// layer of their own between image and container, so that they are no change of the container's.
var initSeeds = [...]graphdriver.Seed{
	{Path: ".dockerenv", Kind: graphdriver.SeedFile},
	{Path: "dev/console", Kind: graphdriver.SeedFile},
	{Path: "dev/pts", Kind: graphdriver.SeedDir},
	{Path: "dev/shm", Kind: graphdriver.SeedDir},
	{Path: "etc/hostname", Kind: graphdriver.SeedFile},
	{Path: "etc/hosts", Kind: graphdriver.SeedFile},
	{Path: "etc/mtab", Kind: graphdriver.SeedSymlink, Target: "/proc/mounts"},
	{Path: "etc/resolv.conf", Kind: graphdriver.SeedFile},
	{Path: "proc", Kind: graphdriver.SeedDir},
	{Path: "sys", Kind: graphdriver.SeedDir},
}

// File is a file of a record, for whoever makes it durable.
type File struct {
	Path string // absolute
	Data []byte
	Mode fs.FileMode
}

// RWRequest describes a writable layer.
type RWRequest struct {
	Parent     digest.Digest // chain id; "" for an empty tree
	StorageOpt map[string]string
	MountLabel string
	// Bare leaves out what every container finds in its tree: the layer shows its parent and nothing else.
	Bare bool
	// Commit makes the record's files durable, together with whatever else the caller has to record; it makes their
	// directory too. The layer exists when it has returned nil, and not at all when it fails. Without it the store
	// writes and flushes the files.
	Commit func(files []File) error
}

// RWInfo describes a writable layer.
type RWInfo struct {
	Name    string
	MountID string // the driver's id
	InitID  string // the driver's id of the layer below; "" when there is none
	Parent  digest.Digest
}

// below returns the driver's id of what lies under the writable layer.
func (i RWInfo) below(parentCacheID string) string {
	if i.InitID != "" {
		return i.InitID
	}
	return parentCacheID
}

// rwLayer is a writable layer in the table. Its record is read when first asked for.
type rwLayer struct {
	name string

	mu sync.Mutex // one operation at a time; taken before Store.mu

	once sync.Once // reads the record; no lock is needed for it

	// Written with both locks held, or in once; read with either, after once.
	info  RWInfo
	err   error  // why there is no usable record
	cache string // the driver's id of the image's top layer
}

// CreateRW makes a writable layer called name, which is a container's id. It holds a reference to its parent.
func (s *Store) CreateRW(ctx context.Context, name string, req RWRequest) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("writable layer %q: not a name: %w", name, errdefs.ErrInvalidArgument)
	}
	rw, err := s.reserve(name)
	if err != nil {
		return err
	}
	defer rw.mu.Unlock()
	if err := s.create(ctx, rw, req); err != nil {
		s.set(rw, RWInfo{}, "", ErrRWNotFound) // for those who wait for the lock
		s.forget(rw)
		return fmt.Errorf("make writable layer of %s: %w", name, err)
	}
	return nil
}

// intent is a file that is there while the driver's layers of a writable layer are made or removed.
func (s *Store) intent(mountID string) string { return filepath.Join(s.tmp(), rwIntent+mountID) }

// reserve enters a name into the table and returns its entry locked. A directory without a record does not count.
func (s *Store) reserve(name string) (*rwLayer, error) {
	rw := &rwLayer{name: name}
	rw.once.Do(func() {}) // there is nothing to read
	rw.mu.Lock()
	for {
		s.mu.Lock()
		old := s.rws[name]
		if old == nil {
			s.rws[name] = rw
			s.mu.Unlock()
			return rw, nil
		}
		s.mu.Unlock()
		s.load(old)
		old.mu.Lock()
		gone := errdefs.IsNotFound(old.err)
		old.mu.Unlock()
		if !gone {
			return nil, fmt.Errorf("writable layer of %s: %w", name, ErrRWExists)
		}
		s.forget(old)
	}
}

// forget takes an entry out of the table, if it is still that one.
func (s *Store) forget(rw *rwLayer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rws[rw.name] == rw {
		delete(s.rws, rw.name)
	}
}

func (s *Store) create(ctx context.Context, rw *rwLayer, req RWRequest) (err error) {
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
	}()
	undoing := context.WithoutCancel(ctx)

	info := RWInfo{Name: rw.name, MountID: ids.New(), Parent: req.Parent}
	var cache string
	if req.Parent != "" {
		parent, err := s.hold(req.Parent)
		if err != nil {
			return err
		}
		cache = parent.CacheID
		defer func() { err = errors.Join(err, s.unhold(ctx, req.Parent)) }() // after the layer has got its reference
	}

	// The intent names the driver's layers to be, so that a crash from here on is found by Sweep.
	intent := s.intent(info.MountID)
	s.addPending(info.MountID)
	defer s.dropPending(info.MountID)
	if err := os.WriteFile(intent, nil, 0o600); err != nil {
		return err
	}
	undo = append(undo, func() error { return os.Remove(intent) })
	if err := fault.Point("layer.create.intended"); err != nil {
		return err
	}

	if !req.Bare {
		info.InitID = info.MountID + initSuffix
		undo = append(undo, func() error { return s.driver.Remove(undoing, info.InitID) })
		if err := s.driver.CreateSeeded(ctx, info.InitID, cache, initSeeds[:], graphdriver.CreateOptions{MountLabel: req.MountLabel}); err != nil {
			return fmt.Errorf("init layer: %w", err)
		}
		if err := fault.Point("layer.create.seeded"); err != nil {
			return err
		}
	}
	undo = append(undo, func() error { return s.driver.Remove(undoing, info.MountID) })
	if err := s.driver.CreateReadWrite(ctx, info.MountID, info.below(cache), graphdriver.CreateOptions{
		MountLabel: req.MountLabel,
		StorageOpt: req.StorageOpt,
	}); err != nil {
		return err
	}
	if err := fault.Point("layer.create.made"); err != nil {
		return err
	}

	commit := req.Commit
	if commit == nil {
		commit = s.writeFiles
	}
	if err := commit(s.rwFiles(info)); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	undo = nil // it exists now
	s.set(rw, info, cache, nil)
	if req.Parent != "" {
		if _, err := s.Acquire(req.Parent); err != nil {
			return err // cannot be: it is held
		}
	}
	if err := fault.Point("layer.create.recorded"); err != nil {
		return err
	}
	_ = os.Remove(intent) // Sweep passes over an intent whose layer is recorded
	return nil
}

// rwDir is the directory of a writable layer's record.
func (s *Store) rwDir(name string) string { return filepath.Join(s.mounts(), name) }

func (s *Store) rwFiles(info RWInfo) []File {
	dir := s.rwDir(info.Name)
	files := []File{
		{filepath.Join(dir, mountIDFile), []byte(info.MountID), 0o644},
	}
	if info.InitID != "" {
		files = append(files, File{filepath.Join(dir, initIDFile), []byte(info.InitID), 0o644})
	}
	if info.Parent != "" {
		files = append(files, File{filepath.Join(dir, parentFile), []byte(info.Parent), 0o644})
	}
	return files
}

// writeFiles writes the record of one writable layer: its directory appears with all files, or not at all.
func (s *Store) writeFiles(files []File) (err error) {
	dir := filepath.Dir(files[0].Path)
	staging, err := os.MkdirTemp(s.tmp(), "write-set-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(staging) // litter of tmp is harmless
		}
	}()
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(staging, filepath.Base(f.Path)), f.Data, f.Mode); err != nil {
			return err
		}
	}
	if err := os.Chmod(staging, 0o755); err != nil {
		return err
	}
	if err := s.flush.wait(); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil { // what is there is no whole record
		return err
	}
	if err := os.Rename(staging, dir); err != nil {
		return err
	}
	s.flushes.Add(1)
	return atomicfile.SyncDir(s.mounts())
}

// set changes what is known of a writable layer, which is locked.
func (s *Store) set(rw *rwLayer, info RWInfo, cache string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rw.info, rw.cache, rw.err = info, cache, err
}

// load reads the record of a writable layer if nobody has yet.
func (s *Store) load(rw *rwLayer) {
	rw.once.Do(func() {
		info, err := readRWRecord(s.rwDir(rw.name), rw.name)
		s.mu.Lock()
		defer s.mu.Unlock()
		rw.info, rw.err = info, err
		if err != nil || info.Parent == "" {
			return
		}
		parent := s.layers[info.Parent]
		if parent == nil {
			rw.err = missing("layer " + info.Parent.String() + " of its image")
			return
		}
		parent.ref()
		rw.cache = parent.CacheID
	})
}

func readRWRecord(dir, name string) (RWInfo, error) {
	info := RWInfo{Name: name}
	var err error
	if info.MountID, err = readSmall(filepath.Join(dir, mountIDFile)); errors.Is(err, fs.ErrNotExist) || err == nil && info.MountID == "" {
		return info, fmt.Errorf("writable layer of %s: %w", name, ErrRWNotFound) // an empty record is none
	} else if err != nil {
		return info, err
	}
	if err := validDriverID(info.MountID); err != nil {
		return info, fmt.Errorf("file %s holds %.80q: %w", mountIDFile, info.MountID, errdefs.ErrDataLoss)
	}
	if info.InitID, err = readSmall(filepath.Join(dir, initIDFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return info, err
	} else if err == nil && validDriverID(info.InitID) != nil {
		return info, fmt.Errorf("file %s holds %.80q: %w", initIDFile, info.InitID, errdefs.ErrDataLoss)
	}
	parent, err := readSmall(filepath.Join(dir, parentFile))
	if errors.Is(err, fs.ErrNotExist) {
		return info, nil
	}
	if err != nil {
		return info, err
	}
	if info.Parent, err = digest.Parse(parent); err != nil {
		return info, fmt.Errorf("file %s holds %.80q: %w", parentFile, parent, errdefs.ErrDataLoss)
	}
	return info, nil
}

// loadRWs reads the records of all writable layers that were there when the store was opened.
func (s *Store) loadRWs() {
	for _, rw := range s.allRWs() {
		s.load(rw)
	}
}

func (s *Store) allRWs() []*rwLayer {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*rwLayer, 0, len(s.rws))
	for _, rw := range s.rws {
		all = append(all, rw)
	}
	slices.SortFunc(all, func(a, b *rwLayer) int { return strings.Compare(a.name, b.name) })
	return all
}

// lock returns the entry of a writable layer, locked and with its record read. The caller unlocks it.
func (s *Store) lock(name string) (*rwLayer, error) {
	s.mu.Lock()
	rw := s.rws[name]
	s.mu.Unlock()
	if rw == nil {
		return nil, fmt.Errorf("writable layer of %s: %w", name, ErrRWNotFound)
	}
	s.load(rw)
	rw.mu.Lock()
	if rw.err != nil {
		err := rw.err
		rw.mu.Unlock()
		return nil, fmt.Errorf("writable layer of %s: %w", name, err)
	}
	return rw, nil
}

// RW returns a writable layer's record.
func (s *Store) RW(name string) (RWInfo, error) {
	rw, err := s.lock(name)
	if err != nil {
		return RWInfo{}, err
	}
	defer rw.mu.Unlock()
	return rw.info, nil
}

// Names returns the names of all writable layers, in order.
func (s *Store) Names() []string {
	s.loadAll()
	all := s.allRWs()
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, rw := range all {
		if rw.info.MountID != "" { // neither without a record nor being made
			names = append(names, rw.name)
		}
	}
	return names
}

// MountRW mounts a writable layer and returns the root of its tree. It counts: each MountRW needs one UnmountRW. A
// mount that was there when the store was opened belongs to a running container and counts as one MountRW, whose
// UnmountRW is due when that container ends; MountedRW tells its root without counting.
func (s *Store) MountRW(ctx context.Context, name, mountLabel string) (root string, err error) {
	rw, err := s.lock(name)
	if err != nil {
		return "", err
	}
	defer rw.mu.Unlock()
	root, err = s.driver.Get(ctx, rw.info.MountID, mountLabel)
	if err != nil {
		return "", fmt.Errorf("mount writable layer of %s: %w", name, err)
	}
	return root, nil
}

// UnmountRW takes back one MountRW and unmounts with the last.
func (s *Store) UnmountRW(ctx context.Context, name string) error {
	rw, err := s.lock(name)
	if err != nil {
		return err
	}
	defer rw.mu.Unlock()
	if err := s.driver.Put(ctx, rw.info.MountID); err != nil {
		return fmt.Errorf("unmount writable layer of %s: %w", name, err)
	}
	return nil
}

// MountedRW returns the root of a writable layer that is mounted.
func (s *Store) MountedRW(name string) (root string, mounted bool) {
	rw, err := s.lock(name)
	if err != nil {
		return "", false
	}
	defer rw.mu.Unlock()
	return s.driver.Mounted(rw.info.MountID)
}

// RemoveRW removes a writable layer that is not mounted; a mounted one is an errdefs.ErrFailedPrecondition. commit
// makes the removal durable: it is given the directories of the record, and the layer is gone when it has returned
// nil. Without it the store removes and flushes them. The files are deleted in the background.
func (s *Store) RemoveRW(ctx context.Context, name string, commit func(dirs []string) error) error {
	rw, err := s.lock(name)
	if err != nil {
		return err
	}
	defer rw.mu.Unlock()
	if _, mounted := s.driver.Mounted(rw.info.MountID); mounted {
		return fmt.Errorf("remove writable layer of %s: it is mounted: %w", name, errdefs.ErrFailedPrecondition)
	}
	if commit == nil {
		commit = s.removeRecords
	}
	dir := s.rwDir(name)
	intent := s.intent(rw.info.MountID)
	if err := os.WriteFile(intent, nil, 0o600); err != nil {
		return fmt.Errorf("remove writable layer of %s: %w", name, err)
	}
	if err := commit([]string{dir}); err != nil {
		_ = os.Remove(intent) // Sweep passes over an intent whose layer is recorded
		return fmt.Errorf("remove writable layer of %s: un-record: %w", name, err)
	}
	if err := fault.Point("layer.remove.unrecorded"); err != nil {
		return err
	}
	info := rw.info
	s.forget(rw)
	s.set(rw, RWInfo{}, "", ErrRWNotFound) // for those who wait for the lock
	return s.removeFiles(context.WithoutCancel(ctx), info, dir, intent)
}

// removeFiles deletes what an un-recorded writable layer leaves.
func (s *Store) removeFiles(ctx context.Context, info RWInfo, dir, intent string) error {
	errs := []error{os.RemoveAll(dir)} // gone already but for a commit that leaves it
	for _, id := range []string{info.MountID, info.InitID} {
		if id != "" {
			errs = append(errs, s.discard(ctx, id, nothing))
		}
		if err := fault.Point("layer.remove.discarded"); err != nil {
			return err
		}
	}
	if errors.Join(errs...) == nil {
		errs = append(errs, os.Remove(intent)) // what is left has a name that Sweep knows
	}
	if info.Parent != "" {
		errs = append(errs, s.Release(ctx, info.Parent))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove writable layer of %s: %w", info.Name, err)
	}
	return nil
}

// removeRecords removes directories of records so that each disappears whole.
func (s *Store) removeRecords(dirs []string) error {
	trash, err := os.MkdirTemp(s.tmp(), "removed-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(trash) // litter of tmp is harmless
	for _, dir := range dirs {
		if err := os.Rename(dir, filepath.Join(trash, filepath.Base(dir))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	s.flushes.Add(1)
	return atomicfile.SyncDir(s.mounts())
}

// RWMetadata returns what "docker inspect" has in GraphDriver.Data.
func (s *Store) RWMetadata(name string) (map[string]string, error) {
	rw, err := s.lock(name)
	if err != nil {
		return nil, err
	}
	defer rw.mu.Unlock()
	m, err := s.driver.Metadata(rw.info.MountID)
	if err != nil {
		return nil, err
	}
	if m == nil {
		m = map[string]string{}
	}
	m["ID"] = name
	return m, nil
}

// RWSize returns the bytes of the changes in a writable layer, and those with the layers of its image.
func (s *Store) RWSize(ctx context.Context, name string) (rw, total int64, err error) {
	info, below, err := s.compared(name)
	if err != nil {
		return 0, 0, err
	}
	if rw, err = s.driver.DiffSize(ctx, info.MountID, below); err != nil {
		return 0, 0, err
	}
	total = rw
	if info.Parent != "" {
		chain, err := s.Chain(info.Parent)
		if err != nil {
			return 0, 0, err
		}
		for _, l := range chain {
			total += l.Size
		}
	}
	return rw, total, nil
}

// RWChanges lists the changes in a writable layer.
func (s *Store) RWChanges(ctx context.Context, name string) ([]graphdriver.Change, error) {
	info, below, err := s.compared(name)
	if err != nil {
		return nil, err
	}
	return s.driver.Changes(ctx, info.MountID, below)
}

// RWDiff returns the changes in a writable layer as an uncompressed tar, fit for Register.
func (s *Store) RWDiff(ctx context.Context, name string) (io.ReadCloser, error) {
	info, below, err := s.compared(name)
	if err != nil {
		return nil, err
	}
	return s.driver.Diff(ctx, info.MountID, below)
}

// compared returns a writable layer and the driver's id of what it is compared with. Comparing may take long, so the
// layer is not locked meanwhile; a removal makes it fail.
func (s *Store) compared(name string) (RWInfo, string, error) {
	rw, err := s.lock(name)
	if err != nil {
		return RWInfo{}, "", err
	}
	defer rw.mu.Unlock()
	return rw.info, rw.info.below(rw.cache), nil
}
