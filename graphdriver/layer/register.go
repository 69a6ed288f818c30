package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/archive"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
)

// A Staged layer is unpacked but has no place in a chain yet. It ends in Commit or Discard.
type Staged struct {
	store   *Store
	dir     string // its record to be, below tmp
	info    Info
	stacked bool // it lies on its parent already
	over    bool // it was committed or discarded
}

// DiffID returns the digest of the bytes that were staged.
func (st *Staged) DiffID() digest.Digest { return st.info.DiffID }

// Register unpacks an uncompressed tar as a layer on top of parent, which is "" for a base layer, and takes one
// reference to it. A chain that is there already is kept, and the new copy dropped. What the tar says is not
// verified but for being a tar; the caller compares the DiffID. Nothing is left when it fails.
func (s *Store) Register(ctx context.Context, tar io.Reader, parent digest.Digest) (_ Info, err error) {
	var on Info
	if parent != "" {
		if on, err = s.hold(parent); err != nil {
			return Info{}, fmt.Errorf("register a layer: %w", err)
		}
		defer func() { err = errors.Join(err, s.unhold(ctx, parent)) }()
		if err := s.checkDepth(parent, 1); err != nil {
			return Info{}, err
		}
	}
	st, err := s.stage(ctx, tar, on.CacheID)
	if err != nil {
		return Info{}, err
	}
	infos, err := s.Commit(ctx, parent, st)
	if err != nil {
		return Info{}, err
	}
	return infos[0], nil
}

// Stage unpacks an uncompressed tar before the layer below it is known or there. A driver that cannot do so returns
// errdefs.ErrNotImplemented, before anything is read.
func (s *Store) Stage(ctx context.Context, tar io.Reader) (*Staged, error) {
	if _, ok := s.driver.(graphdriver.Stacker); !ok {
		return nil, fmt.Errorf("unpack a layer before its parent with storage driver %s: %w", s.driver, errdefs.ErrNotImplemented)
	}
	return s.stage(ctx, tar, "")
}

func (s *Store) checkDepth(parent digest.Digest, more int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[parent]; l != nil && l.depth+more > maxDepth {
		return ErrMaxDepth
	}
	return nil
}

func (s *Store) stage(ctx context.Context, tar io.Reader, on string) (_ *Staged, err error) {
	st := &Staged{store: s, stacked: on != "", info: Info{CacheID: ids.New()}}
	if st.dir, err = os.MkdirTemp(s.tmp(), "write-set-"); err != nil {
		return nil, fmt.Errorf("register a layer: %w", err)
	}
	s.addPending(st.info.CacheID)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("register a layer: %w", err), st.Discard(context.WithoutCancel(ctx)))
		}
	}()
	// The driver's id comes first, so that a crash from here on is found by Sweep.
	if err := os.WriteFile(filepath.Join(st.dir, cacheIDFile), []byte(st.info.CacheID), 0o644); err != nil {
		return nil, err
	}
	if err := s.driver.Create(ctx, st.info.CacheID, on, graphdriver.CreateOptions{}); err != nil {
		return nil, err
	}
	if err := fault.Point("layer.register.created"); err != nil {
		return nil, err
	}
	record, err := os.OpenFile(filepath.Join(st.dir, splitFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	defer record.Close() // Finish has reported errors of writing
	diff := archive.NewReader(tar, record)
	defer diff.Close()
	if st.info.Size, err = s.driver.ApplyDiff(ctx, st.info.CacheID, on, diff); err != nil {
		return nil, err
	}
	if st.info.DiffID, _, err = diff.Finish(); err != nil {
		return nil, err
	}
	if err := fault.Point("layer.register.extracted"); err != nil {
		return nil, err
	}
	return st, nil
}

// Discard drops a layer that is not to be committed. After Commit it does nothing.
func (st *Staged) Discard(ctx context.Context) error {
	if st.over {
		return nil
	}
	st.over = true
	s := st.store
	defer s.dropPending(st.info.CacheID)
	return s.discard(ctx, st.info.CacheID, func() error { return os.RemoveAll(st.dir) })
}

// Commit puts staged layers on top of parent, the lowest first, and takes one reference to the uppermost. All of
// them become durable with the same two flushes. When it fails none of them is there, and all are discarded.
func (s *Store) Commit(ctx context.Context, parent digest.Digest, staged ...*Staged) (_ []Info, err error) {
	c := commit{s: s}
	defer func() { err = errors.Join(err, c.end(context.WithoutCancel(ctx), err != nil, staged)) }()
	if err := s.checkDepth(parent, len(staged)); err != nil {
		return nil, err
	}
	at := parent
	for _, st := range staged {
		if err := c.place(ctx, st, at); err != nil {
			return nil, fmt.Errorf("commit layer %s: %w", st.info.DiffID, err)
		}
		at = ChainID(at, st.info.DiffID)
	}
	if err := fault.Point("layer.register.described"); err != nil {
		return nil, err
	}
	if len(c.fresh) > 0 {
		if err := s.flush.wait(); err != nil {
			return nil, err
		}
		if err := fault.Point("layer.register.flushed"); err != nil {
			return nil, err
		}
		if err := c.publish(); err != nil {
			return nil, err
		}
	}
	if _, err := s.Acquire(at); err != nil {
		return nil, err
	}
	return c.infos, nil
}

// commit is one call of Commit.
type commit struct {
	s     *Store
	infos []Info
	fresh []*Staged       // layers that are new, the lowest first
	moved []*Staged       // those of them whose records are in place
	kept  []digest.Digest // layers that the commit holds while it runs
	mine  []digest.Digest // chains that it has in Store.busy
}

// place decides what a staged layer becomes: a layer that is there already, or a new one with its record written.
func (c *commit) place(ctx context.Context, st *Staged, parent digest.Digest) error {
	s := c.s
	chain := ChainID(parent, st.info.DiffID)
	info, exists, err := s.claim(ctx, chain)
	if err != nil {
		return err
	}
	if exists {
		c.kept = append(c.kept, chain)
		c.infos = append(c.infos, info)
		return nil
	}
	c.mine = append(c.mine, chain)
	st.info.ChainID, st.info.Parent = chain, parent
	if parent != "" && !st.stacked {
		on, err := c.cacheID(parent)
		if err != nil {
			return err
		}
		if err := s.driver.(graphdriver.Stacker).SetParent(ctx, st.info.CacheID, on); err != nil {
			return err
		}
		st.stacked = true
	}
	if err := writeRecord(st.dir, st.info); err != nil {
		return err
	}
	c.fresh = append(c.fresh, st)
	c.infos = append(c.infos, st.info)
	return nil
}

func (c *commit) cacheID(chain digest.Digest) (string, error) {
	for _, info := range c.infos {
		if info.ChainID == chain {
			return info.CacheID, nil
		}
	}
	info, err := c.s.hold(chain)
	if err != nil {
		return "", err
	}
	c.kept = append(c.kept, chain)
	return info.CacheID, nil
}

// claim holds a chain that exists, or reserves one that does not.
func (s *Store) claim(ctx context.Context, chain digest.Digest) (Info, bool, error) {
	for {
		s.mu.Lock()
		if l := s.layers[chain]; l != nil {
			l.holds++
			info := l.Info
			s.mu.Unlock()
			return info, true, nil
		}
		wait, busy := s.busy[chain]
		if !busy {
			s.busy[chain] = make(chan struct{})
			s.mu.Unlock()
			return Info{}, false, nil
		}
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return Info{}, false, ctx.Err()
		}
	}
}

