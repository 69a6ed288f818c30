package runtime_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"stated.dev/stated/daemon/runtime"
	. "stated.dev/stated/daemon/runtime/runtimetest"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/sandbox"
)

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestLinesWhileDaemonsDie writes 20,000 lines a second while daemons attach and are killed. Every line is recorded
// once, in order.
func TestLinesWhileDaemonsDie(t *testing.T) {
	const count, rate = 60000, 20000
	w := newWorld(t)
	r := w.open(t)
	id := ids.New()
	log := filepath.Join(w.execRoot, "out.log")
	task := w.run(t, r, runtime.SpawnRequest{ID: id, Log: runtime.LogConfig{Driver: "json-file", Path: log, MaxFiles: 1}},
		"lines", strconv.Itoa(count), strconv.Itoa(rate))
	Must(t, r.Close()) // nobody is there but those that die
	for range 5 {
		h := w.startHelper(t, built.runc, "", "attach", id)
		h.await(t, "reading")
		h.kill()
	}
	r = w.open(t)
	task = Value(t, Of(r.Reconnect(deadline(t), id)))
	if exit := Value(t, Of(task.Wait(deadline(t)))); exit.Code != 0 {
		t.Fatalf("exit %+v", exit)
	}
	f := Value(t, Of(os.Open(log)))
	defer f.Close()
	sc := bufio.NewScanner(f)
	n := 0
	for sc.Scan() {
		var rec struct{ Log string }
		Must(t, json.Unmarshal(sc.Bytes(), &rec))
		if v, ok := strings.CutPrefix(rec.Log, "longest "); ok {
			t.Logf("the longest write took %s µs", strings.TrimSpace(v))
			continue
		}
		if want := fmt.Sprintf("line %07d\n", n); rec.Log != want {
			t.Fatalf("record %d is %q, want %q", n, rec.Log, want)
		}
		n++
	}
	if n != count {
		t.Fatalf("%d lines were recorded, want %d", n, count)
	}
	Must(t, task.Delete(deadline(t)))
}

// TestSlowClientIsCut lets a client that reads nothing watch a container that writes a lot. Beside it is one that reads
// all; the process waits for it, since on a busy machine it may be late as well.
func TestSlowClientIsCut(t *testing.T) {
	const size = 64 << 20
	ctx := deadline(t)
	w := newWorld(t)
	r := w.open(t)
	task := Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: ids.New(), Log: runtime.LogConfig{Driver: "none"}})))
	slow := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdout: true})))
	defer slow.Close()
	reader := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdout: true, Paced: true})))
	defer reader.Close()
	Value(t, Of(task.Create(ctx, w.spec(task.ID(), "flood", strconv.Itoa(size)))))
	Must(t, task.Start(ctx))
	out, _, err := ReadFrames(reader)
	if len(out) != size || err != nil {
		t.Errorf("the client that reads got %d bytes, want %d: %v", len(out), size, err)
	}
	Value(t, Of(task.Wait(ctx)))
	n, err := io.Copy(io.Discard, slow)
	if n >= size || err != nil {
		t.Errorf("the slow client got %d bytes: %v", n, err)
	}
	Must(t, task.Delete(ctx))
}

// TestPacedClientGetsAll lets the process wait for a client that wants everything.
func TestPacedClientGetsAll(t *testing.T) {
	const size = 24 << 20
	ctx := deadline(t)
	w := newWorld(t)
	r := w.open(t)
	task := Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: ids.New(), Log: runtime.LogConfig{Driver: "none"}})))
	s := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdout: true, Paced: true})))
	defer s.Close()
	Value(t, Of(task.Create(ctx, w.spec(task.ID(), "flood", strconv.Itoa(size)))))
	Must(t, task.Start(ctx))
	// Nothing is read for longer than any limit that a client which is not paced is held to.
	short, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if _, err := task.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the process did not wait: %v", err)
	}
	if out, _, err := ReadFrames(s); len(out) != size || err != nil {
		t.Fatalf("got %d bytes, want %d: %v", len(out), size, err)
	}
	Value(t, Of(task.Wait(ctx)))

	// A client that leaves lets the process go.
	s = Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdout: true, Paced: true})))
	Must(t, s.Close())
	Must(t, task.Delete(ctx))
}

