package volumes

import (
	"context"
	"time"
)

// DefaultDriver is the driver of a volume that names none.
const DefaultDriver = "local"

// A Driver keeps volumes of one kind: it knows where their data is and makes it reachable. The store above it keeps
// names, labels, options and references, and calls a driver for one volume at a time; calls for different volumes
// come at once.
//
// A volume that the driver does not know is an errdefs.ErrNotFound. Every other error is either of a class (a bad
// option is errdefs.ErrInvalidArgument) or means that the driver could not answer, in which case the store keeps
// what it knows. Drivers never change their mind about a name: what Stage, Publish and Mount returned stays true until
// Remove.
//
// The conformance suite is in volumetest.
type Driver interface {
	// Name is what users write as the volume driver.
	Name() string
	// Traits never change.
	Traits() Traits

	// Start is called once, before all others and when this process is the only one to use the data root. The driver
	// sweeps there what a crash left half made, but for removals, which the store completes.
	Start(ctx context.Context) error

	// Stage prepares a new volume out of everybody's sight. A name or an option that it refuses changes nothing.
	Stage(ctx context.Context, name string, options map[string]string) (Staged, error)

	Get(ctx context.Context, name string) (Info, error)
	// List returns all volumes, in any order. CreatedAt may be left zero where it costs a call for each volume.
	List(ctx context.Context) ([]Info, error)

	// PrepareRemove refuses a volume that must not be removed now and releases what hinders removal (a mount without
	// users). The token names this very volume, so that a removal cut short by a crash is never completed on another
	// one that got the name since. A driver that cannot tell returns "".
	PrepareRemove(ctx context.Context, name string) (token string, err error)
	// Remove deletes the volume with its data. With a token it deletes only the volume that the token names, and
	// nothing (without an error) when the name has gone to another one.
	Remove(ctx context.Context, name, token string) error

	// Mount makes the data reachable for the user id and returns the path. An id that is mounted already changes
	// nothing. Unmount takes the user away; an unknown id or volume is no error. The last user's Unmount releases the
	// data.
	Mount(ctx context.Context, name, id string) (path string, err error)
	Unmount(ctx context.Context, name, id string) error
	// LiveRestore registers a user whose mount is in place, because it outlived the daemon.
	LiveRestore(ctx context.Context, name, id string) error
	// Sync makes what was published and removed before the call durable.
	Sync(ctx context.Context) error
}

// A Sweeper is a driver whose mounts outlive a daemon that is killed.
type Sweeper interface {
	// Sweep releases what is mounted and used by nobody. It is called when every user whose mount outlived the daemon is
	// registered, and may run beside other calls.
	Sweep(ctx context.Context) error
}

// A Stocker is a driver that can prepare for the next Stage calls before anybody waits for them.
type Stocker interface {
	// Low reports whether it is time to call Stock.
	Low() bool
	// Stock prepares what a Stage will take. The store calls it beside all other calls, but never twice at a time. It
	// ends early with ctx, and reports nothing: Stage does without.
	Stock(ctx context.Context)
}

// Traits say how the store may treat a driver.
type Traits struct {
	// Scope is "local" or "global", as the API shows it.
	Scope string
	// Owned drivers are the only ones to make and remove their volumes, on this host's disk, and answer from memory:
	// the store does not ask them again whether a volume still exists.
	Owned bool
}

// Staged is a volume in preparation.
type Staged interface {
	// Publish makes the volume appear whole under its name.
	Publish(ctx context.Context) (Info, error)
	// Discard takes the preparation back.
	Discard(ctx context.Context) error
}

// Fillable is a volume in preparation that can be given its contents before it appears.
type Fillable interface {
	Staged
	// DataPath is where its data will be found, while it is in preparation. Once it has been asked for, Publish refuses
	// a name under which anything lies, with errdefs.ErrConflict.
	DataPath() string
}

// Rescanner is a driver whose volumes may be put in place by hand while it is open.
type Rescanner interface {
	Driver
	// Rescan takes in what has appeared since Start.
	Rescan(ctx context.Context) error
	// Place is where the data of a volume is to be put.
	Place(name string) string
}

// Info is what a driver tells of a volume.
type Info struct {
	Name       string
	Mountpoint string // where the data is; may be empty before the first Mount for drivers that are not Owned
	CreatedAt  time.Time
	Status     map[string]any
	Options    map[string]string // with which it was made, where the driver keeps them
	// Broken says why the volume cannot be mounted. It is listed nevertheless.
	Broken error
}
