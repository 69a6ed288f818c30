// Package runtimetest is what every implementation of runtime.Runtime has to pass, and a fake that passes it and can
// be told to lie.
package runtimetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/internal/ids"
)

// Harness is an implementation under test, with what is needed to do it harm.
type Harness struct {
	Runtime runtime.Runtime
	// Again returns a further Runtime on the same containers, as another daemon process would have.
	Again func(t *testing.T) runtime.Runtime
	// KillShim ends what stands beside a container, without a warning.
	KillShim func(t *testing.T, id string)
	// KillInit ends a container's process without the help of what stands beside it.
	KillInit func(t *testing.T, id string, pid int)
	// Spec describes a container that runs the test program with these arguments.
	Spec func(id string, args ...string) *specs.Spec
}

// Run tests an implementation. Each part gets a harness of its own.
func Run(t *testing.T, harness func(t *testing.T) *Harness) {
	parts := []struct {
		name string
		fn   func(*testing.T, *Harness)
	}{
		{"Lifecycle", testLifecycle},
		{"Names", testNames},
		{"FailedCreate", testFailedCreate},
		{"DeleteCreated", testDeleteCreated},
		{"Attach", testAttach},
		{"StdinOnce", testStdinOnce},
		{"StdinStays", testStdinStays},
		{"DaemonDeathIsNoEOF", testDaemonDeathIsNoEOF},
		{"Tty", testTty},
		{"Kill", testKill},
		{"Pause", testPause},
		{"Freeze", testFreeze},
		{"Exec", testExec},
		{"ExecStdin", testExecStdin},
		{"ExecFails", testExecFails},
		{"WaitAfterReconnect", testWaitAfterReconnect},
		{"ExitWhileAway", testExitWhileAway},
		{"ExecsAfterReconnect", testExecsAfterReconnect},
		{"TwoDaemons", testTwoDaemons},
		{"ShimKilled", testShimKilled},
		{"ShimKilledAfterExit", testShimKilledAfterExit},
	}
	for _, p := range parts {
		t.Run(p.name, func(t *testing.T) { p.fn(t, harness(t)) })
	}
}

// limit bounds every part. It is only met by a failure.
const limit = 30 * time.Second

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// Must stops the test at an error.
func Must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Got is what a function returned.
type Got[T any] struct {
	V   T
	Err error
}

// Of holds a function's results, so that Value can take them beside the test.
func Of[T any](v T, err error) Got[T] { return Got[T]{v, err} }

// Value is Must for a function that returns something.
func Value[T any](t testing.TB, got Got[T]) T {
	t.Helper()
	Must(t, got.Err)
	return got.V
}

// Spawn starts a shim and ends it with the test.
func Spawn(t *testing.T, r runtime.Runtime, req runtime.SpawnRequest) runtime.Task {
	t.Helper()
	if req.ID == "" {
		req.ID = ids.New()
	}
	if req.Log.Driver == "" {
		req.Log.Driver = "none"
	}
	task := Value(t, Of(r.Spawn(testContext(t), req)))
	t.Cleanup(func() { remove(r, req.ID) })
	return task
}

// remove takes a container away whatever its state.
func remove(r runtime.Runtime, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	task, err := r.Reconnect(ctx, id)
	if err != nil {
		return // gone, or harmed beyond this; the harness cleans up
	}
	if st, err := task.State(ctx); err == nil && (st.Status == runtime.StatusRunning || st.Status == runtime.StatusPaused) {
		_ = task.Kill(ctx, int(syscall.SIGKILL), false)
		_, _ = task.Wait(ctx)
	}
	_ = task.Delete(ctx)
}

// start spawns, creates and starts a container.
func start(t *testing.T, h *Harness, req runtime.SpawnRequest, args ...string) runtime.Task {
	t.Helper()
	if req.ID == "" {
		req.ID = ids.New()
	}
	task := Spawn(t, h.Runtime, req)
	create(t, h, task, req, args...)
	Must(t, task.Start(testContext(t)))
	return task
}

