package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
)

// Mount implements volumes.Driver.
func (d *Driver) Mount(_ context.Context, name, id string) (string, error) {
	v, err := d.volume(name)
	if err != nil {
		return "", err
	}
	v.load()
	if v.broken != nil {
		return "", v.broken
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.options != nil && v.options.Quota.Size > 0 {
		return "", errors.New("size quota requested for volume but no quota support")
	}
	if err := d.ensureData(v); err != nil {
		return "", err
	}
	if err := v.learnMounted(); err != nil {
		return "", err
	}
	if v.options.needsMount() && !v.mounted {
		if err := v.mount(); err != nil {
			return "", err
		}
		v.mounted = true
	}
	v.use(id)
	return v.data(), nil
}

func (v *vol) use(id string) {
	if v.users == nil {
		v.users = map[string]struct{}{}
	}
	v.users[id] = struct{}{}
}

// Unmount implements volumes.Driver. The user is gone even if the unmount fails: there is nothing more it could do.
func (d *Driver) Unmount(_ context.Context, name, id string) error {
	v, err := d.volume(name)
	if err != nil {
		return nil // a volume that is gone is not mounted
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, used := v.users[id]; !used {
		return nil
	}
	delete(v.users, id)
	if len(v.users) > 0 || !v.mounted {
		return nil
	}
	return v.unmount()
}

// LiveRestore implements volumes.Driver.
func (d *Driver) LiveRestore(_ context.Context, name, id string) error {
	v, err := d.volume(name)
	if err != nil {
		return err
	}
	v.load()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.options.needsMount() {
		v.mountKnown, v.mounted = true, true
	}
	v.use(id)
	return nil
}

// learnMounted finds out, once, whether an earlier daemon left the volume mounted. The caller holds the volume's lock.
func (v *vol) learnMounted() (err error) {
	if v.mountKnown || !v.options.needsMount() {
		return nil
	}
	v.mounted, err = isMounted(v.data())
	v.mountKnown = err == nil
	return err
}

// mount mounts what the options say on the data path. The caller holds the volume's lock.
func (v *vol) mount() error {
	o := v.options
	if o.MountDevice == "" {
		return errors.New("missing device in volume options")
	}
	if err := mount.Mount(o.MountDevice, v.data(), o.MountType, o.MountOpts); err != nil {
		return fmt.Errorf("failed to mount local volume: %w", masked(err, o.MountOpts))
	}
	return nil
}

// unmount takes the mount off the data path. The caller holds the volume's lock.
func (v *vol) unmount() error {
	if err := mount.Unmount(v.data()); err != nil {
		if mounted, mountedErr := isMounted(v.data()); mounted || mountedErr != nil {
			return err
		}
	}
	v.mounted = false
	return nil
}

// masked hides a password that the options hold, and the error's text may repeat.
func masked(err error, opts string) error {
	for option := range strings.SplitSeq(opts, ",") {
		if password, ok := strings.CutPrefix(option, "password="); ok && password != "" {
			return errors.New(strings.Replace(err.Error(), option, "password=********", 1))
		}
	}
	return err
}

// isMounted reports whether something is mounted on path.
func isMounted(path string) (bool, error) {
	mounted, err := mountinfo.Mounted(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("failed to determine if volume _data path is already mounted: %w", err)
	}
	return mounted, nil
}
