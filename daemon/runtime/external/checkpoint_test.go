package external_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime"
	. "stated.dev/stated/daemon/runtime/runtimetest"
)

// TestCheckpoint writes a container to a directory and has containerd continue it from there.
func TestCheckpoint(t *testing.T) {
	criu := strings.TrimSpace(string(Value(t, Of(exec.Command("../../../contrib/env/criu.sh").Output()))))
	t.Setenv("PATH", filepath.Dir(criu)+":"+os.Getenv("PATH"))
	w := newWorld(t)
	ctx := testContext(t)
	r := w.open(t, filepath.Join(w.dir, "exec"))
	task := w.run(ctx, t, r)
	dir := filepath.Join(t.TempDir(), "checkpoint")
	Must(t, task.(runtime.Checkpointer).Checkpoint(ctx, runtime.CheckpointRequest{Path: dir, WorkPath: t.TempDir(), Exit: true}))
	Value(t, Of(task.Wait(ctx)))
	Must(t, task.Delete(ctx))

	task = Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: task.ID(), Log: runtime.LogConfig{Driver: "none"}})))
	Must(t, task.(runtime.Checkpointer).CreateFrom(ctx, w.spec(task.ID(), "wait"), dir))
	Must(t, task.Start(ctx))
	if st := Value(t, Of(task.State(ctx))); st.Status != runtime.StatusRunning || st.Pid == 0 {
		t.Errorf("state %+v", st)
	}
	Must(t, task.Kill(ctx, int(unix.SIGUSR1), false))
	if exit := Value(t, Of(task.Wait(ctx))); exit.Code != 7 {
		t.Errorf("exit %+v", exit)
	}
	Must(t, task.Delete(ctx))
	w.wantEmpty(t)
}
