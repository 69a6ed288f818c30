package layer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
)

// rwIntent begins the name of a file in tmp that is there while a writable layer is made or removed; the rest is its mount id.
const rwIntent = "rw-"

// Problem is one layer that is set aside because something of it is missing or damaged. Layer or RW is set.
type Problem struct {
	Layer digest.Digest // chain id
	RW    string        // name of a writable layer
	Err   error         // names the file or layer
}

// String says which layer has which problem.
func (p Problem) String() string {
	if p.RW != "" {
		return fmt.Sprintf("writable layer of %s: %v", p.RW, p.Err)
	}
	return fmt.Sprintf("layer %s: %v", p.Layer, p.Err)
}

// Problems lists all layers that are set aside, layers of images first. It reads the records of all writable layers
// and looks whether the driver has them.
func (s *Store) Problems() []Problem {
	s.loadAll()
	s.mu.Lock()
	problems := slices.Clone(s.problems)
	s.mu.Unlock()
	for _, info := range s.Layers() {
		if _, err := os.Lstat(filepath.Join(s.chainDir(info.ChainID), splitFile)); errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, Problem{Layer: info.ChainID, Err: missing("file " + splitFile + ", without which the layer can be used, but neither pushed nor saved")})
		}
	}
	for _, rw := range s.allRWs() {
		rw.mu.Lock()
		info, err := rw.info, rw.err
		rw.mu.Unlock()
		if err == nil {
			for _, id := range []string{info.InitID, info.MountID} {
				if id != "" && !s.driver.Exists(id) {
					err = missing(s.driver.String() + " has no layer " + id)
				}
			}
		}
		if err != nil {
			if errdefs.IsNotFound(err) {
				err = missing("file " + mountIDFile)
			}
			problems = append(problems, Problem{RW: rw.name, Err: err})
		}
	}
	return problems
}

// dropProblem forgets what was wrong with a layer that has been registered anew. Store.mu is held.
func (s *Store) dropProblem(chain digest.Digest) {
	s.problems = slices.DeleteFunc(s.problems, func(p Problem) bool { return p.Layer == chain })
}

// Repair is for the start after an unclean stop: the driver puts its own files right, and writable layers whose record
// was durable but whose directories were not yet are made again, empty as they were. It returns one sentence for each
// repair.
func (s *Store) Repair(ctx context.Context) ([]string, error) {
	notes, err := s.RepairDriver(ctx)
	if err != nil {
		return notes, err
	}
	for _, rw := range s.allRWs() {
		note, err := s.remake(ctx, rw)
		if err != nil {
			return notes, err
		}
		if note != "" {
			notes = append(notes, note)
		}
	}
	return notes, nil
}

// RepairDriver lets the driver put its own files right by what the records say of layers and their parents. It is for
// a root that another program has written, too.
func (s *Store) RepairDriver(ctx context.Context) ([]string, error) {
	s.loadAll()
	var notes []string
	parents := map[string]string{} // driver ids
	s.mu.Lock()
	for _, l := range s.layers {
		if p := s.layers[l.Parent]; p != nil {
			parents[l.CacheID] = p.CacheID
		}
	}
	s.mu.Unlock()
	all := s.allRWs()
	for _, rw := range all {
		rw.mu.Lock()
		if rw.err == nil {
			parents[rw.info.MountID] = rw.info.below(rw.cache)
			if rw.info.InitID != "" {
				parents[rw.info.InitID] = rw.cache
			}
		}
		rw.mu.Unlock()
	}
	if d, ok := s.driver.(graphdriver.Repairer); ok {
		var err error
		if notes, err = d.Repair(ctx, parents); err != nil {
			return notes, err
		}
	}
	return notes, nil
}

func (s *Store) remake(ctx context.Context, rw *rwLayer) (note string, err error) {
	rw.mu.Lock()
	defer rw.mu.Unlock()
	if rw.err != nil {
		return "", nil
	}
	info := rw.info
	if info.InitID != "" && !s.driver.Exists(info.InitID) {
		if err := s.driver.CreateSeeded(ctx, info.InitID, rw.cache, initSeeds[:], graphdriver.CreateOptions{}); err != nil {
			return "", fmt.Errorf("make init layer of %s again: %w", rw.name, err)
		}
		note = fmt.Sprintf("writable layer of %s: its init layer was lost and has been made again", rw.name)
	}
	if !s.driver.Exists(info.MountID) {
		if err := s.driver.CreateReadWrite(ctx, info.MountID, info.below(rw.cache), graphdriver.CreateOptions{}); err != nil {
			return "", fmt.Errorf("make writable layer of %s again: %w", rw.name, err)
		}
		note = fmt.Sprintf("writable layer of %s: its files were lost and it has been made again, empty", rw.name)
	}
	return note, nil
}