// TestExecClientLeaves lets go a further process whose client goes without having read.
func TestExecClientLeaves(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	task := w.run(t, w.open(t), runtime.SpawnRequest{}, "wait")
	p := Value(t, Of(task.Exec(ctx, ids.New(), runtime.ExecRequest{Spec: Command("flood", strconv.Itoa(32<<20))})))
	s := Value(t, Of(p.Attach(ctx, runtime.AttachRequest{Stdout: true})))
	Value(t, Of(p.Start(ctx)))
	if _, err := io.ReadFull(s, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	Must(t, s.Close())
	if exit := Value(t, Of(p.Wait(ctx))); exit.Code != 0 {
		t.Fatalf("exit %+v", exit)
	}
	end(t, task)
}

// TestChildKeepsOutput ends a further process whose child holds its output open.
func TestChildKeepsOutput(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	task := w.run(t, w.open(t), runtime.SpawnRequest{}, "wait")
	p := Value(t, Of(task.Exec(ctx, ids.New(), runtime.ExecRequest{Spec: Command("leave", "30")})))
	s := Value(t, Of(p.Attach(ctx, runtime.AttachRequest{Stdout: true})))
	defer s.Close()
	Value(t, Of(p.Start(ctx)))
	begin := time.Now()
	if exit := Value(t, Of(p.Wait(ctx))); exit.Code != 0 {
		t.Fatalf("exit %+v", exit)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the exit took %v", d)
	}
	if out, _, err := ReadFrames(s); out != "left\n" || err != nil {
		t.Errorf("output %q, %v", out, err)
	}
	if pids := Value(t, Of(task.Pids(ctx))); len(pids) != 2 {
		t.Errorf("processes %v, want init and the child", pids)
	}
	Must(t, p.Delete(ctx))
	end(t, task)
}

// TestDaemonKilledMidCreate kills a daemon while runc creates its container. Runc finishes, once, and the next daemon
// gets the result.
func TestDaemonKilledMidCreate(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	marks := filepath.Join(w.execRoot, "marks")
	Must(t, os.Mkdir(marks, 0o700))
	begun, goOn := filepath.Join(marks, "begun"), filepath.Join(marks, "go")
	Must(t, syscall.Mkfifo(begun, 0o600))
	Must(t, syscall.Mkfifo(goOn, 0o600))
	real := Value(t, Of(exec.LookPath(built.runc)))
	real = Value(t, Of(filepath.Abs(real)))
	slow := filepath.Join(w.execRoot, "slow-runc")
	script := fmt.Sprintf(`#!/bin/sh
for a in "$@"; do
	if [ "$a" = create ]; then
		echo >> %s/creates
		echo > %s
		read x < %s
	fi
done
exec %s "$@"
`, marks, begun, goOn, real)
	Must(t, os.WriteFile(slow, []byte(script), 0o700))

	id := ids.New()
	h := w.startHelper(t, slow, "", "run", id, "exit", "3")
	h.await(t, "spawning")
	h.await(t, "creating")
	Value(t, Of(os.ReadFile(begun))) // runc has begun
	h.kill()

	r := w.open(t)
	task := Value(t, Of(r.Reconnect(ctx, id)))
	if st := Value(t, Of(task.State(ctx))); st.Status != runtime.StatusSpawned {
		t.Fatalf("state %+v", st)
	}
	created := make(chan error, 1)
	go func() {
		pid, err := task.Create(ctx, w.spec(id, "exit", "3"))
		if err == nil && pid == 0 {
			err = errors.New("no pid")
		}
		created <- err
	}()
	Must(t, os.WriteFile(goOn, []byte("\n"), 0))
	Must(t, <-created)
	Must(t, task.Start(ctx))
	if exit := Value(t, Of(task.Wait(ctx))); exit.Code != 3 {
		t.Fatalf("exit %+v", exit)
	}
	if n := len(Value(t, Of(os.ReadFile(filepath.Join(marks, "creates"))))); n != 1 {
		t.Fatalf("runc create ran %d times", n)
	}
	Must(t, task.Delete(ctx))
}

// TestDaemonCrashPoints kills a daemon at each named point and goes on with another.
func TestDaemonCrashPoints(t *testing.T) {
	for point, after := range map[string]runtime.Status{
		"runtime.spawn.locked":   "",
		"runtime.spawn.started":  runtime.StatusSpawned,
		"runtime.create.bundled": runtime.StatusSpawned,
	} {
		t.Run(point, func(t *testing.T) {
			ctx := deadline(t)
			w := newWorld(t)
			id := ids.New()
			w.startHelper(t, built.runc, point+"=kill", "run", id, "exit", "3").wait()
			r := w.open(t)
			task, err := r.Reconnect(ctx, id)
			if after == "" {
				if !errdefs.IsNotFound(err) {
					t.Fatalf("Reconnect: %v", err)
				}
				task, err = r.Spawn(ctx, runtime.SpawnRequest{ID: id, Log: runtime.LogConfig{Driver: "none"}})
			}
			Must(t, err)
			if st := Value(t, Of(task.State(ctx))); st.Status != runtime.StatusSpawned {
				t.Fatalf("state %+v", st)
			}
			Value(t, Of(task.Create(ctx, w.spec(id, "exit", "3"))))
			Must(t, task.Start(ctx))
			if exit := Value(t, Of(task.Wait(ctx))); exit.Code != 3 {
				t.Fatalf("exit %+v", exit)
			}
			Must(t, task.Delete(ctx))
		})
	}
	t.Run("runtime.delete.answered", func(t *testing.T) {
		ctx := deadline(t)
		w := newWorld(t)
		r := w.open(t)
		task := w.run(t, r, runtime.SpawnRequest{}, "exit", "3")
		Value(t, Of(task.Wait(ctx)))
		w.startHelper(t, built.runc, "runtime.delete.answered=kill", "delete", task.ID()).wait()
		again := Value(t, Of(r.Reconnect(ctx, task.ID())))
		if st := Value(t, Of(again.State(ctx))); st.Status != runtime.StatusStopped || st.Exit.Code != 3 {
			t.Fatalf("state %+v", st)
		}
		Must(t, again.Delete(ctx))
		if list := Value(t, Of(r.List(ctx))); len(list) != 0 {
			t.Fatalf("left: %v", list)
		}
	})
}

// TestShimCrashPoints kills a shim at each named point.
func TestShimCrashPoints(t *testing.T) {
	t.Run("shim.create.begun", func(t *testing.T) {
		ctx := deadline(t)
		w := newWorld(t)
		r := w.open(t)
		id := ids.New()
		t.Setenv(fault.EnvVar, "shim.create.begun=kill")
		task := Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: id, Log: runtime.LogConfig{Driver: "none"}})))
		os.Unsetenv(fault.EnvVar)
		if _, err := task.Create(ctx, w.spec(id, "exit", "0")); !errdefs.IsUnavailable(err) {
			t.Fatalf("Create: %v", err)
		}
		if _, err := r.Reconnect(ctx, id); !errdefs.IsNotFound(err) {
			t.Fatalf("Reconnect: %v", err)
		}
		task = Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: id, Log: runtime.LogConfig{Driver: "none"}})))
		Must(t, task.Delete(ctx))
	})
	t.Run("shim.create.done", func(t *testing.T) {
		ctx := deadline(t)
		w := newWorld(t)
		r := w.open(t)
		id := ids.New()
		t.Setenv(fault.EnvVar, "shim.create.done=kill")
		task := Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: id, Log: runtime.LogConfig{Driver: "none"}})))
		if _, err := task.Create(ctx, w.spec(id, "exit", "0")); !errdefs.IsUnavailable(err) {
			t.Fatalf("Create: %v", err)
		}
		if _, err := r.Reconnect(ctx, id); !errdefs.IsUnavailable(err) {
			t.Fatalf("Reconnect to a container without a shim: %v", err)
		}
		if out, err := exec.Command(built.runc, "--root", filepath.Join(w.execRoot, "runc"), "delete", "--force", id).
			CombinedOutput(); err != nil {
			t.Fatalf("runc delete: %v: %s", err, out)
		}
		task = Value(t, Of(r.Reconnect(ctx, id)))
		if st := Value(t, Of(task.State(ctx))); st.Status != runtime.StatusStopped || st.Exit.Code != 255 {
			t.Fatalf("state %+v", st)
		}
		Must(t, task.Delete(ctx))
	})
}

