package ocispec

import (
	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/user"

	"stated.dev/stated/api/types"
)

// Input is all that Build needs to know.
type Input struct {
	ID         string
	Config     *types.ContainerConfig
	HostConfig *container.HostConfig
	// Path and Args are the resolved command: entrypoint and arguments. The record keeps them apart, so do we.
	Path string
	Args []string
	// Rootfs is the absolute path at which the container's root file system is mounted.
	Rootfs string
	// Mounts are the container's own mounts, network files included, in the order in which they are to be made
	// (parents first; SortMounts does that).
	Mounts []Mount
	// ShmPath is the host's tmpfs that becomes /dev/shm in IPC modes "shareable", "container:" and "host". Empty:
	// the runtime mounts a private one.
	ShmPath string
	// Join names the namespaces that exist already.
	Join Namespaces
	// Security is what ParseSecurityOpt of daemon/containers/settings made of the security options.
	Security Security
	// LinkEnv is the environment that legacy links give the container.
	LinkEnv []string
	// Annotations are added to those of HostConfig and win over them, e.g. "org.criu.config".
	Annotations map[string]string
	Host        Host
}

// Mount is one mount of the container.
type Mount struct {
	// Source is a path on the host. For a tmpfs it is TmpfsSource.
	Source      string
	Destination string
	Writable    bool
	// Data holds a tmpfs's options, comma-separated, as the user wrote them.
	Data string
	// Propagation is one of private, rprivate, shared, rshared, slave, rslave, or empty.
	Propagation string
	// PropagationDefaulted says that the user asked for no propagation. A slave mount of a source that cannot be one
	// then becomes private instead of an error.
	PropagationDefaulted   bool
	NonRecursive           bool
	ReadOnlyNonRecursive   bool
	ReadOnlyForceRecursive bool
}

// TmpfsSource is the Source of a Mount that is a tmpfs.
const TmpfsSource = "tmpfs"

// Namespaces are paths of namespaces to join, "/proc/PID/ns/..." or bind-mounted files. An empty path means a new one,
// or the host's where HostConfig says so.
type Namespaces struct {
	Net, PID, IPC string
	// User owns the other namespaces when users are remapped: that of the container they come from, or one that was
	// made for this container together with its network namespace.
	User string
}

// Security holds the parsed security options, under the names the container's record has for them.
type Security struct {
	ProcessLabel, MountLabel string
	AppArmorProfile          string
	// SeccompProfile is empty (the daemon's default), "unconfined", "builtin", or a profile's JSON text.
	SeccompProfile  string
	NoNewPrivileges bool
	// WritableCgroups is nil where the user said nothing: then privileged containers may write.
	WritableCgroups *bool
}

// Names that SeccompProfile knows beside JSON.
const (
	SeccompUnconfined = "unconfined"
	SeccompBuiltin    = "builtin"
)

// Cgroup drivers.
const (
	CgroupDriverCgroupfs = "cgroupfs"
	CgroupDriverSystemd  = "systemd"
)

// Host is what the daemon's settings and the machine contribute to every container.
type Host struct {
	CgroupDriver string // CgroupDriverCgroupfs or CgroupDriverSystemd
	CgroupParent string // the daemon's --cgroup-parent; a container's own wins
	// InitPath is the binary mounted at /sbin/docker-init for containers with an init.
	InitPath string
	// InitByDefault gives an init to containers that do not say.
	InitByDefault bool
	Ulimits       map[string]*container.Ulimit // the daemon's defaults
	// UIDMaps and GIDMaps are set when the daemon remaps users.
	UIDMaps, GIDMaps []user.IDMap
	// SeccompSupported says that the kernel has seccomp filters.
	SeccompSupported bool
	// SeccompProfile is the daemon's default, in the forms of Security.SeccompProfile.
	SeccompProfile string
	// AppArmorDefault is a loaded profile for containers that name none. Empty on hosts without AppArmor.
	AppArmorDefault string
	// RecursiveReadOnly says that kernel and runtime know the mount option "rro".
	RecursiveReadOnly bool
	// PingGroupRange and UnprivilegedPortStart say that these network sysctls exist.
	PingGroupRange, UnprivilegedPortStart bool
	// DataRoot is the daemon's data root. Bind mounts that contain it fall back to private propagation.
	DataRoot string
}

// remapped says whether this container runs in a user namespace of its own.
func (in Input) remapped() bool {
	return len(in.Host.UIDMaps) > 0 && in.HostConfig.UsernsMode.IsPrivate()
}
