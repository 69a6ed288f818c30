// Package graphdriver is the contract of the drivers that keep image layers and the writable layers of containers on
// disk, and the choice among them.
//
// A driver knows layers by ids that its caller makes. It knows nothing of digests, chains of layers, images or
// containers, and it counts nothing but mounts. What it keeps lies below its home directory, in the form in which
// Docker's driver of the same name keeps it.
//
// A layer has at most one parent, and shows its own files over the parent's. A layer with children is never changed:
// the caller sees to that, as it does to removing children first.
package graphdriver

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"

	"stated.dev/stated/graphdriver/archive"
)

// Driver keeps layers. Its implementations pass graphtest.Run.
//
// All methods may be called at the same time for different layers. For one layer the caller lets Create,
// CreateReadWrite, ApplyDiff and Remove exclude everything else; Get and Put exclude each other by themselves.
// An id that is not there is an errdefs.ErrNotFound, except where said otherwise.
type Driver interface {
	// String returns the driver's name, which is also the name of its home directory.
	String() string

	// Create makes a layer that will be read only once it has children. parent may be "". Until ApplyDiff it shows
	// what the parent shows. The storage option "size" is refused, with Docker's text. A Create that fails leaves
	// nothing.
	Create(ctx context.Context, id, parent string, opts CreateOptions) error

	// CreateReadWrite is Create for a container's own layer, where storage options may be given.
	CreateReadWrite(ctx context.Context, id, parent string, opts CreateOptions) error

	// CreateSeeded is Create for a layer that has the seeds' files, as Plant would make them in the mounted layer.
	// It need not mount anything.
	CreateSeeded(ctx context.Context, id, parent string, seeds []Seed, opts CreateOptions) error

	// Remove removes a layer that is not mounted. One that does not exist is removed already. When it returns nil
	// the id is free again; a crash in between leaves what a later Remove or Sweeper.Sweep takes away.
	Remove(ctx context.Context, id string) error

	// Get makes the layer's tree visible and returns the directory. It counts: each Get needs one Put. A mount that
	// a process before this one left counts as one Get that nobody has Put yet.
	Get(ctx context.Context, id, mountLabel string) (string, error)

	// Put takes back one Get and unmounts with the last. A Put too many does nothing.
	Put(ctx context.Context, id string) error

	// Mounted returns the directory of a layer that is mounted, without counting.
	Mounted(id string) (dir string, mounted bool)

	// Exists reports whether the layer is there.
	Exists(id string) bool

	// Status returns what "docker info" prints below the driver's name, in its order.
	Status() [][2]string

	// Metadata returns what "docker inspect" has in GraphDriver.Data. It mounts nothing.
	Metadata(id string) (map[string]string, error)

	// Diff returns an uncompressed tar of the changes against parent, with the whiteouts of image layers;
	// parent "" means everything that the layer shows. It is to be closed, at its end or before.
	Diff(ctx context.Context, id, parent string) (io.ReadCloser, error)

	// Changes lists the changes against parent, ordered by path.
	Changes(ctx context.Context, id, parent string) ([]Change, error)

	// ApplyDiff unpacks a layer into id, which has just been created on parent, and returns the number of bytes
	// that its files take. After an error the layer is of no use, and the caller removes it. The files are durable
	// only after Sync. It leaves the reader at its end, for the caller to Finish.
	ApplyDiff(ctx context.Context, id, parent string, diff *archive.Reader) (int64, error)

	// DiffSize returns the number of bytes of the changes against parent.
	DiffSize(ctx context.Context, id, parent string) (int64, error)

	// DiffDir returns a directory that holds at least the files which ApplyDiff unpacked, under their names, and a
	// function that releases it.
	DiffDir(ctx context.Context, id string) (dir string, release func() error, err error)

	// Sync makes everything that the driver was given so far durable, with one flush where it can.
	Sync(ctx context.Context) error

	// Close unmounts nothing: layers of running containers stay mounted. Background work has ended when it returns.
	Close() error
}

// A Sweeper knows its leftovers by sight: layers that were on the way out when the power went, and the like.
type Sweeper interface {
	Sweep(ctx context.Context) error
}

// A Discarder can take a layer out of sight at once and delete it later.
type Discarder interface {
	// Discard is Remove in two steps: the id is free when it returns, and finish, which is never nil without an
	// error and may be called from any goroutine, deletes what the layer held.
	Discard(ctx context.Context, id string) (finish func() error, err error)
}

// A Stacker can unpack a layer before it knows its parent.
type Stacker interface {
	// SetParent puts a layer that was made with parent "" onto parent. A layer may be put onto another once.
	SetParent(ctx context.Context, id, parent string) error
}

// A Repairer can put its own bookkeeping right after a power cut.
type Repairer interface {
	// Repair compares the driver's files with each other and with parents, which has the parent of each layer that
	// the caller knows, and repairs what follows from the rest. It returns one sentence for each repair, and for
	// each layer that is beyond it.
	Repair(ctx context.Context, parents map[string]string) ([]string, error)
}

// A Lister can name the layers that it holds.
type Lister interface {
	List() ([]string, error)
}

// CreateOptions are the options of one layer.
type CreateOptions struct {
	MountLabel string
	StorageOpt map[string]string
}

// Config is what a driver is opened with.
type Config struct {
	Home    string   // the driver's own directory
	Options []string // key=value, as given with --storage-opt
	IDMap   user.IdentityMapping
}

// Constructor opens a driver. It returns an error for which NotSupported holds when the host cannot have it.
type Constructor func(ctx context.Context, cfg Config) (Driver, error)

// The reasons for which a driver may be passed over when none was asked for by name.
var (
	ErrNotSupported   = fmt.Errorf("driver not supported: %w", errdefs.ErrFailedPrecondition)
	ErrPrerequisites  = fmt.Errorf("prerequisites for driver not satisfied (wrong filesystem?): %w", errdefs.ErrFailedPrecondition)
	ErrIncompatibleFS = fmt.Errorf("backing file system is unsupported for this graph driver: %w", errdefs.ErrFailedPrecondition)
)

// NotFound returns the error for a layer that a driver does not have.
func NotFound(driver, id string) error {
	return fmt.Errorf("%s: layer %s: %w", driver, id, errdefs.ErrNotFound)
}

// ChangeKind says what happened to a path.
type ChangeKind int

// The values are those of Docker's API.
const (
	Modified ChangeKind = iota
	Added
	Deleted
)

// String returns the letter that "docker diff" prints.
func (k ChangeKind) String() string {
	return [...]string{"C", "A", "D"}[k]
}

// Change is one path in which a layer differs from its parent. Path is absolute.
type Change struct {
	Path string
	Kind ChangeKind
}
