// Package plugin is the volume driver for plug-ins: processes of this host, or of another one, that keep volumes and
// answer Docker's plug-in protocol, version 1, on a socket.
//
// It finds plug-ins by name in a few directories, each time somebody asks, so that one may come, go and come back while
// the daemon runs. It starts and stops none, keeps no records, and never retries a call: whether a call that was cut
// short had its effect only the plug-in knows, and every caller here may ask again.
//
// Locks: Plugins.mu guards the map of names and is never held over I/O; a name's turn is held over its activation, and
// delays nobody who asks for another name. Driver.mu guards the users of volumes and is never held over a call.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/volumes"
)

// Options is what New needs. The zero value is Docker's.
type Options struct {
	// SocketDirs are searched for <name>.sock and <name>/<name>.sock. Nil: /run/docker/plugins.
	SocketDirs []string
	// SpecDirs are searched for <name>.spec, which holds a URL, and <name>.json, also one directory deeper. Nil:
	// /etc/docker/plugins and /usr/lib/docker/plugins.
	SpecDirs []string
	// Timeouts of calls.
	Timeouts Timeouts
}

// Timeouts bound one call each, from the connection to the last byte of the answer. Zero fields are as Docker's.
type Timeouts struct {
	Create time.Duration // 2 minutes
	Mount  time.Duration // 2 minutes
	Other  time.Duration // 1 minute
	// Silence is for how long All leaves a plug-in out that let a call run into its time limit: 1 minute.
	Silence time.Duration
	// Hurry is what is left to each call after Plugins.Hurry: 10 seconds.
	Hurry time.Duration
}

func (t Timeouts) filled() Timeouts {
	for _, f := range []struct {
		d      *time.Duration
		normal time.Duration
	}{{&t.Create, 2 * time.Minute}, {&t.Mount, 2 * time.Minute}, {&t.Other, time.Minute}, {&t.Silence, time.Minute}, {&t.Hurry, 10 * time.Second}} {
		if *f.d == 0 {
			*f.d = f.normal
		}
	}
	return t
}

// Plugins finds plug-ins. It implements volumes.Finder.
type Plugins struct {
	opts   Options
	hurry  context.Context // ends with Hurry
	rushed context.CancelFunc

	mu    sync.Mutex // guards plugs; held for map operations only
	plugs map[string]*plug
}

var _ volumes.Finder = (*Plugins)(nil)

// plug is a name under which there is a plug-in, or was.
type plug struct {
	turn      chan struct{} // holds a token while somebody activates; guards complaint and the storing of driver
	driver    atomic.Pointer[Driver]
	shun      atomic.Int64 // until this Unix time in nanoseconds All leaves it out
	complaint string       // what was logged last about it
}

// New returns the plug-ins that opts' directories will hold. It reads nothing yet.
func New(opts Options) *Plugins {
	if opts.SocketDirs == nil {
		opts.SocketDirs = []string{"/run/docker/plugins"}
	}
	if opts.SpecDirs == nil {
		opts.SpecDirs = []string{"/etc/docker/plugins", "/usr/lib/docker/plugins"}
	}
	opts.Timeouts = opts.Timeouts.filled()
	p := &Plugins{opts: opts, plugs: map[string]*plug{}}
	p.hurry, p.rushed = context.WithCancel(context.Background())
	return p
}

// Hurry shortens every call that is under way and all later ones, for the end of the daemon must not wait for a plug-in
// that hangs.
func (p *Plugins) Hurry() { p.rushed() }

// nameFormat is what a name must be so that it stays within the directories. Docker gives no other names to plug-ins
// of this kind.
var nameFormat = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func errNotFound(name string) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("error looking up volume plugin %s: plugin %q not found", name, name))
}