func TestOOM(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	r := w.open(t)
	for _, mib := range []string{"1", "200"} {
		id := ids.New()
		task := Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: id, Log: runtime.LogConfig{Driver: "none"}})))
		spec := w.spec(id, "eat", mib)
		limit := int64(64 << 20)
		spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
		Value(t, Of(task.Create(ctx, spec)))
		Must(t, task.Start(ctx))
		exit := Value(t, Of(task.Wait(ctx)))
		if exit.Code != 3 || exit.OOMKilled != (mib == "200") {
			t.Errorf("after %s MiB: %+v", mib, exit)
		}
		Must(t, task.Delete(ctx))
	}
}

func TestUpdateAndStats(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	task := w.run(t, w.open(t), runtime.SpawnRequest{}, "wait")
	limit, pids := int64(80<<20), int64(50)
	Must(t, task.Update(ctx, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}, Pids: &specs.LinuxPids{Limit: &pids},
	}))
	st := Value(t, Of(task.Stats(ctx)))
	if st.Memory.Limit != uint64(limit) || st.Pids.Limit != uint64(pids) {
		t.Errorf("limits %d and %d", st.Memory.Limit, st.Pids.Limit)
	}
	if st.CPU.Total == 0 || st.Memory.Usage == 0 || st.Pids.Current == 0 || len(st.Memory.Stats) == 0 {
		t.Errorf("sample %+v", st)
	}
	end(t, task)
}

