package overlay2

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
)

const (
	name = "overlay2"

	diffDir       = "diff"
	workDir       = "work"
	mergedDir     = "merged"
	linkFile      = "link"
	lowerFile     = "lower"
	committedFile = "committed"
	linksDir      = "l"

	removing = "-removing" // suffix of a layer on the way out

	linkLen  = 26
	maxDepth = 128 // entries of lower; Docker's limit, and about what fits into a page
)

// Driver is the overlay2 storage driver.
type Driver struct {
	home   string
	homeFD int // for paths relative to home
	idMap  user.IdentityMapping
	rootID struct{ uid, gid int }

	backingFS string
	indexOff  bool   // the kernel knows overlayfs's "index" option
	userxattr bool   // inside a user namespace, marks are user.* attributes
	opaque    string // the attribute of opaque directories

	mounts graphdriver.Mounts
	naive  graphdriver.Naive

	nativeDiff func() bool // probed when first asked
}

var (
	_ graphdriver.Driver    = (*Driver)(nil)
	_ graphdriver.Sweeper   = (*Driver)(nil)
	_ graphdriver.Discarder = (*Driver)(nil)
	_ graphdriver.Stacker   = (*Driver)(nil)
	_ graphdriver.Repairer  = (*Driver)(nil)
	_ graphdriver.Lister    = (*Driver)(nil)
)

// New opens the driver and makes its home directory if need be. It mounts a small overlay to see whether it can.
func New(ctx context.Context, cfg graphdriver.Config) (graphdriver.Driver, error) {
	d := &Driver{home: cfg.Home, idMap: cfg.IDMap}
	d.rootID.uid, d.rootID.gid = cfg.IDMap.RootPair()

	// The support test goes into the nearest directory that exists, so that a host that cannot have overlay2 is not
	// left with a directory of that name.
	testDir := d.home
	if _, err := os.Stat(testDir); errors.Is(err, fs.ErrNotExist) {
		testDir = filepath.Dir(d.home)
		if err := os.MkdirAll(testDir, 0o710); err != nil {
			return nil, fmt.Errorf("make data root: %w", err)
		}
	}
	var err error
	if d.backingFS, err = graphdriver.FSName(testDir); err != nil {
		return nil, err
	}
	if err := d.parseOptions(ctx, cfg.Options); err != nil {
		return nil, err
	}
	d.probeFeatures()
	switch err := d.probeMount(testDir); {
	case err == nil:
	case testDir == d.home && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)):
		// Who wants to free space has to get at what is here.
		slog.WarnContext(ctx, "overlay mounts were not tried: the disk is full", "dir", d.home, "err", err)
	default:
		return nil, err
	}
	if err := d.makeHome(); err != nil {
		return nil, err
	}
	if d.homeFD, err = unix.Open(d.home, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open %s: %w", d.home, err)
	}
	d.naive = graphdriver.Naive{Mounter: d, IDMap: cfg.IDMap}
	d.nativeDiff = sync.OnceValue(d.probeNativeDiff)
	return d, nil
}

func (d *Driver) parseOptions(ctx context.Context, opts []string) error {
	for _, opt := range opts {
		key, value, err := graphdriver.ParseOption(opt)
		if err != nil {
			return err
		}
		switch key {
		case "overlay2.override_kernel_check":
			slog.WarnContext(ctx, "storage option has no effect any more", "option", key)
		case "overlay2.size":
			if d.backingFS != "xfs" {
				return fmt.Errorf("Storage Option overlay2.size only supported for backingFS XFS. Found %s: %w", d.backingFS, errdefs.ErrInvalidArgument) //nolint:staticcheck // Docker's text
			}
			return fmt.Errorf("Storage option overlay2.size not supported. Filesystem does not support Project Quota: %s (size %s): %w", noQuota, value, errdefs.ErrInvalidArgument) //nolint:staticcheck // Docker's text
		default:
			return errdefs.ErrInvalidArgument.WithMessage("overlay2: unknown option " + key)
		}
	}
	return nil
}

const noQuota = "Filesystem does not support, or has not enabled quotas"

