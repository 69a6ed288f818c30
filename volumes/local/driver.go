// Package local is the volume driver that keeps volumes as directories below the data root, in Docker's layout:
// <dir>/<name>/_data holds the data, <dir>/<name>/opts.json the mount options where any were given. A volume with
// options is mounted on its own _data while somebody uses it.
//
// It knows no labels, references or records; those are the store's. It never follows a symbolic link out of its
// directory to delete something.
//
// The size of a volume is limited by a project quota where the file system has them. The project is assigned in the
// stage and the limit set again by each mount, so that neither needs a record.
//
// Locks: mu guards the map of volumes; each volume's own lock is held over its mounts and its removal and is taken
// with mu released. Get and List wait for no mount.
package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/atomicfile"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/internal/projectquota"
	"stated.dev/stated/volumes"
)

const (
	dataName = "_data"
	// backingDevice is what a quota's set-up leaves in the directory; it is no volume.
	backingDevice = "backingFsBlockDev"
	// stagePrefix marks volumes in preparation.
	stagePrefix = ".stated-stage-"
)

// errNotFound is Docker's text for a name that the driver does not know.
var errNotFound = errdefs.ErrNotFound.WithMessage("volume not found")

// Options is what New needs.
type Options struct {
	// Dir holds the volumes: <data root>/volumes.
	Dir string
	// StateDir holds volumes in preparation, if it is on Dir's file system. Empty: <data root>/.stated/volumes.
	StateDir string
	// UID and GID own the data directories of new volumes: the user that containers see as root.
	UID, GID int
	// Spares is how many directories are kept ready for new volumes. More are made when half of them are taken.
	Spares int
	// Resolve finds the addresses of the hosts that NFS and CIFS volumes name. Nil: the system's resolver.
	Resolve Resolver
}

// Driver implements volumes.Driver.
type Driver struct {
	dir, stateDir string
	self          owner // this process
	root          owner // of data directories
	resolve       Resolver
	stageDir      string                // set by Start
	quota         *projectquota.Control // set by Start; nil: none
	spare         chan string           // directories in the stage, for volumes without options

	mu      sync.Mutex // guards the map
	volumes map[string]*vol
}

var (
	_ volumes.Driver    = (*Driver)(nil)
	_ volumes.Sweeper   = (*Driver)(nil)
	_ volumes.Rescanner = (*Driver)(nil)
	_ volumes.Stocker   = (*Driver)(nil)
	_ volumes.Fillable  = (*staged)(nil)
)

type owner struct{ uid, gid int }

// vol is one volume.
type vol struct {
	name string
	root string // <dir>/<name>

	once    sync.Once // sets the next two; Get waits for it, and must not wait for a mount that hangs
	options *options  // nil: none
	broken  error     // opts.json cannot be read

	mu         sync.Mutex // guards the fields below and what is mounted on the data path
	mountKnown bool       // mounted is known
	mounted    bool
	users      map[string]struct{} // ids given to Mount
}

func (v *vol) data() string { return filepath.Join(v.root, dataName) }

// New returns the driver for opts.Dir. It touches nothing before Start.
func New(opts Options) *Driver {
	d := &Driver{
		dir:      opts.Dir,
		stateDir: opts.StateDir,
		self:     owner{os.Getuid(), os.Getgid()},
		root:     owner{opts.UID, opts.GID},
		resolve:  opts.Resolve,
		spare:    make(chan string, opts.Spares),
		volumes:  map[string]*vol{},
	}
	if d.resolve == nil {
		d.resolve = lookUp
	}
	if d.stateDir == "" {
		d.stateDir = filepath.Join(filepath.Dir(opts.Dir), ".stated", "volumes")
	}
	return d
}

// Name implements volumes.Driver.
func (d *Driver) Name() string { return volumes.DefaultDriver }

// Traits implements volumes.Driver.
func (d *Driver) Traits() volumes.Traits { return volumes.Traits{Scope: "local", Owned: true} }

// Start reads the directory once. Options are read when they are first needed, so that a start does not open a file
// for each volume.
func (d *Driver) Start(context.Context) error {
	if err := d.prepareDirs(); err != nil {
		return fmt.Errorf("prepare %s: %w", d.dir, err)
	}
	list, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range list {
		name := e.Name()
		switch {
		case !e.IsDir() || name == backingDevice:
		case strings.HasPrefix(name, stagePrefix):
			if err := d.discard(filepath.Join(d.dir, name)); err != nil {
				return err
			}
		default:
			d.volumes[name] = d.newVol(name)
		}
	}
	return nil
}

// Rescan implements volumes.Rescanner.
func (d *Driver) Rescan(context.Context) error {
	d.mu.Lock() // before the directory is read, so that no volume comes back that is removed meanwhile
	defer d.mu.Unlock()
	list, err := os.ReadDir(d.dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		name := e.Name()
		if e.IsDir() && name != backingDevice && !strings.HasPrefix(name, stagePrefix) && d.volumes[name] == nil {
			d.volumes[name] = d.newVol(name)
		}
	}
	return nil
}

