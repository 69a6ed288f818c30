package volumes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/volumes/stream"
)

// Frozen are containers that are held still.
type Frozen struct {
	Containers []string // their names
	// Thaw lets them go on, and says for how long they were held. It is to be called once.
	Thaw func() (time.Duration, error)
}

// ExportRequest narrows Export.
type ExportRequest struct {
	// Pause holds the containers that use the volume still for as long as it is read, where no snapshot can be made.
	Pause bool
}

// Consistency says what an export shows.
type Consistency string

const (
	// ConsistencySnapshot is the volume at one moment, with its containers held still for that moment.
	ConsistencySnapshot Consistency = "snapshot"
	// ConsistencyPaused is the volume as it was while its containers were held still.
	ConsistencyPaused Consistency = "paused"
	// ConsistencyLive is each file as it was when it was read, whatever wrote meanwhile.
	ConsistencyLive Consistency = "live"
)

// ExportReport says what an export wrote.
type ExportReport struct {
	stream.Tail
	Consistency Consistency
	Paused      []string      // the containers that were held still
	PausedFor   time.Duration // from before the first was held until after the last went on
	Reason      string        // why there is no snapshot; empty when there is one
}

// Export is a volume about to be written as a stream. While it is open the volume cannot be removed.
type Export struct {
	store  *Store
	name   string
	id     string // of the mount
	head   stream.Head
	dir    string // what is read
	frozen *Frozen
	report ExportReport
}

const snapshotDir = "snapshots" // in the state directory

// Export prepares the export of a volume. The containers that use it are held still meanwhile, as briefly as the file
// system allows: where it can share blocks between files the volume's files are cloned, and the clones are read. The
// caller closes what it returns.
func (s *Store) Export(ctx context.Context, name string, req ExportRequest) (_ *Export, err error) {
	e, err := s.openExport(ctx, name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	switch cause := e.snapshot(ctx); {
	case cause == nil:
		e.report.Consistency = ConsistencySnapshot
		return e, nil
	case !errors.Is(cause, errNoClone):
		return nil, fmt.Errorf("export volume %s: %w", name, cause)
	default:
		e.report.Reason = cause.Error()
	}
	e.report.Consistency = ConsistencyLive
	if req.Pause {
		e.report.Consistency = ConsistencyPaused
		if err := e.freeze(ctx); err != nil {
			return nil, fmt.Errorf("export volume %s: %w", name, err)
		}
	}
	return e, nil
}

// openExport mounts the volume for the export and keeps it from being removed.
func (s *Store) openExport(ctx context.Context, name string) (*Export, error) {
	unlock, err := s.names.lock(ctx, name)
	if err != nil {
		return nil, &OpError{Op: "get", Name: name, Err: err}
	}
	defer unlock()
	found, _, err := s.lookup(ctx, name, "")
	if err != nil {
		return nil, &OpError{Op: "get", Name: name, Err: err}
	}
	e := &Export{store: s, name: found.name, id: "export-" + ids.New(), head: stream.Head{
		Name: found.name, Driver: found.driver, Options: found.options, Labels: found.labels}}
	d, err := s.driver(ctx, found.driver)
	if err != nil {
		return nil, err
	}
	if e.dir, err = d.Mount(ctx, name, e.id); err != nil {
		return nil, fmt.Errorf("export volume %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exports[name]++
	return e, nil
}

// freeze holds the containers that use the volume still.
func (e *Export) freeze(ctx context.Context) error {
	if e.store.freeze == nil {
		return nil
	}
	frozen, err := e.store.freeze(ctx, e.name)
	if err != nil {
		return err
	}
	e.frozen = &frozen
	return nil
}

// thaw lets them go on. It is idempotent.
func (e *Export) thaw() error {
	if e.frozen == nil {
		return nil
	}
	took, err := e.frozen.Thaw()
	if len(e.frozen.Containers) > 0 {
		e.report.Paused, e.report.PausedFor = e.frozen.Containers, took
	}
	e.frozen = nil
	return err
}

// errNoClone says that no snapshot can be made.
var errNoClone = errors.New("its file system cannot clone files")

// passesAhead is how often the clones are brought up to date before the containers are held still. The first pass takes
// as long as there are files; the second is short, and leaves what changes during a short time for the last.
const passesAhead = 2

// snapshot clones the volume's files into the state directory, which becomes what is read. While the containers are held
// still the clones are only brought up to date.
func (e *Export) snapshot(ctx context.Context) (err error) {
	dir := filepath.Join(e.store.stateDir, snapshotDir)
	if err := canClone(dir, e.dir); err != nil {
		return err
	}
	if err := syncFileSystem(e.dir); err != nil { // a clone waits until what it shares is written
		return err
	}
	clone := filepath.Join(dir, ids.New())
	if err := os.Mkdir(clone, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(clone))
		}
	}()
	m := newMirror(clone, e.dir, e.store.now)
	for range passesAhead {
		if err := m.update(ctx); err != nil {
			return err
		}
	}
	if err := fault.Point("volumes.export.prepared"); err != nil {
		return err
	}
	if err := e.freeze(ctx); err != nil {
		return err
	}
	err = e.lastUpdate(ctx, m)
	if err == nil {
		err = fault.Point("volumes.export.cloned")
	}
	if err := errors.Join(err, e.thaw()); err != nil {
		return err
	}
	if err := fault.Point("volumes.export.thawed"); err != nil {
		return err
	}
	e.dir = clone
	return nil
}

// lastUpdate holds the name's lock, so that no container is given the volume meanwhile.
func (e *Export) lastUpdate(ctx context.Context, m *mirror) error {
	unlock, err := e.store.names.lock(ctx, e.name)
	if err != nil {
		return err
	}
	defer unlock()
	return m.update(ctx)
}

// canClone tries whether files below path can be cloned into dir, which it makes.
func canClone(dir, path string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if !sameMount(dir, path) {
		return fmt.Errorf("it is not on the file system of the data root: %w", errNoClone)
	}
	return tryClone(dir)
}

func tryClone(dir string) (err error) {
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(dir, "try-")
		if err != nil {
			return err
		}
		defer f.Close()
		defer os.Remove(f.Name()) // the next start finds one that stays
		files[i] = f
	}
	if _, err := files[0].Write(make([]byte, 4096)); err != nil {
		return err
	}
	if unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd())) != nil {
		return errNoClone
	}
	return nil
}

