package containers

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/daemon/journal"
	"stated.dev/stated/internal/ids"
)

// Delays between attempts to write a record of what has happened.
const (
	firstRewrite = time.Second
	maxRewrite   = time.Minute
)

// commit changes the container's record and makes the change durable. It fails on a container that has been removed,
// and on one whose record cannot be used: nothing of that is touched.
func (s *Service) commit(ctx context.Context, c *Container, change func(*Record)) (*Record, error) {
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	next, err := c.changed(change)
	if err != nil {
		return nil, err
	}
	if err := s.writeRecord(context.WithoutCancel(ctx), next); err != nil {
		return nil, err
	}
	c.unwritten = false
	c.set(next)
	c.dropCache()
	return next, nil
}

// observe changes the record to what has happened already. That stands in memory even when it cannot be written, on a
// full disk for one, and is written as soon as it can be.
func (s *Service) observe(c *Container, change func(*Record)) *Record {
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	next, err := c.changed(change)
	if err != nil {
		return c.rec() // it is gone, or nobody may change it
	}
	if err := s.writeRecord(context.WithoutCancel(s.ctx), next); err != nil {
		s.log.Error("cannot record what became of a container; trying again until it can be", "container", c.id, "err", err)
		if !c.unwritten {
			c.unwritten = true
			s.tasks.Go(func() { s.rewrite(c) })
		}
	} else {
		c.unwritten = false
	}
	c.set(next)
	c.dropCache()
	return next
}

// rewrite writes the container's record until that succeeds, here or in a commit.
func (s *Service) rewrite(c *Container) {
	for delay := firstRewrite; ; delay = min(2*delay, maxRewrite) {
		timer := time.NewTimer(delay)
		select {
		case <-s.ctx.Done():
			timer.Stop() // one last attempt
		case <-timer.C:
		}
		err := s.writeUnwritten(c)
		if err == nil {
			return
		}
		if s.ctx.Err() != nil {
			s.log.Error("cannot record what became of a container; the next start finds out again", "container", c.id, "err", err)
			return
		}
	}
}

func (s *Service) writeUnwritten(c *Container) error {
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	if !c.unwritten || c.isGone() {
		return nil
	}
	if err := s.writeRecord(context.WithoutCancel(s.ctx), c.rec()); err != nil {
		return err
	}
	c.unwritten = false
	return nil
}

// changed returns the container's next record. The caller holds commitMu.
func (c *Container) changed(change func(*Record)) (*Record, error) {
	old := c.rec()
	if c.isGone() {
		return nil, c.errGone()
	}
	if reason := c.broken.Load(); reason != nil {
		return nil, errdefs.ErrConflict.WithMessage("container " + ids.Short(c.id) + " cannot be changed: " + *reason)
	}
	next := old.clone()
	change(next)
	return next, nil
}

// isGone reports whether the container has been un-recorded.
func (c *Container) isGone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gone
}

func (c *Container) errGone() error {
	return errdefs.ErrNotFound.WithMessage("No such container: " + c.id)
}

func (s *Service) writeRecord(ctx context.Context, r *Record) error {
	files, err := s.recordFiles(r)
	if err != nil {
		return err
	}
	if err := s.journal.Commit(ctx, files...); err != nil {
		return fmt.Errorf("record container %s: %w", ids.Short(r.ID), err)
	}
	return nil
}

func (s *Service) recordFiles(r *Record) ([]journal.Change, error) {
	config, host, err := r.encode()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.cfg.Dir, r.ID)
	return []journal.Change{
		{Path: filepath.Join(dir, configFile), Data: config, Mode: 0o600},
		{Path: filepath.Join(dir, hostConfigFile), Data: host, Mode: 0o600},
	}, nil
}
