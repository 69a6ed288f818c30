package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"stated.dev/stated/api/route"
	"stated.dev/stated/internal/filters"
)

func (h handlers) list(w http.ResponseWriter, r *http.Request) error {
	f, err := route.Filters(r)
	if err != nil {
		return err
	}
	ctx := r.Context()
	if name := r.URL.Query().Get("filter"); name != "" && route.VersionBefore(ctx, "1.41") {
		if f == nil {
			f = filters.Args{}
		}
		f["reference"] = append(f["reference"], name)
	}
	images, err := h.b.List(ctx, ListRequest{
		All:        route.Bool(r, "all"),
		SharedSize: route.Bool(r, "shared-size") && !route.VersionBefore(ctx, "1.42"),
		Filters:    f,
	})
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, summaries(ctx, images))
}

func (h handlers) inspect(w http.ResponseWriter, r *http.Request, name string) error {
	ctx := r.Context()
	var platform *ocispec.Platform
	if text := r.URL.Query().Get("platform"); text != "" && !route.VersionBefore(ctx, "1.49") {
		if route.Bool(r, "manifests") {
			return errdefs.ErrInvalidArgument.WithMessage("conflicting options: manifests and platform options cannot both be set")
		}
		p, err := decodePlatform(text)
		if err != nil {
			return err
		}
		platform = p
	}
	found, err := h.b.Inspect(ctx, name, platform)
	if err != nil {
		return err
	}
	answer, err := inspectAnswer(ctx, found)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, answer)
}

func (h handlers) history(w http.ResponseWriter, r *http.Request, name string) error {
	platform, err := queryPlatform(r, "1.48")
	if err != nil {
		return err
	}
	steps, err := h.b.History(r.Context(), name, platform)
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, steps)
}