func (d *Driver) makeHome() error {
	for _, dir := range []struct {
		path string
		mode fs.FileMode
		gid  int
	}{{d.home, 0o710, d.rootID.gid}, {filepath.Join(d.home, linksDir), 0o700, os.Getgid()}} {
		err := os.Mkdir(dir.path, dir.mode)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err == nil {
			err = os.Chmod(dir.path, dir.mode)
		}
		if err == nil {
			err = os.Chown(dir.path, os.Getuid(), dir.gid)
		}
		if err != nil {
			return fmt.Errorf("make %s: %w", dir.path, err)
		}
	}
	return nil
}

// String returns the driver's name.
func (d *Driver) String() string { return name }

// Close ends the driver. Mounts stay.
func (d *Driver) Close() error { return unix.Close(d.homeFD) }

// Status returns the driver's part of "docker info".
func (d *Driver) Status() [][2]string {
	bools := map[bool]string{true: "true", false: "false"}
	return [][2]string{
		{"Backing Filesystem", d.backingFS},
		{"Supports d_type", "true"}, // New refuses a file system that does not
		{"Using metacopy", bools[usesMetacopy()]},
		{"Native Overlay Diff", bools[d.nativeDiff()]},
		{"userxattr", bools[d.userxattr]},
	}
}

// Exists reports whether the layer has a directory.
func (d *Driver) Exists(id string) bool {
	var st unix.Stat_t
	return validID(id) && unix.Fstatat(d.homeFD, id, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// Sync flushes the file system that holds the home directory.
func (d *Driver) Sync(context.Context) error {
	if err := unix.Syncfs(d.homeFD); err != nil {
		return fmt.Errorf("flush the file system of %s: %w", d.home, err)
	}
	return nil
}

// List returns the ids of all layers.
func (d *Driver) List() ([]string, error) {
	entries, err := d.entries()
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != linksDir && !strings.HasSuffix(e.Name(), removing) && !strings.HasPrefix(e.Name(), probePrefix) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

func (d *Driver) entries() ([]fs.DirEntry, error) {
	entries, err := os.ReadDir(d.home)
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	return entries, nil
}

// Metadata returns the directories of a layer.
func (d *Driver) Metadata(id string) (map[string]string, error) {
	lowers, err := d.lowers(id)
	if err != nil {
		return nil, err
	}
	m := map[string]string{
		"WorkDir":   d.path(id, workDir),
		"MergedDir": d.path(id, mergedDir),
		"UpperDir":  d.path(id, diffDir),
	}
	if len(lowers) > 0 {
		m["LowerDir"] = strings.Join(lowers, ":")
	}
	return m, nil
}

func (d *Driver) path(elems ...string) string {
	return filepath.Join(append([]string{d.home}, elems...)...)
}

// validID keeps ids inside the home directory and apart from what else is there.
func validID(id string) bool {
	return id != "" && id != linksDir && id != "." && id != ".." && !strings.Contains(id, "/") && !strings.HasSuffix(id, removing)
}

// lower returns the layer's list of short names below home, nearest first, none for a base layer.
func (d *Driver) lower(id string) ([]string, error) {
	data, err := d.readFile(id, lowerFile)
	if errors.Is(err, fs.ErrNotExist) {
		if !d.Exists(id) {
			return nil, graphdriver.NotFound(name, id)
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the layers below %s: %w", id, err)
	}
	if len(data) == 0 {
		return nil, fmt.Errorf("layer %s: its file %q is empty, probably since a power cut: %w", id, lowerFile, errdefs.ErrDataLoss)
	}
	return strings.Split(string(data), ":"), nil
}

// lowers returns the diff directories of the layers below, nearest first.
func (d *Driver) lowers(id string) ([]string, error) {
	short, err := d.lower(id)
	if err != nil {
		return nil, err
	}
	dirs := make([]string, len(short))
	for i, s := range short {
		target, err := os.Readlink(d.path(s))
		if err != nil {
			return nil, fmt.Errorf("layer %s: the short name of the layer below it: %w", id, err)
		}
		dirs[i] = filepath.Join(d.home, linksDir, target)
	}
	return dirs, nil
}

func (d *Driver) readFile(id, file string) ([]byte, error) {
	if !validID(id) {
		return nil, fs.ErrNotExist
	}
	path := id + "/" + file
	fd, err := unix.Openat(d.homeFD, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: d.path(path), Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 512)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: d.path(path), Err: err}
		}
		if n == 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
}

// newLink returns a random short name: 26 characters of base 32.
func newLink() string { return rand.Text()[:linkLen] }

func inUserNS() bool { return userns.RunningInUserNS() }