func create(t *testing.T, h *Harness, task runtime.Task, req runtime.SpawnRequest, args ...string) {
	t.Helper()
	spec := h.Spec(task.ID(), args...)
	spec.Process.Terminal = req.Tty
	pid := Value(t, Of(task.Create(testContext(t), spec)))
	if pid <= 0 {
		t.Fatalf("Create returned pid %d", pid)
	}
}

func wantStatus(t *testing.T, task runtime.Task, want runtime.Status) runtime.State {
	t.Helper()
	st := Value(t, Of(task.State(testContext(t))))
	if st.Status != want {
		t.Fatalf("state is %q, want %q", st.Status, want)
	}
	return st
}

func wantExit(t *testing.T, task interface {
	Wait(context.Context) (runtime.Exit, error)
}, code int) runtime.Exit {
	t.Helper()
	exit := Value(t, Of(task.Wait(testContext(t))))
	if exit.Code != code {
		t.Fatalf("exit code %d, want %d", exit.Code, code)
	}
	if exit.At.IsZero() {
		t.Fatal("exit has no time")
	}
	return exit
}

func wantErr(t *testing.T, err error, is func(error) bool, what string) {
	t.Helper()
	if !is(err) {
		t.Fatalf("error is %v, want %s", err, what)
	}
}

func testLifecycle(t *testing.T, h *Harness) {
	task := Spawn(t, h.Runtime, runtime.SpawnRequest{})
	wantStatus(t, task, runtime.StatusSpawned)
	create(t, h, task, runtime.SpawnRequest{}, "exit", "9")
	wantStatus(t, task, runtime.StatusCreated)
	var waiters sync.WaitGroup
	for range 3 {
		waiters.Go(func() {
			if exit, err := task.Wait(testContext(t)); err != nil || exit.Code != 9 {
				t.Errorf("Wait: %+v, %v", exit, err)
			}
		})
	}
	before := time.Now().Add(-time.Second)
	Must(t, task.Start(testContext(t)))
	waiters.Wait()
	wantExit(t, task, 9)
	st := wantStatus(t, task, runtime.StatusStopped)
	if st.Exit.Code != 9 || st.StartedAt.Before(before) || st.Exit.At.Before(st.StartedAt) {
		t.Fatalf("state after the exit: %+v", st)
	}
	Must(t, task.Delete(testContext(t)))
	Must(t, task.Delete(testContext(t)))
	_, err := h.Runtime.Reconnect(testContext(t), task.ID())
	wantErr(t, err, errdefs.IsNotFound, "not found")
}

func testNames(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := start(t, h, runtime.SpawnRequest{}, "wait")
	_, err := h.Runtime.Spawn(ctx, runtime.SpawnRequest{ID: task.ID()})
	wantErr(t, err, errdefs.IsAlreadyExists, "already exists")
	if _, err := task.Create(ctx, h.Spec(task.ID(), "exit", "0")); !errdefs.IsAlreadyExists(err) {
		t.Fatalf("second Create: %v", err)
	}
	if err := task.Delete(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("Delete of a running task: %v", err)
	}
	if _, err := h.Runtime.Reconnect(ctx, ids.New()); !errdefs.IsNotFound(err) {
		t.Fatalf("Reconnect to nothing: %v", err)
	}
	list := Value(t, Of(h.Runtime.List(ctx)))
	if !slices.Contains(list, task.ID()) {
		t.Fatalf("List %v lacks %s", list, task.ID())
	}
	Must(t, task.Kill(ctx, int(syscall.SIGKILL), false))
	wantExit(t, task, 137)
	_, err = h.Runtime.Spawn(ctx, runtime.SpawnRequest{ID: task.ID()})
	wantErr(t, err, errdefs.IsAlreadyExists, "already exists")
	Must(t, task.Delete(ctx))
	if list := Value(t, Of(h.Runtime.List(ctx))); slices.Contains(list, task.ID()) {
		t.Fatal("a deleted container is still listed")
	}
	Spawn(t, h.Runtime, runtime.SpawnRequest{ID: task.ID()})
}

