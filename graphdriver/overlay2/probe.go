package overlay2

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
)

const probePrefix = "check-overlay-" // directories in which the kernel is tried

// probeFeatures asks the kernel's overlayfs for its parameters.
func (d *Driver) probeFeatures() {
	_, err := os.Lstat("/sys/module/overlay/parameters/index")
	d.indexOff = err == nil
	d.userxattr = inUserNS()
	d.opaque = "trusted.overlay.opaque"
	if d.userxattr {
		d.opaque = "user.overlay.opaque"
	}
}

func usesMetacopy() bool { return parameter("metacopy") == "Y" }

func parameter(name string) string {
	b, err := os.ReadFile("/sys/module/overlay/parameters/" + name)
	if err != nil {
		return "" // a kernel that does not know it
	}
	return string(bytes.TrimSpace(b))
}

// probeMount mounts an overlay of two layers below dir, which says whether the driver can work there.
func (d *Driver) probeMount(dir string) (err error) {
	test, err := os.MkdirTemp(dir, probePrefix)
	if err != nil {
		return fmt.Errorf("try an overlay mount: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(test)) }()
	for _, sub := range []string{"lower1", "lower2", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(test, sub), 0o755); err != nil {
			return fmt.Errorf("try an overlay mount: %w", err)
		}
	}
	typed, err := hasDType(test)
	if err != nil {
		return fmt.Errorf("see whether the file system tells the type of directory entries: %w", err)
	}
	if !typed {
		return fmt.Errorf("overlay2: the backing %s filesystem is formatted without d_type support, which leads to incorrect behavior. Reformat the filesystem with ftype=1 to enable d_type support. Backing filesystems without d_type support are not supported.: %w", d.backingFS, graphdriver.ErrNotSupported)
	}
	opts := fmt.Sprintf("lowerdir=%[1]s/lower2:%[1]s/lower1,upperdir=%[1]s/upper,workdir=%[1]s/work", test)
	if d.userxattr {
		opts = "userxattr," + opts
		if err := tryMount(test, opts); err == nil {
			return nil
		}
		d.userxattr = false // kernels before 5.11, some of which allow trusted.* in a namespace
		d.opaque = "trusted.overlay.opaque"
		opts = strings.TrimPrefix(opts, "userxattr,")
	}
	if err := tryMount(test, opts); err != nil {
		reason := graphdriver.ErrNotSupported
		if d.backingFS == "overlayfs" || errors.Is(err, unix.EINVAL) {
			reason = graphdriver.ErrIncompatibleFS
		}
		return fmt.Errorf("overlay2: the kernel does not mount an overlay whose layers lie on %s (%s): %w: %w", dir, d.backingFS, err, reason)
	}
	return nil
}

func tryMount(test, opts string) error {
	merged := filepath.Join(test, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
		return err
	}
	return unix.Unmount(merged, 0)
}

// hasDType reports whether reading dir tells which of its entries are directories. All of them are.
func hasDType(dir string) (bool, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		return false, err
	}
	const reclenAt, typeAt = 16, 18 // of struct linux_dirent64
	for at := 0; at+typeAt < n; {
		if buf[at+typeAt] == unix.DT_UNKNOWN {
			return false, nil
		}
		at += int(buf[at+reclenAt]) | int(buf[at+reclenAt+1])<<8
	}
	return true, nil
}

// probeNativeDiff reports whether the upper directory of an overlay holds the changes as this driver reads them:
// nothing redirected, no metadata without its data, and no opaque mark where a directory was only copied.
func (d *Driver) probeNativeDiff() bool {
	if inUserNS() && !d.userxattr {
		return false
	}
	test, err := os.MkdirTemp(d.home, probePrefix)
	if err != nil {
		return false
	}
	defer os.RemoveAll(test) // a rest is found by Sweep
	for _, sub := range []string{"l1/d1", "l2/d1/d2", "l3", "work", "merged"} {
		if err := os.MkdirAll(filepath.Join(test, sub), 0o755); err != nil {
			return false
		}
	}
	// In l2 the directory d1 is opaque. Writing below it must not carry the mark up.
	if err := unix.Lsetxattr(filepath.Join(test, "l2/d1"), d.opaque, []byte("y"), 0); err != nil {
		return false
	}
	opts := fmt.Sprintf("lowerdir=%[1]s/l2:%[1]s/l1,upperdir=%[1]s/l3,workdir=%[1]s/work", test)
	if d.userxattr {
		opts = "userxattr," + opts
	}
	merged := filepath.Join(test, "merged")
	if err := unix.Mount("overlay", merged, "overlay", 0, opts); err != nil {
		return false
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(merged, "d1/f"), nil, 0o644),
		os.Mkdir(filepath.Join(merged, "r1"), 0o755),
		ignoreXDev(os.Rename(filepath.Join(merged, "d1"), filepath.Join(merged, "d3"))),
	)
	if err := errors.Join(err, unix.Unmount(merged, 0)); err != nil {
		return false
	}
	if attr(filepath.Join(test, "l3/d1"), d.opaque) == "y" {
		return false
	}
	// Where directories of lower layers can be renamed, the new one refers to the old instead of holding its files.
	_, err = os.Lstat(filepath.Join(test, "l3/d3"))
	return errors.Is(err, os.ErrNotExist) && !usesMetacopy()
}

func ignoreXDev(err error) error {
	if errors.Is(err, unix.EXDEV) {
		return nil
	}
	return err
}

// attr returns a short extended attribute, or "".
func attr(path, key string) string {
	var buf [16]byte
	n, err := unix.Lgetxattr(path, key, buf[:])
	if err != nil {
		return ""
	}
	return string(buf[:n])
}
