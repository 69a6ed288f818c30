package overlay2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
)

// Get mounts a layer, unless it has nothing below it.
func (d *Driver) Get(_ context.Context, id, mountLabel string) (string, error) {
	lower, err := d.lower(id)
	if err != nil {
		return "", err
	}
	if len(lower) == 0 {
		return d.path(id, diffDir), nil
	}
	merged := d.path(id, mergedDir)
	err = d.mounts.Acquire(merged, d.isMounted(merged), func() error {
		return d.mount(id, merged, lower, mountLabel)
	})
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	return merged, nil
}

// Put takes back one Get.
func (d *Driver) Put(_ context.Context, id string) error {
	lower, err := d.lower(id)
	if err != nil || len(lower) == 0 {
		return err
	}
	merged := d.path(id, mergedDir)
	return d.mounts.Release(merged, d.isMounted(merged), func() error { return unmount(merged) })
}

// Mounted returns the mount point of a layer that is mounted.
func (d *Driver) Mounted(id string) (string, bool) {
	merged := d.path(id, mergedDir)
	if !validID(id) || d.mounts.Count(merged, d.isMounted(merged)) == 0 {
		return "", false
	}
	return merged, true
}

// isMounted looks at the directory before it asks the kernel: without "merged" there is no mount.
func (d *Driver) isMounted(merged string) func() bool {
	return func() bool {
		if _, err := os.Lstat(merged); err != nil {
			return false
		}
		mounted, err := mountinfo.Mounted(merged)
		return err == nil && mounted
	}
}

func unmount(merged string) error {
	// Lazily, because a process in another mount namespace may still have it; the rmdir then takes it from there too.
	if err := unix.Unmount(merged, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", merged, err)
	}
	_ = unix.Rmdir(merged) // made again by the next mount, which also finds it when this fails
	return nil
}

func (d *Driver) mount(id, merged string, lower []string, mountLabel string) (err error) {
	if err := unix.Mkdir(merged, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make mount point: %w", err)
	}
	defer func() {
		if err != nil {
			_ = unix.Rmdir(merged) // as it was before
		}
	}()
	if d.rootID.uid != 0 || d.rootID.gid != 0 {
		if err := os.Chown(merged, d.rootID.uid, d.rootID.gid); err != nil {
			return err
		}
	}
	readOnly := true
	if _, err := os.Lstat(d.path(id, committedFile)); errors.Is(err, os.ErrNotExist) {
		readOnly = false
	} else if err != nil {
		return err
	}

	var flags uintptr
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	opts := d.mountOptions(d.home, id, lower, readOnly, mountLabel)
	if len(opts) < os.Getpagesize() {
		err = unix.Mount("overlay", merged, "overlay", flags, opts)
	} else {
		opts = d.mountOptions("", id, lower, readOnly, mountLabel)
		if len(opts) >= os.Getpagesize() {
			return fmt.Errorf("cannot mount layer, mount label too large %d", len(opts))
		}
		err = mountFrom(d.homeFD, filepath.Join(id, mergedDir), flags, opts)
	}
	if err != nil {
		return fmt.Errorf("error creating overlay mount to %s: %w", merged, err)
	}
	if !readOnly && (d.rootID.uid != 0 || d.rootID.gid != 0) {
		// The kernel has just made it, and owned by us.
		if err := os.Chown(d.path(id, workDir, workDir), d.rootID.uid, d.rootID.gid); err != nil {
			return errors.Join(err, unmount(merged))
		}
	}
	return nil
}

// mountOptions returns overlayfs's options with paths below home, or relative to it when home is "".
func (d *Driver) mountOptions(home, id string, lower []string, readOnly bool, mountLabel string) string {
	at := func(elems ...string) string { return filepath.Join(append([]string{home}, elems...)...) }
	dirs := make([]string, 0, len(lower)+1)
	if readOnly {
		dirs = append(dirs, at(id, diffDir))
	}
	for _, l := range lower {
		dirs = append(dirs, at(l))
	}
	var b strings.Builder
	if d.indexOff {
		b.WriteString("index=off,")
	}
	if d.userxattr {
		b.WriteString("userxattr,")
	}
	b.WriteString("lowerdir=" + strings.Join(dirs, ":"))
	if !readOnly {
		b.WriteString(",upperdir=" + at(id, diffDir) + ",workdir=" + at(id, workDir))
	}
	return label.FormatMountLabel(b.String(), mountLabel)
}

// mountFrom mounts with a working directory of its own, to which target and the paths in opts are relative.
func mountFrom(dir int, target string, flags uintptr, opts string) error {
	done := make(chan error)
	go func() {
		// The thread is never unlocked, so it ends with this goroutine and takes its working directory along.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Fchdir(dir)
		}
		if err == nil {
			err = unix.Mount("overlay", target, "overlay", flags, opts)
		}
		done <- err
	}()
	return <-done
}

var _ graphdriver.Mounter = (*Driver)(nil)