// Place implements volumes.Rescanner.
func (d *Driver) Place(name string) string { return d.newVol(name).data() }

func (d *Driver) newVol(name string) *vol {
	return &vol{name: name, root: filepath.Join(d.dir, name)}
}

// prepareDirs makes the directories, opens the quotas and empties the stage. The stage is beside the volumes only if a
// rename from the state directory could not work.
func (d *Driver) prepareDirs() error {
	if err := d.mkdir(d.dir, 0o701, d.self); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d.openQuota()
	d.stageDir = filepath.Join(d.stateDir, "stage")
	if err := os.MkdirAll(d.stageDir, 0o700); err != nil {
		return err
	}
	left, err := os.ReadDir(d.stageDir)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := d.discard(filepath.Join(d.stageDir, e.Name())); err != nil {
			return err
		}
	}
	if !sameMount(d.stageDir, d.dir) || projectquota.Inherited(d.stageDir) != projectquota.Inherited(d.dir) {
		d.stageDir = d.dir
	}
	return nil
}

// openQuota finds out, once, whether volumes can be limited. Most hosts cannot, and need not be told.
func (d *Driver) openQuota() {
	quota, err := projectquota.Open(d.dir, &projectquota.IDs{})
	if err != nil {
		if !errors.Is(err, projectquota.ErrUnsupported) {
			slog.Warn("local volumes cannot be limited in size", "dir", d.dir, "err", err)
		}
		return
	}
	d.quota = quota
}

// discard deletes the directory of a volume that is not to be.
func (d *Driver) discard(root string) error {
	if err := d.unlimit(filepath.Join(root, dataName)); err != nil {
		return err
	}
	return os.RemoveAll(root)
}

// unlimit takes the limit of a data directory away before that is deleted.
func (d *Driver) unlimit(data string) error {
	if d.quota == nil {
		return nil
	}
	if st, err := os.Lstat(data); err != nil || !st.IsDir() {
		return nil // what is not there, or no directory, has no limit
	}
	if err := d.quota.Forget(data); err != nil {
		return fmt.Errorf("free the quota of %s: %w", data, err)
	}
	return nil
}

func sameMount(a, b string) bool {
	var sa, sb unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, a, 0, unix.STATX_MNT_ID, &sa) != nil || unix.Statx(unix.AT_FDCWD, b, 0, unix.STATX_MNT_ID, &sb) != nil {
		return false
	}
	return sa.Mask&sb.Mask&unix.STATX_MNT_ID != 0 && sa.Mnt_id == sb.Mnt_id
}

