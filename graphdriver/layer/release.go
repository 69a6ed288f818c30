package layer

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"stated.dev/stated/internal/fault"
)

// removing is the end of the name of a record whose layer is being deleted.
const removing = "-removing"

// Release gives back one reference. With the last one the layer is deleted, and those below it that nobody else
// needs: their records before it returns, their files in the background.
func (s *Store) Release(ctx context.Context, chain digest.Digest) error {
	s.loadAll() // a writable layer that was not looked at yet may need it
	s.mu.Lock()
	l := s.layers[chain]
	if l == nil || l.refs == 0 {
		s.mu.Unlock()
		if l == nil {
			return fmt.Errorf("layer %s: %w", chain, ErrLayerNotFound)
		}
		return fmt.Errorf("layer %s: %w", chain, ErrNotRetained)
	}
	doomed := s.unref(l)
	s.mu.Unlock()
	return s.deleteClaimed(ctx, doomed)
}

// unhold ends a hold.
func (s *Store) unhold(ctx context.Context, chain digest.Digest) error {
	s.mu.Lock()
	var doomed []Info
	if l := s.layers[chain]; l != nil {
		l.holds--
		if l.holds == 0 && l.doomed {
			doomed = s.doom(l)
		}
	}
	s.mu.Unlock()
	return s.deleteClaimed(ctx, doomed)
}

// unref takes away a reference and returns the layers that are to be deleted, as doom does. Store.mu is held.
func (s *Store) unref(l *layer) []Info {
	l.refs--
	if l.refs > 0 {
		return nil
	}
	l.doomed = true
	if l.holds > 0 {
		return nil
	}
	return s.doom(l)
}

// doom takes a layer out of the table, and those below it that nobody else needs. They are busy from then on.
// Store.mu is held.
func (s *Store) doom(l *layer) []Info {
	delete(s.layers, l.ChainID)
	s.busy[l.ChainID] = make(chan struct{})
	doomed := []Info{l.Info}
	if below := s.layers[l.Parent]; below != nil {
		doomed = append(doomed, s.unref(below)...)
	}
	return doomed
}

// deleteClaimed deletes layers that are busy for it.
func (s *Store) deleteClaimed(ctx context.Context, doomed []Info) error {
	if len(doomed) == 0 {
		return nil
	}
	claimed := make([]digest.Digest, len(doomed))
	for i, info := range doomed {
		claimed[i] = info.ChainID
	}
	defer s.unclaim(claimed)
	return s.delete(context.WithoutCancel(ctx), doomed)
}

// delete deletes layers, the uppermost first.
func (s *Store) delete(ctx context.Context, doomed []Info) error {
	dirs := make([]string, len(doomed))
	for i, info := range doomed {
		dirs[i] = s.removingName(info.ChainID)
		if err := os.Rename(s.chainDir(info.ChainID), dirs[i]); err != nil {
			return fmt.Errorf("delete layer %s: %w", info.ChainID, err)
		}
		if err := fault.Point("layer.release.renamed"); err != nil {
			return err
		}
	}
	if err := s.dirSync.wait(); err != nil {
		return err
	}
	if err := fault.Point("layer.release.unrecorded"); err != nil {
		return err
	}
	var errs []error
	for i, info := range doomed {
		err := s.discard(ctx, info.CacheID, func() error { return os.RemoveAll(dirs[i]) })
		if err != nil {
			errs = append(errs, fmt.Errorf("delete layer %s: %w", info.ChainID, err))
		}
		if err := fault.Point("layer.release.discarded"); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}