// Find implements volumes.Finder. It returns a plug-in that was activated before without asking it again, unless the
// last call did not reach it.
func (p *Plugins) Find(ctx context.Context, name string) (volumes.Driver, error) {
	if !nameFormat.MatchString(name) {
		return nil, errNotFound(name)
	}
	pl := p.plug(name)
	if d := pl.driver.Load(); d != nil && !d.lost() {
		return d, nil
	}
	select {
	case pl.turn <- struct{}{}:
		defer func() { <-pl.turn }()
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) { // who has the turn got no answer either
			p.shun(pl)
		}
		return nil, fmt.Errorf("error looking up volume plugin %s: %w", name, ctx.Err())
	}
	if d := pl.driver.Load(); d != nil && !d.lost() {
		return d, nil
	}
	d, err := p.activate(ctx, name, pl)
	p.complain(name, pl, err)
	if err != nil {
		return nil, err // not a Driver that holds a nil *Driver
	}
	return d, nil
}

// plug returns what is known under name.
func (p *Plugins) plug(name string) *plug {
	p.mu.Lock()
	defer p.mu.Unlock()
	pl := p.plugs[name]
	if pl == nil {
		pl = &plug{turn: make(chan struct{}, 1)}
		p.plugs[name] = pl
	}
	return pl
}

// activate finds the plug-in's address and shakes hands. The caller has the name's turn.
func (p *Plugins) activate(ctx context.Context, name string, pl *plug) (*Driver, error) {
	addr, err := p.locate(name)
	if err != nil {
		if pl.driver.Load() == nil { // names that nobody has must not pile up
			p.mu.Lock()
			delete(p.plugs, name)
			p.mu.Unlock()
		}
		if errdefs.IsNotFound(err) {
			return nil, errNotFound(name)
		}
		return nil, fmt.Errorf("error looking up volume plugin %s: %w", name, err)
	}
	c, err := newClient(name, addr, p.opts.Timeouts, p.hurry, &pl.shun)
	if err == nil {
		err = c.handshake(ctx)
	}
	if errors.Is(err, errOtherKind) {
		p.shun(pl)
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("error looking up volume plugin %s: plugin %q is no VolumeDriver", name, name))
	}
	if err != nil {
		return nil, fmt.Errorf("error looking up volume plugin %s: %w", name, err)
	}
	scope, err := c.scope(ctx)
	if err != nil {
		return nil, fmt.Errorf("error looking up volume plugin %s: %w", name, err)
	}
	d := pl.driver.Load()
	if d == nil {
		d = newDriver(name)
	}
	d.reach(&contact{client: c, scope: scope})
	pl.driver.Store(d)
	return d, nil
}

// Active returns the names of plug-ins that have been used and could be reached last, without asking them.
func (p *Plugins) Active() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for name, pl := range p.plugs {
		if d := pl.driver.Load(); d != nil && !d.lost() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// shun makes All leave a plug-in out for a while.
func (p *Plugins) shun(pl *plug) {
	pl.shun.Store(time.Now().Add(p.opts.Timeouts.Silence).UnixNano())
}

// complain logs why a plug-in cannot be used, once for each reason. The caller has the name's turn.
func (p *Plugins) complain(name string, pl *plug, err error) {
	text := ""
	if err != nil && !errdefs.IsNotFound(err) && !errors.Is(err, context.Canceled) {
		text = err.Error()
	}
	if text != "" && text != pl.complaint {
		slog.Warn("volume plug-in cannot be used", "plugin", name, "err", err)
	}
	pl.complaint = text
}

// All implements volumes.Finder. Plug-ins that cannot be reached or do not answer are logged and left out; one that let
// a call run into its time limit is left out for a while without being asked.
func (p *Plugins) All(ctx context.Context, limit time.Duration) []volumes.Driver {
	names := p.names()
	if len(names) == 0 {
		return nil // as nearly always: it spares a timer
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var (
		mu    sync.Mutex // guards found
		found []volumes.Driver
		wg    sync.WaitGroup
	)
	for _, name := range names {
		if p.plug(name).shun.Load() > time.Now().UnixNano() {
			continue
		}
		wg.Go(func() {
			d, err := p.Find(ctx, name)
			if err != nil {
				return // Find has logged it
			}
			mu.Lock()
			defer mu.Unlock()
			found = append(found, d)
		})
	}
	wg.Wait()
	slices.SortFunc(found, func(a, b volumes.Driver) int {
		if a.Name() < b.Name() {
			return -1
		}
		return 1
	})
	return found
}
