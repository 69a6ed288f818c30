package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/fault"
)

// PrepareRemove implements volumes.Driver. The token is the time of birth of the volume's directory and the kernel's
// handle of it: times are coarse and inodes are used again, but not with the same generation, which the handle has.
func (d *Driver) PrepareRemove(_ context.Context, name string) (string, error) {
	v, err := d.volume(name)
	if err != nil {
		return "", err
	}
	v.load()
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.users) > 0 && v.options.needsMount() {
		return "", errors.New("volume has active mounts")
	}
	if err := v.release(); err != nil {
		return "", err
	}
	if err := d.checkInside(v); err != nil {
		return "", err
	}
	return v.token(), nil
}

// release makes sure that nothing is mounted on the data path: deleting would reach into it. A mount that the volume
// has by its options goes; any other is somebody else's and is in the way.
func (v *vol) release() error {
	if err := v.learnMounted(); err != nil {
		return err
	}
	if v.mounted {
		if err := v.unmount(); err != nil {
			return err
		}
	}
	mounted, err := isMounted(v.data())
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("error removing volume path '%s': %w: something is mounted on it", v.data(), unix.EBUSY)
	}
	return nil
}

// checkInside refuses a data path that leads out of the driver's directory.
func (d *Driver) checkInside(v *vol) error {
	real, err := filepath.EvalSymlinks(v.data())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir, err := filepath.EvalSymlinks(d.dir)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(real, dir+string(filepath.Separator)) {
		return fmt.Errorf("unable to remove a directory outside of the local volume root %s: %s", d.dir, real)
	}
	return nil
}

func (v *vol) token() string {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, v.root, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st)
	if err != nil {
		return ""
	}
	token := fmt.Sprintf("%d:%d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec)
	if handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, v.root, 0); err == nil { // some file systems have none
		token += fmt.Sprintf(":%x", handle.Bytes())
	}
	return token
}

// Remove implements volumes.Driver: the data first, then the directory.
func (d *Driver) Remove(_ context.Context, name, token string) error {
	v, err := d.volume(name)
	if err != nil {
		return err
	}
	v.load()
	v.mu.Lock()
	defer v.mu.Unlock()
	if token != "" && v.token() != token {
		return nil
	}
	if err := v.release(); err != nil {
		return err
	}
	if err := d.unlimit(v.data()); err != nil {
		return err
	}
	if err := fault.Point("volumes.local.unlimited"); err != nil {
		return err
	}
	for _, path := range []string{v.data(), v.root} {
		if err := os.RemoveAll(path); err != nil { // it does not follow a symbolic link
			return fmt.Errorf("error removing volume path '%s': %w", path, err)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.volumes, name)
	return nil
}
