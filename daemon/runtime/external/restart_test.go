package external_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/external"
	. "stated.dev/stated/daemon/runtime/runtimetest"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// run starts a container that waits for a signal, and returns when it is ready.
func (w *world) run(ctx context.Context, t *testing.T, r runtime.Runtime) runtime.Task {
	t.Helper()
	task := w.created(ctx, t, r)
	s := Value(t, Of(task.Attach(ctx, runtime.AttachRequest{Stdout: true})))
	defer s.Close()
	Must(t, task.Start(ctx))
	Value(t, Of(s.Read(make([]byte, 64))))
	return task
}

func (w *world) created(ctx context.Context, t *testing.T, r runtime.Runtime) runtime.Task {
	t.Helper()
	task := Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: ids.New(), Log: runtime.LogConfig{Driver: "none"}})))
	Value(t, Of(task.Create(ctx, w.spec(task.ID(), "wait"))))
	return task
}

// dial connects to containerd as somebody else would.
func (w *world) dial(t *testing.T) (containersapi.ContainersClient, tasksapi.TasksClient) {
	t.Helper()
	conn := Value(t, Of(grpc.NewClient("unix://"+w.address, grpc.WithTransportCredentials(insecure.NewCredentials()))))
	t.Cleanup(func() { _ = conn.Close() })
	return containersapi.NewContainersClient(conn), tasksapi.NewTasksClient(conn)
}

// TestContainerdDies kills containerd under a container that runs, one that ends meanwhile, and one that is not
// started yet.
func TestContainerdDies(t *testing.T) {
	w := newWorld(t)
	ctx := testContext(t)
	execRoot := filepath.Join(w.dir, "exec")
	r := w.open(t, execRoot)
	runs, ends, waits := w.run(ctx, t, r), w.run(ctx, t, r), w.created(ctx, t, r)
	w.stop()

	Must(t, ends.Kill(ctx, int(unix.SIGUSR1), false))
	if exit := Value(t, Of(ends.Wait(ctx))); exit.Code != 7 {
		t.Fatalf("exit without containerd: %+v", exit)
	}
	if err := ends.Delete(ctx); !errdefs.IsUnavailable(err) {
		t.Fatalf("Delete without containerd: %v", err)
	}
	if err := waits.Start(ctx); !errdefs.IsUnavailable(err) {
		t.Fatalf("Start without containerd: %v", err)
	}
	Must(t, r.Close())

	w.start(t)
	r = w.open(t, execRoot)
	ends = Value(t, Of(r.Reconnect(ctx, ends.ID())))
	if st := Value(t, Of(ends.State(ctx))); st.Status != runtime.StatusStopped || st.Exit.Code != 7 {
		t.Fatalf("state after the restart: %+v", st)
	}
	Must(t, ends.Delete(ctx))
	waits = Value(t, Of(r.Reconnect(ctx, waits.ID())))
	Must(t, waits.Start(ctx))
	runs = Value(t, Of(r.Reconnect(ctx, runs.ID())))
	_, tasks := w.dial(t)
	for _, task := range []runtime.Task{runs, waits} {
		st := Value(t, Of(task.State(ctx)))
		seen := Value(t, Of(tasks.Get(namespaces.WithNamespace(ctx, external.Namespace), &tasksapi.GetRequest{ContainerID: task.ID()})))
		if st.Status != runtime.StatusRunning || int(seen.Process.Pid) != st.Pid {
			t.Errorf("state %+v, and to containerd %v", st, seen.Process)
		}
		Must(t, task.Kill(ctx, int(unix.SIGKILL), false))
		Value(t, Of(task.Wait(ctx)))
		Must(t, task.Delete(ctx))
	}
	w.wantEmpty(t)
}