// unclaim lets others have the chain.
func (s *Store) unclaim(chains []digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, chain := range chains {
		close(s.busy[chain])
		delete(s.busy, chain)
	}
}

// publish moves the records into place and enters the layers into the table.
func (c *commit) publish() error {
	s := c.s
	for _, st := range c.fresh {
		if err := s.moveRecord(st); err != nil {
			return err
		}
		c.moved = append(c.moved, st)
		if err := fault.Point("layer.register.renamed"); err != nil {
			return err
		}
	}
	if err := s.dirSync.wait(); err != nil {
		return err
	}
	if err := fault.Point("layer.register.recorded"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range c.fresh {
		s.insert(st.info)
		delete(s.pending, st.info.CacheID)
		st.over = true
		s.dropProblem(st.info.ChainID)
	}
	return nil
}

// moveRecord renames a record into place. A directory without a whole record that stands there is moved away.
func (s *Store) moveRecord(st *Staged) error {
	to := s.chainDir(st.info.ChainID)
	err := unix.Renameat2(unix.AT_FDCWD, st.dir, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		if err = os.Rename(to, s.removingName(st.info.ChainID)); err == nil {
			err = os.Rename(st.dir, to)
		}
	}
	if err != nil {
		return fmt.Errorf("record layer %s: %w", st.info.ChainID, err)
	}
	return nil
}

func (s *Store) removingName(chain digest.Digest) string {
	return s.chainDir(chain) + "-" + ids.Short(ids.New()) + removing
}

// end gives back what the commit held, and after a failure undoes it.
func (c *commit) end(ctx context.Context, failed bool, staged []*Staged) error {
	s := c.s
	var errs []error
	if failed {
		for _, st := range c.moved { // out of the way first, as their files go
			if !st.over {
				errs = append(errs, os.Rename(s.chainDir(st.info.ChainID), st.dir))
			}
		}
	}
	s.unclaim(c.mine)
	for _, st := range staged {
		errs = append(errs, st.Discard(ctx)) // those that were committed stay
	}
	for _, chain := range c.kept {
		errs = append(errs, s.unhold(ctx, chain))
	}
	return errors.Join(errs...)
}

func (s *Store) addPending(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[id] = struct{}{}
}

func (s *Store) dropPending(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, id)
}