// TestLongRoot uses a directory whose sockets' names are longer than an address may be.
func TestLongRoot(t *testing.T) {
	w := newWorld(t)
	w.execRoot = filepath.Join(w.execRoot, strings.Repeat("long/", 12))
	task := w.run(t, w.open(t), runtime.SpawnRequest{}, "wait")
	Value(t, Of(task.Attach(deadline(t), runtime.AttachRequest{Stdout: true})))
	end(t, task)
}

// TestShimsSlice looks where a shim lives: not with the daemon.
func TestShimsSlice(t *testing.T) {
	w := newWorld(t)
	task := w.run(t, w.open(t), runtime.SpawnRequest{}, "wait")
	pid := shimPid(filepath.Join(w.execRoot, "containers", task.ID()))
	shim := Value(t, Of(os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))))
	own := Value(t, Of(os.ReadFile("/proc/self/cgroup")))
	lines := strings.Split(string(own), "\n")
	for i, line := range strings.Split(string(shim), "\n") {
		if strings.Contains(line, "stated-shims.slice") || strings.HasSuffix(line, ":/") || line == "" {
			continue
		}
		t.Errorf("shim is in %q, the daemon in %q", line, lines[i])
	}
	if !strings.Contains(string(shim), "stated-shims.slice") {
		t.Error("shim is in no slice")
	}
	end(t, task)
}

// TestPortsOutliveDaemon holds a port beyond the daemon that asked for it.
func TestPortsOutliveDaemon(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	r := w.open(t)
	task := Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: ids.New(), Log: runtime.LogConfig{Driver: "none"}})))
	asked := []sandbox.Port{{Proto: "tcp", HostIP: "127.0.0.1", ContainerIP: "127.0.0.1", ContainerPort: 9}}
	bound := Value(t, Of(task.HoldPorts(ctx, "ep1", asked)))
	if len(bound) != 1 || bound[0].HostPort == 0 {
		t.Fatalf("bound %+v", bound)
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(bound[0].HostPort)))
	Must(t, r.Close())
	if _, err := net.Listen("tcp", addr); err == nil {
		t.Fatal("the port is free without the daemon")
	}
	r = w.open(t)
	task = Value(t, Of(r.Reconnect(ctx, task.ID())))
	held := Value(t, Of(task.Ports(ctx)))
	if len(held["ep1"]) != 1 || held["ep1"][0].HostPort != bound[0].HostPort {
		t.Fatalf("held %+v", held)
	}
	taken := asked[0]
	taken.HostPort = bound[0].HostPort
	if _, err := task.HoldPorts(ctx, "ep2", []sandbox.Port{taken}); !errdefs.IsConflict(err) {
		t.Fatalf("a port held twice: %v", err)
	}
	Must(t, task.ReleasePorts(ctx, "ep1"))
	l, err := net.Listen("tcp", addr)
	Must(t, err)
	Must(t, l.Close())
	Value(t, Of(task.HoldPorts(ctx, "ep1", []sandbox.Port{taken})))
	Must(t, task.Delete(ctx))
	l, err = net.Listen("tcp", addr)
	Must(t, err)
	Must(t, l.Close())
}

