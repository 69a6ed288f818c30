package volumetest

import (
	"cmp"
	"context"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/volumes"
)

// Fake is a driver whose volumes are names in memory, like those of a plug-in: others may make and remove them, and
// it can fail to answer. The zero value with a name is ready.
type Fake struct {
	DriverName string
	Scope      string
	Dir        string // below which the volumes are said to be; they are nowhere

	mu      sync.Mutex // guards the fields below
	volumes map[string]*fakeVolume
	fail    map[string]error
}

type fakeVolume struct {
	created time.Time
	options map[string]string
	users   map[string]struct{}
}

var _ volumes.Driver = (*Fake)(nil)

// Fail makes every later call of the named method return err, or nil again.
func (f *Fake) Fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.fail = map[string]error{}
	}
	f.fail[method] = err
}

// Add makes a volume behind the store's back, and Drop takes one away.
func (f *Fake) Add(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.add(name, nil)
}

// Drop is the opposite of Add.
func (f *Fake) Drop(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.volumes, name)
}

// Users returns the ids under which a volume is mounted.
func (f *Fake) Users(name string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if v := f.volumes[name]; v != nil {
		return slices.Sorted(maps.Keys(v.users))
	}
	return nil
}

func (f *Fake) add(name string, options map[string]string) {
	if f.volumes == nil {
		f.volumes = map[string]*fakeVolume{}
	}
	f.volumes[name] = &fakeVolume{created: time.Now(), options: options, users: map[string]struct{}{}}
}

// find returns a volume, or why the named method fails. The caller holds mu.
func (f *Fake) find(method, name string) (*fakeVolume, error) {
	if err := f.fail[method]; err != nil {
		return nil, err
	}
	if v := f.volumes[name]; v != nil {
		return v, nil
	}
	return nil, errdefs.ErrNotFound.WithMessage("fake: no volume " + name)
}

// Name implements volumes.Driver.
func (f *Fake) Name() string { return f.DriverName }

// Traits implements volumes.Driver.
func (f *Fake) Traits() volumes.Traits { return volumes.Traits{Scope: f.Scope} }

// Start implements volumes.Driver.
func (f *Fake) Start(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fail["Start"]
}

type fakeStage struct {
	f    *Fake
	name string
}

// Stage implements volumes.Driver: like a plug-in, it creates at once.
func (f *Fake) Stage(_ context.Context, name string, options map[string]string) (volumes.Staged, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail["Stage"]; err != nil {
		return nil, err
	}
	f.add(name, options)
	return fakeStage{f: f, name: name}, nil
}

func (s fakeStage) Publish(ctx context.Context) (volumes.Info, error) {
	s.f.mu.Lock()
	err := s.f.fail["Publish"]
	s.f.mu.Unlock()
	if err != nil {
		return volumes.Info{}, err
	}
	return s.f.Get(ctx, s.name)
}

func (s fakeStage) Discard(context.Context) error {
	s.f.Drop(s.name)
	return nil
}

func (f *Fake) path(name string) string { return filepath.Join(cmp.Or(f.Dir, "/fake"), name) }

func (f *Fake) info(name string, v *fakeVolume) volumes.Info {
	return volumes.Info{Name: name, Mountpoint: f.path(name), CreatedAt: v.created, Status: map[string]any{"fake": true}}
}

// Get implements volumes.Driver.
func (f *Fake) Get(_ context.Context, name string) (volumes.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.find("Get", name)
	if err != nil {
		return volumes.Info{}, err
	}
	return f.info(name, v), nil
}

// List implements volumes.Driver.
func (f *Fake) List(context.Context) ([]volumes.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail["List"]; err != nil {
		return nil, err
	}
	var list []volumes.Info
	for name, v := range f.volumes {
		list = append(list, f.info(name, v))
	}
	return list, nil
}

// PrepareRemove implements volumes.Driver.
func (f *Fake) PrepareRemove(_ context.Context, name string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.find("PrepareRemove", name)
	return "", err
}

// Remove implements volumes.Driver.
func (f *Fake) Remove(_ context.Context, name, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.find("Remove", name); err != nil {
		return err
	}
	delete(f.volumes, name)
	return nil
}

// Mount implements volumes.Driver.
func (f *Fake) Mount(_ context.Context, name, id string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, err := f.find("Mount", name)
	if err != nil {
		return "", err
	}
	v.users[id] = struct{}{}
	return f.path(name), nil
}

// Unmount implements volumes.Driver.
func (f *Fake) Unmount(_ context.Context, name, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail["Unmount"]; err != nil {
		return err
	}
	if v := f.volumes[name]; v != nil {
		delete(v.users, id)
	}
	return nil
}

// LiveRestore implements volumes.Driver.
func (f *Fake) LiveRestore(ctx context.Context, name, id string) error {
	_, err := f.Mount(ctx, name, id)
	return err
}

// Sync implements volumes.Driver.
func (f *Fake) Sync(context.Context) error { return nil }
