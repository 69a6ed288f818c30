package images

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"time"

	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/storage"

	"stated.dev/stated/api/route"
)

// summary is image.Summary with the field that clients before API 1.44 read.
type summary struct {
	image.Summary
	VirtualSize int64 `json:"VirtualSize,omitempty"`
}

// summaries shapes a list for the API version in ctx. It is never null.
func summaries(ctx context.Context, images []image.Summary) []summary {
	none := route.VersionBefore(ctx, "1.43")
	virtualSize := route.VersionBefore(ctx, "1.44")
	noContainers := route.VersionBefore(ctx, "1.51")
	list := make([]summary, 0, len(images))
	for _, img := range images {
		s := summary{Summary: img}
		switch {
		case !none:
			s.RepoTags, s.RepoDigests = notNil(s.RepoTags), notNil(s.RepoDigests)
		case len(s.RepoTags) == 0 && len(s.RepoDigests) == 0:
			s.RepoTags, s.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
		}
		if virtualSize {
			s.VirtualSize = s.Size
		}
		if noContainers {
			s.Containers = -1
		}
		list = append(list, s)
	}
	return list
}

// inspectJSON is the answer of GET /images/{name}/json as API 1.51 and older have it.
type inspectJSON struct {
	ID              string `json:"Id"`
	RepoTags        []string
	RepoDigests     []string
	Parent          string
	Comment         string
	Created         string          `json:",omitempty"`
	Container       string          `json:",omitempty"`
	ContainerConfig json.RawMessage `json:",omitempty"`
	DockerVersion   string
	Author          string
	Config          map[string]any
	Architecture    string
	Variant         string `json:",omitempty"`
	Os              string
	OsVersion       string `json:",omitempty"`
	Size            int64
	VirtualSize     int64 `json:",omitempty"`
	GraphDriver     storage.DriverData
	RootFS          image.RootFS
	Metadata        image.Metadata
}

// inspectAnswer shapes what was found for the API version in ctx.
func inspectAnswer(ctx context.Context, found Inspect) (inspectJSON, error) {
	config, err := configAnswer(ctx, found.Config)
	if err != nil {
		return inspectJSON{}, fmt.Errorf("encode configuration of image %s: %w", found.ID, err)
	}
	a := inspectJSON{
		ID:            found.ID,
		RepoTags:      notNil(found.RepoTags),
		RepoDigests:   notNil(found.RepoDigests),
		Parent:        found.Parent,
		Comment:       found.Comment,
		DockerVersion: found.DockerVersion,
		Author:        found.Author,
		Config:        config,
		Architecture:  found.Architecture,
		Variant:       found.Variant,
		Os:            found.OS,
		OsVersion:     found.OSVersion,
		Size:          found.Size,
		GraphDriver:   found.GraphDriver,
		RootFS:        found.RootFS,
		Metadata:      image.Metadata{LastTagTime: found.LastTagTime},
	}
	if found.Created != nil {
		a.Created = found.Created.Format(time.RFC3339Nano)
	}
	if route.VersionBefore(ctx, "1.44") {
		a.VirtualSize = found.Size
		if a.Created == "" {
			a.Created = time.Time{}.Format(time.RFC3339Nano)
		}
	}
	if route.VersionBefore(ctx, "1.45") {
		a.Container = found.Container
		a.ContainerConfig = found.ContainerConfig
	}
	return a, nil
}

// configAnswer writes an image's configuration with the fields that clients expect even where they are unset.
func configAnswer(ctx context.Context, config any) (map[string]any, error) {
	always := map[string]any{
		"Cmd": nil, "Entrypoint": nil, "Env": nil, "Labels": nil, "OnBuild": nil, "User": "", "Volumes": nil, "WorkingDir": "",
	}
	if route.VersionBefore(ctx, "1.50") {
		maps.Copy(always, map[string]any{
			"AttachStderr": false, "AttachStdin": false, "AttachStdout": false, "Domainname": "", "Hostname": "",
			"Image": "", "OpenStdin": false, "StdinOnce": false, "Tty": false,
		})
	}
	data, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	var set map[string]any
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, err
	}
	maps.Copy(always, set)
	return always, nil
}

func notNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
