package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/internal/ids"
)

// maxDepth is the number of layers that a chain may have.
const maxDepth = 125

// The errors that callers tell apart, with Docker's texts.
var (
	ErrLayerNotFound = errdefs.ErrNotFound.WithMessage("layer does not exist")
	ErrNotRetained   = errdefs.ErrFailedPrecondition.WithMessage("layer not retained")
	ErrRWNotFound    = errdefs.ErrNotFound.WithMessage("mount does not exist")
	ErrRWExists      = errdefs.ErrAlreadyExists.WithMessage("mount already exists with name")
	ErrMaxDepth      = errdefs.ErrFailedPrecondition.WithMessage("max depth exceeded")
)

// Info describes one layer of an image.
type Info struct {
	ChainID digest.Digest
	DiffID  digest.Digest
	Parent  digest.Digest // chain id; "" for a base layer
	CacheID string        // the driver's id
	Size    int64         // bytes of the layer's files
}

// layer is an Info with its users: callers' references, layers on top, and writable layers.
type layer struct {
	Info
	depth int
	refs  int

	// Operations under way hold a layer too. When they let go of one that nobody refers to, it is deleted only if the
	// last reference went meanwhile: layers that nobody has referred to yet stay.
	holds  int
	doomed bool
}

// ref adds a user.
func (l *layer) ref() {
	l.refs++
	l.doomed = false
}

// Store is a layer store. Its methods may be called at the same time.
type Store struct {
	root   string // layerdb
	driver graphdriver.Driver

	flush   flusher // contents and records of layers
	dirSync flusher // the directory of the records
	flushes atomic.Int64

	background sync.WaitGroup // deletions under way
	deletions  chan struct{}  // as many as run at once

	loadAll func() // reads all records of writable layers, once

	mu       sync.Mutex
	layers   map[digest.Digest]*layer
	busy     map[digest.Digest]chan struct{} // closed when the chain has been committed or deleted
	rws      map[string]*rwLayer
	pending  map[string]struct{} // driver ids that are being made
	problems []Problem           // found when the store was opened
}

// Open opens the store below dir, which is the data root's image/<driver>, and makes its directories if need be. It
// reads the records of all layers and the names of the writable ones. Driver stays the caller's to close, after the
// store.
func Open(ctx context.Context, dir string, driver graphdriver.Driver) (*Store, error) {
	s := &Store{
		root:      filepath.Join(dir, "layerdb"),
		driver:    driver,
		deletions: make(chan struct{}, 2),
		layers:    map[digest.Digest]*layer{},
		busy:      map[digest.Digest]chan struct{}{},
		rws:       map[string]*rwLayer{},
		pending:   map[string]struct{}{},
	}
	s.loadAll = sync.OnceFunc(s.loadRWs)
	s.flush.run = s.syncContents
	s.dirSync.run = s.syncRecords
	for _, d := range []struct {
		path string
		mode fs.FileMode
	}{{dir, 0o700}, {s.root, 0o700}, {s.chains(), 0o755}, {s.mounts(), 0o755}, {s.tmp(), 0o755}} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return nil, fmt.Errorf("make layer store: %w", err)
		}
	}
	if err := s.loadLayers(ctx); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.mounts())
	if err != nil {
		return nil, fmt.Errorf("list writable layers: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() {
			s.rws[e.Name()] = &rwLayer{name: e.Name()}
		}
	}
	return s, nil
}

// Close waits for deletions under way. Mounts stay.
func (s *Store) Close() error {
	s.background.Wait()
	return nil
}

func (s *Store) chains() string { return filepath.Join(s.root, "sha256") }
func (s *Store) mounts() string { return filepath.Join(s.root, "mounts") }
func (s *Store) tmp() string    { return filepath.Join(s.root, "tmp") }

func (s *Store) chainDir(chain digest.Digest) string {
	return filepath.Join(s.chains(), chain.Encoded())
}

// DriverName returns the storage driver's name.
func (s *Store) DriverName() string { return s.driver.String() }

// DriverStatus returns the storage driver's part of "docker info".
func (s *Store) DriverStatus() [][2]string { return s.driver.Status() }

// Flushes returns how often the store has waited for the disk since it was opened.
func (s *Store) Flushes() int64 { return s.flushes.Load() }

// ChainID names a layer of the given contents on top of parent, which is "" for a base layer.
func ChainID(parent, diff digest.Digest) digest.Digest {
	if parent == "" {
		return diff
	}
	return digest.FromString(parent.String() + " " + diff.String())
}

