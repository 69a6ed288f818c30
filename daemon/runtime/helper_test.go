package runtime_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/runtimetest"
	"stated.dev/stated/internal/fault"
)

// A helper is this test binary run again as a daemon that a test can kill. Its verb and arguments come by the
// environment; it tells of its progress on stdout, line by line.

type helper struct {
	cmd *exec.Cmd
	out *bufio.Reader
}

// startHelper runs a verb on a container.
func (w *world) startHelper(t testing.TB, runc, faults, verb, id string, args ...string) *helper {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(),
		"RUNTIME_TEST_HELPER="+verb,
		"RUNTIME_TEST_ARGS="+strings.Join(append([]string{
			w.execRoot, built.shim, runc, built.rootfs, w.cgroup, id}, args...), "\x1f"),
		fault.EnvVar+"="+faults)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	runtimetest.Must(t, err)
	runtimetest.Must(t, cmd.Start())
	return &helper{cmd: cmd, out: bufio.NewReader(out)}
}

// await returns when the helper has said a line.
func (h *helper) await(t testing.TB, want string) {
	t.Helper()
	line, err := h.out.ReadString('\n')
	if strings.TrimSpace(line) != want {
		t.Fatalf("helper said %q (%v), want %q", line, err, want)
	}
}

// kill ends the helper as a crash would.
func (h *helper) kill() {
	_ = h.cmd.Process.Kill()
	h.wait()
}

func (h *helper) wait() {
	_, _ = io.Copy(io.Discard, h.out)
	_ = h.cmd.Wait()
}

// runHelper is the helper's main.
func runHelper(verb string) int {
	args := strings.Split(os.Getenv("RUNTIME_TEST_ARGS"), "\x1f")
	built = programs{shim: args[1], runc: args[2], rootfs: args[3]}
	w := &world{execRoot: args[0], cgroup: args[4]}
	id, rest := args[5], args[6:]
	if err := help(w, verb, id, rest); err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		return 1
	}
	return 0
}

func help(w *world, verb, id string, args []string) error {
	ctx := context.Background()
	r, err := runtime.New(runtime.Options{ExecRoot: w.execRoot, ShimPath: built.shim, RuncPath: built.runc})
	if err != nil {
		return err
	}
	switch verb {
	case "run", "linger": // spawns, creates and starts
		fmt.Println("spawning")
		task, err := r.Spawn(ctx, runtime.SpawnRequest{ID: id, Log: runtime.LogConfig{Driver: "none"}})
		if err != nil {
			return err
		}
		fmt.Println("creating")
		if _, err := task.Create(ctx, w.spec(id, args...)); err != nil {
			return err
		}
		fmt.Println("starting")
		if err := task.Start(ctx); err != nil {
			return err
		}
		fmt.Println("started")
		if verb == "linger" {
			_, err = task.Wait(ctx)
			return err
		}
	case "attach": // reads the output until it is killed
		task, err := r.Reconnect(ctx, id)
		if err != nil {
			return err
		}
		s, err := task.Attach(ctx, runtime.AttachRequest{Stdout: true})
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(s, make([]byte, 64)); err != nil {
			return err
		}
		fmt.Println("reading")
		_, _ = io.Copy(io.Discard, s)
	case "delete":
		task, err := r.Reconnect(ctx, id)
		if err != nil {
			return err
		}
		return task.Delete(ctx)
	}
	return nil
}
