// Package shimapi holds the words between the daemon and the process that stands beside each container: names of
// files and sockets, the requests of the shim's own service, and the framing of its attach socket. Both sides import
// it, so that neither imports the other. It does nothing but encode and decode.
//
// Beside its own service the shim serves containerd's task API (version 3) on the same socket.
package shimapi

import (
	"time"

	"stated.dev/stated/network/sandbox"
)

// Files in a container's runtime directory, <exec root>/containers/<id>.
const (
	ConfigFile   = "spawn.json"  // Config, written before the shim is told of it
	BundleFile   = "config.json" // the OCI spec
	LockFile     = "lock"        // flocked for as long as the shim lives
	TaskSocket   = "shim.sock"
	AttachSocket = "attach.sock"
	InfoFile     = "shim.json" // Info
	ExitFile     = "exit.json" // Exit, written once, synced
	LogFile      = "shim.log"  // the shim's own errors
	CriuFile     = "criu.conf" // options for criu, written by the migration
)

// DirectoryAnnotation names, in the OCI spec of a container that an external containerd runs, the container's runtime
// directory. By it containerd's "start" finds the shim that stands there already.
const DirectoryAnnotation = "dev.stated.directory"

// Namespace is the last element of runc's state directory: runc keeps its state in <exec root>/runc.
const Namespace = "runc"

// Service is the name of the shim's own ttrpc service. Each method takes and returns a google.protobuf.BytesValue
// that holds JSON.
const Service = "stated.shim.v1.Shim"

// Methods of Service.
const (
	MethodInfo         = "Info"         // Empty -> Snapshot
	MethodWait         = "Wait"         // WaitRequest -> Exit
	MethodHoldPorts    = "HoldPorts"    // HoldRequest -> HoldResponse
	MethodReleasePorts = "ReleasePorts" // HoldRequest -> Empty
	MethodPorts        = "Ports"        // Empty -> map[string][]sandbox.Port
	MethodServeDNS     = "ServeDNS"     // sandbox.DNSConfig -> Empty
	MethodForget       = "Forget"       // ProcessRequest -> Empty: deletes an ended exec
	MethodDelete       = "Delete"       // Empty -> Empty: deletes the task and ends the shim
	MethodAck          = "Ack"          // Empty -> Empty: for the acknowledgements in its metadata
)

// Metadata of a call. A call with a key is carried out once: the shim keeps its result until a later call
// acknowledges the key, and answers a repetition with it.
const (
	MetaKey = "stated-key"
	MetaAck = "stated-ack" // repeated
)

// Config is what a shim is told when it starts.
type Config struct {
	ID            string
	ExecRoot      string // runc's state is in ExecRoot/runc
	RuncPath      string
	SystemdCgroup bool
	Tty           bool
	OpenStdin     bool
	StdinOnce     bool
	UID, GID      int // of the processes' pipes
	Log           Log
}

// Log says where the container's output is recorded.
type Log struct {
	Driver   string
	Path     string
	MaxSize  int64
	MaxFiles int
	Compress bool
	Attrs    map[string]string `json:",omitempty"`
}

// Info tells which process is the shim of a container.
type Info struct {
	Pid       int
	StartTime uint64 // field 22 of /proc/<pid>/stat: clock ticks since boot
	BootID    string
	Version   string
}

// Exit is how a process ended.
type Exit struct {
	Code      int       `json:"code"`
	Time      time.Time `json:"time"`
	OOMKilled bool      `json:"oom_killed"`
	StartedAt time.Time `json:"started_at"`
	Pid       int       `json:"pid"`
}

// Process states. The words are those of runtime.Status.
const (
	StateSpawned = "spawned"
	StateCreated = "created"
	StateRunning = "running"
	StatePaused  = "paused"
	StateStopped = "stopped"
)

// Process is a snapshot of init or of a further process.
type Process struct {
	ID        string // empty for init
	State     string
	Pid       int
	StartedAt time.Time
	Exit      *Exit `json:",omitempty"`
	Tty       bool
}

// Snapshot is all that a shim knows of its processes.
type Snapshot struct {
	Init  Process
	Execs []Process
}

// ProcessRequest names a process; the empty id is init.
type ProcessRequest struct{ ID string }

// HoldRequest names ports of an endpoint.
type HoldRequest struct {
	EndpointID string
	Ports      []sandbox.Port
}

// HoldResponse has the ports that were bound, in the order asked, or the text of a conflict, whose class would be lost
// on the way.
type HoldResponse struct {
	Ports    []sandbox.Port
	Conflict string `json:",omitempty"`
}

// Empty is no words at all.
type Empty struct{}
