package containers_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/daemon/runtime"
	"stated.dev/stated/internal/ids"
)

// edit changes a record behind the daemon's back.
func (b *bench) edit(id, from, to string) {
	b.Helper()
	path := filepath.Join(b.root, "containers", id, "config.v2.json")
	data, err := os.ReadFile(path)
	b.ok(err)
	if !bytes.Contains(data, []byte(from)) {
		b.Fatalf("the record has no %s", from)
	}
	b.ok(os.WriteFile(path+".new", bytes.Replace(data, []byte(from), []byte(to), 1), 0o600), os.Rename(path+".new", path))
}

// problem reports whether the restore set a container aside, and why.
func (b *bench) problem(id string) string {
	var text []string
	for _, p := range b.Problems() {
		if p.ID == id {
			text = append(text, p.Reason)
		}
	}
	return strings.Join(text, "; ")
}

func TestRestoreRunning(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", &container.HostConfig{Binds: []string{"data:/data"}}, "wait")
		paused := b.run("two", nil, "wait")
		b.ok(b.Pause(b.Context(), paused))
		held := b.host.held()
		b.again()
		b.is(id, container.StateRunning)
		b.is(paused, container.StatePaused)
		if got := b.host.held(); len(got) != len(held) {
			b.Errorf("held before: %v, after: %v", held, got)
		}
		b.ok(b.Kill(b.Context(), id, "USR1"))
		synctest.Wait()
		if in := b.is(id, container.StateExited); in.State.ExitCode != 7 {
			b.Errorf("exit code %d", in.State.ExitCode)
		}
		b.ok(b.Stop(b.Context(), paused, api.StopRequest{}))
		b.nothingHeld()
	})
}

func TestRestoreEnded(t *testing.T) {
	bubble(t, func(b *bench) {
		id, again, gone := b.run("one", nil, "wait"), b.run("two", policy("always", 0), "wait"), b.run("three", &container.HostConfig{AutoRemove: true}, "wait")
		b.end()
		at := time.Now()
		for _, id := range []string{id, again, gone} {
			b.rt.End(id, runtime.Exit{Code: 9, At: at})
		}
		b.after(time.Hour)
		b.begin()
		if in := b.is(id, container.StateExited); in.State.ExitCode != 9 || in.State.FinishedAt != at.UTC().Format(time.RFC3339Nano) {
			b.Errorf("recorded end: %+v", in.State)
		}
		b.is(again, container.StateRunning)
		_, err := b.Inspect(b.Context(), gone, false)
		b.fails(err, errdefs.IsNotFound)
		b.ok(b.Stop(b.Context(), again, api.StopRequest{}))
		b.nothingHeld()
	})
}

func TestRestoreAfterReboot(t *testing.T) {
	bubble(t, func(b *bench) {
		id, always := b.run("one", &container.HostConfig{Binds: []string{"data:/data"}}, "wait"), b.run("two", policy("always", 0), "wait")
		stopped := b.run("three", policy("unless-stopped", 0), "wait")
		b.ok(b.Stop(b.Context(), stopped, api.StopRequest{}))
		b.reboot()
		if in := b.is(id, container.StateExited); in.State.ExitCode != 255 {
			b.Errorf("exit code %d", in.State.ExitCode)
		}
		b.is(always, container.StateRunning)
		b.is(stopped, container.StateExited)
		b.ok(b.Stop(b.Context(), always, api.StopRequest{}))
		b.nothingHeld()
		b.start(id)
	})
}

// TestRestoreWaitsForNoPlugin: what needs a plug-in that hangs or is not there yet does not keep the start.
func TestRestoreWaitsForNoPlugin(t *testing.T) {
	bubble(t, func(b *bench) {
		bound := func(hc *container.HostConfig) *container.HostConfig {
			hc.Binds = []string{"data:/data"}
			return hc
		}
		far := b.run("far", bound(policy("always", 0)), "wait")
		once := b.run("once", bound(&container.HostConfig{}), "wait")
		near := b.run("near", policy("always", 0), "wait")
		with := policy("always", 0)
		with.NetworkMode = "container:far"
		sharer := b.run("sharer", with, "wait")
		b.end()
		for _, id := range []string{far, once, near, sharer} {
			b.rt.End(id, runtime.Exit{Code: 9, At: time.Now()})
		}
		for _, id := range []string{far, once} {
			b.edit(id, `"Driver":"local"`, `"Driver":"shelf"`)
		}
		answer := make(chan struct{})
		hang := func() error { <-answer; return errdefs.ErrNotFound }
		b.host.lie("VolumeMount", hang)
		b.host.lie("VolumeUnmount", hang)
		b.begin()
		b.is(near, container.StateRunning)
		b.is(far, container.StateRestarting)
		b.is(once, container.StateExited)
		close(answer) // the plug-in was not there; the policy tries again
		b.after(time.Minute)
		b.is(far, container.StateRunning)
		b.is(sharer, container.StateRunning)
		b.ok(b.Stop(b.Context(), far, api.StopRequest{}))
	})
}

