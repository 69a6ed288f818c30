package plugin

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/volumes"
)

// undoLimit bounds how long a mount that failed without an answer is taken back.
const undoLimit = 5 * time.Second

// Driver is one plug-in. It implements volumes.Driver.
//
// The protocol has no step between nothing and a volume, so Stage does nothing and Publish creates. With the store's
// records that comes to this, whenever a process dies:
//
//   - An acknowledged creation is the plug-in's word, and its affair to keep.
//   - A creation that was recorded but not answered is carried out by the next start, as soon as the plug-in answers, if
//     the plug-in does not have the volume.
//   - A creation that the plug-in refused, or did not answer in time, leaves no record. If it was made nevertheless, the
//     plug-in lists it, and the next creation under its name takes it. It is never removed on suspicion: a volume of a
//     global plug-in may be another host's by then.
//   - Removal comes before the record's end. What dies in between leaves the record of a volume that is gone, which
//     the next question drops.
//
// Users of a volume are kept in memory so that a repeated Mount of one id is not repeated to the plug-in. An id that
// Unmount does not know may be from before a restart, and is passed on.
type Driver struct {
	name    string
	contact atomic.Pointer[contact]

	mu    sync.Mutex                   // guards users; never held over a call
	users map[string]map[string]string // volume -> id -> path, "" where the plug-in must be asked again
}

// contact is how a plug-in is reached, from one activation to the next.
type contact struct {
	*client
	scope string
}

var _ volumes.Driver = (*Driver)(nil)

func newDriver(name string) *Driver {
	return &Driver{name: name, users: map[string]map[string]string{}}
}

// reach makes c the way to the plug-in. It may be another process than before, which need not know of the mounts of
// the last one.
func (d *Driver) reach(c *contact) {
	d.contact.Store(c)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, ids := range d.users {
		for id := range ids {
			ids[id] = ""
		}
	}
}

// lost reports whether the last call found nobody.
func (d *Driver) lost() bool { return d.contact.Load().lost.Load() }

func (d *Driver) call(ctx context.Context, method string, limit time.Duration, request any, into answer) error {
	return d.contact.Load().call(ctx, "VolumeDriver."+method, limit, request, into)
}

func (d *Driver) timeouts() Timeouts { return d.contact.Load().timeouts }

// The requests of the protocol.
type (
	createRequest struct {
		Name string
		Opts map[string]string
	}
	nameRequest  struct{ Name string }
	mountRequest struct{ Name, ID string }
)

// The answers of the protocol.
type (
	getReply struct {
		done
		Volume *volumeReply
	}
	listReply struct {
		done
		Volumes []*volumeReply
	}
	pathReply struct {
		done
		Mountpoint string
	}
	volumeReply struct {
		Name       string
		Mountpoint string
		CreatedAt  string
		Status     map[string]any
	}
)

// info returns v as the store's, under the name that was asked for. A time that is none counts as not told.
func (v *volumeReply) info(name string) volumes.Info {
	created, _ := time.Parse(time.RFC3339, v.CreatedAt) // zero if it is no time
	return volumes.Info{Name: name, Mountpoint: v.Mountpoint, CreatedAt: created, Status: v.Status}
}

// Name implements volumes.Driver.
func (d *Driver) Name() string { return d.name }

// Traits implements volumes.Driver. The scope is what the plug-in said when it was activated.
func (d *Driver) Traits() volumes.Traits { return volumes.Traits{Scope: d.contact.Load().scope} }

// Start implements volumes.Driver: the plug-in has been activated.
func (d *Driver) Start(context.Context) error { return nil }

// Stage implements volumes.Driver. It does nothing: which options are bad only the plug-in knows, and says so when it
// creates.
func (d *Driver) Stage(_ context.Context, name string, options map[string]string) (volumes.Staged, error) {
	return &staged{d: d, name: name, options: options}, nil
}

type staged struct {
	d       *Driver
	name    string
	options map[string]string
}

// Publish creates the volume. A plug-in that has created it and then does not tell of it is taken at its word.
func (s *staged) Publish(ctx context.Context) (volumes.Info, error) {
	options := s.options
	if options == nil {
		options = map[string]string{}
	}
	if err := s.d.call(ctx, "Create", s.d.timeouts().Create, createRequest{Name: s.name, Opts: options}, &done{}); err != nil {
		return volumes.Info{}, err
	}
	info, err := s.d.Get(ctx, s.name)
	if err != nil && !errdefs.IsNotFound(err) {
		slog.Warn("a volume was created, but its plug-in does not tell of it", "plugin", s.d.name, "volume", s.name, "err", err)
		return volumes.Info{Name: s.name}, nil
	}
	return info, err
}

// Discard implements volumes.Staged. It removes nothing; Driver says why.
func (s *staged) Discard(context.Context) error { return nil }