// Sweep deletes what crashes have left: layers that were being made or deleted, and writable layers that keep does not
// know. It is called once everybody has said what lives. Layers of images that nobody refers to stay, see Unreferenced;
// what it knows nothing of, like a build cache's layers, stays too.
func (s *Store) Sweep(ctx context.Context, keep func(name string) bool) error {
	s.loadAll()
	var errs []error
	for _, rw := range s.allRWs() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if keep(rw.name) {
			continue
		}
		if err := s.RemoveRW(ctx, rw.name, nil); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	errs = append(errs, s.sweepTmp(ctx), s.sweepRemoved(ctx))
	if err := fault.Point("layer.sweep.swept"); err != nil {
		return err
	}
	if d, ok := s.driver.(graphdriver.Sweeper); ok {
		errs = append(errs, d.Sweep(ctx))
	}
	return errors.Join(errs...)
}

// sweepTmp deletes layers whose making did not end.
func (s *Store) sweepTmp(ctx context.Context) error {
	entries, err := os.ReadDir(s.tmp())
	if err != nil {
		return fmt.Errorf("sweep layers being made: %w", err)
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.tmp(), e.Name())
		id, isRW := strings.CutPrefix(e.Name(), rwIntent)
		doomed := []string{id, id + initSuffix}
		if !isRW {
			id, err = readSmall(filepath.Join(path, cacheIDFile))
			if errors.Is(err, fs.ErrNotExist) {
				id, err = "", nil
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			doomed = []string{id}
		}
		if s.isPending(id, e) {
			continue
		}
		if ids.Valid(id) && !s.uses(id) {
			for _, id := range doomed {
				if err = s.discard(ctx, id, nothing); err != nil {
					break
				}
			}
		}
		if err == nil {
			err = os.RemoveAll(path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// isPending reports whether an entry of tmp belongs to an operation of this process.
func (s *Store) isPending(id string, e fs.DirEntry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if id == "" {
		return len(s.pending) > 0 // it may be about to get its id
	}
	_, ok := s.pending[id]
	return ok
}

// sweepRemoved deletes layers whose deletion did not end.
func (s *Store) sweepRemoved(ctx context.Context) error {
	entries, err := os.ReadDir(s.chains())
	if err != nil {
		return fmt.Errorf("sweep layers being deleted: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), removing) {
			continue
		}
		path := filepath.Join(s.chains(), e.Name())
		id, err := readSmall(filepath.Join(path, cacheIDFile))
		switch {
		case err == nil && ids.Valid(id) && !s.uses(id):
			err = s.discard(ctx, id, func() error { return os.RemoveAll(path) })
		case err == nil || errors.Is(err, fs.ErrNotExist):
			err = os.RemoveAll(path)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("sweep %s: %w", path, err))
		}
	}
	return errors.Join(errs...)
}

// uses reports whether a record refers to the driver's layer.
func (s *Store) uses(id string) bool {
	_, used := s.driverIDs()[id]
	return used
}

// driverIDs returns the ids of all driver layers that records refer to, those of broken records included as far as
// they can be read.
func (s *Store) driverIDs() map[string]struct{} {
	used := map[string]struct{}{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, rw := range s.rws {
		used[rw.info.MountID], used[rw.info.InitID] = struct{}{}, struct{}{}
	}
	for _, l := range s.layers {
		used[l.CacheID] = struct{}{}
	}
	for _, p := range s.problems {
		if id, err := readSmall(filepath.Join(s.chainDir(p.Layer), cacheIDFile)); err == nil {
			used[id] = struct{}{}
		}
	}
	return used
}

// Orphans returns the driver's layers that no record refers to and that look like a container's or an image's. They
// are for a person to judge: Sweep does not touch them.
func (s *Store) Orphans() ([]string, error) {
	d, ok := s.driver.(graphdriver.Lister)
	if !ok {
		return nil, nil
	}
	s.loadAll()
	all, err := d.List()
	if err != nil {
		return nil, err
	}
	used := s.driverIDs()
	s.mu.Lock()
	for id := range s.pending {
		used[id], used[id+initSuffix] = struct{}{}, struct{}{}
	}
	s.mu.Unlock()
	return slices.DeleteFunc(all, func(id string) bool {
		_, ok := used[id]
		return ok || validDriverID(id) != nil
	}), nil
}
