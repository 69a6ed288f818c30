package networks

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/network"

	"stated.dev/stated/api/route"
)

type handlers struct{ backend Backend }

// Routes returns the network routes over b.
func Routes(b Backend) []route.Route {
	h := handlers{b}
	return []route.Route{
		{Method: http.MethodGet, Path: "/networks", Handler: h.list},
		{Method: http.MethodGet, Path: "/networks/{$}", Handler: h.list},
		{Method: http.MethodGet, Path: "/networks/{id...}", Handler: h.inspect},
		{Method: http.MethodPost, Path: "/networks/create", Handler: h.create},
		{Method: http.MethodPost, Path: "/networks/prune", Handler: h.prune},
		{Method: http.MethodPost, Path: "/networks/{id}/connect", Handler: h.connect},
		{Method: http.MethodPost, Path: "/networks/{id}/disconnect", Handler: h.disconnect},
		{Method: http.MethodDelete, Path: "/networks/{id...}", Handler: h.remove},
	}
}

// listWithoutContainers is the version since which lists leave the containers out.
const listWithoutContainers = "1.28"

func (h handlers) list(w http.ResponseWriter, r *http.Request) error {
	f, err := route.Filters(r)
	if err != nil {
		return err
	}
	list, err := h.backend.List(r.Context(), f)
	if err != nil {
		return err
	}
	if route.VersionBefore(r.Context(), listWithoutContainers) {
		for i := range list {
			full, err := h.backend.Inspect(r.Context(), list[i].ID, InspectRequest{})
			if err == nil { // else it was removed meanwhile
				list[i] = full
			}
		}
	}
	return route.WriteJSON(w, http.StatusOK, wireList(list))
}

func (h handlers) inspect(w http.ResponseWriter, r *http.Request) error {
	verbose := r.URL.Query().Get("verbose")
	req := InspectRequest{Verbose: route.Bool(r, "verbose"), Scope: r.URL.Query().Get("scope")}
	switch verbose {
	case "", "0", "1", "t", "T", "f", "F", "true", "false", "TRUE", "FALSE", "True", "False":
	default:
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid value for verbose: %s", verbose))
	}
	n, err := h.backend.Inspect(r.Context(), r.PathValue("id"), req)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, wire(n))
}

// createRequest is api.CreateRequest with addresses as text, so that a malformed one is answered in Docker's words.
type createRequest struct {
	Name           string
	Driver         string
	Scope          string
	EnableIPv4     *bool
	EnableIPv6     *bool
	IPAM           *ipamRequest
	Internal       bool
	Attachable     bool
	Ingress        bool
	ConfigOnly     bool
	ConfigFrom     *api.ConfigReference
	Options        map[string]string
	Labels         map[string]string
	CheckDuplicate bool // known to old clients; names are always unique
}

type ipamRequest struct {
	Driver  string
	Options map[string]string
	Config  []struct {
		Subnet     string
		IPRange    string
		Gateway    string
		AuxAddress map[string]string `json:"AuxiliaryAddresses"`
	}
}

func (h handlers) create(w http.ResponseWriter, r *http.Request) error {
	var body createRequest
	if err := route.Decode(r, &body); err != nil {
		return err
	}
	req := api.CreateRequest{
		Name: body.Name, Driver: body.Driver, Scope: body.Scope, EnableIPv4: body.EnableIPv4, EnableIPv6: body.EnableIPv6,
		Internal: body.Internal, Attachable: body.Attachable, Ingress: body.Ingress,
		ConfigOnly: body.ConfigOnly, ConfigFrom: body.ConfigFrom, Options: body.Options, Labels: body.Labels,
	}
	if body.IPAM != nil {
		var err error
		if req.IPAM, err = body.IPAM.parse(); err != nil {
			return err
		}
	}
	id, warning, err := h.backend.Create(r.Context(), req)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusCreated, api.CreateResponse{ID: id, Warning: warning})
}

// parse reads the addresses and reports all that are malformed.
func (i *ipamRequest) parse() (*api.IPAM, error) {
	out := &api.IPAM{Driver: i.Driver, Options: i.Options}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, c := range i.Config {
		var cfg api.IPAMConfig
		var err error
		if cfg.Subnet, err = netip.ParsePrefix(c.Subnet); err != nil {
			bad("invalid subnet %s: invalid CIDR block notation", c.Subnet)
		}
		if c.IPRange != "" {
			if cfg.IPRange, err = netip.ParsePrefix(c.IPRange); err != nil {
				bad("invalid ip-range %s: invalid CIDR block notation", c.IPRange)
			}
		}
		if c.Gateway != "" {
			if cfg.Gateway, err = netip.ParseAddr(c.Gateway); err != nil {
				bad("invalid gateway %s: invalid address", c.Gateway)
			}
		}
		for name, text := range c.AuxAddress {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				bad("invalid auxiliary address %s: invalid address", text)
				continue
			}
			if cfg.AuxAddress == nil {
				cfg.AuxAddress = map[string]netip.Addr{}
			}
			cfg.AuxAddress[name] = addr
		}
		out.Config = append(out.Config, cfg)
	}
	if len(errs) > 0 {
		return nil, errdefs.ErrInvalidArgument.WithMessage("invalid network config:\n" + errors.Join(errs...).Error())
	}
	return out, nil
}

func (h handlers) connect(w http.ResponseWriter, r *http.Request) error {
	var req api.ConnectRequest
	if err := route.Decode(r, &req); err != nil {
		return err
	}
	if err := h.backend.Connect(r.Context(), r.PathValue("id"), req); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (h handlers) disconnect(w http.ResponseWriter, r *http.Request) error {
	var req api.DisconnectRequest
	if err := route.Decode(r, &req); err != nil {
		return err
	}
	if err := h.backend.Disconnect(r.Context(), r.PathValue("id"), req); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (h handlers) remove(w http.ResponseWriter, r *http.Request) error {
	if err := h.backend.Remove(r.Context(), r.PathValue("id")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h handlers) prune(w http.ResponseWriter, r *http.Request) error {
	f, err := route.Filters(r)
	if err != nil {
		return err
	}
	deleted, err := h.backend.Prune(r.Context(), f)
	if err != nil {
		return err
	}
	if len(deleted) == 0 {
		deleted = nil // Docker writes null here
	}
	return route.WriteJSON(w, http.StatusOK, api.PruneReport{NetworksDeleted: deleted})
}

// wire gives a network the form that it has in API 1.51, which does not know Status. As in Docker, the pools of a
// network without any are null.
func wire(n api.Inspect) api.Inspect {
	n.Status = nil
	if n.Containers == nil {
		n.Containers = map[string]api.EndpointResource{}
	}
	return n
}

func wireList(list []api.Inspect) []json.RawMessage {
	out := make([]json.RawMessage, 0, len(list))
	for _, n := range list {
		data, err := json.Marshal(wire(n))
		if err == nil { // these types always encode
			out = append(out, data)
		}
	}
	return out
}