func testFailedCreate(t *testing.T, h *Harness) {
	task := Spawn(t, h.Runtime, runtime.SpawnRequest{})
	spec := h.Spec(task.ID(), "exit", "0")
	spec.Process.Args = []string{"/nowhere"}
	_, err := task.Create(testContext(t), spec)
	if err == nil || !strings.Contains(err.Error(), "no such file or directory") {
		t.Fatalf("Create of a missing program: %v", err)
	}
	wantStatus(t, task, runtime.StatusSpawned)
	create(t, h, task, runtime.SpawnRequest{}, "exit", "4")
	Must(t, task.Start(testContext(t)))
	wantExit(t, task, 4)
}

func testDeleteCreated(t *testing.T, h *Harness) {
	task := Spawn(t, h.Runtime, runtime.SpawnRequest{})
	create(t, h, task, runtime.SpawnRequest{}, "wait")
	begin := time.Now()
	Must(t, task.Delete(testContext(t)))
	if d := time.Since(begin); d > 5*time.Second {
		t.Fatalf("Delete took %v", d)
	}
	bare := Spawn(t, h.Runtime, runtime.SpawnRequest{})
	Must(t, bare.Delete(testContext(t)))
}

// ReadFrames reads a stream without a tty to its end.
func ReadFrames(r io.Reader) (out, err string, _ error) {
	var bufs [3]bytes.Buffer
	for {
		var h [8]byte
		if _, err := io.ReadFull(r, h[:]); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return bufs[1].String(), bufs[2].String(), err
		}
		if h[0] != 1 && h[0] != 2 {
			return "", "", errors.New("frame of an unknown stream")
		}
		if _, err := io.CopyN(&bufs[h[0]], r, int64(binary.BigEndian.Uint32(h[4:]))); err != nil {
			return "", "", err
		}
	}
}

func testAttach(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := Spawn(t, h.Runtime, runtime.SpawnRequest{})
	early := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdout: true, Stderr: true})))
	defer early.Close()
	create(t, h, task, runtime.SpawnRequest{}, "both", "hello", "there")
	onlyErr := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stderr: true})))
	defer onlyErr.Close()
	Must(t, task.Start(ctx))
	out, errs, err := ReadFrames(early)
	if out != "hello\n" || errs != "there\n" || err != nil {
		t.Fatalf("attached before Create: %q, %q, %v", out, errs, err)
	}
	out, errs, err = ReadFrames(onlyErr)
	if out != "" || errs != "there\n" || err != nil {
		t.Fatalf("attached to stderr: %q, %q, %v", out, errs, err)
	}
	wantExit(t, task, 0)
	late := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdout: true})))
	defer late.Close()
	if out, _, err := ReadFrames(late); out != "" || err != nil {
		t.Fatalf("attached after the end: %q, %v", out, err)
	}
}

func testStdinOnce(t *testing.T, h *Harness) {
	ctx := testContext(t)
	req := runtime.SpawnRequest{ID: ids.New(), OpenStdin: true, StdinOnce: true}
	task := Spawn(t, h.Runtime, req)
	s := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdin: true, Stdout: true})))
	defer s.Close()
	create(t, h, task, req, "cat")
	Must(t, task.Start(ctx))
	Value(t, Of(s.Write([]byte("one\n"))))
	Must(t, s.CloseWrite())
	out, _, err := ReadFrames(s)
	if out != "one\nEOF\n" || err != nil {
		t.Fatalf("output %q, %v", out, err)
	}
	wantExit(t, task, 0)

	// The end of stdin may come before the process.
	req.ID = ids.New()
	task = Spawn(t, h.Runtime, req)
	s = Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdin: true, Stdout: true})))
	defer s.Close()
	Value(t, Of(s.Write([]byte("two\n"))))
	Must(t, s.CloseWrite())
	create(t, h, task, req, "cat")
	Must(t, task.Start(ctx))
	if out, _, err := ReadFrames(s); out != "two\nEOF\n" || err != nil {
		t.Fatalf("output %q, %v", out, err)
	}
	wantExit(t, task, 0)
}