// Head says what the volume is.
func (e *Export) Head() stream.Head { return e.head }

// Write writes the stream. It is to be called once.
func (e *Export) Write(ctx context.Context, out io.Writer) (ExportReport, error) {
	tail, err := stream.Write(ctx, out, e.head, e.dir)
	if thawErr := e.thaw(); err == nil {
		err = thawErr
	}
	if err != nil {
		return ExportReport{}, fmt.Errorf("export volume %s: %w", e.name, err)
	}
	e.report.Tail = tail
	return e.report, nil
}

// Close gives the volume back and removes its snapshot.
func (e *Export) Close() error {
	err := e.thaw()
	if e.report.Consistency == ConsistencySnapshot {
		err = errors.Join(err, os.RemoveAll(e.dir))
	}
	s := e.store
	err = errors.Join(err, s.Unmount(context.WithoutCancel(s.ctx), e.name, e.id))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.exports[e.name]--; s.exports[e.name] == 0 {
		delete(s.exports, e.name)
	}
	return err
}

// exporting reports whether the volume is being read for an export.
func (s *Store) exporting(name string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.exports[name] > 0
}

// sweepSnapshots removes in the background what exports left that a crash cut short.
func (s *Store) sweepSnapshots() {
	left, err := filepath.Glob(filepath.Join(s.stateDir, snapshotDir, "*"))
	if err != nil || len(left) == 0 {
		return // the pattern is good
	}
	s.tasks.Go(func() {
		for _, path := range left {
			if err := os.RemoveAll(path); err != nil {
				slog.Warn("cannot remove what an export left", "path", path, "err", err)
			}
		}
	})
}