func (h handlers) tag(w http.ResponseWriter, r *http.Request, name string) error {
	target, err := repoTag(r)
	if err != nil {
		return err
	}
	if target == nil {
		return errdefs.ErrInvalidArgument.WithMessage("repository name cannot be blank")
	}
	if err := h.b.Tag(r.Context(), name, target); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (h handlers) remove(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("rest")
	if strings.TrimSpace(name) == "" {
		return errdefs.ErrInvalidArgument.WithMessage("image name cannot be blank")
	}
	var wanted []ocispec.Platform
	if !route.VersionBefore(r.Context(), "1.50") {
		for _, text := range r.URL.Query()["platforms"] {
			p, err := decodePlatform(text)
			if err != nil {
				return err
			}
			wanted = append(wanted, *p)
		}
	}
	removed, err := h.b.Remove(r.Context(), name, RemoveRequest{
		Force:     route.Bool(r, "force"),
		NoPrune:   route.Bool(r, "noprune"),
		Platforms: wanted,
	})
	if err != nil {
		return err
	}
	return route.WriteJSON(w, http.StatusOK, removed)
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

func (h handlers) load(w http.ResponseWriter, r *http.Request) error {
	platform, err := queryPlatform(r, "1.48")
	if err != nil {
		return err
	}
	out := &progressStream{w: w}
	err = h.b.Load(r.Context(), r.Body, LoadRequest{
		Quiet:    route.BoolOr(r, "quiet", true),
		Platform: platform,
	}, out.emit)
	return out.end(err)
}

// create answers POST /images/create, which is a pull with fromImage and an import with fromSrc.
func (h handlers) create(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	if query.Get("fromImage") != "" {
		return route.NotBuilt("pull")(w, r)
	}
	switch src := query.Get("fromSrc"); src {
	case "-":
	case "":
		return errdefs.ErrInvalidArgument.WithMessage("one of fromImage and fromSrc must be given")
	default:
		return route.NotBuilt("image import from a URL")(w, r)
	}
	target, err := repoTag(r)
	if err != nil {
		return err
	}
	var platform *ocispec.Platform
	if text := query.Get("platform"); text != "" && !route.VersionBefore(r.Context(), "1.32") {
		p, err := platforms.Parse(text)
		if err != nil {
			return errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
		platform = &p
	}
	message := query.Get("message")
	if message == "" {
		message = "Imported from " + query.Get("fromSrc")
	}
	id, err := h.b.Import(r.Context(), r.Body, ImportRequest{
		Target:   target,
		Message:  message,
		Changes:  query["changes"],
		Platform: platform,
	})
	if err != nil {
		return err
	}
	return (&progressStream{w: w}).emit(jsonstream.Message{Status: id})
}

func (h handlers) saveNames(w http.ResponseWriter, r *http.Request) error {
	return h.save(w, r, r.URL.Query()["names"])
}

func (h handlers) saveName(w http.ResponseWriter, r *http.Request, name string) error {
	return h.save(w, r, []string{name})
}

func (h handlers) save(w http.ResponseWriter, r *http.Request, names []string) error {
	platform, err := queryPlatform(r, "1.48")
	if err != nil {
		return err
	}
	out := &tarStream{w: w}
	err = h.b.Save(r.Context(), SaveRequest{Names: names, Platform: platform}, out)
	if err != nil && out.began {
		// The client has half an archive. Only a broken connection tells it so: text behind the archive would
		// look like a good end to most readers.
		panic(http.ErrAbortHandler)
	}
	return err
}

// tarStream notes whether the answer has begun, and says what it is before the first byte.
type tarStream struct {
	w     http.ResponseWriter
	began bool
}

func (s *tarStream) Write(p []byte) (int, error) {
	if !s.began {
		s.began = true
		s.w.Header().Set("Content-Type", "application/x-tar")
	}
	return s.w.Write(p)
}

// progressStream writes one JSON object a line and flushes each.
type progressStream struct {
	w     http.ResponseWriter
	began bool
}

// progressMessage has the error's text twice, as clients older than errorDetail want it.
type progressMessage struct {
	jsonstream.Message
	ErrorMessage string `json:"error,omitempty"`
}

func (s *progressStream) emit(m jsonstream.Message) error {
	line := progressMessage{Message: m}
	if m.Error != nil {
		line.ErrorMessage = m.Error.Message
	}
	data, err := json.Marshal(line)
	if err != nil {
		return fmt.Errorf("encode progress message: %w", err)
	}
	if !s.began {
		s.began = true
		s.w.Header().Set("Content-Type", "application/json")
	}
	if _, err := s.w.Write(append(data, '\r', '\n')); err != nil {
		return err
	}
	if err := http.NewResponseController(s.w).Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// end returns err while the status can still say it, and writes it into the stream afterwards.
func (s *progressStream) end(err error) error {
	if err == nil && !s.began {
		s.w.Header().Set("Content-Type", "application/json")
		return nil
	}
	if err == nil || !s.began {
		return err
	}
	// A failure to write means that the client is gone, and with it the one who wanted to know.
	_ = s.emit(jsonstream.Message{Error: &jsonstream.Error{Message: err.Error()}})
	return nil
}

var _ io.Writer = (*tarStream)(nil)

// repoTag reads repo and tag. It returns nil when no repository was given.
func repoTag(r *http.Request) (reference.NamedTagged, error) {
	query := r.URL.Query()
	repo, tag := query.Get("repo"), query.Get("tag")
	if repo == "" {
		return nil, nil
	}
	named, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
	}
	if _, digested := named.(reference.Digested); digested {
		return nil, errdefs.ErrInvalidArgument.WithMessage("cannot import digest reference")
	}
	if reference.FamiliarName(named) == string(digest.Canonical) {
		return nil, errdefs.ErrInvalidArgument.WithMessage("refusing to create an ambiguous tag using digest algorithm as name")
	}
	if tag != "" {
		tagged, err := reference.WithTag(named, tag)
		if err != nil {
			return nil, errdefs.ErrInvalidArgument.WithMessage(err.Error())
		}
		return tagged, nil
	}
	tagged, ok := reference.TagNameOnly(named).(reference.NamedTagged)
	if !ok {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("unexpected reference: %q", named.String()))
	}
	return tagged, nil
}

// queryPlatform reads the platform parameter, which operations know since the given API version.
func queryPlatform(r *http.Request, since string) (*ocispec.Platform, error) {
	if route.VersionBefore(r.Context(), since) {
		return nil, nil
	}
	texts := r.URL.Query()["platform"]
	if len(texts) > 1 {
		return nil, errdefs.ErrInvalidArgument.WithMessage("multiple platform parameters not supported")
	}
	if len(texts) == 0 || texts[0] == "" {
		return nil, nil
	}
	return decodePlatform(texts[0])
}

// decodePlatform reads a platform written as JSON.
func decodePlatform(text string) (*ocispec.Platform, error) {
	var p ocispec.Platform
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage("failed to parse platform: " + err.Error())
	}
	optional := p.Variant != "" || p.OSVersion != "" || len(p.OSFeatures) > 0
	switch {
	case p.OS == "" && p.Architecture == "" && optional:
		return nil, errdefs.ErrInvalidArgument.WithMessage("optional platform fields provided, but OS and Architecture are missing")
	case p.OS == "" || p.Architecture == "":
		return nil, errdefs.ErrInvalidArgument.WithMessage("both OS and Architecture must be provided")
	}
	return &p, nil
}