// readUntil reads raw or framed output until it contains want.
func readUntil(t *testing.T, r io.Reader, want string) string {
	t.Helper()
	var got []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(got, []byte(want)) {
		n, err := r.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil {
			t.Fatalf("output %q ends before %q: %v", got, want, err)
		}
	}
	return string(got)
}

func testStdinStays(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := start(t, h, runtime.SpawnRequest{OpenStdin: true}, "cat")
	s := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdin: true, Stdout: true})))
	Value(t, Of(s.Write([]byte("first\n"))))
	readUntil(t, s, "first\n")
	Must(t, s.CloseWrite())
	Must(t, s.Close())
	s = Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdin: true, Stdout: true})))
	defer s.Close()
	Value(t, Of(s.Write([]byte("second\n"))))
	readUntil(t, s, "second\n")
	wantStatus(t, task, runtime.StatusRunning)
}

func testDaemonDeathIsNoEOF(t *testing.T, h *Harness) {
	ctx := testContext(t)
	other := h.Again(t)
	task := start(t, h, runtime.SpawnRequest{OpenStdin: true, StdinOnce: true}, "cat")
	same := Value(t, Of(other.Reconnect(ctx, task.ID())))
	s := Value(t, Of(same.Attach(ctx, runtime.AttachRequest{Stdin: true, Stdout: true})))
	Value(t, Of(s.Write([]byte("first\n"))))
	readUntil(t, s, "first\n")
	breaker, ok := s.(interface{ Break() })
	if !ok {
		t.Fatal("the stream cannot be broken by a test")
	}
	breaker.Break()
	s = Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdin: true, Stdout: true})))
	defer s.Close()
	Value(t, Of(s.Write([]byte("second\n"))))
	readUntil(t, s, "second\n")
	Must(t, s.CloseWrite())
	readUntil(t, s, "EOF\n")
	wantExit(t, task, 0)
}

func testTty(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := start(t, h, runtime.SpawnRequest{Tty: true, OpenStdin: true}, "sizes")
	s := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdin: true, Stdout: true})))
	defer s.Close()
	Must(t, task.Resize(ctx, 101, 43))
	Value(t, Of(s.Write([]byte("?\n"))))
	readUntil(t, s, "size 101x43\r\n")

	p := Value(t, Of(task.Exec(ctx, ids.New(), runtime.ExecRequest{Spec: terminal(Command("sizes")), Stdin: true})))
	es := Value(t, Of(p.Attach(ctx, runtime.AttachRequest{Stdin: true, Stdout: true})))
	defer es.Close()
	Value(t, Of(p.Start(ctx)))
	Must(t, p.Resize(ctx, 77, 22))
	Value(t, Of(es.Write([]byte("?\n"))))
	readUntil(t, es, "size 77x22\r\n")
	Value(t, Of(es.Write([]byte{4}))) // end of file, as typed
	wantExit(t, p, 0)
	if _, err := io.ReadAll(es); err != nil {
		t.Fatalf("rest of the terminal: %v", err)
	}
}

func terminal(p *specs.Process) *specs.Process {
	p.Terminal = true
	return p
}

