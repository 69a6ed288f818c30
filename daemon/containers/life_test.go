package containers_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/runtime"
)

var errBoom = errors.New("boom")

func boom() error { return errBoom }

func policy(name container.RestartPolicyMode, retries int) *container.HostConfig {
	return &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: name, MaximumRetryCount: retries}}
}

func TestLife(t *testing.T) {
	bubble(t, func(b *bench) {
		hc := &container.HostConfig{Binds: []string{"data:/data"}}
		id := b.create("one", hc, "wait")
		b.is(id, container.StateCreated)
		b.start(id)
		b.is(id, container.StateRunning)
		if held := b.host.held(); len(held) != 3 {
			b.Errorf("a running container holds %v", held)
		}
		if err := b.Start(b.Context(), id, api.StartRequest{}); !errors.Is(err, types.ErrNotModified) {
			b.Errorf("second start: %v", err)
		}
		b.fails(b.Remove(b.Context(), id, api.RemoveRequest{}), errdefs.IsConflict)
		b.ok(b.Pause(b.Context(), id))
		b.is(id, container.StatePaused)
		b.ok(b.Unpause(b.Context(), id))
		b.ok(b.Stop(b.Context(), id, api.StopRequest{}))
		b.is(id, container.StateExited)
		b.nothingHeld()
		if err := b.Stop(b.Context(), id, api.StopRequest{}); !errors.Is(err, types.ErrNotModified) {
			b.Errorf("second stop: %v", err)
		}
		b.ok(b.Restart(b.Context(), id, api.StopRequest{}))
		b.is(id, container.StateRunning)
		b.ok(b.Rename(b.Context(), id, "two"))
		_, err := b.Service.Create(b.Context(), request("two", nil, "wait"))
		b.fails(err, errdefs.IsConflict)
		b.ok(b.Remove(b.Context(), "two", api.RemoveRequest{Force: true}))
		_, err = b.Inspect(b.Context(), id, false)
		b.fails(err, errdefs.IsNotFound)
		b.nothingHeld()
		b.create("two", nil, "wait")
	})
}

// TestFailedStart fails each step of a start, before and after the fact, and wants nothing left, the reason told, and
// the next start to do.
func TestFailedStart(t *testing.T) {
	for _, op := range []string{"MountRW", "VolumeGet", "VolumeMount", "Pin", "Attach", "Resolver"} {
		t.Run(op, func(t *testing.T) { failedStart(t, func(b *bench) { b.host.lie(op, boom) }) })
	}
	for _, op := range []string{"Spawn", "Create", "Start"} {
		t.Run(op, func(t *testing.T) { failedStart(t, func(b *bench) { b.rt.Fail(op, errBoom) }) })
		t.Run(op+" without answer", func(t *testing.T) { failedStart(t, func(b *bench) { b.rt.Drop(op) }) })
	}
}

func failedStart(t *testing.T, arm func(*bench)) {
	bubble(t, func(b *bench) {
		id := b.create("one", &container.HostConfig{Binds: []string{"data:/data"}, Mounts: []mount.Mount{imageAt("/image", "img:1")}}, "wait")
		arm(b)
		if err := b.Start(b.Context(), id, api.StartRequest{}); err == nil {
			b.Fatal("the start succeeded")
		}
		in := b.state(id)
		if in.State.Running || in.State.ExitCode != 128 || in.State.Error == "" {
			b.Errorf("after a failed start: %+v", in.State)
		}
		b.nothingHeld()
		b.start(id)
		b.is(id, container.StateRunning)
	})
}

func TestCommandNotFound(t *testing.T) {
	bubble(t, func(b *bench) {
		req := request("one", nil)
		req.Config.Cmd = []string{"/nowhere/to/be/found"}
		resp, err := b.Service.Create(b.Context(), req)
		b.ok(err)
		b.fails(b.Start(b.Context(), resp.ID, api.StartRequest{}), errdefs.IsInvalidArgument)
		if in := b.state(resp.ID); in.State.ExitCode != 127 {
			b.Errorf("exit code %d", in.State.ExitCode)
		}
	})
}

