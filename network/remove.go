package network

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/filters"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/datastore"
)

// Remove deletes a network that nothing is connected to. When it returns, the name, the addresses and the bridge
// can be used again.
func (c *Controller) Remove(ctx context.Context, ref string) error {
	n, err := c.find(ref)
	if err != nil {
		return err
	}
	if isPredefined(n.name()) {
		return errdefs.ErrPermissionDenied.WithMessage(n.name() + " is a pre-defined network and cannot be removed")
	}
	if err := c.remove(ctx, n); err != nil {
		return err
	}
	if !n.obj.doc.ConfigOnly {
		c.publish(n, events.ActionDestroy, nil)
	}
	return nil
}

func (c *Controller) remove(ctx context.Context, n *network) (err error) {
	if err := c.startDelete(n); err != nil {
		return err
	}
	// From here on the removal is finished even if the caller goes away: half a network is of no use.
	ctx = context.WithoutCancel(ctx)
	defer func() {
		if err != nil {
			c.mu.Lock()
			n.deleting = false
			c.mu.Unlock()
		}
	}()
	marked := networkObject{Meta: n.obj.Meta, doc: n.obj.doc, rest: n.obj.rest}
	marked.doc.InDelete = true
	if err := c.store.PutObject(ctx, &marked); err != nil {
		return fmt.Errorf("mark network %s for deletion: %w", n.name(), err)
	}
	if err := fault.Point("network.delete.marked"); err != nil {
		return err
	}
	if !n.obj.doc.ConfigOnly {
		if err := n.drv.DeleteNetwork(ctx, n.cfg); err != nil {
			return fmt.Errorf("error while removing network: %w", err)
		}
	}
	if err := fault.Point("network.delete.unmade"); err != nil {
		return err
	}
	if err := c.forgetNetwork(ctx, n); err != nil {
		return err
	}
	c.releasePools(n)
	c.zones.remove(ctx, n.id())
	c.mu.Lock()
	delete(c.networks, n.id())
	c.mu.Unlock()
	return nil
}

// startDelete keeps new endpoints out, or says what is in the way.
func (c *Controller) startDelete(n *network) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.networks[n.id()] != n || n.deleting:
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s not found", n.name()))
	case len(n.endpoints) > 0:
		var users []string
		for _, e := range n.endpoints {
			users = append(users, fmt.Sprintf("name:%q id:%q", e.obj.doc.Name, ids.Short(e.id())))
		}
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("error while removing network: network %s has active endpoints (%s)", n.name(), strings.Join(users, ", ")))
	case n.joining > 0:
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("error while removing network: network %s has active endpoints", n.name()))
	}
	if n.obj.doc.ConfigOnly {
		for _, other := range c.networks {
			if other.obj.doc.ConfigFrom == n.name() {
				return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("configuration network %q is in use", n.name()))
			}
		}
	}
	n.deleting = true
	return nil
}

// Prune removes the networks of users that nothing is connected to and returns their names.
func (c *Controller) Prune(ctx context.Context, f filters.Args) ([]string, error) {
	if err := f.Validate("label", "label!", "until"); err != nil {
		return nil, err
	}
	var before time.Time
	if f.Has("until") {
		var err error
		if len(f["until"]) != 1 {
			return nil, errdefs.ErrInvalidArgument.WithMessage("more than one until filter specified")
		}
		if before, err = parseUntil(f["until"][0], time.Now()); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	var unused []*network
	for _, n := range c.sortedLocked() {
		d := n.obj.doc
		switch {
		case isPredefined(d.Name), d.ConfigOnly, d.Scope != datastore.ScopeLocal, n.deleting, len(n.endpoints)+n.joining > 0,
			!before.IsZero() && !d.Created.Before(before),
			!f.MatchLabels("label", d.Labels),
			f.Has("label!") && f.MatchLabels("label!", d.Labels):
		default:
			unused = append(unused, n)
		}
	}
	c.mu.Unlock()
	// Bridges go in one batch of the kernel when they are removed together.
	results := make([]error, len(unused))
	done := make(chan struct{})
	for i, n := range unused {
		go func() {
			results[i] = c.Remove(ctx, n.id())
			done <- struct{}{}
		}()
	}
	for range unused {
		<-done
	}
	deleted := []string{}
	var errs []error
	for i, n := range unused {
		switch err := results[i]; {
		case err == nil:
			deleted = append(deleted, n.name())
		case !errdefs.IsNotFound(err) && !errdefs.IsPermissionDenied(err): // else it was used or removed meanwhile
			errs = append(errs, fmt.Errorf("prune network %s: %w", n.name(), err))
		}
	}
	if c.opts.Events != nil {
		c.opts.Events.Publish(events.NetworkEventType, events.ActionPrune, "", map[string]string{"reclaimed": "0"})
	}
	return deleted, errors.Join(errs...)
}

// parseUntil reads a time stamp, or a duration before now.
func parseUntil(text string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			return t, nil
		}
	}
	var sec float64
	if _, err := fmt.Sscanf(text, "%f", &sec); err == nil {
		return time.Unix(0, int64(sec*1e9)), nil
	}
	return time.Time{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("failed to parse value as time or duration: %q", text))
}