// loadLayers reads the records of all layers, parents before children.
func (s *Store) loadLayers(ctx context.Context) error {
	entries, err := os.ReadDir(s.chains())
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	found := map[digest.Digest]Info{}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !e.IsDir() || !ids.Valid(e.Name()) {
			continue // being deleted, or nothing of ours
		}
		chain := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		info, err := readRecord(s.chainDir(chain), chain)
		if err == nil && !s.driver.Exists(info.CacheID) {
			err = missing(s.driver.String() + " has no layer " + info.CacheID)
		}
		if err != nil {
			s.problems = append(s.problems, Problem{Layer: chain, Err: err})
			continue
		}
		found[chain] = info
	}
	for chain := range found {
		s.adopt(chain, found)
	}
	for chain, info := range found {
		if s.layers[chain] == nil {
			s.problems = append(s.problems, Problem{Layer: chain, Err: missing("the layer below it, " + info.Parent.String())})
		}
	}
	slices.SortFunc(s.problems, func(a, b Problem) int { return strings.Compare(a.Layer.String(), b.Layer.String()) })
	return nil
}

// adopt enters a layer into the table, with those below it. A layer whose chain is broken is left out.
func (s *Store) adopt(chain digest.Digest, found map[digest.Digest]Info) {
	var path []Info
	for at := chain; s.layers[at] == nil; at = path[len(path)-1].Parent {
		info, ok := found[at]
		if !ok {
			return
		}
		path = append(path, info)
		if info.Parent == "" {
			break
		}
	}
	for _, info := range slices.Backward(path) {
		s.insert(info)
	}
}

// insert enters a layer without users. Its parent is in the table.
func (s *Store) insert(info Info) *layer {
	l := &layer{Info: info, depth: 1}
	if p := s.layers[info.Parent]; p != nil {
		l.depth = p.depth + 1
		p.ref()
	}
	s.layers[info.ChainID] = l
	return l
}

// Layer returns a layer without taking a reference.
func (s *Store) Layer(chain digest.Digest) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[chain]
	if l == nil {
		return Info{}, fmt.Errorf("layer %s: %w", chain, ErrLayerNotFound)
	}
	return l.Info, nil
}

// Chain returns a layer and those below it, the base first.
func (s *Store) Chain(chain digest.Digest) ([]Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var infos []Info
	for at := chain; at != ""; {
		l := s.layers[at]
		if l == nil {
			return nil, fmt.Errorf("layer %s: %w", at, ErrLayerNotFound)
		}
		infos = append(infos, l.Info)
		at = l.Parent
	}
	slices.Reverse(infos)
	return infos, nil
}

// Layers returns all layers, in no order.
func (s *Store) Layers() []Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	infos := make([]Info, 0, len(s.layers))
	for _, l := range s.layers {
		infos = append(infos, l.Info)
	}
	return infos
}

// Unreferenced returns the layers that nobody holds: after all images were restored, what an image left that never
// got its name, or whose configuration is lost. They are never deleted unasked; Acquire and Release of one do it.
func (s *Store) Unreferenced() []Info {
	s.loadAll()
	s.mu.Lock()
	defer s.mu.Unlock()
	var infos []Info
	for _, l := range s.layers {
		if l.refs == 0 {
			infos = append(infos, l.Info)
		}
	}
	return infos
}

// Acquire takes a reference.
func (s *Store) Acquire(chain digest.Digest) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[chain]
	if l == nil {
		return Info{}, fmt.Errorf("layer %s: %w", chain, ErrLayerNotFound)
	}
	l.ref()
	return l.Info, nil
}

// hold keeps a layer while an operation needs it.
func (s *Store) hold(chain digest.Digest) (Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[chain]
	if l == nil {
		return Info{}, fmt.Errorf("layer %s: %w", chain, ErrLayerNotFound)
	}
	l.holds++
	return l.Info, nil
}

// LayerMetadata returns what "docker image inspect" has in GraphDriver.Data.
func (s *Store) LayerMetadata(chain digest.Digest) (map[string]string, error) {
	info, err := s.Layer(chain)
	if err != nil {
		return nil, err
	}
	return s.driver.Metadata(info.CacheID)
}

// inBackground deletes something while nobody waits but Close. What cannot be deleted is litter, which Sweep tries
// again.
func (s *Store) inBackground(what string, work func() error) {
	s.background.Go(func() {
		s.deletions <- struct{}{}
		defer func() { <-s.deletions }()
		if err := work(); err != nil {
			slog.Warn("deletion will be tried again at the next start", "what", what, "err", err)
		}
	})
}

// discard removes a driver's layer, its bulk in the background, and calls done after that.
func (s *Store) discard(ctx context.Context, id string, done func() error) error {
	d, ok := s.driver.(graphdriver.Discarder)
	if !ok {
		return errors.Join(s.driver.Remove(ctx, id), done())
	}
	finish, err := d.Discard(ctx, id)
	if err != nil {
		return err
	}
	s.inBackground(id, func() error {
		if err := finish(); err != nil {
			return err
		}
		return done()
	})
	return nil
}

func nothing() error { return nil }
