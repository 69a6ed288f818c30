// Package runtime runs container tasks: it starts one shim for each container, speaks its task API, and finds the
// shims again after the daemon was away. It knows nothing of images, volumes, networks or records.
//
// A task lives through Spawn -> Create -> Start -> (exit) -> Delete. The shim outlives the daemon; Reconnect takes
// it up again. A shim that does not answer is reported and set aside, never deleted.
//
// Locks: Shims.mu, conn.mu, task.mu and stream.mu guard the fields below them; the second is held over a local dial,
// the last over a write to the shim, and none while another is taken but Shims.mu, which is a leaf.
package runtime

import (
	"context"
	"io"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"stated.dev/stated/network/sandbox"
)

// Runtime starts shims and finds them again. Its implementations pass runtimetest.Run.
type Runtime interface {
	// Spawn starts the shim of a container. It returns once the shim answers; no process of the container exists yet.
	// A container that has a shim already is an errdefs.ErrAlreadyExists.
	Spawn(ctx context.Context, req SpawnRequest) (Task, error)

	// Reconnect returns the task of a container whose shim was started earlier, perhaps by another daemon process.
	// Without a shim, but with an exit record left by one, it returns a Task whose State is Stopped with that exit.
	// Without either it returns errdefs.ErrNotFound. A shim that is there but does not answer within the deadline
	// is errdefs.ErrUnavailable.
	Reconnect(ctx context.Context, id string) (Task, error)

	// List returns the ids of all containers that have a runtime directory, living or not.
	List(ctx context.Context) ([]string, error)

	// Close drops the connections to the shims and leaves the shims running.
	Close() error
}

// SpawnRequest says what the shim has to know before the container's process exists.
type SpawnRequest struct {
	ID        string
	Tty       bool
	OpenStdin bool // keep a stdin open for the container; without it stdin is /dev/null
	StdinOnce bool // close stdin when the first attached client that had stdin goes
	Log       LogConfig
	// CgroupDriver is "cgroupfs" or "systemd".
	CgroupDriver string
	// UID and GID own the pipes of the container's processes, so that its root may open them again by /dev/stdout.
	UID, GID int
}

// LogConfig says where the shim writes the container's output.
type LogConfig struct {
	Driver   string // "json-file", "local" or "none"
	Path     string // absolute path of the live file
	MaxSize  int64  // bytes at which the file is rotated; 0 means never
	MaxFiles int    // number of files kept, the live one included; at least 1
	Compress bool   // gzip rotated files
	// Attrs is written as "attrs" with each json-file record (labels and environment chosen by log options).
	Attrs map[string]string `json:",omitempty"`
}

// Status is the state of a task.
type Status string

const (
	StatusSpawned Status = "spawned" // the shim runs, the task is not created
	StatusCreated Status = "created"
	StatusRunning Status = "running"
	StatusPaused  Status = "paused"
	StatusStopped Status = "stopped"
)

// Exit is how a process ended.
type Exit struct {
	Code      int
	At        time.Time
	OOMKilled bool // the kernel's OOM killer counted a kill in the container's cgroup since it started
}

// State is a snapshot of a task.
type State struct {
	Status    Status
	Pid       int
	StartedAt time.Time
	Exit      Exit // set when Status is StatusStopped
}

