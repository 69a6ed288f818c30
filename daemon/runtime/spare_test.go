package runtime_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"stated.dev/stated/daemon/runtime"
	. "stated.dev/stated/daemon/runtime/runtimetest"
	"stated.dev/stated/internal/ids"
)

// spare returns the pid of the shim that a process keeps for its next container, once that waits in recvmsg, or 0.
func spare(t *testing.T, daemon int) int {
	t.Helper()
	list := Value(t, Of(filepath.Glob("/proc/[0-9]*/cmdline")))
	for _, path := range list {
		line, _ := os.ReadFile(path) // it may have ended
		status, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "status"))
		if !bytes.HasPrefix(line, []byte("stated-shim\x00serve\x00--")) || !bytes.Contains(status, fmt.Appendf(nil, "\nPPid:\t%d\n", daemon)) {
			continue
		}
		for _, thread := range Value(t, Of(filepath.Glob(filepath.Join(filepath.Dir(path), "task/*/syscall")))) {
			call, _ := os.ReadFile(thread) // the thread may have ended
			if bytes.HasPrefix(call, fmt.Appendf(nil, "%d ", syscall.SYS_RECVMSG)) {
				return Value(t, Of(strconv.Atoi(filepath.Base(filepath.Dir(path)))))
			}
		}
	}
	return 0
}

// awaitSpare waits until a process keeps a spare.
func awaitSpare(ctx context.Context, t *testing.T, daemon int) int {
	t.Helper()
	for ctx.Err() == nil {
		if pid := spare(t, daemon); pid != 0 {
			return pid
		}
	}
	t.Fatal("no shim was begun ahead of its container")
	return 0
}

// awaitEnd waits until a process is gone.
func awaitEnd(ctx context.Context, t *testing.T, pid int) {
	t.Helper()
	for ctx.Err() == nil {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil {
			return
		}
	}
	t.Fatalf("process %d lives on", pid)
}

// TestSpare starts containers one after the other: each but the first gets the shim that was begun ahead, which is
// known by its container's id from then on.
func TestSpare(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	r := w.open(t)
	end(t, w.run(t, r, runtime.SpawnRequest{}, "wait"))
	pid := awaitSpare(ctx, t, os.Getpid())
	task := w.run(t, r, runtime.SpawnRequest{}, "wait")
	if got := shimPid(filepath.Join(w.execRoot, "containers", task.ID())); got != pid {
		t.Errorf("the container's shim is process %d, want the spare %d", got, pid)
	}
	line := string(Value(t, Of(os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)))))
	if want := "stated-shim\x00serve\x00" + task.ID() + "\x00"; line != want {
		t.Errorf("its command line is %q, want %q", line, want)
	}
	if dir := Value(t, Of(os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)))); !strings.HasSuffix(dir, task.ID()) {
		t.Errorf("it works in %s", dir)
	}
	end(t, task)

	pid = awaitSpare(ctx, t, os.Getpid())
	Must(t, syscall.Kill(pid, syscall.SIGKILL))
	awaitEnd(ctx, t, pid)
	end(t, w.run(t, r, runtime.SpawnRequest{}, "wait")) // a dead spare is no obstacle

	pid = awaitSpare(ctx, t, os.Getpid())
	Must(t, r.Close())
	awaitEnd(ctx, t, pid)
}

// TestSpareOfKilledDaemon kills a daemon that has a spare, which goes too.
func TestSpareOfKilledDaemon(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	id := ids.New()
	h := w.startHelper(t, built.runc, "", "linger", id, "wait")
	for _, step := range []string{"spawning", "creating", "starting", "started"} {
		h.await(t, step)
	}
	pid := awaitSpare(ctx, t, h.cmd.Process.Pid)
	h.kill()
	awaitEnd(ctx, t, pid)
	end(t, Value(t, Of(w.open(t).Reconnect(ctx, id))))
}

// TestShimThatEnds spawns a shim that ends when it is told its container: nobody waits for its answer, and nothing stays.
func TestShimThatEnds(t *testing.T) {
	ctx := deadline(t)
	w := newWorld(t)
	shim := filepath.Join(t.TempDir(), "stated-shim")
	Must(t, os.WriteFile(shim, []byte("#!/bin/sh\nread -r told <&3\nexit 3\n"), 0o755))
	r := Value(t, Of(runtime.New(runtime.Options{ExecRoot: w.execRoot, ShimPath: shim, RuncPath: built.runc})))
	defer r.Close()
	id := ids.New()
	_, err := r.Spawn(ctx, runtime.SpawnRequest{ID: id})
	if err == nil || !strings.Contains(err.Error(), "has ended before it answered") {
		t.Errorf("Spawn: %v, want that the shim has ended", err)
	}
	if _, err := os.Stat(filepath.Join(w.execRoot, "containers", id)); !os.IsNotExist(err) {
		t.Errorf("the shim's directory: %v, want none", err)
	}
}
