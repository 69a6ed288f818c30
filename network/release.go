package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/datastore"
	"stated.dev/stated/network/netns"
)

// releaseTimeout bounds the call that gives a container's ports back: its shim may be dead or hang.
const releaseTimeout = 2 * time.Second

// Leave disconnects a running container from one network. The interface is gone when it returns.
func (c *Controller) Leave(ctx context.Context, sandboxID, ref string) error {
	b, err := c.box(sandboxID)
	if err != nil {
		return err
	}
	if err := c.lockBox(ctx, b); err != nil {
		return err
	}
	defer b.unlock()
	i := slices.IndexFunc(b.endpoints, func(e *endpoint) bool { return e.network.id() == ref || e.network.name() == ref })
	if i < 0 {
		n, err := c.find(ref)
		if err != nil {
			return err
		}
		if i = slices.IndexFunc(b.endpoints, func(e *endpoint) bool { return e.network == n }); i < 0 {
			return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("container %s is not connected to network %s", b.containerID, n.name()))
		}
	}
	ctx = context.WithoutCancel(ctx) // half a disconnection is of no use
	gone := b.endpoints[i]
	rest := slices.Delete(slices.Clone(b.endpoints), i, i+1)
	next := b.obj
	next.doc.Eps = nil
	next.doc.EpPriority = map[string]int{}
	for _, e := range rest {
		next.doc.Eps = append(next.doc.Eps, sandboxEndpoint{Eid: e.id(), Nid: e.network.id()})
		next.doc.EpPriority[e.id()] = e.priority
	}
	if next.doc.Eps == nil {
		next.doc.Eps = []sandboxEndpoint{}
	}
	err = c.store.Update(ctx, func(tx *datastore.Tx) {
		deleteEndpoint(tx, gone)
		tx.Put(&next)
	})
	if err != nil {
		return fmt.Errorf("record that container %s left network %s: %w", ids.Short(b.containerID), gone.network.name(), err)
	}
	b.obj = next
	if err := fault.Point("network.leave.recorded"); err != nil {
		return err
	}
	done := c.unplug(ctx, b, []*endpoint{gone})
	c.mu.Lock()
	b.endpoints = rest
	c.mu.Unlock()
	<-done
	c.writeZones(ctx, gone.network)
	c.announce([]*endpoint{gone}, events.ActionDisconnect, b.containerID)
	return setDefaultRoutes(b.key, rest)
}

// unplug takes endpoints out of the kernel and out of the maps. The channel is closed when the interfaces are gone
// and the addresses free.
func (c *Controller) unplug(ctx context.Context, b *box, list []*endpoint) <-chan struct{} {
	frees := make([]func(), len(list))
	for i, e := range list {
		frees[i] = c.retireAddresses(e)
	}
	var waits []<-chan struct{}
	for drv, atts := range byDriver(list) {
		done, err := drv.Leave(ctx, atts)
		if err != nil {
			// What is left is removed at the next start; the container is gone either way.
			slog.ErrorContext(ctx, "container was not disconnected cleanly", "container", b.containerID, "error", err)
		}
		waits = append(waits, done)
	}
	c.givePortsBack(ctx, b, list)
	c.mu.Lock()
	for _, e := range list {
		delete(e.network.endpoints, e.id())
	}
	c.mu.Unlock()
	all := make(chan struct{})
	c.tasks.Go(func() {
		defer close(all)
		for _, w := range waits {
			<-w
		}
		for _, free := range frees {
			free()
		}
	})
	return all
}

func (c *Controller) givePortsBack(ctx context.Context, b *box, list []*endpoint) {
	if b.holder == nil {
		return
	}
	for _, e := range list {
		if len(e.ports) == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
		if err := b.holder.ReleasePorts(ctx, e.id()); err != nil {
			// A shim that has ended holds nothing any more.
			slog.DebugContext(ctx, "ports were not given back", "container", b.containerID, "error", err)
		}
		cancel()
	}
}

// Release ends a sandbox: its container has stopped. Records go first, in one transaction. The kernel may take
// longer than the call to remove the interfaces; who asks for one of the addresses, or removes a network, waits for it.
// A sandbox that is not there is no error.
func (c *Controller) Release(ctx context.Context, sandboxID string) error {
	b, err := c.box(sandboxID)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.lockBox(ctx, b); err != nil {
		return err
	}
	defer b.unlock()
	if b.released {
		return nil
	}
	ctx = context.WithoutCancel(ctx) // half a release is of no use
	err = c.store.Update(ctx, func(tx *datastore.Tx) {
		for _, e := range b.endpoints {
			deleteEndpoint(tx, e)
		}
		tx.Delete(&b.obj)
	})
	if err != nil {
		return fmt.Errorf("delete record of the sandbox of container %s: %w", ids.Short(b.containerID), err)
	}
	b.released = true
	if err := fault.Point("network.release.recorded"); err != nil {
		return err
	}
	list := b.endpoints
	c.unplug(ctx, b, list)
	var errs []error
	if !b.host {
		errs = append(errs, netns.Remove(b.key))
	}
	c.mu.Lock()
	delete(c.sandboxes, b.id)
	b.endpoints = nil
	c.mu.Unlock()
	c.writeZones(ctx, networksOf(list)...)
	c.announce(list, events.ActionDisconnect, b.containerID)
	return errors.Join(errs...)
}
