// Package system routes the operations of the Docker Engine API that are about the daemon itself, and stated's own
// listing of its phases.
package system

import (
	"context"
	"time"

	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"

	"stated.dev/stated/api/types"
	"stated.dev/stated/internal/filters"
)

// Backend is what the routes need of the daemon.
type Backend interface {
	Info(ctx context.Context) (types.Info, error)
	Version(ctx context.Context) (system.VersionResponse, error)
	DiskUsage(ctx context.Context, kinds DiskUsageKinds) (types.DiskUsage, error)
	// Events subscribes before it returns.
	Events(ctx context.Context, req EventsRequest) (EventStream, error)
	// Login checks credentials with a registry. The token is empty when the registry gives none for them.
	Login(ctx context.Context, auth registry.AuthConfig) (identityToken string, err error)
	// SwarmStatus is what a ping says of the cluster: "inactive", "active/manager" and so on.
	SwarmStatus() string
}

// PhaseLister knows how far the start has come.
type PhaseLister interface {
	Phases(ctx context.Context) []types.Phase
}

// Doctor knows what is wrong.
type Doctor interface {
	Doctor(ctx context.Context) types.Doctor
}

// DiskUsageKinds says what to measure.
type DiskUsageKinds struct {
	Containers, Images, Volumes, BuildCache bool
}

// EventsRequest chooses events. Events older than Since are left out; without it none of the past are sent. The
// stream ends at Until, if given.
type EventsRequest struct {
	Since, Until time.Time
	Filters      filters.Args
}

// EventStream yields events until io.EOF: one JSON object or several, each with a newline but for a single one. What
// Next returns is valid until the next call. Close releases the stream.
type EventStream interface {
	Next(ctx context.Context) ([]byte, error)
	Close() error
}
