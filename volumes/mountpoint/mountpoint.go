// Package mountpoint holds the record of one mount of a container, as config.v2.json keeps it, and the rules that
// turn what users write (-v, --mount, --tmpfs, --volumes-from, VOLUME) into such records. It touches no file.
package mountpoint

import "github.com/moby/moby/api/types/mount"

// MountPoint is one entry of MountPoints in config.v2.json (Docker 28). The map key is Destination.
type MountPoint struct {
	Source      string // host path; empty for anonymous volumes and tmpfs
	Destination string // path inside the container
	RW          bool
	Name        string     // volume name
	Driver      string     // volume driver
	Type        mount.Type `json:",omitempty"` // absent in very old records
	// Mode is the raw mode the user wrote, e.g. "ro" or "z". The field's name on disk is historical.
	Mode        string            `json:"Relabel,omitempty"`
	Propagation mount.Propagation `json:",omitempty"`
	// ID is what a volume's driver was given at Mount, and set while it is mounted. For an image it is the name of the
	// layer on top of it, from create to removal.
	ID                     string `json:",omitempty"`
	Spec                   mount.Mount
	SkipMountpointCreation bool

	// CopyData says that the volume is filled from the image at create. It is not stored.
	CopyData bool `json:"-"`
}