// Get implements volumes.Driver. A volume without a path is asked for it with a second call.
func (d *Driver) Get(ctx context.Context, name string) (volumes.Info, error) {
	var reply getReply
	if err := d.call(ctx, "Get", d.timeouts().Other, nameRequest{Name: name}, &reply); err != nil {
		return volumes.Info{}, d.explain(ctx, name, err)
	}
	if reply.Volume == nil {
		return volumes.Info{}, d.errNoVolume(name)
	}
	info := reply.Volume.info(name)
	if info.Mountpoint == "" {
		var path pathReply
		if err := d.call(ctx, "Path", d.timeouts().Other, nameRequest{Name: name}, &path); err == nil { // many have none before a mount
			info.Mountpoint = path.Mountpoint
		}
	}
	return info, nil
}

func (d *Driver) errNoVolume(name string) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("plug-in %s has no volume %s", d.name, name))
}

// explain classes a failure that concerns one volume. The protocol has no word for "unknown", only texts, so a volume
// is unknown if it is refused and not listed. A plug-in too old to list has only its refusal.
func (d *Driver) explain(ctx context.Context, name string, err error) error {
	if asRefusal(err) == nil {
		return err
	}
	list, listErr := d.List(ctx)
	switch r := asRefusal(listErr); {
	case listErr == nil && slices.ContainsFunc(list, func(info volumes.Info) bool { return info.Name == name }):
		return err
	case listErr == nil, r != nil && r.status == http.StatusNotFound:
		return errdefs.ErrNotFound.WithMessage(err.Error())
	}
	return err
}

// List implements volumes.Driver.
func (d *Driver) List(ctx context.Context) ([]volumes.Info, error) {
	var reply listReply
	if err := d.call(ctx, "List", d.timeouts().Other, struct{}{}, &reply); err != nil {
		return nil, err
	}
	return reply.infos(), nil
}

// infos returns the volumes of a list. One without a name, or with that of one before, is passed over.
func (r *listReply) infos() []volumes.Info {
	list := make([]volumes.Info, 0, len(r.Volumes))
	seen := map[string]bool{"": true}
	for _, v := range r.Volumes {
		if v == nil || seen[v.Name] {
			continue
		}
		seen[v.Name] = true
		list = append(list, v.info(v.Name))
	}
	return list
}

// PrepareRemove implements volumes.Driver. A plug-in cannot tell two volumes of one name apart.
func (d *Driver) PrepareRemove(ctx context.Context, name string) (string, error) {
	_, err := d.Get(ctx, name)
	return "", err
}

// Remove implements volumes.Driver.
func (d *Driver) Remove(ctx context.Context, name, _ string) error {
	if err := d.call(ctx, "Remove", d.timeouts().Other, nameRequest{Name: name}, &done{}); err != nil {
		return d.explain(ctx, name, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.users, name)
	return nil
}

// Mount implements volumes.Driver. A mount that got no clear answer may have been made, and is taken back as far as the
// plug-in can be reached.
func (d *Driver) Mount(ctx context.Context, name, id string) (string, error) {
	if path, _ := d.user(name, id); path != "" {
		return path, nil
	}
	var reply pathReply
	err := d.call(ctx, "Mount", d.timeouts().Mount, mountRequest{Name: name, ID: id}, &reply)
	if asRefusal(err) != nil {
		return "", d.explain(ctx, name, err)
	}
	if err == nil && !filepath.IsAbs(reply.Mountpoint) {
		err = fmt.Errorf("VolumeDriver.Mount: plug-in %s says that the volume is at %q, which is no absolute path", d.name, reply.Mountpoint)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(undoLimit, d.timeouts().Other))
		defer cancel()
		if undoErr := d.call(undo, "Unmount", undoLimit, mountRequest{Name: name, ID: id}, &done{}); undoErr != nil && asRefusal(undoErr) == nil {
			slog.Warn("a volume may be mounted still", "plugin", d.name, "volume", name, "id", id, "err", undoErr)
		}
		return "", err
	}
	d.setUser(name, id, reply.Mountpoint)
	return reply.Mountpoint, nil
}

// Unmount implements volumes.Driver.
func (d *Driver) Unmount(ctx context.Context, name, id string) error {
	_, known := d.user(name, id)
	err := d.call(ctx, "Unmount", d.timeouts().Other, mountRequest{Name: name, ID: id}, &done{})
	switch {
	case err == nil:
	case asRefusal(err) == nil:
		return err
	case known:
		if err = d.explain(ctx, name, err); !errdefs.IsNotFound(err) {
			return err
		}
	default:
		slog.Debug("a plug-in does not know a mount", "plugin", d.name, "volume", name, "id", id, "err", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.users[name], id)
	if len(d.users[name]) == 0 {
		delete(d.users, name)
	}
	return nil
}

// LiveRestore implements volumes.Driver. The plug-in is not asked: it has not been told that the daemon was gone.
func (d *Driver) LiveRestore(_ context.Context, name, id string) error {
	if _, known := d.user(name, id); !known {
		d.setUser(name, id, "")
	}
	return nil
}

// Sync implements volumes.Driver: what a plug-in has answered is its affair.
func (d *Driver) Sync(context.Context) error { return nil }

func (d *Driver) user(name, id string) (path string, known bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	path, known = d.users[name][id]
	return path, known
}

func (d *Driver) setUser(name, id, path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.users[name] == nil {
		d.users[name] = map[string]string{}
	}
	d.users[name][id] = path
}
