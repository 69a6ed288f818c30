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
	p, err := buildProcess(in)
	if err != nil {
		return nil, err
	}
	p.Args = req.Args
	p.Terminal = req.Tty
	p.ConsoleSize = nil
	if req.Tty {
		p.ConsoleSize = consoleSize(req.ConsoleSize)
		p.Env = withTerm(p.Env)
	}
	p.Env = OverrideEnv(p.Env, req.Env)
	if req.WorkingDir != "" {
		p.Cwd = req.WorkingDir
	}
	if req.User != "" {
		umask := p.User.Umask
		if p.User, err = LookupUser(in.Rootfs, req.User, in.HostConfig.GroupAdd); err != nil {
			return nil, err
		}
		p.User.Umask = umask
	}
	if req.Privileged {
		p.Capabilities = capabilitySets(AllCapabilities())
		if in.Security.AppArmorProfile == "" && p.ApparmorProfile != "" {
			p.ApparmorProfile = apparmorUnconfined
		}
	}
	return p, nil
}

// withTerm gives a process with a terminal a TERM, if the container's environment has none.
func withTerm(env []string) []string {
	for _, kv := range env {
		if len(kv) >= 5 && kv[:5] == "TERM=" {
			return env
		}
	}
	return append(env, "TERM=xterm")
}
