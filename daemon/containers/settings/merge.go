package settings

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/network"

	"stated.dev/stated/api/types"
)

// MergeImage completes a request's configuration from its image's. What the user set wins; environment, labels, ports
// and volumes are joined by key. Nothing in cfg is shared with the image afterwards.
func MergeImage(cfg *types.ContainerConfig, image *dockerspec.DockerOCIImageConfig) error {
	if image == nil {
		return nil
	}
	cfg.User = orElse(cfg.User, image.User)
	cfg.WorkingDir = orElse(cfg.WorkingDir, image.WorkingDir)
	cfg.StopSignal = orElse(cfg.StopSignal, image.StopSignal)
	if len(cfg.Shell) == 0 {
		cfg.Shell = slices.Clone(image.Shell)
	}
	if err := mergePorts(cfg, image.ExposedPorts); err != nil {
		return err
	}
	mergeEnv(cfg, image.Env)

	labels := map[string]string{}
	maps.Copy(labels, image.Labels)
	maps.Copy(labels, cfg.Labels)
	cfg.Labels = labels

	// Without any the record says null, whatever kind of nothing the client sent.
	if volumes := maps.Clone(image.Volumes); len(cfg.Volumes) == 0 {
		cfg.Volumes = volumes
	} else {
		maps.Copy(cfg.Volumes, volumes)
	}

	// An entrypoint of the user's own makes the image's command meaningless. An empty one that is not null ("[]")
	// takes the image's away.
	if len(cfg.Entrypoint) == 0 {
		if len(cfg.Cmd) == 0 {
			cfg.Cmd = slices.Clone(image.Cmd)
		}
		if cfg.Entrypoint == nil {
			cfg.Entrypoint = slices.Clone(image.Entrypoint)
		}
	}
	mergeHealth(cfg, image.Healthcheck)
	return nil
}

func mergePorts(cfg *types.ContainerConfig, exposed map[string]struct{}) error {
	if len(exposed) == 0 {
		return nil
	}
	ports := network.PortSet{}
	maps.Copy(ports, cfg.ExposedPorts)
	for text := range exposed {
		// An image may name a range; the set has single ports.
		all, err := network.ParsePortRange(text)
		if err != nil {
			return invalid(fmt.Sprintf("invalid port specification: %q", text))
		}
		for port := range all.All() {
			ports[port] = struct{}{}
		}
	}
	cfg.ExposedPorts = ports
	return nil
}

func mergeEnv(cfg *types.ContainerConfig, env []string) {
	if len(cfg.Env) == 0 {
		cfg.Env = slices.Clone(env)
		return
	}
	set := map[string]bool{}
	for _, kv := range cfg.Env {
		key, _, _ := strings.Cut(kv, "=")
		set[key] = true
	}
	cfg.Env = slices.Clip(cfg.Env)
	for _, kv := range env {
		if key, _, _ := strings.Cut(kv, "="); !set[key] {
			cfg.Env = append(cfg.Env, kv)
		}
	}
}

func mergeHealth(cfg *types.ContainerConfig, image *dockerspec.HealthcheckConfig) {
	if image == nil {
		return
	}
	if cfg.Healthcheck == nil {
		cfg.Healthcheck = &dockerspec.HealthcheckConfig{}
	}
	h := cfg.Healthcheck
	if len(h.Test) == 0 {
		h.Test = slices.Clone(image.Test)
	}
	h.Interval = orElse(h.Interval, image.Interval)
	h.Timeout = orElse(h.Timeout, image.Timeout)
	h.StartPeriod = orElse(h.StartPeriod, image.StartPeriod)
	h.StartInterval = orElse(h.StartInterval, image.StartInterval)
	h.Retries = orElse(h.Retries, image.Retries)
}

// Command returns what a merged configuration runs: the record's Path and Args. It resets an entrypoint of one empty
// string, by which users take the image's away.
func Command(cfg *types.ContainerConfig) (path string, args []string, err error) {
	if len(cfg.Entrypoint) == 1 && cfg.Entrypoint[0] == "" {
		cfg.Entrypoint = nil
	}
	words := slices.Concat([]string(cfg.Entrypoint), []string(cfg.Cmd))
	if len(words) == 0 {
		return "", nil, invalid("no command specified")
	}
	return words[0], words[1:], nil
}
