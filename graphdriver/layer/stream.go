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

	"stated.dev/stated/graphdriver/archive"
)

// TarStream returns the bytes that the layer was registered with. At the end they are compared with the DiffID: the
// last Read fails when a file of the layer was changed.
func (s *Store) TarStream(ctx context.Context, chain digest.Digest) (_ io.ReadCloser, err error) {
	info, err := s.hold(chain)
	if err != nil {
		return nil, err
	}
	t := &tarStream{verifier: info.DiffID.Verifier(), diffID: info.DiffID}
	t.undo = append(t.undo, func() error { return s.unhold(ctx, chain) })
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("tar of layer %s: %w", chain, err), t.Close())
		}
	}()
	record, err := os.Open(filepath.Join(s.chainDir(chain), splitFile))
	if err != nil {
		return nil, err
	}
	t.undo = append(t.undo, record.Close)
	dir, release, err := s.driver.DiffDir(ctx, info.CacheID)
	if err != nil {
		return nil, err
	}
	t.undo = append(t.undo, release)
	if t.in, err = archive.Assemble(record, dir); err != nil {
		return nil, err
	}
	t.undo = append(t.undo, t.in.Close)
	return t, nil
}

type tarStream struct {
	in       io.ReadCloser
	verifier digest.Verifier
	diffID   digest.Digest
	undo     []func() error // run backwards
}

func (t *tarStream) Read(p []byte) (int, error) {
	n, err := t.in.Read(p)
	_, _ = t.verifier.Write(p[:n]) // a hash takes everything
	if errors.Is(err, io.EOF) && !t.verifier.Verified() {
		err = errdefs.ErrDataLoss.WithMessage(fmt.Sprintf("could not verify layer data for: %s. This may be because internal files in the layer store were modified. Re-pulling or rebuilding this image may resolve the issue", t.diffID))
	}
	return n, err
}

func (t *tarStream) Close() error {
	var errs []error
	for len(t.undo) > 0 {
		last := len(t.undo) - 1
		errs = append(errs, t.undo[last]())
		t.undo = t.undo[:last]
	}
	return errors.Join(errs...)
}
