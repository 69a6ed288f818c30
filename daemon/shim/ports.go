package shim

import (
	"context"
	"time"

	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/network/sandbox"
)

// RecordWriter writes records of the container's output. It buffers; Flush hands all to the kernel.
type RecordWriter interface {
	Write(stream string, t time.Time, line []byte) error
	Flush() error
	Close() error
}

// PortHolder binds host ports and forwards where the kernel cannot.
type PortHolder interface {
	Hold(ctx context.Context, endpointID string, ports []sandbox.Port) ([]sandbox.Port, error)
	Release(endpointID string) error
	List() map[string][]sandbox.Port
	Close() error
}

// Resolver serves names inside a network namespace.
type Resolver interface {
	Reconfigure(cfg sandbox.DNSConfig) error
	Close() error
}

// Parts are what a shim is made of beside the task service. Each is opened when it is first asked for, so that a
// container without published ports or names pays nothing for them.
type Parts struct {
	OpenLog   func(shimapi.Log) (RecordWriter, error)
	OpenPorts func() (PortHolder, error)
	OpenDNS   func(ctx context.Context, cfg sandbox.DNSConfig) (Resolver, error)
}
