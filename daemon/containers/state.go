package containers

import (
	"fmt"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"stated.dev/stated/daemon/runtime"
)

// The transitions below change a record that nobody else can see yet. They do no I/O.

func (r *Record) setRunning(pid int, at time.Time) {
	s := &r.State
	s.Running, s.Paused, s.Restarting, s.OOMKilled = true, false, false, false
	s.Pid, s.ExitCode, s.Error = pid, 0, ""
	s.StartedAt = at.UTC()
	r.HasBeenStartedBefore = true
}

func (r *Record) setStopped(exit runtime.Exit) {
	s := &r.State
	s.Running, s.Paused, s.Restarting = false, false, false
	s.Pid = 0
	s.ExitCode, s.OOMKilled = exit.Code, exit.OOMKilled
	s.FinishedAt = exit.At.UTC()
}

// setFailed records a start that did not happen.
func (r *Record) setFailed(code int, reason string) {
	s := &r.State
	s.Running, s.Paused, s.Restarting = false, false, false
	s.Pid = 0
	s.ExitCode, s.Error = code, reason
}

// clearRuntime empties what only a running container has: addresses, sandbox and mount ids.
func (r *Record) clearRuntime() {
	ns := r.NetworkSettings
	ns.SandboxID, ns.SandboxKey = "", ""
	ns.Ports = network.PortMap{}
	for _, ep := range ns.Networks {
		ep.clearRuntime()
	}
	for _, m := range r.MountPoints {
		if m.IsVolume() { // an image's layer outlives the run
			m.ID = ""
		}
	}
}

// clearRuntime empties the operational fields and keeps the configuration.
func (ep *EndpointSettings) clearRuntime() {
	kept := ep.EndpointSettings
	ep.EndpointSettings = network.EndpointSettings{
		IPAMConfig: kept.IPAMConfig, Links: kept.Links, Aliases: kept.Aliases, DriverOpts: kept.DriverOpts,
		GwPriority: kept.GwPriority, NetworkID: kept.NetworkID, DNSNames: kept.DNSNames,
	}
	ep.IPAMOperational = false
}

// status is the one-word state of the API.
func (s *State) status() container.ContainerState {
	switch {
	case s.Restarting:
		return container.StateRestarting
	case s.Paused:
		return container.StatePaused
	case s.Running:
		return container.StateRunning
	case s.Dead:
		return container.StateDead
	case s.StartedAt.IsZero():
		return container.StateCreated
	}
	return container.StateExited
}

// describe is the human-readable state of "docker ps" at the instant now.
func (s *State) describe(now time.Time) string {
	ago := func(t time.Time) string { return units.HumanDuration(now.Sub(t)) }
	switch {
	case s.Restarting:
		return fmt.Sprintf("Restarting (%d) %s ago", s.ExitCode, ago(s.FinishedAt))
	case s.Paused:
		return fmt.Sprintf("Up %s (Paused)", ago(s.StartedAt))
	case s.Running && s.Health != nil && s.Health.Status != container.NoHealthcheck:
		health := string(s.Health.Status)
		if s.Health.Status == container.Starting {
			health = "health: starting"
		}
		return fmt.Sprintf("Up %s (%s)", ago(s.StartedAt), health)
	case s.Running:
		return "Up " + ago(s.StartedAt)
	case s.Dead:
		return "Dead"
	case s.StartedAt.IsZero():
		return "Created"
	case s.FinishedAt.IsZero():
		return ""
	}
	return fmt.Sprintf("Exited (%d) %s ago", s.ExitCode, ago(s.FinishedAt))
}
