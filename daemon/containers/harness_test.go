package containers_test

import (
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/user"

	api "stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/containers"
	"stated.dev/stated/daemon/containers/settings"
	"stated.dev/stated/daemon/journal"
	"stated.dev/stated/daemon/runtime/ocispec"
	"stated.dev/stated/daemon/runtime/runtimetest"
)

// bench is one host and the daemon on it. All of it runs on a clock of its own: nothing waits for real.
type bench struct {
	*testing.T
	root string
	host *host
	rt   *runtimetest.Fake
	*containers.Service
	j   *journal.Journal
	ids user.IdentityMapping // of the daemon's next start
}

// bubble runs a test on a clock of its own, with a host in a temporary directory.
func bubble(t *testing.T, f func(b *bench)) {
	t.Helper()
	root := t.TempDir()
	synctest.Test(t, func(t *testing.T) { f(newBench(t, root)) })
}

func newBench(t *testing.T, root string) *bench {
	b := &bench{T: t, root: root, host: newHost(root), rt: runtimetest.NewFake()}
	if err := os.MkdirAll(filepath.Join(root, "containers"), 0o700); err != nil {
		t.Fatal(err)
	}
	b.begin()
	t.Cleanup(func() {
		b.end()
		list, err := b.rt.List(t.Context())
		if err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
		for _, id := range list {
			b.rt.KillInit(id)
		}
	})
	return b
}

// begin starts a daemon on the host.
func (b *bench) begin() {
	b.Helper()
	var err error
	if b.j, _, err = journal.Open(b.root, filepath.Join(b.root, ".stated"), slog.New(slog.DiscardHandler)); err != nil {
		b.Fatal(err)
	}
	uid, gid := b.ids.RootPair()
	b.Service = containers.New(containers.Config{
		UID: uid, GID: gid, Host: ocispec.Host{UIDMaps: b.ids.UIDMaps, GIDMaps: b.ids.GIDMaps},
		Dir: filepath.Join(b.root, "containers"), IndexPath: filepath.Join(b.root, ".stated", "index"), Root: b.root, ExecRoot: b.root,
		Sockets: []string{filepath.Join(b.root, "api.sock")}, LogDriver: "none", StopTimeout: 10 * time.Second, LiveRestore: true, CgroupDriver: "cgroupfs",
		Settings: settings.Host{Runtimes: []string{"runc"}, DefaultRuntime: "runc"},
	}, fakeLayers{b.host}, b.host, fakeVolumes{b.host}, fakeNetworks{b.host}, fakePins{b.host}, b.rt, lyingJournal{b.j, b.host}, b.host, slog.New(slog.DiscardHandler))
	b.ok(b.Restore(b.Context()))
}

// end stops the daemon; the containers run on.
func (b *bench) end() {
	b.Helper()
	b.ok(b.Close(), b.j.Close())
	b.rt = b.rt.Again()
}

// again is a daemon stopped and started.
func (b *bench) again() {
	b.Helper()
	b.end()
	b.begin()
}

// reboot is what the host looks like after it: no process, no mount, no sandbox.
func (b *bench) reboot() {
	b.Helper()
	b.end()
	list, err := b.rt.List(b.Context())
	b.ok(err)
	for _, id := range list {
		b.rt.KillInit(id)
	}
	synctest.Wait()
	b.rt = runtimetest.NewFake()
	clear(b.host.mounted)
	clear(b.host.mounts)
	clear(b.host.pins)
	clear(b.host.sandboxes)
	b.begin()
}

func (b *bench) ok(errs ...error) {
	b.Helper()
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
}

// fails wants an error of a class.
func (b *bench) fails(err error, class func(error) bool) {
	b.Helper()
	if err == nil || !class(err) {
		b.Fatalf("got error %v", err)
	}
}

// create makes a container that runs the test program's verb.
func (b *bench) create(name string, hc *container.HostConfig, words ...string) string {
	b.Helper()
	resp, err := b.Service.Create(b.Context(), request(name, hc, words...))
	b.ok(err)
	return resp.ID
}

func request(name string, hc *container.HostConfig, words ...string) api.CreateRequest {
	cfg := &types.ContainerConfig{}
	cfg.Image = "image"
	cfg.Cmd = append([]string{runtimetest.Prog}, words...)
	return api.CreateRequest{Name: name, Config: cfg, HostConfig: hc}
}

// run creates and starts one.
func (b *bench) run(name string, hc *container.HostConfig, words ...string) string {
	b.Helper()
	id := b.create(name, hc, words...)
	b.start(id)
	return id
}

func (b *bench) start(id string) {
	b.Helper()
	b.ok(b.Start(b.Context(), id, api.StartRequest{}))
}

// inspected is the part of an inspect answer that tests look at.
type inspected struct {
	State        container.State
	RestartCount int
	ExecIDs      []string
	Name         string
}

func (b *bench) state(id string) inspected {
	b.Helper()
	var in inspected
	raw, err := b.Inspect(b.Context(), id, false)
	b.ok(err, json.Unmarshal(raw, &in))
	return in
}

// is wants a container to be in a state.
func (b *bench) is(id string, want container.ContainerState) inspected {
	b.Helper()
	in := b.state(id)
	if in.State.Status != want {
		b.Fatalf("container is %s (exit code %d, error %q), want %s", in.State.Status, in.State.ExitCode, in.State.Error, want)
	}
	return in
}

// after lets time pass, and everything that it makes happen.
func (b *bench) after(d time.Duration) {
	time.Sleep(d) // the bubble's clock
	synctest.Wait()
}

// nothingHeld wants the host without leftovers.
func (b *bench) nothingHeld() {
	b.Helper()
	if held := b.host.held(); len(held) > 0 {
		b.Errorf("still held: %v", held)
	}
}

func seconds(n int) *int { return &n }
