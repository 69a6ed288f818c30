package runtime_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/daemon/runtime/runtimetest"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network/sandbox"
)

// pss returns a process's proportional share of memory, in KiB.
func pss(t testing.TB, pid int) int {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), "Pss:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(v, "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no Pss")
	return 0
}

// run starts a container for a test or benchmark and ends it with it.
func (w *world) run(t testing.TB, r *runtime.Shims, req runtime.SpawnRequest, args ...string) runtime.Task {
	t.Helper()
	ctx := context.Background()
	if req.ID == "" {
		req.ID = ids.New()
	}
	if req.Log.Driver == "" {
		req.Log.Driver = "none"
	}
	task, err := r.Spawn(ctx, req)
	runtimetest.Must(t, err)
	spec := w.spec(req.ID, args...)
	spec.Process.Terminal = req.Tty
	if _, err := task.Create(ctx, spec); err != nil {
		t.Fatal(err)
	}
	runtimetest.Must(t, task.Start(ctx))
	return task
}

// end kills and deletes a container.
func end(t testing.TB, task runtime.Task) {
	t.Helper()
	ctx := context.Background()
	if err := task.Kill(ctx, int(syscall.SIGKILL), false); err == nil {
		_, err = task.Wait(ctx)
		runtimetest.Must(t, err)
	}
	runtimetest.Must(t, task.Delete(ctx))
}

// manyShims runs n containers, each with its log on disk, a name server and a held port.
func manyShims(t testing.TB, w *world, r *runtime.Shims, n int) []runtime.Task {
	t.Helper()
	tasks := make([]runtime.Task, n)
	for i := range tasks {
		id := ids.New()
		tasks[i] = w.run(t, r, runtime.SpawnRequest{ID: id, Log: runtime.LogConfig{
			Driver: "json-file", Path: filepath.Join(w.execRoot, id+".log"), MaxFiles: 1,
		}}, "wait")
		ctx := context.Background()
		st, err := tasks[i].State(ctx)
		runtimetest.Must(t, err)
		runtimetest.Must(t, tasks[i].ServeDNS(ctx, sandbox.DNSConfig{NetNS: fmt.Sprintf("/proc/%d/ns/net", st.Pid)}))
		_, err = tasks[i].HoldPorts(ctx, "ep", []sandbox.Port{{
			Proto: "tcp", HostIP: "127.0.0.1", ContainerIP: "127.0.0.1", ContainerPort: 80}})
		runtimetest.Must(t, err)
	}
	return tasks
}

// TestIdleMemory holds a shim to the share of memory that containerd's takes.
func TestIdleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("starts 30 containers")
	}
	const n, limit = 30, 4680 // KiB
	w := newWorld(t)
	r := w.open(t)
	tasks := manyShims(t, w, r, n)
	<-time.After(time.Second) // until they have settled
	sum, most := 0, 0
	for _, task := range tasks {
		one := pss(t, shimPid(filepath.Join(w.execRoot, "containers", task.ID())))
		sum += one
		most = max(most, one)
	}
	t.Logf("%d shims: %d KiB each, the largest %d KiB", n, sum/n, most)
	if sum/n > limit {
		t.Errorf("a shim takes %d KiB, want at most %d", sum/n, limit)
	}
	for _, task := range tasks {
		end(t, task)
	}
}

// BenchmarkReconnect takes up 50 containers at once, as a daemon that starts does.
func BenchmarkReconnect(b *testing.B) {
	w := newWorld(b)
	r := w.open(b)
	tasks := manyShims(b, w, r, 50)
	for b.Loop() {
		again := w.open(b)
		var wg sync.WaitGroup
		for _, task := range tasks {
			wg.Go(func() {
				if _, err := again.Reconnect(context.Background(), task.ID()); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		runtimetest.Must(b, again.Close())
	}
	b.StopTimer()
	for _, task := range tasks {
		end(b, task)
	}
}

func BenchmarkSpawn(b *testing.B) {
	w := newWorld(b)
	r := w.open(b)
	for b.Loop() {
		task, err := r.Spawn(context.Background(), runtime.SpawnRequest{ID: ids.New(), Log: runtime.LogConfig{Driver: "none"}})
		runtimetest.Must(b, err)
		b.StopTimer()
		runtimetest.Must(b, task.Delete(context.Background()))
		b.StartTimer()
	}
}

// BenchmarkRun is spawn, create, start and wait of a program that ends at once.
func BenchmarkRun(b *testing.B) {
	w := newWorld(b)
	r := w.open(b)
	var parts [5]time.Duration
	n := 0
	for b.Loop() {
		ctx := context.Background()
		id := ids.New()
		t0 := time.Now()
		task, err := r.Spawn(ctx, runtime.SpawnRequest{ID: id, Log: runtime.LogConfig{Driver: "json-file", MaxFiles: 1,
			Path: filepath.Join(w.execRoot, id+".log")}})
		runtimetest.Must(b, err)
		t1 := time.Now()
		_, err = task.Create(ctx, w.spec(id, "exit", "0"))
		runtimetest.Must(b, err)
		t2 := time.Now()
		runtimetest.Must(b, task.Start(ctx))
		t3 := time.Now()
		_, err = task.Wait(ctx)
		runtimetest.Must(b, err)
		t4 := time.Now()
		b.StopTimer()
		runtimetest.Must(b, task.Delete(ctx))
		for i, d := range []time.Duration{t1.Sub(t0), t2.Sub(t1), t3.Sub(t2), t4.Sub(t3), time.Since(t4)} {
			parts[i] += d
		}
		n++
		b.StartTimer()
	}
	for i, name := range []string{"spawn", "create", "start", "wait", "delete"} {
		b.ReportMetric(float64(parts[i].Microseconds())/1000/float64(n), name+"-ms")
	}
}

func BenchmarkExec(b *testing.B) {
	w := newWorld(b)
	task := w.run(b, w.open(b), runtime.SpawnRequest{}, "wait")
	ctx := context.Background()
	for b.Loop() {
		p, err := task.Exec(ctx, ids.New(), runtime.ExecRequest{Spec: runtimetest.Command("exit", "0")})
		runtimetest.Must(b, err)
		_, err = p.Start(ctx)
		runtimetest.Must(b, err)
		_, err = p.Wait(ctx)
		runtimetest.Must(b, err)
		runtimetest.Must(b, p.Delete(ctx))
	}
	b.StopTimer()
	end(b, task)
}
