package settings

import (
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"stated.dev/stated/daemon/runtime/sysinfo"
)

// DefaultShmSize is the size of /dev/shm in bytes where nobody says otherwise.
const DefaultShmSize = 64 << 20

// Host is what the machine and the daemon's settings contribute to the checks and the defaults.
type Host struct {
	Info sysinfo.Info
	// SystemdCgroups says that the daemon's cgroup driver is systemd.
	SystemdCgroups bool
	// Runtimes are the names that HostConfig.Runtime may have; DefaultRuntime is one of them.
	Runtimes       []string
	DefaultRuntime string
	// ShmSize, IpcMode and CgroupnsMode are the daemon's defaults. Zero values mean Docker's: 64 MiB, private, and
	// private on cgroup v2 or host on v1.
	ShmSize      int64
	IpcMode      container.IpcMode
	CgroupnsMode container.CgroupnsMode
	// Remapped says that the daemon remaps users.
	Remapped bool
	// NoNewPrivileges is the daemon's default for that security option.
	NoNewPrivileges bool
}

// invalid returns an error with exactly this text and the class of a bad request.
func invalid(text string) error { return errdefs.ErrInvalidArgument.WithMessage(text) }
