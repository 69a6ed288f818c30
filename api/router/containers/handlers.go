package containers

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"stated.dev/stated/api/route"
	"stated.dev/stated/internal/filters"
)

func (h handlers) list(w http.ResponseWriter, r *http.Request) error {
	f, err := route.Filters(r)
	if err != nil {
		return err
	}
	limit, err := route.Int(r, "limit", 0)
	if err != nil {
		return err
	}
	// Before filters there were parameters of their own for these two, and they are still taken.
	for _, name := range []string{"since", "before"} {
		if container := r.URL.Query().Get(name); container != "" {
			if f == nil {
				f = filters.Args{}
			}
			f[name] = append(f[name], container)
		}
	}
	items, err := h.b.List(r.Context(), ListRequest{
		All:     route.Bool(r, "all"),
		Limit:   max(limit, 0),
		Size:    route.Bool(r, "size"),
		Filters: f,
	})
	if err != nil {
		return err
	}
	return route.WriteRawList(w, items)
}

func (h handlers) inspect(w http.ResponseWriter, r *http.Request) error {
	found, err := h.b.Inspect(r.Context(), ref(r), route.Bool(r, "size"))
	if err != nil {
		return err
	}
	return route.WriteRaw(w, http.StatusOK, found)
}

// bodyless is the size of the largest body that is taken for none: clients have sent "null" and "{}".
const bodyless = 7

func (h handlers) start(w http.ResponseWriter, r *http.Request) error {
	if r.ContentLength > bodyless || r.ContentLength < 0 {
		return errdefs.ErrInvalidArgument.WithMessage(
			"starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	q := r.URL.Query()
	return done(w, h.b.Start(r.Context(), ref(r), StartRequest{
		DetachKeys:    q.Get("detachKeys"),
		Checkpoint:    q.Get("checkpoint"),
		CheckpointDir: q.Get("checkpoint-dir"),
	}))
}

func (h handlers) stop(w http.ResponseWriter, r *http.Request) error {
	req, err := stopRequest(r)
	if err != nil {
		return err
	}
	return done(w, h.b.Stop(r.Context(), ref(r), req))
}

func (h handlers) restart(w http.ResponseWriter, r *http.Request) error {
	req, err := stopRequest(r)
	if err != nil {
		return err
	}
	return done(w, h.b.Restart(r.Context(), ref(r), req))
}

func stopRequest(r *http.Request) (StopRequest, error) {
	var req StopRequest
	if !route.VersionBefore(r.Context(), "1.42") {
		req.Signal = r.URL.Query().Get("signal")
	}
	if r.URL.Query().Get("t") != "" {
		seconds, err := route.Int(r, "t", 0)
		if err != nil {
			return req, err
		}
		req.Timeout = &seconds
	}
	return req, nil
}

func (h handlers) kill(w http.ResponseWriter, r *http.Request) error {
	const did = "cannot kill container: "
	err := h.b.Kill(r.Context(), ref(r), r.URL.Query().Get("signal"))
	if err != nil && !strings.HasPrefix(err.Error(), did) {
		err = fmt.Errorf(did+"%s: %w", ref(r), err)
	}
	return done(w, err)
}

func (h handlers) pause(w http.ResponseWriter, r *http.Request) error {
	return done(w, h.b.Pause(r.Context(), ref(r)))
}

func (h handlers) unpause(w http.ResponseWriter, r *http.Request) error {
	return done(w, h.b.Unpause(r.Context(), ref(r)))
}

func (h handlers) rename(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("name")
	if name == "" {
		return errdefs.ErrInvalidArgument.WithMessage("Neither old nor new names may be empty")
	}
	return done(w, h.b.Rename(r.Context(), ref(r), name))
}

func (h handlers) update(w http.ResponseWriter, r *http.Request) error {
	var req container.UpdateConfig
	if err := route.DecodeOptional(r, &req); err != nil {
		return err
	}
	if route.VersionBefore(r.Context(), "1.40") {
		req.PidsLimit = nil
	}
	if req.PidsLimit != nil && *req.PidsLimit < 0 {
		*req.PidsLimit = 0 // 0 is what says unlimited; clients have sent any negative number
	}
	answer, err := h.b.Update(r.Context(), ref(r), req)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, answer)
}

func (h handlers) remove(w http.ResponseWriter, r *http.Request) error {
	return done(w, h.b.Remove(r.Context(), ref(r), RemoveRequest{
		Volumes: route.Bool(r, "v"),
		Force:   route.Bool(r, "force"),
		Link:    route.Bool(r, "link"),
	}))
}

func (h handlers) prune(w http.ResponseWriter, r *http.Request) error {
	f, err := route.Filters(r)
	if err != nil {
		return err
	}
	report, err := h.b.Prune(r.Context(), f)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, report)
}

// wait sends its header as soon as the wait is registered: clients ask for it before they start the container.
func (h handlers) wait(w http.ResponseWriter, r *http.Request) error {
	ctx, cancel := route.Streaming(r)
	defer cancel()

	condition := container.WaitConditionNotRunning
	if c := r.URL.Query().Get("condition"); c != "" && !route.VersionBefore(ctx, "1.30") {
		condition = container.WaitCondition(c)
	}
	known := []container.WaitCondition{
		container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved,
	}
	if !slices.Contains(known, condition) {
		return errdefs.ErrInvalidArgument.WithMessage("invalid condition: " + strconv.Quote(string(condition)))
	}
	ended, err := h.b.Wait(ctx, ref(r), condition)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	if !route.VersionBefore(ctx, "1.30") {
		if err := route.FlushHeader(w, http.StatusOK); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
		return nil
	case answer, ok := <-ended:
		if !ok {
			return errors.New("wait ended without an answer")
		}
		// A client older than 1.34 knows of a failed removal by an answer that has no body.
		if answer.Error != nil && condition == container.WaitConditionRemoved && route.VersionBefore(ctx, "1.34") {
			return nil
		}
		return json.NewEncoder(w).Encode(answer)
	}
}

func (h handlers) resize(w http.ResponseWriter, r *http.Request) error {
	width, height, err := terminalSize(r)
	if err != nil {
		return err
	}
	return h.b.Resize(r.Context(), ref(r), width, height)
}

func terminalSize(r *http.Request) (width, height int, err error) {
	for _, side := range []struct {
		name, what string
		value      *int
	}{{"h", "height", &height}, {"w", "width", &width}} {
		n, err := route.Uint32(r, side.name)
		if err != nil {
			return 0, 0, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(
				"invalid resize %s %q: %v", side.what, r.URL.Query().Get(side.name), err))
		}
		*side.value = int(n)
	}
	return width, height, nil
}