// Task is one container's processes and what its shim holds for them.
type Task interface {
	ID() string

	// State asks the shim; for a shim that is gone it reads the exit record.
	State(ctx context.Context) (State, error)

	// HoldPorts binds host ports in the shim and starts its forwarder for them. Host ports of 0 and ranges are
	// resolved; the answer has the port that was bound, in the order asked. When one cannot be bound none is, and
	// the error is an errdefs.ErrConflict that names it. ReleasePorts closes all that belong to an endpoint id.
	HoldPorts(ctx context.Context, endpointID string, ports []sandbox.Port) ([]sandbox.Port, error)
	ReleasePorts(ctx context.Context, endpointID string) error
	// Ports lists what the shim holds, by endpoint id.
	Ports(ctx context.Context) (map[string][]sandbox.Port, error)

	// ServeDNS starts (or reconfigures) the resolver at 127.0.0.11:53 inside the network namespace.
	ServeDNS(ctx context.Context, cfg sandbox.DNSConfig) error

	// Create prepares the container's init process from spec, whose root path is mounted. It returns the pid.
	Create(ctx context.Context, spec *specs.Spec) (int, error)
	Start(ctx context.Context) error

	// Wait returns when init has ended. It may be called by many and after the end.
	Wait(ctx context.Context) (Exit, error)

	// Kill signals init, or all processes. One that has ended is an errdefs.ErrNotFound.
	Kill(ctx context.Context, signal int, all bool) error
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Freezer finds what holds the processes still for moments. Where that cannot be done past the shim it is an
	// errdefs.ErrNotImplemented.
	Freezer(ctx context.Context) (Freezer, error)
	Update(ctx context.Context, resources *specs.LinuxResources) error
	// Pids lists the processes of the container as seen from the host.
	Pids(ctx context.Context) ([]int, error)
	Stats(ctx context.Context) (*Stats, error)
	Resize(ctx context.Context, width, height int) error

	// Attach joins the standard streams of init.
	Attach(ctx context.Context, req AttachRequest) (Stream, error)

	// Exec creates a further process, not yet started.
	Exec(ctx context.Context, execID string, req ExecRequest) (Process, error)
	// Execs returns the further processes that the shim knows, for instance after Reconnect.
	Execs(ctx context.Context) ([]Process, error)

	// Delete removes the task and ends the shim. A task that runs is refused with errdefs.ErrFailedPrecondition.
	// It is idempotent; the runtime directory is gone when it returns.
	Delete(ctx context.Context) error
}

// ExecRequest describes a further process in a running container.
type ExecRequest struct {
	Spec  *specs.Process // Terminal says whether it has a tty
	Stdin bool
}

// Process is a further process in a container ("exec").
type Process interface {
	ID() string
	// Attach joins the streams; before Start it loses nothing.
	Attach(ctx context.Context, req AttachRequest) (Stream, error)
	Start(ctx context.Context) (pid int, err error)
	State(ctx context.Context) (State, error)
	Wait(ctx context.Context) (Exit, error)
	Kill(ctx context.Context, signal int) error
	Resize(ctx context.Context, width, height int) error
	// Delete forgets an ended process.
	Delete(ctx context.Context) error
}

// AttachRequest chooses the streams to join.
type AttachRequest struct {
	Stdin, Stdout, Stderr bool
	// Paced makes the process wait for this client when it lags, instead of the client being cut: for output that
	// somebody wants whole. A further process always waits for its client, because its output is kept nowhere else.
	Paced bool
}

// Stream is one client's share of a process's standard streams.
//
// Read yields what a Docker client gets: without a tty, frames of an 8-byte header {1|2,0,0,0,len BE32} and payload;
// with a tty, raw bytes. It ends with io.EOF when the process's output has ended. A client that reads too slowly is
// cut off rather than waited for. Write is the process's stdin. CloseWrite tells that this client's stdin has ended.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Stats is one sample of a container's resource use, in the kernel's units (nanoseconds, bytes).
type Stats struct {
	Read time.Time
	// Version is 1 or 2: the cgroup version the figures come from.
	Version int
	CPU     CPUStats
	Memory  MemoryStats
	Blkio   []BlkioEntry
	Pids    PidsStats
}

type CPUStats struct {
	Total, User, System                      uint64 // ns
	PerCPU                                   []uint64
	Periods, ThrottledPeriods, ThrottledTime uint64
}

type MemoryStats struct {
	Usage, MaxUsage, Limit, Failcnt uint64
	Stats                           map[string]uint64 // memory.stat as the kernel names it
}

type BlkioEntry struct {
	Major, Minor uint64
	Op           string // "read" or "write" ...
	Bytes        uint64
	IOs          uint64
}

type PidsStats struct{ Current, Limit uint64 }
