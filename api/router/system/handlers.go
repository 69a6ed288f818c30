package system

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"

	"stated.dev/stated/api/route"
)

// Header values of a ping. The builder is the classic one: BuildKit clients would ask for a session.
var (
	pingCache   = []string{"no-cache, no-store, must-revalidate"}
	pingPragma  = []string{"no-cache"}
	pingType    = []string{"text/plain; charset=utf-8"}
	pingBuilder = []string{"1"}
	pingNone    = []string{"0"}
	pingBody    = []byte("OK")
)

func (h handlers) ping(w http.ResponseWriter, r *http.Request) error {
	header := w.Header()
	header["Cache-Control"] = pingCache
	header["Pragma"] = pingPragma
	header["Builder-Version"] = pingBuilder
	header["Swarm"] = []string{h.b.SwarmStatus()}
	header["Content-Type"] = pingType
	if r.Method == http.MethodHead {
		header["Content-Length"] = pingNone
		w.WriteHeader(http.StatusOK)
		return nil
	}
	_, err := w.Write(pingBody)
	return err
}

func (h handlers) version(w http.ResponseWriter, r *http.Request) error {
	v, err := h.b.Version(r.Context())
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, v)
}

func (h handlers) info(w http.ResponseWriter, r *http.Request) error {
	info, err := h.b.Info(r.Context())
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, adaptInfo(info, route.Version(r.Context())))
}

func (h handlers) diskUsage(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	asked := r.URL.Query()["type"]
	all := len(asked) == 0 || route.VersionBefore(ctx, "1.42")
	kinds := DiskUsageKinds{Containers: all, Images: all, Volumes: all, BuildCache: all}
	if !all {
		for _, kind := range asked {
			switch system.DiskUsageObject(kind) {
			case system.ContainerObject:
				kinds.Containers = true
			case system.ImageObject:
				kinds.Images = true
			case system.VolumeObject:
				kinds.Volumes = true
			case system.BuildCacheObject:
				kinds.BuildCache = true
			default:
				return errdefs.ErrInvalidArgument.WithMessage("unknown object type: " + kind)
			}
		}
	}
	usage, err := h.b.DiskUsage(ctx, kinds)
	if err != nil {
		return err
	}
	// A kind that was asked for and of which there is nothing is an empty list.
	for _, list := range []struct {
		asked bool
		items *[]json.RawMessage
	}{
		{kinds.Containers, &usage.Containers},
		{kinds.Images, &usage.Images},
		{kinds.Volumes, &usage.Volumes},
		{kinds.BuildCache, &usage.BuildCache},
	} {
		if list.asked && *list.items == nil {
			*list.items = []json.RawMessage{}
		}
	}
	if route.VersionBefore(ctx, "1.42") {
		usage.BuilderSize = new(int64)
	}
	return route.WriteJSON(w, http.StatusOK, usage)
}

func (h handlers) events(w http.ResponseWriter, r *http.Request) (err error) {
	var req EventsRequest
	if req.Since, err = route.Time(r, "since"); err != nil {
		return err
	}
	if req.Until, err = route.Time(r, "until"); err != nil {
		return err
	}
	if !req.Until.IsZero() && req.Until.Before(req.Since) {
		q := r.URL.Query()
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(
			"`since` time (%s) cannot be after `until` time (%s)", q.Get("since"), q.Get("until")))
	}
	if req.Filters, err = route.Filters(r); err != nil {
		return err
	}
	ctx, cancel := route.Streaming(r)
	defer cancel()
	stream, err := h.b.Events(ctx, req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	w.Header().Set("Content-Type", "application/json")
	if err := route.FlushHeader(w, http.StatusOK); err != nil {
		return err
	}
	out := route.NewBatch(w)
	defer func() { _ = out.Close() }() // it fails when the client is gone
	old := route.VersionBefore(ctx, "1.46")
	var batch []byte
	for {
		event, err := stream.Next(ctx)
		switch {
		case errors.Is(err, io.EOF) || (err != nil && ctx.Err() != nil):
			return nil
		case err != nil:
			return err
		}
		batch = appendEvents(batch[:0], event, old)
		if _, err := out.Write(batch); err != nil {
			return nil // the client is gone
		}
	}
}

// appendEvents appends events, each on a line. Clients older than 1.46 do not know that images are created.
func appendEvents(dst, events []byte, old bool) []byte {
	for line := range bytes.Lines(events) {
		var e struct{ Type, Action string }
		if old && json.Unmarshal(line, &e) == nil && e.Type == "image" && e.Action == "create" {
			continue
		}
		dst = append(dst, line...)
		if line[len(line)-1] != '\n' {
			dst = append(dst, '\n')
		}
	}
	return dst
}

func (h handlers) auth(w http.ResponseWriter, r *http.Request) error {
	var config registry.AuthConfig
	if err := route.Decode(r, &config); err != nil {
		return err
	}
	token, err := h.b.Login(r.Context(), config)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, registry.AuthResponse{Status: "Login Succeeded", IdentityToken: token})
}