// TestRebootStartsPeersFirst: a container that shares another one's network is started after that.
func TestRebootStartsPeersFirst(t *testing.T) {
	bubble(t, func(b *bench) {
		var sharers []string
		for _, name := range []string{"one", "two", "three", "four"} {
			b.run(name, policy("always", 0), "wait")
			hc := policy("always", 0)
			hc.NetworkMode = container.NetworkMode("container:" + name)
			sharers = append(sharers, b.run("with-"+name, hc, "wait"))
		}
		b.reboot()
		for _, id := range sharers {
			b.is(id, container.StateRunning)
		}
	})
}

// TestRestoreForeign: a container that lives in a cgroup of its name is somebody else's, and no verb touches it.
func TestRestoreForeign(t *testing.T) {
	root := t.TempDir()
	id := ""
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, root)
		id = b.run("one", policy("always", 0), "wait")
		b.end()
		b.rt.KillInit(id)
		synctest.Wait()
		b.begin()
		b.ok(b.Kill(b.Context(), id, "KILL"))
	})
	other := foreignProcess(t, id)
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, root)
		b.end()
		b.edit(id, `"Running":false`, `"Running":true`)
		b.edit(id, `"Pid":0`, `"Pid":`+strconv.Itoa(other))
		b.begin()
		b.is(id, container.StateRunning)
		if b.problem(id) == "" {
			b.Error("nobody was told")
		}
		b.fails(b.Stop(b.Context(), id, api.StopRequest{}), errdefs.IsConflict)
		b.fails(b.Kill(b.Context(), id, "KILL"), errdefs.IsConflict)
		b.fails(b.Remove(b.Context(), id, api.RemoveRequest{Force: true}), errdefs.IsConflict)
		b.is(id, container.StateRunning)
	})
}

// foreignProcess runs a process in a cgroup of that name.
func foreignProcess(t *testing.T, name string) int {
	t.Helper()
	parent := ""
	for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil {
			parent = dir
			break
		}
	}
	if parent == "" {
		t.Skip("no cgroup file system is mounted where it usually is")
	}
	dir := filepath.Join(parent, "stated-test-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// TestRestoreSilentShim: a shim that does not answer keeps its container; nothing of it is taken or started.
func TestRestoreSilentShim(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", policy("always", 0), "wait")
		b.end()
		b.rt.Fail("Reconnect", errdefs.ErrUnavailable)
		b.begin()
		b.is(id, container.StateRunning)
		if b.problem(id) == "" {
			b.Error("nobody was told")
		}
		if len(b.host.active) != 1 || len(b.host.held()) == 0 {
			b.Errorf("its network was not kept: %v, %v", b.host.active, b.host.held())
		}
		b.fails(b.Stop(b.Context(), id, api.StopRequest{}), errdefs.IsConflict)
		b.again() // it answers
		b.ok(b.Stop(b.Context(), id, api.StopRequest{}))
		b.nothingHeld()
	})
}

// TestRestoreHalfStarted: a start that was not recorded is undone.
func TestRestoreHalfStarted(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", nil, "wait")
		b.end()
		b.edit(id, `"Running":true`, `"Running":false`)
		b.begin()
		b.is(id, container.StateExited)
		list, err := b.rt.List(b.Context())
		b.ok(err)
		if len(list) > 0 {
			b.Errorf("tasks are left: %v", list)
		}
		b.nothingHeld()
		b.start(id)
	})
}

// TestOrphanTask: the task of a container that is no more goes.
func TestOrphanTask(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", nil, "wait")
		b.end()
		b.ok(os.RemoveAll(filepath.Join(b.root, "containers", id)))
		b.begin()
		list, err := b.rt.List(b.Context())
		b.ok(err)
		if len(list) > 0 {
			b.Errorf("tasks are left: %v", list)
		}
	})
}

