package ocispec

import (
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// InitDestination is where the init of --init is mounted in the container.
const InitDestination = "/sbin/docker-init"

func setProcess(in Input, spec *specs.Spec) error {
	process, err := buildProcess(in)
	if err != nil {
		return err
	}
	spec.Process = process
	return nil
}

// buildProcess describes the container's first process.
func buildProcess(in Input) (*specs.Process, error) {
	hc, cfg := in.HostConfig, in.Config
	args := append([]string{in.Path}, in.Args...)
	if in.hasInit() {
		args = append([]string{InitDestination, "--"}, args...)
	}
	cwd := cfg.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	caps, err := containerCapabilities(hc)
	if err != nil {
		return nil, err
	}
	who, err := LookupUser(in.Rootfs, cfg.User, hc.GroupAdd)
	if err != nil {
		return nil, err
	}
	who.Umask = hc.Umask
	oomScoreAdj := hc.OomScoreAdj
	p := &specs.Process{
		Terminal:        cfg.Tty,
		User:            who,
		Args:            args,
		Env:             Environment(in),
		Cwd:             cwd,
		Capabilities:    capabilitySets(caps),
		Rlimits:         rlimits(hc.Ulimits, in.Host.Ulimits),
		NoNewPrivileges: in.Security.NoNewPrivileges,
		ApparmorProfile: apparmorProfile(in),
		OOMScoreAdj:     &oomScoreAdj,
		SelinuxLabel:    in.Security.ProcessLabel,
	}
	if cfg.Tty {
		p.ConsoleSize = consoleSize(hc.ConsoleSize)
	}
	return p, nil
}

// hasInit says whether an init is put before the command. In another's pid namespace there is one already.
func (in Input) hasInit() bool {
	if !in.HostConfig.PidMode.IsPrivate() {
		return false
	}
	if in.HostConfig.Init != nil {
		return *in.HostConfig.Init
	}
	return in.Host.InitByDefault
}

// containerCapabilities returns the capabilities that a container's host configuration gives it.
func containerCapabilities(hc *container.HostConfig) ([]string, error) {
	if hc.Privileged {
		return AllCapabilities(), nil
	}
	return Capabilities(hc.CapAdd, hc.CapDrop)
}

// capabilitySets puts a list in the three sets that Docker fills. The inheritable set stays empty: a file capability
// must not be able to revive what was dropped.
func capabilitySets(caps []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

func consoleSize(heightWidth [2]uint) *specs.Box {
	if heightWidth == [2]uint{} {
		return nil
	}
	return &specs.Box{Height: heightWidth[0], Width: heightWidth[1]}
}

// rlimits returns the container's limits, then those of the daemon's defaults that it does not set, by name.
func rlimits(own []*container.Ulimit, defaults map[string]*container.Ulimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	set := map[string]bool{}
	add := func(u *container.Ulimit) {
		out = append(out, specs.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(u.Name),
			Hard: uint64(u.Hard), // -1 is the kernel's "unlimited"
			Soft: uint64(u.Soft),
		})
	}
	for _, u := range own {
		set[u.Name] = true
		add(u)
	}
	for _, name := range slices.Sorted(maps.Keys(defaults)) {
		if !set[name] {
			add(defaults[name])
		}
	}
	return out
}

// Environment returns the environment of the container's first process: PATH, HOSTNAME, TERM with a terminal, links,
// then what image and user set. A later value takes the place of an earlier one of its key, so that the order is stable.
func Environment(in Input) []string {
	env := []string{"PATH=" + DefaultPath, "HOSTNAME=" + in.Config.Hostname}
	if in.Config.Tty {
		env = append(env, "TERM=xterm")
	}
	env = append(env, in.LinkEnv...)
	return OverrideEnv(env, in.Config.Env)
}

// OverrideEnv returns base with overrides applied by key. An override without "=" takes the key out of base.
func OverrideEnv(base, overrides []string) []string {
	at := map[string]int{}
	out := make([]string, 0, len(base)+len(overrides))
	for _, kv := range base {
		key, _, _ := strings.Cut(kv, "=")
		at[key] = len(out)
		out = append(out, kv)
	}
	removed := map[int]bool{}
	for _, kv := range overrides {
		key, _, assigns := strings.Cut(kv, "=")
		i, inBase := at[key]
		switch {
		case assigns && inBase:
			out[i] = kv
			delete(removed, i)
		case assigns:
			// Not remembered in "at": two overrides of one new key both stay, as they do in Docker.
			out = append(out, kv)
		case inBase:
			removed[i] = true
		}
	}
	if len(removed) == 0 {
		return out
	}
	kept := out[:0]
	for i, kv := range out {
		if !removed[i] {
			kept = append(kept, kv)
		}
	}
	return kept
}
