package containers

import (
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"stated.dev/stated/api/route"
	"stated.dev/stated/api/types"
)

// errNoConfig is Docker's answer to a body that has none of a container's own settings.
var errNoConfig = errdefs.ErrInvalidArgument.WithMessage("config cannot be empty in order to create a container")

// createBody is the body of POST /containers/create. The three commands stand outside the configuration, and so win
// over its fields of the same names, because they may be written as one string.
type createBody struct {
	*types.ContainerConfig
	Cmd, Entrypoint, Shell types.StringOrSlice

	HostConfig       *container.HostConfig
	NetworkingConfig *network.NetworkingConfig
}

// request turns the body into what the backend takes: nothing in it is nil that clients may leave out.
func (b createBody) request() (CreateRequest, error) {
	if b.ContainerConfig == nil {
		if b.Cmd == nil && b.Entrypoint == nil && b.Shell == nil {
			return CreateRequest{}, errNoConfig
		}
		b.ContainerConfig = new(types.ContainerConfig)
	}
	b.ContainerConfig.Cmd, b.ContainerConfig.Entrypoint, b.ContainerConfig.Shell = b.Cmd, b.Entrypoint, b.Shell
	req := CreateRequest{Config: b.ContainerConfig, HostConfig: b.HostConfig, Networking: b.NetworkingConfig}
	if req.HostConfig == nil {
		req.HostConfig = new(container.HostConfig)
	}
	if req.Networking == nil {
		req.Networking = new(network.NetworkingConfig)
	}
	if req.Networking.EndpointsConfig == nil {
		req.Networking.EndpointsConfig = map[string]*network.EndpointSettings{}
	}
	for name, endpoint := range req.Networking.EndpointsConfig {
		if endpoint == nil {
			req.Networking.EndpointsConfig[name] = new(network.EndpointSettings)
		}
	}
	return req, nil
}

func (h handlers) create(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var body createBody
	if err := route.Decode(r, &body); err != nil {
		return err
	}
	req, err := body.request()
	if err != nil {
		return err
	}
	req.Name = r.URL.Query().Get("name")
	if p := r.URL.Query().Get("platform"); p != "" && !route.VersionBefore(ctx, "1.41") {
		platform, err := platforms.Parse(p)
		if err != nil {
			return errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
		req.Platform = &platform
	}
	warnings, err := adapt(&req, route.Version(ctx))
	if err != nil {
		return err
	}
	created, err := h.b.Create(ctx, req)
	if err != nil {
		return err
	}
	created.Warnings = append(created.Warnings, warnings...)
	if created.Warnings == nil {
		created.Warnings = []string{}
	}
	return route.WriteJSON(w, http.StatusCreated, created)
}