func testKill(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := Spawn(t, h.Runtime, runtime.SpawnRequest{})
	s := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdout: true})))
	defer s.Close()
	create(t, h, task, runtime.SpawnRequest{}, "wait")
	Must(t, task.Start(ctx))
	readUntil(t, s, "ready\n")
	Must(t, task.Kill(ctx, int(syscall.SIGUSR1), false))
	wantExit(t, task, 7)
	wantErr(t, task.Kill(ctx, int(syscall.SIGTERM), false), errdefs.IsNotFound, "not found")
}

func testPause(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := start(t, h, runtime.SpawnRequest{}, "wait")
	Must(t, task.Pause(ctx))
	wantStatus(t, task, runtime.StatusPaused)
	if err := task.Delete(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("Delete of a paused task: %v", err)
	}
	if pids := Value(t, Of(task.Pids(ctx))); len(pids) == 0 {
		t.Fatal("no processes")
	}
	Value(t, Of(task.Stats(ctx)))
	Must(t, task.Resume(ctx))
	wantStatus(t, task, runtime.StatusRunning)
	Must(t, task.Kill(ctx, int(syscall.SIGKILL), false))
	wantExit(t, task, 137)
}

// The freezer holds the processes still past what stands beside them, and another daemon process can let them go on.
func testFreeze(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := start(t, h, runtime.SpawnRequest{}, "wait")
	freezer := Value(t, Of(task.Freezer(ctx)))
	want := func(frozen bool) {
		t.Helper()
		if got := Value(t, Of(freezer.Frozen())); got != frozen {
			t.Errorf("frozen: %v, want %v", got, frozen)
		}
	}
	want(false)
	Must(t, freezer.Thaw())
	for range 20 {
		Must(t, freezer.Freeze(ctx))
		want(true)
		wantStatus(t, task, runtime.StatusRunning)
		other := Value(t, Of(h.Again(t).Reconnect(ctx, task.ID())))
		Must(t, Value(t, Of(other.Freezer(ctx))).Thaw())
		want(false)
	}
	Must(t, task.Pause(ctx))
	Must(t, task.Resume(ctx))
	Must(t, freezer.Freeze(ctx))
	Must(t, task.Kill(ctx, int(syscall.SIGKILL), false)) // version 1 keeps it until it goes on
	Must(t, freezer.Thaw())
	wantExit(t, task, 137)
	Must(t, task.Delete(ctx))
	Must(t, freezer.Freeze(ctx))
	Must(t, freezer.Thaw())
	want(false)
}

func testExec(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := start(t, h, runtime.SpawnRequest{}, "wait")
	p := Value(t, Of(task.Exec(ctx, ids.New(), runtime.ExecRequest{Spec: Command("both", "out", "err")})))
	s := Value(t, Of(p.Attach(ctx, runtime.AttachRequest{Stdout: true, Stderr: true})))
	defer s.Close()
	if pid := Value(t, Of(p.Start(ctx))); pid <= 0 {
		t.Fatalf("pid %d", pid)
	}
	out, errs, err := ReadFrames(s)
	if out != "out\n" || errs != "err\n" || err != nil {
		t.Fatalf("output %q, %q, %v", out, errs, err)
	}
	wantExit(t, p, 0)
	p2 := Value(t, Of(task.Exec(ctx, ids.New(), runtime.ExecRequest{Spec: Command("exit", "5")})))
	Value(t, Of(p2.Start(ctx)))
	wantExit(t, p2, 5)
	Must(t, p2.Delete(ctx))
	left := Value(t, Of(task.Execs(ctx)))
	if len(left) != 1 || left[0].ID() != p.ID() {
		t.Fatalf("%d processes are left", len(left))
	}
	wantStatus(t, task, runtime.StatusRunning)
}

