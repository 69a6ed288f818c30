package system

import (
	"context"
	"log/slog"
	"runtime/debug"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"

	apisystem "stated.dev/stated/api/router/system"
	"stated.dev/stated/daemon/runtime/sysinfo"
)

// Options are the settings that the answers show, and the services that are asked.
type Options struct {
	ID        string // of the engine
	Version   string // of stated
	GitCommit string
	BuildTime string

	Root            string // the data root
	Debug           bool
	Experimental    bool
	LiveRestore     bool
	NoNewPrivileges bool // set for every container
	PrivateCgroupns bool // the default of containers
	UserRemap       bool
	Labels          []string
	LogDriver       string // the default of containers
	LogDrivers      []string
	CgroupDriver    string
	SeccompProfile  string // "builtin", "unconfined" or a path
	InitPath        string // the init of containers that ask for one: a path, or a name looked up on PATH

	// ContainerdAddress is that of an external containerd, or empty; ContainerdNamespace is where our tasks are in it.
	ContainerdAddress, ContainerdNamespace string

	// Runtimes are the binaries that run containers, by the name a container asks for. DefaultRuntime is one of them.
	Runtimes       map[string]Runtime
	DefaultRuntime string

	AddressPools                   []system.NetworkAddressPool // set by the operator, not the built-in ones
	RegistryMirrors                []string
	InsecureRegistries             []string // host, host:port or CIDR
	HTTPProxy, HTTPSProxy, NoProxy string
	CDISpecDirs                    []string
	// OpenAddresses are the TCP addresses that are served without verified clients.
	OpenAddresses []string

	Host sysinfo.Info
	Log  *slog.Logger

	Containers Containers
	Images     Images
	Volumes    Volumes
	Networks   Networks
	Graph      Graph
	Events     Events
	Registry   Registry // nil: there is no login
}

// Runtime is a binary that runs containers.
type Runtime struct {
	Path string
	Args []string
}

// Service implements the backend of the system router.
type Service struct {
	o    Options
	log  *slog.Logger
	host host

	runtimes map[string]*tool
	init     *tool
	registry *registry.ServiceConfig
	// containerd is the version of the library that is built in.
	containerd string
}

var _ apisystem.Backend = (*Service)(nil)

// New returns the service. It reads what does not change from the host, and runs nothing yet.
func New(o Options) (*Service, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	registryConfig, err := registryConfig(o.RegistryMirrors, o.InsecureRegistries)
	if err != nil {
		return nil, err
	}
	s := &Service{
		o:          o,
		log:        o.Log,
		host:       readHost(o.Log),
		runtimes:   map[string]*tool{},
		init:       newTool(o.InitPath, parseInit, ""),
		registry:   registryConfig,
		containerd: moduleVersion("github.com/containerd/containerd/v2"),
	}
	byPath := map[string]*tool{} // several names may stand for one binary
	for name, r := range o.Runtimes {
		if byPath[r.Path] == nil {
			byPath[r.Path] = newTool(r.Path, parseRuntime, "features")
		}
		s.runtimes[name] = byPath[r.Path]
	}
	return s, nil
}

// Events subscribes to the daemon's events.
func (s *Service) Events(ctx context.Context, req apisystem.EventsRequest) (apisystem.EventStream, error) {
	return s.o.Events.Events(ctx, req)
}

// Login checks credentials with a registry.
func (s *Service) Login(ctx context.Context, auth registry.AuthConfig) (string, error) {
	if s.o.Registry == nil {
		return "", errdefs.ErrNotImplemented.WithMessage("login is not built yet in stated")
	}
	return s.o.Registry.Login(ctx, auth)
}

// SwarmStatus is what a ping says of the cluster.
func (s *Service) SwarmStatus() string { return string(swarm.LocalNodeStateInactive) }

// moduleVersion returns the version of a module that is built in, or "" in a build that does not say.
func moduleVersion(path string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, dep := range info.Deps {
		if dep.Path != path {
			continue
		}
		if dep.Replace != nil {
			return dep.Replace.Version
		}
		return dep.Version
	}
	return ""
}
