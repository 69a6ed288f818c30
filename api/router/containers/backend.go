// Package containers routes the container and exec operations of the Docker Engine API.
package containers

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"stated.dev/stated/api/types"
	"stated.dev/stated/internal/filters"
)

// Backend is what the routes need of the container service. Every ref is an id, a unique prefix of one, or a name.
// Answers that depend on the API version take it from the context (api/route.Version).
type Backend interface {
	Create(ctx context.Context, req CreateRequest) (container.CreateResponse, error)
	// List returns one JSON object a container (container.Summary), newest first.
	List(ctx context.Context, req ListRequest) ([]json.RawMessage, error)
	// Inspect returns the JSON of GET /containers/{id}/json.
	Inspect(ctx context.Context, ref string, size bool) (json.RawMessage, error)

	// Start and Stop report "nothing to do" by types.ErrNotModified.
	Start(ctx context.Context, ref string, req StartRequest) error
	Stop(ctx context.Context, ref string, req StopRequest) error
	Restart(ctx context.Context, ref string, req StopRequest) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Rename(ctx context.Context, ref, name string) error
	Update(ctx context.Context, ref string, req container.UpdateConfig) (container.UpdateResponse, error)
	Remove(ctx context.Context, ref string, req RemoveRequest) error
	Prune(ctx context.Context, f filters.Args) (container.PruneReport, error)
	// Wait registers the wait before it returns; the channel yields once.
	Wait(ctx context.Context, ref string, condition container.WaitCondition) (<-chan container.WaitResponse, error)

	Top(ctx context.Context, ref, psArgs string) (container.TopResponse, error)
	// Stats calls emit for each sample (a container.StatsResponse as JSON) until ctx ends, the container is removed,
	// or once when req.Stream is false.
	Stats(ctx context.Context, ref string, req StatsRequest, emit func(json.RawMessage) error) error
	// Logs calls emit for each record in order. Multiplexed says whether the client gets stream frames (no tty).
	Logs(ctx context.Context, ref string, req LogsRequest) (records LogStream, multiplexed bool, err error)
	Changes(ctx context.Context, ref string) ([]container.FilesystemChange, error)
	Export(ctx context.Context, ref string) (io.ReadCloser, error)

	// Attach joins the container's streams. Multiplexed as for Logs. The stream replays logs first when asked to.
	Attach(ctx context.Context, ref string, req AttachRequest) (stream Stream, multiplexed bool, err error)
	Resize(ctx context.Context, ref string, width, height int) error

	ExecCreate(ctx context.Context, ref string, req container.ExecCreateRequest) (id string, err error)
	// ExecStart starts the process. With req.Detach the stream is nil.
	ExecStart(ctx context.Context, id string, req container.ExecStartRequest) (stream Stream, multiplexed bool, err error)
	ExecInspect(ctx context.Context, id string) (container.ExecInspectResponse, error)
	ExecResize(ctx context.Context, id string, width, height int) error
}

// CreateRequest is the body and query of POST /containers/create.
type CreateRequest struct {
	Name       string
	Platform   *ocispec.Platform
	Config     *types.ContainerConfig
	HostConfig *container.HostConfig
	Networking *network.NetworkingConfig
}

type ListRequest struct {
	All     bool
	Limit   int // 0: no limit
	Size    bool
	Filters filters.Args
}

type StartRequest struct {
	DetachKeys    string
	Checkpoint    string
	CheckpointDir string
}

// StopRequest overrides the container's own stop signal and time-out.
type StopRequest struct {
	Signal  string
	Timeout *int // seconds; negative: wait forever
}

type RemoveRequest struct {
	Volumes bool
	Force   bool
	Link    bool
}

type StatsRequest struct {
	Stream  bool
	OneShot bool
}

type LogsRequest struct {
	Follow, Stdout, Stderr, Timestamps, Details bool
	Since, Until                                time.Time
	Tail                                        int // number of records from the end; negative: all
}

// LogStream yields records until io.EOF. Close releases it.
type LogStream interface {
	Next(ctx context.Context) (LogRecord, error)
	Close() error
}

// LogRecord is one line (or part of a long one) of a container's output, with its newline if it had one.
type LogRecord struct {
	Stream string // "stdout" or "stderr"
	Time   time.Time
	Line   []byte
	Attrs  map[string]string
}

type AttachRequest struct {
	Stream, Logs          bool
	Stdin, Stdout, Stderr bool
	DetachKeys            string
}

// Stream is a client's share of a process's standard streams: Read yields what is to be sent to the client, frames
// included where multiplexed; Write feeds stdin; CloseWrite ends stdin.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}