// TestRestartBackOff: the delays double up to a minute, and begin anew after a good run.
func TestRestartBackOff(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", policy("always", 0), "exit", "3")
		b.after(0)
		for i, delay := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000} {
			if in := b.is(id, container.StateRestarting); in.RestartCount != i+1 || in.State.ExitCode != 3 {
				b.Fatalf("restart %d: count %d, exit code %d", i+1, in.RestartCount, in.State.ExitCode)
			}
			b.after(delay*time.Millisecond - 1)
			if got := b.state(id).RestartCount; got != i+1 {
				b.Fatalf("restart %d came before %d ms", i+1, delay)
			}
			b.after(1)
		}
		b.ok(b.Stop(b.Context(), id, api.StopRequest{}))
		b.is(id, container.StateExited)
		b.after(time.Hour)
		b.is(id, container.StateExited)
		b.nothingHeld()
	})
	bubble(t, func(b *bench) {
		id := b.run("two", policy("always", 0), "wait")
		for range 3 {
			b.after(11 * time.Second)
			b.rt.End(id, runtime.Exit{Code: 1, At: time.Now()})
			synctest.Wait()
			b.is(id, container.StateRestarting)
			b.after(100 * time.Millisecond)
			b.is(id, container.StateRunning)
		}
	})
}

func TestOnFailure(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", policy("on-failure", 2), "exit", "1")
		b.after(time.Minute)
		if in := b.is(id, container.StateExited); in.RestartCount != 2 {
			b.Errorf("restarted %d times", in.RestartCount)
		}
		b.start(id) // counts anew
		b.after(time.Minute)
		if in := b.is(id, container.StateExited); in.RestartCount != 2 {
			b.Errorf("restarted %d times after a start", in.RestartCount)
		}
		good := b.run("two", policy("on-failure", 0), "exit", "0")
		b.after(time.Minute)
		if in := b.is(good, container.StateExited); in.RestartCount != 0 {
			b.Errorf("a success was restarted %d times", in.RestartCount)
		}
	})
}

func TestAutoRemove(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", &container.HostConfig{AutoRemove: true, Binds: []string{"/anonymous"}}, "wait")
		removed, err := b.Wait(b.Context(), id, container.WaitConditionRemoved)
		b.ok(err)
		b.ok(b.Restart(b.Context(), id, api.StopRequest{})) // survives this
		b.is(id, container.StateRunning)
		b.ok(b.Kill(b.Context(), id, "USR1"))
		if r := <-removed; r.StatusCode != 7 {
			b.Errorf("wait for the removal says %d", r.StatusCode)
		}
		_, err = b.Inspect(b.Context(), id, false)
		b.fails(err, errdefs.IsNotFound)
		b.nothingHeld()
	})
}

// TestAutoRemoveRestarted: a container that was started again before it could be removed is not.
func TestAutoRemoveRestarted(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", &container.HostConfig{AutoRemove: true}, "wait")
		lie, release := hold()
		b.host.lie("UnmountRW", lie) // the end of the first run takes its time
		b.rt.End(id, runtime.Exit{At: time.Now()})
		synctest.Wait()
		started := make(chan error, 1)
		go func() { started <- b.Start(b.Context(), id, api.StartRequest{}) }()
		synctest.Wait()
		release()
		b.ok(<-started)
		synctest.Wait()
		b.is(id, container.StateRunning)
		b.ok(b.Pause(b.Context(), id), b.Unpause(b.Context(), id)) // nobody sits on the verb lock
	})
}

func TestStopTimeout(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.create("one", nil, "wait")
		b.start(id)
		began := time.Now()
		b.ok(b.Stop(b.Context(), id, api.StopRequest{Signal: "HUP", Timeout: seconds(7)}))
		if took := time.Since(began); took != 7*time.Second {
			b.Errorf("the stop took %s", took)
		}
		if in := b.is(id, container.StateExited); in.State.ExitCode != 137 {
			b.Errorf("exit code %d", in.State.ExitCode)
		}
	})
}

// TestStopOutlivesItsClient: who hangs up does not make the kill come sooner.
func TestStopOutlivesItsClient(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", nil, "wait")
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan error, 1)
		go func() { done <- b.Stop(ctx, id, api.StopRequest{Signal: "HUP", Timeout: seconds(60)}) }()
		synctest.Wait()
		cancel()
		b.after(59 * time.Second)
		b.is(id, container.StateRunning)
		b.after(2 * time.Second)
		b.ok(<-done)
		b.is(id, container.StateExited)
	})
}

