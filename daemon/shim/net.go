package shim

import (
	"context"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"

	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/network/sandbox"
)

// netParts is what a shim does for the container's network.
type netParts struct {
	parts Parts
	calls *calls // one table for all methods: an acknowledgement comes with any of them

	mu    sync.Mutex // guards what is below; held over their calls
	ports PortHolder
	dns   Resolver
}

// register adds the shim's own service to a server, with these further methods.
func (n *netParts) register(server *ttrpc.Server, methods map[string]ttrpc.Method) {
	methods[shimapi.MethodHoldPorts] = kept(n.calls, n.holdPorts)
	methods[shimapi.MethodReleasePorts] = kept(n.calls, n.releasePorts)
	methods[shimapi.MethodPorts] = method(n.listPorts)
	methods[shimapi.MethodServeDNS] = kept(n.calls, n.serveDNS)
	server.RegisterService(shimapi.Service, &ttrpc.ServiceDesc{Methods: methods})
}

func (n *netParts) holdPorts(ctx context.Context, r shimapi.HoldRequest) (shimapi.HoldResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports == nil {
		holder, err := n.parts.OpenPorts()
		if err != nil {
			return shimapi.HoldResponse{}, err
		}
		n.ports = holder
	}
	bound, err := n.ports.Hold(ctx, r.EndpointID, r.Ports)
	if errdefs.IsConflict(err) {
		return shimapi.HoldResponse{Conflict: err.Error()}, nil
	}
	return shimapi.HoldResponse{Ports: bound}, err
}

func (n *netParts) releasePorts(_ context.Context, r shimapi.HoldRequest) (shimapi.Empty, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports == nil {
		return shimapi.Empty{}, nil
	}
	return shimapi.Empty{}, n.ports.Release(r.EndpointID)
}

func (n *netParts) listPorts(context.Context, shimapi.Empty) (map[string][]sandbox.Port, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports == nil {
		return map[string][]sandbox.Port{}, nil
	}
	return n.ports.List(), nil
}

func (n *netParts) serveDNS(ctx context.Context, cfg sandbox.DNSConfig) (_ shimapi.Empty, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dns != nil {
		return shimapi.Empty{}, n.dns.Reconfigure(cfg)
	}
	// The resolver outlives the call.
	n.dns, err = n.parts.OpenDNS(context.WithoutCancel(ctx), cfg)
	return shimapi.Empty{}, err
}

func (n *netParts) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ports != nil {
		_ = n.ports.Close() // its sockets end with the process
		n.ports = nil
	}
	if n.dns != nil {
		_ = n.dns.Close() // likewise
		n.dns = nil
	}
}