func testExecStdin(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := start(t, h, runtime.SpawnRequest{}, "wait")
	p := Value(t, Of(task.Exec(ctx, ids.New(), runtime.ExecRequest{Spec: Command("cat"), Stdin: true})))
	s := Value(t, Of(p.Attach(ctx, runtime.AttachRequest{Stdin: true, Stdout: true})))
	defer s.Close()
	Value(t, Of(p.Start(ctx)))
	payload := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB: more than every buffer between
	go func() {
		_, _ = s.Write([]byte(payload)) // the output tells what came through
		_ = s.CloseWrite()
	}()
	out, _, err := ReadFrames(s)
	if out != payload+"EOF\n" || err != nil {
		t.Fatalf("%d bytes came back, want %d: %v", len(out), len(payload)+4, err)
	}
	wantExit(t, p, 0)
}

func testExecFails(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := start(t, h, runtime.SpawnRequest{}, "wait")
	spec := Command()
	spec.Args = []string{"/nowhere"}
	p := Value(t, Of(task.Exec(ctx, ids.New(), runtime.ExecRequest{Spec: spec})))
	s := Value(t, Of(p.Attach(ctx, runtime.AttachRequest{Stdout: true})))
	defer s.Close()
	if _, err := p.Start(ctx); err == nil {
		t.Fatal("a missing program was started")
	}
	if out, _, err := ReadFrames(s); out != "" || err != nil {
		t.Fatalf("output %q, %v", out, err)
	}
	st := Value(t, Of(p.State(ctx)))
	if st.Status != runtime.StatusStopped {
		t.Fatalf("state %q", st.Status)
	}
	Must(t, p.Delete(ctx))
	wantStatus(t, task, runtime.StatusRunning)
}

func testWaitAfterReconnect(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := Spawn(t, h.Runtime, runtime.SpawnRequest{})
	s := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdout: true})))
	create(t, h, task, runtime.SpawnRequest{}, "wait")
	Must(t, task.Start(ctx))
	readUntil(t, s, "ready\n")
	pid := wantStatus(t, task, runtime.StatusRunning).Pid
	_ = s.Close()
	Must(t, h.Runtime.Close())
	h.Runtime = h.Again(t)
	task = Value(t, Of(h.Runtime.Reconnect(ctx, task.ID())))
	if st := wantStatus(t, task, runtime.StatusRunning); st.Pid != pid {
		t.Fatalf("pid %d became %d", pid, st.Pid)
	}
	Must(t, task.Kill(ctx, int(syscall.SIGUSR1), false))
	wantExit(t, task, 7)
	Must(t, task.Delete(ctx))
}

func testExitWhileAway(t *testing.T, h *Harness) {
	ctx := testContext(t)
	watcher := h.Again(t)
	task := start(t, h, runtime.SpawnRequest{}, "wait")
	same := Value(t, Of(watcher.Reconnect(ctx, task.ID())))
	Must(t, h.Runtime.Close())
	Must(t, same.Kill(ctx, int(syscall.SIGKILL), false))
	wantExit(t, same, 137)
	h.Runtime = h.Again(t)
	task = Value(t, Of(h.Runtime.Reconnect(ctx, task.ID())))
	if st := wantStatus(t, task, runtime.StatusStopped); st.Exit.Code != 137 {
		t.Fatalf("exit %+v", st.Exit)
	}
	wantExit(t, task, 137)
	Must(t, task.Delete(ctx))
}

func testExecsAfterReconnect(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := start(t, h, runtime.SpawnRequest{}, "wait")
	ended := Value(t, Of(task.Exec(ctx, ids.New(), runtime.ExecRequest{Spec: Command("exit", "3")})))
	Value(t, Of(ended.Start(ctx)))
	wantExit(t, ended, 3)
	running := Value(t, Of(task.Exec(ctx, ids.New(), runtime.ExecRequest{Spec: Command("wait")})))
	s := Value(t, Of(running.Attach(ctx, runtime.AttachRequest{Stdout: true})))
	Value(t, Of(running.Start(ctx)))
	readUntil(t, s, "ready\n")
	_ = s.Close()
	Must(t, h.Runtime.Close())
	h.Runtime = h.Again(t)
	task = Value(t, Of(h.Runtime.Reconnect(ctx, task.ID())))
	execs := Value(t, Of(task.Execs(ctx)))
	if len(execs) != 2 || execs[0].ID() != ended.ID() || execs[1].ID() != running.ID() {
		t.Fatalf("%d processes after the reconnection", len(execs))
	}
	wantExit(t, execs[0], 3)
	if st := Value(t, Of(execs[1].State(ctx))); st.Status != runtime.StatusRunning || st.Pid == 0 {
		t.Fatalf("state %+v", st)
	}
	Must(t, execs[1].Kill(ctx, int(syscall.SIGUSR1)))
	wantExit(t, execs[1], 7)
}