// TestDaemonDies ends a daemon between two steps with containerd, and has the next one go on.
func TestDaemonDies(t *testing.T) {
	w := newWorld(t)
	for _, point := range []string{"external.create.recorded", "external.create.created", "external.delete.deleted"} {
		t.Run(point, func(t *testing.T) {
			ctx := testContext(t)
			execRoot := filepath.Join(w.dir, point)
			id := ids.New()
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestDaemonHelper$")
			cmd.Env = append(os.Environ(), helperEnv+"="+strings.Join([]string{w.dir, w.address, w.cgroup, w.rootfs, w.shim, w.runc, execRoot, id}, "\x1f"),
				fault.EnvVar+"="+point+"=kill")
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != -1 {
				t.Fatalf("the daemon did not die at %s: %v: %s", point, err, out)
			}
			r := w.open(t, execRoot)
			task := Value(t, Of(r.Reconnect(ctx, id)))
			if st := Value(t, Of(task.State(ctx))); st.Status == runtime.StatusSpawned {
				Value(t, Of(task.Create(ctx, w.spec(id, "exit", "3"))))
				Must(t, task.Start(ctx))
				if exit := Value(t, Of(task.Wait(ctx))); exit.Code != 3 {
					t.Errorf("exit %+v", exit)
				}
			}
			Must(t, task.Delete(ctx))
			// The name is free again.
			task = Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: id, Log: runtime.LogConfig{Driver: "none"}})))
			Value(t, Of(task.Create(ctx, w.spec(id, "exit", "0"))))
			Must(t, task.Delete(ctx))
		})
	}
	w.wantEmpty(t)
}

// TestReboot takes the runtime directories away while nobody is there, as a reboot does.
func TestReboot(t *testing.T) {
	w := newWorld(t)
	ctx := testContext(t)
	execRoot, otherRoot := filepath.Join(w.dir, "exec"), filepath.Join(w.dir, "other")
	r, other := w.open(t, execRoot), w.open(t, otherRoot)
	lost, kept := w.run(ctx, t, r), w.run(ctx, t, other)
	Must(t, r.Close())
	w.stop()
	w.killAll()
	for _, dir := range []string{execRoot, filepath.Join(w.dir, "state")} {
		Must(t, os.RemoveAll(dir))
	}
	w.start(t)
	r = w.open(t, execRoot)
	if _, err := r.Reconnect(ctx, lost.ID()); !errdefs.IsNotFound(err) {
		t.Errorf("Reconnect after a reboot: %v", err)
	}
	containers, _ := w.dial(t)
	list := Value(t, Of(containers.List(namespaces.WithNamespace(ctx, external.Namespace), &containersapi.ListContainersRequest{})))
	if len(list.Containers) != 1 || list.Containers[0].ID != kept.ID() {
		t.Errorf("containerd's records have %v", list.Containers)
	}
	kept = Value(t, Of(other.Reconnect(ctx, kept.ID())))
	Must(t, kept.Delete(ctx))
	w.wantEmpty(t)
}

// TestFlagChanges takes containers up with containerd that were started without it, and the other way round.
func TestFlagChanges(t *testing.T) {
	w := newWorld(t)
	ctx := testContext(t)
	execRoot := filepath.Join(w.dir, "exec")
	with := w.open(t, execRoot)
	first, second := w.run(ctx, t, with), w.run(ctx, t, with)
	Must(t, with.Close())
	without := Value(t, Of(runtime.New(w.options(execRoot).Shims)))
	end := func(r runtime.Runtime, id string) {
		t.Helper()
		task := Value(t, Of(r.Reconnect(ctx, id)))
		Must(t, task.Kill(ctx, int(unix.SIGKILL), false))
		Value(t, Of(task.Wait(ctx)))
		Must(t, task.Delete(ctx))
	}
	end(without, first.ID())
	third := w.run(ctx, t, without)
	Must(t, without.Close())
	with = w.open(t, execRoot)
	end(with, second.ID())
	end(with, third.ID())
	Must(t, with.Close())
	// containerd notices that the first one's shim has ended.
	for ctx.Err() == nil {
		if len(w.bundles("*"+first.ID())) == 0 { // one that is being removed has a dot in front
			break
		}
	}
	w.open(t, execRoot)
	w.wantEmpty(t)
}

const helperEnv = "EXTERNAL_TEST_HELPER"

