package shim

import (
	"context"
	"fmt"
	"os"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	containerdshim "github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// runtimeName is what an external containerd sees.
const runtimeName = "io.containerd.stated.v1"

// ServeContainerd is the life of the program under an external containerd, by containerd's own protocol: it answers
// the actions "start" and "delete", and serves what start has spawned. A container whose spec names a runtime directory
// has a shim of the daemon's already, which containerd then joins. For any other the streams and the exit record are
// containerd's; of the shim's own service there is what concerns the network. It exits by itself on an error.
func ServeContainerd(parts Parts) {
	if a, ok := parseAction(os.Args[1:]); ok {
		done, err := a.answer(context.Background())
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %s: %v", runtimeName, a.verb, err)
			os.Exit(1)
		}
		if done {
			return
		}
	}
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			events, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			down, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			return newGuest(ic.Context, parts, events.(containerdshim.Publisher), down.(shutdown.Service))
		},
	})
	containerdshim.RunShim(context.Background(), manager.NewShimManager(runtimeName))
}

// guest is the shim under an external containerd: the task service as it is, and our part in the network.
type guest struct {
	tasks taskapi.TTRPCTaskService
	net   netParts
}

var _ containerdshim.TTRPCService = (*guest)(nil)

func newGuest(ctx context.Context, parts Parts, events containerdshim.Publisher, down shutdown.Service) (*guest, error) {
	tasks, err := task.NewTaskService(ctx, events, down)
	if err != nil {
		return nil, fmt.Errorf("open the task service: %w", err)
	}
	g := &guest{tasks: tasks, net: netParts{parts: parts, calls: &calls{}}}
	down.RegisterCallback(func(context.Context) error {
		g.net.close()
		return nil
	})
	return g, nil
}

// RegisterTTRPC adds both services to containerd's server.
func (g *guest) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, g.tasks)
	g.net.register(server, map[string]ttrpc.Method{
		shimapi.MethodAck: kept(g.net.calls, func(context.Context, shimapi.Empty) (shimapi.Empty, error) {
			return shimapi.Empty{}, nil
		}),
	})
	return nil
}
