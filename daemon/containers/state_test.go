package containers

import (
	"errors"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/runtime"
)

func TestStateWords(t *testing.T) {
	now := time.Date(2025, 1, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		state    State
		word     container.ContainerState
		sentence string
	}{
		{State{}, "created", "Created"},
		{State{Running: true, StartedAt: ago(5 * time.Minute)}, "running", "Up 5 minutes"},
		{State{Running: true, StartedAt: ago(time.Second), Health: &container.Health{Status: container.Starting}}, "running", "Up 1 second (health: starting)"},
		{State{Running: true, StartedAt: ago(time.Hour), Health: &container.Health{Status: container.Healthy}}, "running", "Up About an hour (healthy)"},
		{State{Running: true, StartedAt: ago(time.Hour), Health: &container.Health{Status: container.NoHealthcheck}}, "running", "Up About an hour"},
		{State{Running: true, Paused: true, StartedAt: ago(2 * time.Hour)}, "paused", "Up 2 hours (Paused)"},
		{State{Running: true, Restarting: true, ExitCode: 3, StartedAt: ago(time.Hour), FinishedAt: ago(2 * time.Second)}, "restarting", "Restarting (3) 2 seconds ago"},
		{State{ExitCode: 137, StartedAt: ago(time.Hour), FinishedAt: ago(30 * time.Minute)}, "exited", "Exited (137) 30 minutes ago"},
		{State{Dead: true, StartedAt: ago(time.Hour)}, "dead", "Dead"},
	} {
		if got := c.state.status(); got != c.word {
			t.Errorf("%+v is %s, want %s", c.state, got, c.word)
		}
		if got := c.state.describe(now); got != c.sentence {
			t.Errorf("%+v is described as %q, want %q", c.state, got, c.sentence)
		}
	}
}

func TestDecide(t *testing.T) {
	start := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	short, long := start.Add(time.Second), start.Add(11*time.Second)
	for name, c := range map[string]struct {
		policy  container.RestartPolicy
		count   int
		manual  bool
		stopped bool
		code    int
		at      time.Time
		delay   time.Duration
		want    restartDecision
	}{
		"no policy":              {policy: container.RestartPolicy{Name: "no"}, code: 1, at: short},
		"always":                 {policy: container.RestartPolicy{Name: "always"}, at: short, want: restartDecision{true, 100 * time.Millisecond}},
		"doubled":                {policy: container.RestartPolicy{Name: "always"}, at: short, delay: 400 * time.Millisecond, want: restartDecision{true, 800 * time.Millisecond}},
		"no more than a minute":  {policy: container.RestartPolicy{Name: "always"}, at: short, delay: 50 * time.Second, want: restartDecision{true, time.Minute}},
		"after a good run":       {policy: container.RestartPolicy{Name: "always"}, at: long, delay: 50 * time.Second, want: restartDecision{true, 100 * time.Millisecond}},
		"stopped by a user":      {policy: container.RestartPolicy{Name: "always"}, at: short, stopped: true},
		"stopped before":         {policy: container.RestartPolicy{Name: "unless-stopped"}, at: short, manual: true},
		"on failure, success":    {policy: container.RestartPolicy{Name: "on-failure"}, at: short},
		"on failure, failure":    {policy: container.RestartPolicy{Name: "on-failure"}, at: short, code: 1, want: restartDecision{true, 100 * time.Millisecond}},
		"on failure, tries left": {policy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3}, count: 2, at: short, code: 1, want: restartDecision{true, 100 * time.Millisecond}},
		"on failure, none left":  {policy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3}, count: 3, at: short, code: 1},
	} {
		r := &Record{HostConfig: &container.HostConfig{RestartPolicy: c.policy}, RestartCount: c.count, HasBeenManuallyStopped: c.manual, State: State{StartedAt: start}}
		if got := decide(r, runtime.Exit{Code: c.code, At: c.at}, c.stopped, c.delay); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestStartErrors(t *testing.T) {
	for text, code := range map[string]int{
		`OCI runtime create failed: exec: "nope": executable file not found in $PATH`:                127,
		`OCI runtime create failed: exec: "/nope": stat /nope: no such file or directory`:            127,
		`OCI runtime create failed: exec: "/etc/passwd": permission denied`:                          126,
		`OCI runtime create failed: exec: "/etc": is a directory`:                                    126,
		`OCI runtime create failed: error mounting "/a" to rootfs at "/b": mount x: not a directory`: 127,
		`OCI runtime create failed: something else`:                                                  128,
	} {
		err := translateStartError(errors.New("create abc: "+text), "nope")
		if got := startExitCode(err); got != code {
			t.Errorf("%s: %d, want %d", text, got, code)
		}
		if want := "failed to create task for container: failed to create shim task: " + text; len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
			t.Errorf("%q, want it to begin with %q", err, want)
		}
	}
}

func TestApplyHealth(t *testing.T) {
	start := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	r := &Record{State: State{StartedAt: start}, Config: &types.ContainerConfig{}}
	r.Config.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "x"}, Retries: 2, StartPeriod: 10 * time.Second}
	h := &container.Health{Status: container.Starting}
	for i, step := range []struct {
		after time.Duration
		code  int
		want  container.HealthStatus
		run   int
	}{
		{1 * time.Second, 1, container.Starting, 0}, // in the start period a failure counts for nothing
		{11 * time.Second, 1, container.Starting, 1},
		{12 * time.Second, 0, container.Healthy, 0},
		{13 * time.Second, 1, container.Healthy, 1},
		{14 * time.Second, 1, container.Unhealthy, 2},
		{15 * time.Second, 1, container.Unhealthy, 3},
		{16 * time.Second, 0, container.Healthy, 0},
	} {
		applyHealth(h, &container.HealthcheckResult{Start: start.Add(step.after), ExitCode: step.code}, r)
		if h.Status != step.want || h.FailingStreak != step.run {
			t.Errorf("step %d: %s with a streak of %d, want %s with %d", i, h.Status, h.FailingStreak, step.want, step.run)
		}
	}
	if len(h.Log) != healthLogEntries {
		t.Errorf("%d entries are kept, want %d", len(h.Log), healthLogEntries)
	}
}

func TestHealthCommand(t *testing.T) {
	for name, c := range map[string]struct {
		test, shell, want []string
	}{
		"none":          {},
		"disabled":      {test: []string{"NONE"}},
		"program":       {test: []string{"CMD", "a", "b"}, want: []string{"a", "b"}},
		"shell":         {test: []string{"CMD-SHELL", "a b"}, want: []string{"/bin/sh", "-c", "a b"}},
		"image's shell": {test: []string{"CMD-SHELL", "a b"}, shell: []string{"/bin/ash", "-ec"}, want: []string{"/bin/ash", "-ec", "a b"}},
	} {
		r := &Record{Config: &types.ContainerConfig{}}
		r.Config.Shell = c.shell
		if c.test != nil {
			r.Config.Healthcheck = &container.HealthConfig{Test: c.test}
		}
		got := healthCommand(r)
		if len(got) != len(c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: %q, want %q", name, got, c.want)
			}
		}
	}
}