// TestShimDiesUnderUs: an end that the shim left a record of is known; until there is one, nothing is assumed.
func TestShimDiesUnderUs(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.run("one", nil, "wait")
		b.rt.Fail("Reconnect", errdefs.ErrUnavailable)
		b.rt.KillShim(id)
		b.ok(b.rt.Close()) // its connections break
		b.after(time.Second)
		b.is(id, container.StateRunning)
		if b.problem(id) == "" {
			b.Error("nobody was told")
		}
		b.rt.KillInit(id)
		b.after(time.Hour)
		b.is(id, container.StateExited)
		b.nothingHeld()
	})
}

func TestIndex(t *testing.T) {
	bubble(t, func(b *bench) {
		id := b.create("one", nil, "wait")
		b.again() // writes the index and starts with it
		b.end()
		b.edit(id, `"Name":"/one"`, `"Name":"/renamed"`)
		b.begin()
		if _, err := b.Inspect(b.Context(), "renamed", false); err != nil {
			b.Errorf("a change behind our back was not noticed: %v", err)
		}
		b.end()
		index := filepath.Join(b.root, ".stated", "index")
		for _, damage := range []string{"", "{", "null", `{"Version":1,"Containers":[{}]}`, `{"Version":99}`} {
			b.ok(os.WriteFile(index, []byte(damage), 0o600))
			b.begin()
			if in := b.is("renamed", container.StateCreated); in.Name != "/renamed" {
				b.Errorf("with the index %q the container is %+v", damage, in)
			}
			b.end()
		}
		b.begin()
	})
}

// TestDamagedRecords: they are listed, they keep nobody, and no verb writes over them.
func TestDamagedRecords(t *testing.T) {
	bubble(t, func(b *bench) {
		damaged, lazy, fine := b.create("damaged", nil, "wait"), b.create("lazy", nil, "wait"), b.create("fine", nil, "wait")
		path := func(id string) string { return filepath.Join(b.root, "containers", id, "config.v2.json") }
		b.again() // all are in the index now
		// One that the index vouches for, and that cannot be read when somebody asks.
		data, err := os.ReadFile(path(lazy))
		b.ok(err)
		b.ok(os.WriteFile(path(lazy), bytes.Repeat([]byte("x"), len(data)), 0o600))
		b.fails(b.Rename(b.Context(), lazy, "other"), errdefs.IsConflict)
		b.is(lazy, container.StateDead)
		b.end()
		b.ok(os.WriteFile(path(damaged), []byte("not JSON"), 0o600))
		half := filepath.Join(b.root, "containers", ids.New())
		b.ok(os.MkdirAll(filepath.Join(half, "checkpoints"), 0o700)) // a create that died before its record
		b.begin()
		for _, id := range []string{damaged, lazy} {
			b.is(id, container.StateDead)
			b.fails(b.Start(b.Context(), id, api.StartRequest{}), errdefs.IsConflict)
			b.fails(b.Rename(b.Context(), id, "other"), errdefs.IsConflict)
			b.fails(b.Remove(b.Context(), id, api.RemoveRequest{}), errdefs.IsConflict)
		}
		report, err := b.Prune(b.Context(), nil)
		b.ok(err)
		if len(report.ContainersDeleted) != 1 || report.ContainersDeleted[0] != fine {
			b.Errorf("prune deleted %v", report.ContainersDeleted)
		}
		if got, err := os.ReadFile(path(damaged)); err != nil || string(got) != "not JSON" {
			b.Errorf("the damaged record was touched: %q, %v", got, err)
		}
		if _, err := os.Stat(half); !os.IsNotExist(err) {
			b.Errorf("the half-made container is still there: %v", err)
		}
		b.ok(b.Remove(b.Context(), damaged, api.RemoveRequest{Force: true}))
		if _, err := os.Stat(filepath.Dir(path(damaged))); !os.IsNotExist(err) {
			b.Errorf("the removed container is still there: %v", err)
		}
	})
}

func TestNameConflictAtLoad(t *testing.T) {
	bubble(t, func(b *bench) {
		one, two := b.create("one", nil, "wait"), b.create("two", nil, "wait")
		b.end()
		b.edit(two, `"Name":"/two"`, `"Name":"/one"`)
		b.begin()
		fine, set := one, two
		if b.problem(one) != "" {
			fine, set = two, one
		}
		if b.problem(fine) != "" || b.problem(set) == "" {
			b.Errorf("problems: %v", b.Problems())
		}
		b.start(fine)
		b.ok(b.Remove(b.Context(), set, api.RemoveRequest{Force: true}))
		b.is("one", container.StateRunning)
	})
}
