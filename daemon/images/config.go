package images

import (
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"github.com/containerd/errdefs"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// config is a parsed image configuration. Fields that are not listed stay in the raw bytes, which are what counts.
type config struct {
	Architecture    string                          `json:"architecture,omitempty"`
	Variant         string                          `json:"variant,omitempty"`
	OS              string                          `json:"os,omitempty"`
	OSVersion       string                          `json:"os.version,omitempty"`
	OSFeatures      []string                        `json:"os.features,omitempty"`
	Config          dockerspec.DockerOCIImageConfig `json:"config"`
	Container       string                          `json:"container,omitempty"`
	ContainerConfig json.RawMessage                 `json:"container_config,omitempty"`
	Created         *time.Time                      `json:"created,omitempty"`
	DockerVersion   string                          `json:"docker_version,omitempty"`
	Author          string                          `json:"author,omitempty"`
	Comment         string                          `json:"comment,omitempty"`
	History         []ocispec.History               `json:"history,omitempty"`
	RootFS          *rootFS                         `json:"rootfs"`
}

type rootFS struct {
	Type    string          `json:"type"`
	DiffIDs []digest.Digest `json:"diff_ids,omitempty"`
}

// maxLayers is the depth limit of the layer store.
const maxLayers = 125

// parseConfig reads an image configuration and checks what images rely on.
func parseConfig(raw []byte) (*config, error) {
	var c config
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage("invalid image configuration: " + err.Error())
	}
	if c.RootFS == nil {
		return nil, errdefs.ErrInvalidArgument.WithMessage("invalid image JSON, no RootFS key")
	}
	for _, id := range c.RootFS.DiffIDs {
		if err := checkDigest(id); err != nil {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid image configuration: diff id %q: %v", id, err))
		}
	}
	if len(c.RootFS.DiffIDs) > maxLayers {
		return nil, errdefs.ErrInvalidArgument.WithMessage("max depth exceeded")
	}
	return &c, nil
}

// checkNew refuses configurations that no image may be made from, although one found on disk is borne with.
func (c *config) checkNew() error {
	layers := 0
	for _, h := range c.History {
		if !h.EmptyLayer {
			layers++
		}
	}
	if layers > len(c.RootFS.DiffIDs) {
		return errdefs.ErrInvalidArgument.WithMessage("too many non-empty layers in History section")
	}
	if c.os() != runtime.GOOS {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("cannot load %s image on %s", c.os(), runtime.GOOS))
	}
	return nil
}

// checkDigest accepts sha256 digests only, the one algorithm of Docker's data root.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return err
	}
	if d.Algorithm() != digest.SHA256 {
		return digest.ErrDigestUnsupported
	}
	return nil
}

func (c *config) os() string {
	if c.OS == "" {
		return runtime.GOOS
	}
	return c.OS
}

func (c *config) platform() ocispec.Platform {
	return ocispec.Platform{
		Architecture: c.Architecture, OS: c.OS, OSVersion: c.OSVersion, OSFeatures: c.OSFeatures, Variant: c.Variant,
	}
}

// chainIDs returns the chain id of every layer, the base first.
func chainIDs(diffIDs []digest.Digest) []digest.Digest {
	chains := make([]digest.Digest, len(diffIDs))
	for i, diffID := range diffIDs {
		if i == 0 {
			chains[i] = diffID
			continue
		}
		chains[i] = digest.FromString(chains[i-1].String() + " " + diffID.String())
	}
	return chains
}

// topChain returns the chain id of the uppermost layer, empty for an image without layers.
func topChain(diffIDs []digest.Digest) digest.Digest {
	if len(diffIDs) == 0 {
		return ""
	}
	return chainIDs(diffIDs)[len(diffIDs)-1]
}