// TestShimIsAskedToGo sends a shim what a host that shuts down does. It stays with its container to the end.
func TestShimIsAskedToGo(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	r := w.open(t)
	task := w.run(t, r, runtime.SpawnRequest{}, "wait")
	pid := shimPid(filepath.Join(w.execRoot, "containers", task.ID()))
	Must(t, syscall.Kill(pid, syscall.SIGTERM))
	if st := Value(t, Of(task.State(ctx))); st.Status != runtime.StatusRunning {
		t.Fatalf("state %+v", st)
	}
	Must(t, task.Kill(ctx, int(syscall.SIGKILL), false))
	for shimPid(filepath.Join(w.execRoot, "containers", task.ID())) != 0 && ctx.Err() == nil {
		_, _ = task.State(ctx) // paces the loop
	}
	again := Value(t, Of(r.Reconnect(ctx, task.ID())))
	if st := Value(t, Of(again.State(ctx))); st.Status != runtime.StatusStopped || st.Exit.Code != 137 {
		t.Fatalf("state %+v", st)
	}
	Must(t, again.Delete(ctx))
}

// TestShimHangs stops a shim. It is reported in time, left alone, and as good as before when it goes on.
func TestShimHangs(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	r := w.open(t)
	task := w.run(t, r, runtime.SpawnRequest{}, "wait")
	pid := shimPid(filepath.Join(w.execRoot, "containers", task.ID()))
	Must(t, syscall.Kill(pid, syscall.SIGSTOP))
	defer syscall.Kill(pid, syscall.SIGCONT)
	begin := time.Now()
	if _, err := r.Reconnect(ctx, task.ID()); !errdefs.IsUnavailable(err) {
		t.Fatalf("Reconnect: %v", err)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Fatalf("Reconnect took %v", d)
	}
	Must(t, syscall.Kill(pid, syscall.SIGCONT))
	task = Value(t, Of(r.Reconnect(ctx, task.ID())))
	end(t, task)
}

// TestPidReuse records a shim that is another process by now. It is not taken for alive.
func TestPidReuse(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	r := w.open(t)
	task := w.run(t, r, runtime.SpawnRequest{}, "wait")
	pid := Value(t, Of(task.State(ctx))).Pid
	w.killShim(t, task.ID())
	_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended of its broken output
	// Make runc's record name a process that lives but started at another time.
	path := filepath.Join(w.execRoot, "runc", task.ID(), "state.json")
	var state map[string]any
	Must(t, json.Unmarshal(Value(t, Of(os.ReadFile(path))), &state))
	state["init_process_pid"] = os.Getpid()
	Must(t, os.WriteFile(path, Value(t, Of(json.Marshal(state))), 0o600))
	again := Value(t, Of(r.Reconnect(ctx, task.ID())))
	if st := Value(t, Of(again.State(ctx))); st.Status != runtime.StatusStopped || st.Exit.Code != 255 {
		t.Fatalf("state %+v", st)
	}
	state["init_process_pid"] = pid
	Must(t, os.WriteFile(path, Value(t, Of(json.Marshal(state))), 0o600)) // runc delete may look
	err := again.Delete(ctx)
	for errdefs.IsUnavailable(err) && ctx.Err() == nil {
		err = again.Delete(ctx) // the kernel takes its time with the process
	}
	Must(t, err)
}
