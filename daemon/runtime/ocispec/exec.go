package ocispec

import specs "github.com/opencontainers/runtime-spec/specs-go"

// ExecRequest is a further process asked for in a running container.
type ExecRequest struct {
	Args       []string
	Env        []string
	User       string // empty: the container's
	WorkingDir string // empty: the container's
	Tty        bool
	Privileged bool
	// ConsoleSize is height and width; zero leaves it to a later resize.
	ConsoleSize [2]uint
}

// BuildExec describes a further process of a running container. It inherits limits, labels, capabilities and
// environment from the container.
func BuildExec(in Input, req ExecRequest) (*specs.Process, error) {
	// The process has a terminal, and so a TERM, where it asks for one itself, whatever the container has.
	cfg := *in.Config
	cfg.Tty = req.Tty
	cfg.User = orElse(req.User, cfg.User)
	cfg.WorkingDir = orElse(req.WorkingDir, cfg.WorkingDir)
	in.Config = &cfg
	p, err := buildProcess(in)
	if err != nil {
		return nil, err
	}
	p.Args = req.Args
	p.Env = OverrideEnv(p.Env, req.Env)
	p.ConsoleSize = nil
	if req.Tty {
		p.ConsoleSize = consoleSize(req.ConsoleSize)
	}
	if req.Privileged {
		// The AppArmor profile stays the container's, as in Docker.
		p.Capabilities = capabilitySets(AllCapabilities())
	}
	return p, nil
}

func orElse(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}
