package containers

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/internal/ids"
)

// Defaults and bounds of health checks, as users know them from dockerd.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthLogEntries    = 5
	healthOutputBytes   = 4096
)

// healthCommand returns the probe's command, or nil when there is none.
func healthCommand(r *Record) []string {
	h := r.Config.Healthcheck
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		return h.Test[1:]
	case "CMD-SHELL":
		shell := r.Config.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(append([]string{}, shell...), h.Test[1:]...)
	}
	return nil
}

// initHealth sets the state a container with a health check starts in.
func (r *Record) initHealth() {
	r.State.Health = nil
	if len(healthCommand(r)) > 0 {
		r.State.Health = &container.Health{Status: container.Starting, Log: []*container.HealthcheckResult{}}
	}
}

// startHealth begins to probe a run whose container has a health check.
func (s *Service) startHealth(c *Container, r *run) {
	rec := c.rec()
	command := healthCommand(rec)
	if len(command) == 0 {
		return
	}
	ctx, cancel := context.WithCancel(s.ctx)
	c.mu.Lock()
	c.stopProbes = cancel
	c.mu.Unlock()
	s.tasks.Go(func() {
		defer cancel()
		s.probeLoop(ctx, c, r, command)
	})
}

// stopHealth ends the probes. It does not wait for the one that runs, which may hang; that one's result counts no more.
func (s *Service) stopHealth(c *Container) {
	c.mu.Lock()
	stop := c.stopProbes
	c.stopProbes = nil
	c.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (s *Service) probeLoop(ctx context.Context, c *Container, r *run, command []string) {
	cfg := c.rec().Config.Healthcheck
	interval := cmp.Or(cfg.Interval, healthInterval)
	for {
		rec := c.rec()
		wait := interval
		if rec.State.Health != nil && rec.State.Health.Status == container.Starting && cfg.StartPeriod > 0 && time.Since(rec.State.StartedAt) < cfg.StartPeriod {
			wait = cmp.Or(cfg.StartInterval, healthStartInterval)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		if c.rec().State.Paused {
			continue
		}
		result := s.probe(ctx, c, r, command, cmp.Or(cfg.Timeout, healthTimeout))
		if ctx.Err() != nil {
			return // the container ended, which is no verdict on its health
		}
		s.judge(ctx, c, result)
	}
}

// judge records the result of a probe and tells of a change.
func (s *Service) judge(ctx context.Context, c *Container, result *container.HealthcheckResult) {
	var before, after container.HealthStatus
	_, err := s.commit(ctx, c, func(r *Record) {
		if ctx.Err() != nil {
			return // the run has ended
		}
		h := r.State.Health
		if h == nil {
			h = &container.Health{Status: container.Starting}
			r.State.Health = h
		}
		before = h.Status
		applyHealth(h, result, r)
		after = h.Status
	})
	if err != nil {
		s.log.Error("cannot record a health check", "container", c.id, "err", err)
	}
	if before != after {
		s.publish(c, events.Action(string(events.ActionHealthStatus)+": "+string(after)), nil)
	}
}

// applyHealth folds a probe's result into the health of a record: streak, log, status.
func applyHealth(h *container.Health, result *container.HealthcheckResult, r *Record) {
	cfg := r.Config.Healthcheck
	h.Log = append(h.Log, result)
	if extra := len(h.Log) - healthLogEntries; extra > 0 {
		h.Log = h.Log[extra:]
	}
	if result.ExitCode == 0 {
		h.FailingStreak = 0
		h.Status = container.Healthy
		return
	}
	if h.Status == container.Starting && result.Start.Sub(r.State.StartedAt) < cfg.StartPeriod {
		return // a failure in the start period counts for nothing
	}
	h.FailingStreak++
	if h.FailingStreak >= cmp.Or(cfg.Retries, healthRetries) {
		h.Status = container.Unhealthy
	}
}

// probe runs the health check once.
func (s *Service) probe(ctx context.Context, c *Container, r *run, command []string, timeout time.Duration) *container.HealthcheckResult {
	result := &container.HealthcheckResult{Start: time.Now()}
	id := ids.New()
	for _, action := range []events.Action{events.ActionExecCreate, events.ActionExecStart} {
		s.publish(c, events.Action(string(action)+": "+strings.Join(command, " ")), map[string]string{"execID": id})
	}
	out := &boundedBuffer{max: healthOutputBytes}
	code, err := s.runProbe(ctx, c, r, id, command, timeout, out)
	if err == nil {
		s.publish(c, events.ActionExecDie, map[string]string{"execID": id, "exitCode": strconv.Itoa(code)})
	}
	result.End = time.Now()
	switch {
	case err != nil && ctx.Err() == nil && err == errProbeTimeout:
		result.ExitCode = -1
		result.Output = fmt.Sprintf("Health check exceeded timeout (%v)", timeout)
		if out.Len() > 0 {
			result.Output += ": " + out.String()
		}
	case err != nil:
		result.ExitCode = -1
		result.Output = err.Error()
	default:
		result.ExitCode = code
		result.Output = out.String()
	}
	return result
}

var errProbeTimeout = fmt.Errorf("health check timed out")

func (s *Service) runProbe(ctx context.Context, c *Container, r *run, id string, command []string, timeout time.Duration, out io.Writer) (int, error) {
	rec := c.rec()
	input := ocispec.Input{ID: rec.ID, Config: rec.Config, HostConfig: rec.HostConfig, Path: rec.Path, Args: rec.Args, Rootfs: r.root, Host: s.cfg.Host,
		Security: ocispec.Security{ProcessLabel: rec.ProcessLabel, AppArmorProfile: rec.AppArmorProfile, NoNewPrivileges: rec.NoNewPrivileges}}
	process, err := ocispec.BuildExec(input, ocispec.ExecRequest{Args: command})
	if err != nil {
		return 0, err
	}
	process.Terminal = false
	// What begins in the shim is ended there, also when the probes are stopped meanwhile; but a shim that hangs shall
	// not hold up the daemon's end for long.
	background, cancelBackground := context.WithTimeout(context.WithoutCancel(ctx), timeout+killGrace)
	defer cancelBackground()
	p, err := r.task().Exec(background, id, runtime.ExecRequest{Spec: process})
	if err != nil {
		return 0, err
	}
	defer func() { _ = p.Delete(background) }() // the shim may be gone with the container
	stream, err := p.Attach(background, runtime.AttachRequest{Stdout: true, Stderr: true})
	if err != nil {
		return 0, err
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_ = copyFrames(out, stream) // a probe's output is a courtesy
	}()
	defer func() {
		_ = stream.Close() // ends the copy
		<-copied
	}()
	if _, err := p.Start(background); err != nil {
		return 0, err
	}
	limit, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	exit, err := p.Wait(limit)
	if err != nil {
		_ = p.Kill(background, 9)                                // it may have ended by itself meanwhile
		if ctx.Err() == nil && errdefs.IsDeadlineExceeded(err) { // by the shim's clock, perhaps, and not yet by ours
			_, _ = p.Wait(ctx) // after SIGKILL this is short; the delete below tells when it is not
			return 0, errProbeTimeout
		}
		return 0, err
	}
	select {
	case <-copied:
	case <-time.After(time.Second): // a child of the probe keeps its output open
	}
	return exit.Code, nil
}

// copyFrames writes the payload of the stream's frames.
func copyFrames(w io.Writer, r io.Reader) error {
	var header [8]byte
	for {
		if _, err := io.ReadFull(r, header[:]); err != nil {
			return err
		}
		if _, err := io.CopyN(w, r, int64(binary.BigEndian.Uint32(header[4:]))); err != nil {
			return err
		}
	}
}

// boundedBuffer keeps the first max bytes written to it.
type boundedBuffer struct {
	bytes.Buffer
	max int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if room := b.max - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
