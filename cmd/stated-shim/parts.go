package main

import (
	"context"

	"github.com/containerd/errdefs"

	"stated.dev/stated/daemon/logs"
	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/daemon/shim"
	"stated.dev/stated/network/sandbox"
)

// parts is what a shim is made of.
func parts() shim.Parts {
	return shim.Parts{
		OpenLog: func(l shimapi.Log) (shim.RecordWriter, error) {
			return logs.NewWriter(logs.Options{
				Driver:   l.Driver,
				Path:     l.Path,
				MaxSize:  l.MaxSize,
				MaxFiles: l.MaxFiles,
				Compress: l.Compress,
				Attrs:    l.Attrs,
			})
		},
		OpenPorts: func() (shim.PortHolder, error) { return nil, errdefs.ErrNotImplemented },
		OpenDNS: func(context.Context, sandbox.DNSConfig) (shim.Resolver, error) {
			return nil, errdefs.ErrNotImplemented
		},
	}
}
