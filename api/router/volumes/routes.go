package volumes

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/volume"

	"stated.dev/stated/api/route"
)

// What a host that manages no swarm says to requests for cluster volumes.
const (
	noSwarm       = `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`
	noSwarmUpdate = "volume update only valid for cluster volumes, but swarm is unavailable"
)

// Since when clients know of cluster volumes, and since when a prune spares named volumes.
const (
	clusterVolumesVersion = "1.42"
	pruneAnonymousVersion = "1.42"
)

type handlers struct{ backend Backend }

// Routes returns the volume routes over b. Names may contain slashes: those of some drivers do.
func Routes(b Backend) []route.Route {
	h := handlers{backend: b}
	return []route.Route{
		{Method: http.MethodGet, Path: "/volumes", Handler: h.list},
		{Method: http.MethodPost, Path: "/volumes/create", Handler: h.create},
		{Method: http.MethodPost, Path: "/volumes/prune", Handler: h.prune},
		{Method: http.MethodGet, Path: "/volumes/{name...}", Handler: h.inspect},
		{Method: http.MethodPut, Path: "/volumes/{name...}", Handler: h.update},
		{Method: http.MethodDelete, Path: "/volumes/{name...}", Handler: h.remove},
	}
}

func (h handlers) list(w http.ResponseWriter, r *http.Request) error {
	f, err := route.Filters(r)
	if err != nil {
		return errdefs.ErrInvalidArgument.WithMessage("error reading volume filters: " + err.Error())
	}
	list, warnings, err := h.backend.List(r.Context(), f)
	if err != nil {
		return err
	}
	warningsJSON, err := json.Marshal(warnings) // null when there are none
	if err != nil {
		return err
	}
	var body bytes.Buffer
	body.Grow(len(list) * 256)
	body.WriteString(`{"Volumes":[`)
	for i, v := range list {
		if i > 0 {
			body.WriteByte(',')
		}
		body.Write(bytes.TrimSuffix(v, []byte("\n")))
	}
	body.WriteString(`],"Warnings":`)
	body.Write(warningsJSON)
	body.WriteString("}\n")
	return writeRaw(w, http.StatusOK, body.Bytes())
}

func (h handlers) create(w http.ResponseWriter, r *http.Request) error {
	var req volume.CreateRequest
	if err := route.DecodeOptional(r, &req); err != nil {
		return err
	}
	if req.ClusterVolumeSpec != nil && !route.VersionBefore(r.Context(), clusterVolumesVersion) {
		return errdefs.ErrUnavailable.WithMessage(noSwarm)
	}
	v, err := h.backend.Create(r.Context(), req)
	if err != nil {
		return err
	}
	return writeRaw(w, http.StatusCreated, v)
}

func (h handlers) inspect(w http.ResponseWriter, r *http.Request) error {
	v, err := h.backend.Inspect(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	return writeRaw(w, http.StatusOK, v)
}

// update is for cluster volumes only, which need a swarm manager.
func (h handlers) update(http.ResponseWriter, *http.Request) error {
	return errdefs.ErrUnavailable.WithMessage(noSwarmUpdate)
}

func (h handlers) remove(w http.ResponseWriter, r *http.Request) error {
	if err := h.backend.Remove(r.Context(), r.PathValue("name"), RemoveRequest{Force: route.Bool(r, "force")}); err != nil {
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
	report, err := h.backend.Prune(r.Context(), PruneRequest{
		Filters: f,
		All:     route.VersionBefore(r.Context(), pruneAnonymousVersion),
	})
	if err != nil {
		return err
	}
	if report.VolumesDeleted == nil {
		report.VolumesDeleted = []string{}
	}
	slices.Sort(report.VolumesDeleted)
	return route.WriteJSON(w, http.StatusOK, report)
}

func writeRaw(w http.ResponseWriter, status int, body []byte) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err := w.Write(body)
	return err
}
