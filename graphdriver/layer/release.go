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
	doomed, err := s.unref(chain)
	if err != nil || len(doomed) == 0 {
		return err
	}
	claimed := make([]digest.Digest, len(doomed))
	for i, info := range doomed {
		claimed[i] = info.ChainID
	}
	defer s.unclaim(claimed)
	return s.delete(context.WithoutCancel(ctx), doomed)
}

// unref takes away a reference and returns the layers that are to be deleted, which are out of the table and busy.
func (s *Store) unref(chain digest.Digest) ([]Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[chain]
	if l == nil {
		return nil, fmt.Errorf("layer %s: %w", chain, ErrLayerNotFound)
	}
	if l.refs == 0 {
		return nil, fmt.Errorf("layer %s: %w", chain, ErrNotRetained)
	}
	var doomed []Info
	for l != nil {
		l.refs--
		if l.refs > 0 {
			break
		}
		delete(s.layers, l.ChainID)
		s.busy[l.ChainID] = make(chan struct{})
		doomed = append(doomed, l.Info)
		l = s.layers[l.Parent]
	}
	return doomed, nil
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
