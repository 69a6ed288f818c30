package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"

	"stated.dev/stated/internal/fault"
)

// Mount implements volumes.Driver.
func (d *Driver) Mount(ctx context.Context, name, id string) (string, error) {
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
	if err := v.checkData(); err != nil {
		return "", errdefs.ErrNotFound.WithMessage(err.Error())
	}
	if v.options.needsMount() {
		if err := d.ensureData(v); err != nil {
			return "", err
		}
	}
	if err := v.learnMounted(); err != nil {
		return "", err
	}
	if err = v.ensureMounted(ctx, d.resolve); err == nil {
		err = d.limit(v)
	}
	if err != nil {
		return "", errors.Join(err, v.unmountIdle())
	}
	v.use(id)
	return v.data(), nil
}

// ensureMounted mounts what the options say, unless it is mounted. The caller holds the volume's lock.
func (v *vol) ensureMounted(ctx context.Context, resolve Resolver) error {
	if !v.options.needsMount() || v.mounted {
		return nil
	}
	if err := v.mount(ctx, resolve); err != nil {
		return err
	}
	v.mounted = true
	return fault.Point("volumes.local.mounted")
}

// limit sets the volume's quota. It is done by every mount, as in dockerd: a check of the file system, or a restore of
// files without their attributes, may have lost it. The caller holds the volume's lock.
func (d *Driver) limit(v *vol) error {
	if v.options == nil || v.options.Quota.Size == 0 {
		return nil
	}
	if d.quota == nil {
		return errors.New("size quota requested for volume but no quota support")
	}
	if err := d.quota.Limit(v.shown(), v.options.Quota.Size); err != nil {
		return fmt.Errorf("limit the size of volume %s: %w", v.name, err)
	}
	return nil
}

// shown returns the directory that holds what is seen on the data path: another one where that is bound. Only there
// the directory above tells whose project it has.
func (v *vol) shown() string {
	source, err := filepath.EvalSymlinks(v.options.MountDevice)
	if err != nil || !filepath.IsAbs(source) {
		return v.data()
	}
	a, errA := os.Stat(source)
	b, errB := os.Stat(v.data())
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		return v.data()
	}
	return source
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
	return v.unmountIdle()
}

// unmountIdle unmounts a volume that is mounted by its options and that nobody uses. The caller holds the volume's lock.
func (v *vol) unmountIdle() error {
	if len(v.users) > 0 || !v.mounted {
		return nil
	}
	return v.unmount()
}

// Sweep implements volumes.Sweeper. A mount that a volume without mount options has is somebody else's and stays.
func (d *Driver) Sweep(context.Context) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.dir))
	if err != nil {
		return fmt.Errorf("look for mounts of volumes: %w", err)
	}
	var errs []error
	for _, m := range mounts {
		root, isData := strings.CutSuffix(m.Mountpoint, "/"+dataName)
		if v, err := d.volume(filepath.Base(root)); isData && err == nil && v.data() == m.Mountpoint {
			errs = append(errs, v.sweep())
		}
	}
	return errors.Join(errs...)
}

// sweep takes off the volume what an earlier daemon has left mounted, unless somebody uses it.
func (v *vol) sweep() error {
	v.load()
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := v.learnMounted(); err != nil {
		return err
	}
	return v.unmountIdle()
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
func (v *vol) mount(ctx context.Context, resolve Resolver) error {
	o := v.options
	if o.MountDevice == "" {
		return errors.New("missing device in volume options")
	}
	device, opts, err := o.source(ctx, resolve)
	if err != nil {
		return err
	}
	if err := mount.Mount(device, v.data(), o.MountType, opts); err != nil {
		return fmt.Errorf("failed to mount local volume: %w", masked(err, opts))
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
