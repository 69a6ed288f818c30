package images

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// skeleton is the part of a configuration that the start needs. The rest is read when somebody asks.
type skeleton struct {
	OS      string     `json:"os"`
	Created *time.Time `json:"created"`
	RootFS  *rootFS    `json:"rootfs"`
}

// restore finishes what a crash left half done and makes a record of each configuration on disk. With damaged
// references nothing staged is deleted, because they do not say any more what belongs to them.
func (s *Service) restore(ctx context.Context, damagedRefs bool) error {
	stored, staged, err := s.content.scan()
	if err != nil {
		return err
	}
	published := false
	for _, id := range staged {
		if damagedRefs || len(s.refs.byID[id]) > 0 {
			if err := s.content.publish(id); err != nil {
				return fmt.Errorf("finish load of image %s: %w", id, err)
			}
			stored, published = append(stored, id), true
			continue
		}
		if err := s.content.dropStaged(id); err != nil {
			return fmt.Errorf("undo load of image %s: %w", id, err)
		}
	}
	if published {
		if err := s.content.sync(); err != nil {
			return fmt.Errorf("finish loads: %w", err)
		}
	}
	found := make([]*record, len(stored))
	problems := make([]*Problem, len(stored))
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, id := range stored {
		group.Go(func() error {
			found[i], problems[i] = s.restoreOne(id)
			return ctx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, id := range stored {
		switch {
		case problems[i] != nil:
			s.broken[id] = *problems[i]
			s.log.Error("image cannot be used", "image", id, "error", problems[i].Err)
		case s.images[id] == nil:
			s.addLocked(found[i])
		}
	}
	for _, r := range s.images {
		if parent := s.images[r.parent]; parent != nil {
			parent.children[r.id] = struct{}{}
		}
	}
	return nil
}

// restoreOne makes a record of a stored configuration and takes its layer reference, or says why it cannot.
func (s *Service) restoreOne(id digest.Digest) (*record, *Problem) {
	raw, err := s.content.read(id)
	if err != nil {
		return nil, &Problem{Image: id, Err: err}
	}
	var c skeleton
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, &Problem{Image: id, Err: fmt.Errorf("configuration of image %s: %w", id, err)}
	}
	if c.RootFS == nil {
		return nil, &Problem{Image: id, Err: fmt.Errorf("configuration of image %s: no RootFS key", id)}
	}
	if c.OS != "" && c.OS != runtime.GOOS {
		return nil, &Problem{Image: id, Err: fmt.Errorf("image %s is for %s", id, c.OS)}
	}
	r := &record{
		id:       id,
		chain:    topChain(c.RootFS.DiffIDs),
		diffIDs:  c.RootFS.DiffIDs,
		parent:   s.content.parent(id),
		children: map[digest.Digest]struct{}{},
	}
	if c.Created != nil {
		r.created = *c.Created
	}
	if r.chain == "" {
		return r, nil
	}
	if _, err := s.layers.Acquire(r.chain); err != nil {
		p := &Problem{Image: id, Err: fmt.Errorf("layer %s of image %s: %w", r.chain, id, err)}
		if errdefs.IsNotFound(err) {
			p.Layer = s.missingLayer(r.diffIDs)
			p.Err = fmt.Errorf("not restoring image %s: layer %s is missing: %w", id, p.Layer, err)
		}
		return nil, p
	}
	return r, nil
}

// missingLayer returns the lowest layer of an image that the layer store does not have.
func (s *Service) missingLayer(diffIDs []digest.Digest) digest.Digest {
	chains := chainIDs(diffIDs)
	for _, chain := range chains {
		if _, err := s.layers.Layer(chain); errdefs.IsNotFound(err) {
			return chain
		}
	}
	return chains[len(chains)-1]
}