// mkdir makes one directory with exactly this mode and owner, whatever the process's umask.
func (d *Driver) mkdir(path string, mode uint32, to owner) error {
	if err := unix.Mkdir(path, mode); err != nil {
		return &os.PathError{Op: "mkdir", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&0o7777 != mode {
		if err := unix.Chmod(path, mode); err != nil {
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	if to != d.self {
		return os.Lchown(path, to.uid, to.gid)
	}
	return nil
}

var nameForm = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func validName(name string) error {
	if len(name) == 1 {
		return errdefs.ErrInvalidArgument.WithMessage("volume name is too short, names should be at least two alphanumeric characters")
	}
	if !nameForm.MatchString(name) {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%q includes invalid characters for a local volume name, "+
			"only %q are allowed. If you intended to pass a host directory, use absolute path", name, "[a-zA-Z0-9][a-zA-Z0-9_.-]"))
	}
	if name == backingDevice { // the next start would not take it for a volume
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%q is no name for a local volume: it is that of a file beside them", name))
	}
	return nil
}

// Stage implements volumes.Driver.
func (d *Driver) Stage(_ context.Context, name string, opts map[string]string) (volumes.Staged, error) {
	if err := validName(name); err != nil {
		return nil, err
	}
	parsed, err := d.parseOptions(opts)
	if err != nil {
		return nil, err
	}
	s := &staged{driver: d, name: name, options: parsed}
	if parsed == nil {
		select {
		case s.path = <-d.spare:
			return s, nil
		default:
		}
	}
	s.path = d.stagePath()
	if err := s.fill(); err != nil {
		_ = d.discard(s.path) // the first error is the one to report; Start sweeps the rest
		return nil, err
	}
	return s, nil
}

func (d *Driver) stagePath() string { return filepath.Join(d.stageDir, stagePrefix+ids.New()) }

// Low implements volumes.Stocker. Where the stage is among the volumes there is no stock: dockerd would take what a stop
// leaves of it for volumes.
func (d *Driver) Low() bool {
	return cap(d.spare) > 0 && len(d.spare) <= cap(d.spare)/2 && d.stageDir != d.dir
}

// Stock implements volumes.Stocker.
func (d *Driver) Stock(ctx context.Context) {
	for ctx.Err() == nil && len(d.spare) < cap(d.spare) {
		s := &staged{driver: d, path: d.stagePath()}
		if err := s.fill(); err != nil {
			_ = d.discard(s.path) // a Stage will meet the same error, and report it
			return
		}
		d.spare <- s.path
	}
}

// staged is a volume's directory outside of the volumes.
type staged struct {
	driver     *Driver
	name, path string
	options    *options
	filled     bool // it has data, perhaps, that a directory in its place has not
}

func (s *staged) fill() error {
	if err := s.driver.mkdir(s.path, 0o701, s.driver.self); err != nil {
		return fmt.Errorf("error while creating volume root path '%s': %w", s.path, err)
	}
	data := filepath.Join(s.path, dataName)
	if err := s.driver.mkdir(data, 0o755, s.driver.root); err != nil {
		return fmt.Errorf("error while creating volume data path '%s': %w", data, err)
	}
	if s.options == nil {
		return nil
	}
	if s.options.Quota.Size > 0 && !s.options.needsMount() { // what is mounted is limited where it is mounted
		if err := s.driver.quota.Limit(data, s.options.Quota.Size); err != nil {
			return fmt.Errorf("limit the size of volume %s: %w", s.name, err)
		}
		if err := fault.Point("volumes.local.limited"); err != nil {
			return err
		}
	}
	return s.options.save(s.path)
}

// Publish implements volumes.Staged. A directory that somebody made under the name meanwhile becomes the volume, with
// what is in it, as dockerd would have it.
func (s *staged) Publish(ctx context.Context) (volumes.Info, error) {
	v := s.driver.newVol(s.name)
	v.once.Do(func() { v.options = s.options })
	err := unix.Rename(s.path, v.root) // os.Rename would look at the target first
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		if s.filled {
			return volumes.Info{}, errdefs.ErrConflict.WithMessage(fmt.Sprintf("there is a directory %s already", v.root))
		}
		err = s.mergeInto(v)
	}
	if err != nil {
		return volumes.Info{}, fmt.Errorf("error while creating volume root path '%s': %w", v.root, err)
	}
	s.driver.mu.Lock()
	s.driver.volumes[s.name] = v
	s.driver.mu.Unlock()
	return v.info(), nil
}

func (s *staged) mergeInto(v *vol) error {
	if err := s.driver.ensureData(v); err != nil {
		return err
	}
	if s.options != nil {
		if err := s.options.save(v.root); err != nil {
			return err
		}
	}
	return s.driver.discard(s.path)
}

// DataPath implements volumes.Fillable.
func (s *staged) DataPath() string {
	s.filled = true
	return filepath.Join(s.path, dataName)
}

// Discard implements volumes.Staged.
func (s *staged) Discard(context.Context) error { return s.driver.discard(s.path) }

func (d *Driver) volume(name string) (*vol, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if v := d.volumes[name]; v != nil {
		return v, nil
	}
	return nil, errNotFound
}

// Get implements volumes.Driver. The time of creation is the change time of the volume's directory.
func (d *Driver) Get(_ context.Context, name string) (volumes.Info, error) {
	v, err := d.volume(name)
	if err != nil {
		return volumes.Info{}, err
	}
	info := v.info()
	if info.Broken == nil {
		info.Broken = v.checkData()
	}
	return info, nil
}

// info is what Get answers for a volume whose data is where it should be.
func (v *vol) info() volumes.Info {
	v.load()
	info := volumes.Info{Name: v.name, Mountpoint: v.data(), Options: v.options.given(), Broken: v.broken}
	var st unix.Stat_t
	if err := unix.Lstat(v.root, &st); err == nil { // a volume without a directory has no time, as in dockerd
		info.CreatedAt = time.Unix(st.Ctim.Unix())
	}
	return info
}

// List implements volumes.Driver.
func (d *Driver) List(context.Context) ([]volumes.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]volumes.Info, 0, len(d.volumes))
	for name, v := range d.volumes {
		list = append(list, volumes.Info{Name: name, Mountpoint: v.data()})
	}
	return list, nil
}

// checkData says when the data is missing of a volume that has it in its own directory.
func (v *vol) checkData() error {
	if v.options.needsMount() {
		return nil // the directory is only where it is mounted
	}
	if _, err := os.Lstat(v.data()); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("directory %s is missing; copy it there, or begin with an empty one: mkdir -p -m 755 %[1]s", v.data())
	}
	return nil // whoever uses it will say what else is wrong
}

// ensureData makes a data directory where there is none.
func (d *Driver) ensureData(v *vol) error {
	if _, err := os.Lstat(v.data()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := d.mkdir(v.data(), 0o755, d.root); err != nil {
		return fmt.Errorf("error while creating volume data path '%s': %w", v.data(), err)
	}
	return nil
}

// Sync implements volumes.Driver.
func (d *Driver) Sync(context.Context) error { return atomicfile.SyncDir(d.dir) }
