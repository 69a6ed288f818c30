package volumes

import (
	"strings"

	"github.com/containerd/errdefs"
)

// What the store's operations fail with, beside errors of drivers and of the database.
var (
	// ErrInUse is returned by Remove while a container holds the volume, forced or not.
	ErrInUse = errdefs.ErrConflict.WithMessage("volume is in use")
	// ErrNoSuchVolume is returned for a name that no driver knows.
	ErrNoSuchVolume = errdefs.ErrNotFound.WithMessage("no such volume")
	// ErrNameConflict is returned by Create when another driver owns the name.
	ErrNameConflict = errdefs.ErrConflict.WithMessage("volume name must be unique")
)

// OpError says which operation failed on which volume. Its text is Docker's: "op name: error - [refs]".
type OpError struct {
	Op   string // create, get, list or remove
	Name string // of the volume; of the driver for list
	Err  error
	Refs []string // who holds the volume, when that is the reason
}

func (e *OpError) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Name != "" {
		b.WriteString(" " + e.Name)
	}
	b.WriteString(": " + e.Err.Error())
	if len(e.Refs) > 0 {
		b.WriteString(" - [" + strings.Join(e.Refs, ", ") + "]")
	}
	return b.String()
}

func (e *OpError) Unwrap() error { return e.Err }