// TestDuringStart: what comes while a start is under way waits for it, and then has its way.
func TestDuringStart(t *testing.T) {
	verbs := map[string]func(b *bench, id string) error{
		"stop":   func(b *bench, id string) error { return b.Stop(b.Context(), id, api.StopRequest{}) },
		"kill":   func(b *bench, id string) error { return b.Kill(b.Context(), id, "KILL") },
		"remove": func(b *bench, id string) error { return b.Remove(b.Context(), id, api.RemoveRequest{Force: true}) },
	}
	for name, verb := range verbs {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				id := b.create("one", policy("always", 0), "wait")
				until := make(chan struct{})
				b.rt.Hold("Create", until)
				started, ended := make(chan error, 1), make(chan error, 1)
				go func() { started <- b.Start(b.Context(), id, api.StartRequest{}) }()
				synctest.Wait()
				go func() { ended <- verb(b, id) }()
				synctest.Wait()
				close(until)
				b.ok(<-started, <-ended)
				b.after(time.Hour)
				if name == "remove" {
					_, err := b.Inspect(b.Context(), id, false)
					b.fails(err, errdefs.IsNotFound)
				} else {
					b.is(id, container.StateExited)
				}
				b.nothingHeld()
			})
		})
	}
}

// TestStopDuringRelease: a stop that comes between the end of a run and its restart prevents that.
func TestStopDuringRelease(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", policy("always", 0), "wait")
		lie, release := hold()
		b.host.lie("UnmountRW", lie)
		b.rt.End(id, runtime.Exit{Code: 1, At: time.Now()})
		b.after(time.Second) // the restart is due and waits for the release
		done := make(chan error, 1)
		go func() { done <- b.Stop(b.Context(), id, api.StopRequest{}) }()
		synctest.Wait()
		release()
		b.ok(<-done)
		b.after(time.Hour)
		b.is(id, container.StateExited)
		b.nothingHeld()
	})
}

func TestRemoveDuringStop(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", nil, "wait")
		done := make(chan error, 1)
		go func() { done <- b.Stop(b.Context(), id, api.StopRequest{Signal: "HUP", Timeout: seconds(600)}) }()
		synctest.Wait()
		began := time.Now()
		b.ok(b.Remove(b.Context(), id, api.RemoveRequest{Force: true}))
		b.ok(<-done)
		if took := time.Since(began); took > time.Second {
			b.Errorf("it took %s", took)
		}
		b.nothingHeld()
	})
}

// TestVerbsAfterRemove: who waited for the removal finds nothing, and brings nothing back.
func TestVerbsAfterRemove(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.create("one", nil, "wait")
		lie, release := hold()
		b.host.lie("RemoveRW", lie)
		removed, late := make(chan error, 1), make(chan error, 8)
		go func() { removed <- b.Remove(b.Context(), id, api.RemoveRequest{}) }()
		synctest.Wait()
		go func() { late <- b.Start(b.Context(), id, api.StartRequest{}) }()
		go func() { late <- b.Rename(b.Context(), id, "other") }()
		go func() {
			_, err := b.Update(b.Context(), id, container.UpdateConfig{})
			late <- err
		}()
		synctest.Wait()
		release()
		b.ok(<-removed)
		for range 3 {
			b.fails(<-late, errdefs.IsNotFound)
		}
		b.again()
		_, err := b.Inspect(b.Context(), id, false)
		b.fails(err, errdefs.IsNotFound)
	})
}

func TestWait(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.create("one", policy("on-failure", 1), "exit", "5")
		wait := func(c container.WaitCondition) <-chan container.WaitResponse {
			ch, err := b.Wait(b.Context(), id, c)
			b.ok(err)
			return ch
		}
		_, err := b.Wait(b.Context(), id, "sometime")
		b.fails(err, errdefs.IsInvalidArgument)
		if r := <-wait(""); r.StatusCode != 0 {
			b.Errorf("wait on a created container says %d", r.StatusCode)
		}
		next, removed := wait(container.WaitConditionNextExit), wait(container.WaitConditionRemoved)
		b.start(id)
		stopped := wait(container.WaitConditionNotRunning)
		if r := <-next; r.StatusCode != 5 {
			b.Errorf("next exit says %d", r.StatusCode)
		}
		synctest.Wait()
		select {
		case r := <-stopped:
			b.Errorf("a container that is restarted counts as stopped: %v", r)
		default:
		}
		if r := <-stopped; r.StatusCode != 5 {
			b.Errorf("not-running says %d", r.StatusCode)
		}
		b.ok(b.Remove(b.Context(), id, api.RemoveRequest{}))
		if r := <-removed; r.StatusCode != 5 {
			b.Errorf("removed says %d", r.StatusCode)
		}
	})
}