func testTwoDaemons(t *testing.T, h *Harness) {
	ctx := testContext(t)
	other := h.Again(t)
	task := start(t, h, runtime.SpawnRequest{}, "wait")
	same := Value(t, Of(other.Reconnect(ctx, task.ID())))
	var waiters sync.WaitGroup
	for _, one := range []runtime.Task{task, same} {
		waiters.Go(func() {
			if exit, err := one.Wait(ctx); err != nil || exit.Code != 137 {
				t.Errorf("Wait: %+v, %v", exit, err)
			}
		})
	}
	Must(t, same.Kill(ctx, int(syscall.SIGKILL), false))
	waiters.Wait()
	Must(t, same.Delete(ctx))
	Must(t, task.Delete(ctx))
}

func testShimKilled(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := Spawn(t, h.Runtime, runtime.SpawnRequest{})
	s := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdout: true})))
	defer s.Close()
	create(t, h, task, runtime.SpawnRequest{}, "wait")
	Must(t, task.Start(ctx))
	readUntil(t, s, "ready\n") // it would not survive to write this to nobody
	pid := wantStatus(t, task, runtime.StatusRunning).Pid
	h.KillShim(t, task.ID())
	if _, err := task.State(ctx); !errdefs.IsUnavailable(err) {
		t.Fatalf("State without a shim: %v", err)
	}
	if _, err := h.Runtime.Reconnect(ctx, task.ID()); !errdefs.IsUnavailable(err) {
		t.Fatalf("Reconnect without a shim: %v", err)
	}
	if err := task.Delete(ctx); !errdefs.IsUnavailable(err) {
		t.Fatalf("Delete without a shim: %v", err)
	}
	if list := Value(t, Of(h.Runtime.List(ctx))); !slices.Contains(list, task.ID()) {
		t.Fatal("the container is not listed")
	}
	h.KillInit(t, task.ID(), pid)
	for {
		again, err := h.Runtime.Reconnect(ctx, task.ID())
		if errdefs.IsUnavailable(err) && ctx.Err() == nil {
			continue // the kernel takes its time
		}
		Must(t, err)
		if st := wantStatus(t, again, runtime.StatusStopped); st.Exit.Code != 255 {
			t.Fatalf("exit %+v", st.Exit)
		}
		wantExit(t, again, 255)
		Must(t, again.Delete(ctx))
		break
	}
}

func testShimKilledAfterExit(t *testing.T, h *Harness) {
	ctx := testContext(t)
	task := start(t, h, runtime.SpawnRequest{}, "exit", "6")
	wantExit(t, task, 6)
	h.KillShim(t, task.ID())
	task = Value(t, Of(h.Runtime.Reconnect(ctx, task.ID())))
	if st := wantStatus(t, task, runtime.StatusStopped); st.Exit.Code != 6 {
		t.Fatalf("exit %+v", st.Exit)
	}
	wantExit(t, task, 6)
	wantErr(t, task.Kill(ctx, int(syscall.SIGTERM), false), errdefs.IsNotFound, "not found")
	Must(t, task.Delete(ctx))
	_, err := h.Runtime.Reconnect(ctx, task.ID())
	wantErr(t, err, errdefs.IsNotFound, "not found")
}