// TestDaemonHelper is the daemon that dies. By itself it does nothing.
func TestDaemonHelper(t *testing.T) {
	f := strings.Split(os.Getenv(helperEnv), "\x1f")
	if len(f) != 8 {
		return
	}
	w := &world{dir: f[0], address: f[1], cgroup: f[2], rootfs: f[3], shim: f[4], runc: f[5]}
	ctx := testContext(t)
	r := w.open(t, f[6])
	task := Value(t, Of(r.Spawn(ctx, runtime.SpawnRequest{ID: f[7], Log: runtime.LogConfig{Driver: "none"}})))
	Value(t, Of(task.Create(ctx, w.spec(f[7], "exit", "0"))))
	Must(t, task.Start(ctx))
	Value(t, Of(task.Wait(ctx)))
	Must(t, task.Delete(ctx))
}

// TestOthersContainers has containerd run a container of somebody else's with the shim as its runtime.
func TestOthersContainers(t *testing.T) {
	w := newWorld(t)
	w.open(t, filepath.Join(w.dir, "exec")) // it waits for containerd
	containers, tasks := w.dial(t)
	ctx := namespaces.WithNamespace(testContext(t), "others")
	id := ids.New()
	runc := Value(t, Of(filepath.Abs(Value(t, Of(exec.LookPath(w.runc))))))
	Value(t, Of(containers.Create(ctx, &containersapi.CreateContainerRequest{Container: &containersapi.Container{
		ID: id,
		Runtime: &containersapi.Container_Runtime{Name: w.shim, Options: Value(t, Of(typeurl.MarshalAnyToProto(
			&options.Options{BinaryName: runc, Root: filepath.Join(w.dir, "others")})))},
		Spec: Value(t, Of(external.EncodeSpec(w.spec(id, "exit", "5")))),
	}})))
	Value(t, Of(tasks.Create(ctx, &tasksapi.CreateTaskRequest{ContainerID: id})))
	Value(t, Of(tasks.Start(ctx, &tasksapi.StartRequest{ContainerID: id})))
	if exit := Value(t, Of(tasks.Wait(ctx, &tasksapi.WaitRequest{ContainerID: id}))); exit.ExitStatus != 5 {
		t.Errorf("exit %v", exit)
	}
	Value(t, Of(tasks.Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id})))
	if _, err := tasks.Get(ctx, &tasksapi.GetRequest{ContainerID: id}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
		t.Errorf("the deleted task: %v", err)
	}
}

// TestWrongDirectory has somebody else's container name a runtime directory that is not its own.
func TestWrongDirectory(t *testing.T) {
	w := newWorld(t)
	ctx := testContext(t)
	r := w.open(t, filepath.Join(w.dir, "exec"))
	task := w.run(ctx, t, r)
	containers, tasks := w.dial(t)
	spec := w.spec(task.ID(), "exit", "5")
	spec.Annotations = map[string]string{"dev.stated.directory": filepath.Join(w.dir, "exec", "containers", task.ID())}
	others := namespaces.WithNamespace(ctx, "others")
	Value(t, Of(containers.Create(others, &containersapi.CreateContainerRequest{Container: &containersapi.Container{
		ID: "impostor", Runtime: &containersapi.Container_Runtime{Name: w.shim}, Spec: Value(t, Of(external.EncodeSpec(spec))),
	}})))
	if _, err := tasks.Create(others, &tasksapi.CreateTaskRequest{ContainerID: "impostor"}); err == nil || !strings.Contains(err.Error(), "not of impostor") {
		t.Errorf("a task of another's directory: %v", err)
	}
	Must(t, task.Kill(ctx, int(unix.SIGKILL), false))
	Value(t, Of(task.Wait(ctx)))
	Must(t, task.Delete(ctx))
}

// TestAddresses names containerds that cannot be.
func TestAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"tcp://127.0.0.1:1": "not an absolute path",
		"containerd.sock":   "not an absolute path",
	} {
		if _, err := external.New(t.Context(), external.Options{Address: address}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	nowhere := filepath.Join(t.TempDir(), "nowhere.sock")
	if _, err := external.New(ctx, external.Options{Address: nowhere}); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("containerd at %s does not answer", nowhere)) {
		t.Errorf("no containerd: %v", err)
	}
}