// TestHungProbe: a health check that hangs keeps neither the end of the container nor that of the daemon.
func TestHungProbe(t *testing.T) {
	bubble(t, func(b *bench) {
		req := request("one", nil, "wait")
		req.Config.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Second}
		resp, err := b.Service.Create(b.Context(), req)
		b.ok(err)
		b.rt.Hold("Exec", make(chan struct{}))
		b.start(resp.ID)
		b.after(2 * time.Second)
		began := time.Now()
		b.ok(b.Stop(b.Context(), resp.ID, api.StopRequest{}))
		if took := time.Since(began); took > time.Second {
			b.Errorf("the stop took %s", took)
		}
		b.is(resp.ID, container.StateExited)
	})
}

func TestHealth(t *testing.T) {
	bubble(t, func(b *bench) {
		req := request("one", nil, "wait")
		req.Config.Healthcheck = &container.HealthConfig{Test: append([]string{"CMD"}, append(req.Config.Cmd[:1:1], "exit", "1")...), Interval: time.Second, Retries: 2}
		resp, err := b.Service.Create(b.Context(), req)
		b.ok(err)
		b.start(resp.ID)
		b.after(1500 * time.Millisecond)
		if h := b.state(resp.ID).State.Health; h == nil || h.Status != container.Starting || h.FailingStreak != 1 {
			b.Errorf("after one probe: %+v", h)
		}
		b.after(2 * time.Second)
		if h := b.state(resp.ID).State.Health; h.Status != container.Unhealthy {
			b.Errorf("after two probes: %+v", h)
		}
	})
}

func TestExec(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", nil, "wait")
		prog := request("", nil).Config.Cmd
		exec, err := b.ExecCreate(b.Context(), id, container.ExecCreateRequest{Cmd: append(prog, "exit", "4"), AttachStdout: true})
		b.ok(err)
		if got := b.state(id).ExecIDs; !slices.Contains(got, exec) {
			b.Errorf("inspect lists execs %v", got)
		}
		_, _, err = b.ExecStart(b.Context(), exec, container.ExecStartRequest{Detach: true})
		b.ok(err)
		synctest.Wait()
		in, err := b.ExecInspect(b.Context(), exec)
		b.ok(err)
		if in.Running || in.ExitCode == nil || *in.ExitCode != 4 {
			b.Errorf("the ended exec: %+v", in)
		}
		_, _, err = b.ExecStart(b.Context(), exec, container.ExecStartRequest{Detach: true})
		b.fails(err, errdefs.IsConflict)

		unused, err := b.ExecCreate(b.Context(), id, container.ExecCreateRequest{Cmd: prog})
		b.ok(err)
		running, err := b.ExecCreate(b.Context(), id, container.ExecCreateRequest{Cmd: append(prog, "wait")})
		b.ok(err)
		_, _, err = b.ExecStart(b.Context(), running, container.ExecStartRequest{Detach: true})
		b.ok(err)
		b.ok(b.Stop(b.Context(), id, api.StopRequest{}))
		synctest.Wait()
		for _, e := range []string{unused, running} {
			if in, err := b.ExecInspect(b.Context(), e); err != nil || in.Running || in.ExitCode == nil {
				b.Errorf("exec of an ended container: %+v, %v", in, err)
			}
		}
		if got := b.state(id).ExecIDs; len(got) > 0 {
			b.Errorf("an ended container lists execs %v", got)
		}
		_, err = b.ExecCreate(b.Context(), id, container.ExecCreateRequest{Cmd: prog})
		b.fails(err, errdefs.IsConflict)
	})
}

// TestAttachDuringStart: whoever attaches while a start is under way is joined to it.
func TestAttachDuringStart(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.create("one", nil, "wait")
		until := make(chan struct{})
		b.rt.Hold("Start", until)
		started := make(chan error, 1)
		go func() { started <- b.Start(b.Context(), id, api.StartRequest{}) }()
		synctest.Wait()
		stream, _, err := b.Attach(b.Context(), id, api.AttachRequest{Stream: true, Stdout: true})
		b.ok(err)
		close(until)
		b.ok(<-started)
		b.rt.Output(id, "hello")
		var out strings.Builder
		buf := make([]byte, 64)
		for !strings.Contains(out.String(), "hello") {
			n, err := stream.Read(buf)
			b.ok(err)
			out.Write(buf[:n])
		}
		b.ok(stream.Close())
	})
}
