package system

import (
	"context"
	"runtime"
	"strconv"

	"github.com/moby/moby/api/types/system"

	"stated.dev/stated/api/route"
)

// Version lists the versions of the daemon and of what it runs.
func (s *Service) Version(ctx context.Context) (system.VersionResponse, error) {
	v := system.VersionResponse{
		Platform:      system.PlatformInfo{Name: "stated"},
		Version:       s.o.Version,
		APIVersion:    route.DefaultVersion,
		MinAPIVersion: route.MinVersion,
		Os:            runtime.GOOS,
		Arch:          runtime.GOARCH,
		GitCommit:     s.o.GitCommit,
		GoVersion:     runtime.Version(),
		KernelVersion: s.host.kernel,
		Experimental:  s.o.Experimental,
		BuildTime:     s.o.BuildTime,
	}
	v.Components = []system.ComponentVersion{{
		Name:    "Engine",
		Version: v.Version,
		Details: map[string]string{
			"ApiVersion":    v.APIVersion,
			"Arch":          v.Arch,
			"BuildTime":     v.BuildTime,
			"Experimental":  strconv.FormatBool(v.Experimental),
			"GitCommit":     v.GitCommit,
			"GoVersion":     v.GoVersion,
			"KernelVersion": v.KernelVersion,
			"MinAPIVersion": v.MinAPIVersion,
			"Os":            v.Os,
		},
	}}
	if s.containerd != "" {
		v.Components = append(v.Components, component("containerd", about{version: s.containerd, commit: "built in"}))
	}
	if t := s.runtimes[s.o.DefaultRuntime]; t != nil {
		if about, err := t.ask(ctx); err == nil {
			v.Components = append(v.Components, component(s.o.DefaultRuntime, about))
		}
	}
	if about, err := s.init.ask(ctx); err == nil {
		v.Components = append(v.Components, component("docker-init", about))
	}
	return v, ctx.Err()
}

func component(name string, a about) system.ComponentVersion {
	return system.ComponentVersion{Name: name, Version: a.version, Details: map[string]string{"GitCommit": a.commit}}
}
