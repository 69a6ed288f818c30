package main

import (
	"context"

	"stated.dev/stated/daemon/logs"
	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/daemon/shim"
	"stated.dev/stated/daemon/shim/ports"
	"stated.dev/stated/network/dns"
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
		OpenPorts: func() (shim.PortHolder, error) { return ports.NewHolder(), nil },
		OpenDNS: func(ctx context.Context, cfg sandbox.DNSConfig) (shim.Resolver, error) {
			server, err := dns.Serve(ctx, cfg)
			if err != nil {
				return nil, err // not a Resolver that holds a nil Server
			}
			return server, nil
		},
	}
}
