package volumes_test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/go-plugins-helpers/volume"
	"github.com/google/go-cmp/cmp"

	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/plugin"
	"stated.dev/stated/volumes/plugin/plugintest"
)

// testDeadline is what one question to a plug-in that hangs costs.
const testDeadline = 3 * time.Second

// pluginsOf finds the plug-ins of a data root in these tests.
func pluginsOf(root string) *plugin.Plugins {
	return plugin.New(plugin.Options{SocketDirs: []string{filepath.Join(root, "run")}, SpecDirs: []string{}})
}

// newPluginHost returns a host whose store finds plug-ins and is patient for as long as told, and one of them, dead.
func newPluginHost(t *testing.T, patience time.Duration) (*host, *plugintest.Server) {
	h := newHost(t)
	h.fake = nil
	h.adjust = func(opts *volumes.Options) {
		opts.Finder = pluginsOf(h.root)
		opts.DriverDeadline = testDeadline
		opts.StartPatience = patience
	}
	return h, plugintest.New(t, filepath.Join(h.root, "run", "shelf.sock"))
}

// gone makes a plug-in as absent as one that was never there.
func gone(t *testing.T, server *plugintest.Server) {
	t.Helper()
	server.Die()
	if err := os.Remove(server.Socket()); err != nil {
		t.Fatal(err)
	}
}

// mute makes a plug-in that takes calls and never answers, and returns what counts them.
func mute(t *testing.T, h *host, name string) (calls func() int) {
	t.Helper()
	path := filepath.Join(h.root, "run", name+".sock")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var taken atomic.Int64
	var taking sync.WaitGroup
	taking.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			taken.Add(1)
			taking.Go(func() {
				_, _ = io.Copy(io.Discard, c) // until who called gives up
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		if h.store != nil {
			_ = h.store.Close() // so that nobody calls any more
			h.store = nil
		}
		_ = l.Close() // nothing was written to it
		taking.Wait()
	})
	return func() int { return int(taken.Load()) }
}

const notFound = `error looking up volume plugin shelf: plugin "shelf" not found`

func TestPluginsAreFoundByName(t *testing.T) {
	h, server := newPluginHost(t, 0)
	h.open()
	_, err := h.store.Create(t.Context(), volumes.CreateRequest{Name: "far", Driver: "shelf"})
	wantError(t, err, "create far: "+notFound, errdefs.IsNotFound)

	server.Start()
	v := h.create(volumes.CreateRequest{Name: "far", Driver: "shelf", Labels: map[string]string{"a": "b"}})
	if v.Driver != "shelf" || v.Scope != "global" || v.Mountpoint == "" || v.CreatedAt.IsZero() {
		t.Errorf("%+v", v)
	}
	got, err := h.store.Get(t.Context(), "far", volumes.GetRequest{})
	if err != nil || got.Status["options"] == nil {
		t.Errorf("%+v, %v", got, err)
	}
	path, err := h.store.Mount(t.Context(), "far", "m")
	if err != nil || path != v.Mountpoint || !slices.Equal(server.Users("far"), []string{"m"}) {
		t.Errorf("%s, %v, %q", path, err, server.Users("far"))
	}
	err = h.store.Remove(t.Context(), "far", volumes.RemoveRequest{})
	wantError(t, err, "remove far: VolumeDriver.Remove: volume far is mounted", nil)
	if err := h.store.Unmount(t.Context(), "far", "m"); err != nil {
		t.Error(err)
	}
	if err := h.store.Remove(t.Context(), "far", volumes.RemoveRequest{}); err != nil {
		t.Error(err)
	}
	if got := h.names(nil); len(got) != 0 {
		t.Errorf("%q", got)
	}
	// One that somebody made elsewhere is found by its name alone.
	if err := createElsewhere(h, "elsewhere"); err != nil {
		t.Fatal(err)
	}
	if v := h.create(volumes.CreateRequest{Name: "elsewhere"}); v.Driver != "shelf" {
		t.Errorf("%+v", v)
	}
}

// createElsewhere makes a volume through another store, on another data root with the same plug-in.
func createElsewhere(h *host, name string) error {
	other := newHost(h.t)
	other.fake = nil
	other.adjust = func(opts *volumes.Options) { opts.Finder = pluginsOf(h.root) }
	other.open()
	_, err := other.store.Create(h.t.Context(), volumes.CreateRequest{Name: name, Driver: "shelf"})
	return err
}

func TestVolumesOfAnAbsentPluginAreKept(t *testing.T) {
	h, server := newPluginHost(t, time.Millisecond)
	server.Start()
	h.open()
	far := h.create(volumes.CreateRequest{Name: "far", Driver: "shelf", Labels: map[string]string{"a": "b"}})
	h.create(volumes.CreateRequest{Name: "farther", Driver: "shelf"})
	h.create(volumes.CreateRequest{Name: "near"})
	gone(t, server)
	for range 2 { // however often the daemon is restarted
		h.open()
		list, warnings, err := h.store.List(t.Context(), nil)
		if err != nil || len(list) != 3 || list[0].Name != "far" || list[0].Labels["a"] != "b" {
			t.Errorf("%+v, %v", list, err)
		}
		if diff := cmp.Diff([]string{"list shelf: volume driver of far and perhaps others is not available"}, warnings); diff != "" {
			t.Error(diff)
		}
		_, err = h.store.Get(t.Context(), "far", volumes.GetRequest{}) // the start's search has ended when it answers
		wantError(t, err, `get far: error while checking if volume "far" exists in driver "shelf": `+notFound, errdefs.IsNotFound)
		want := []volumes.Problem{{Volume: "far", Driver: "shelf", Text: "driver unreachable: " + notFound},
			{Volume: "farther", Driver: "shelf", Text: "driver unreachable: " + notFound}}
		if diff := cmp.Diff(want, h.store.Problems()); diff != "" {
			t.Error(diff)
		}
		if err := h.store.Remove(t.Context(), "far", volumes.RemoveRequest{}); err == nil {
			t.Error("it was removed")
		}
		if err := h.store.AddRef(t.Context(), "far", "container"); err != nil {
			t.Error(err)
		}
		if err := h.store.LiveRestore(t.Context(), "far", "m"); err != nil {
			t.Error(err)
		}
	}
	server.Start()
	if _, err := h.store.Mount(t.Context(), "far", "m2"); err != nil {
		t.Error(err)
	}
	v, err := h.store.Get(t.Context(), "far", volumes.GetRequest{})
	if err != nil || v.Labels["a"] != "b" || v.Mountpoint != far.Mountpoint || v.Scope != "global" {
		t.Errorf("%+v, %v", v, err)
	}
	if p := h.store.Problems(); len(p) != 0 {
		t.Errorf("%+v", p)
	}
	if refs := h.store.Refs("far"); !slices.Equal(refs, []string{"container"}) {
		t.Errorf("%q", refs)
	}
}

func TestAbsentPluginIsAwaitedAfterTheStart(t *testing.T) {
	h, server := newPluginHost(t, time.Minute)
	server.Start()
	h.open()
	h.create(volumes.CreateRequest{Name: "far", Driver: "shelf"})
	gone(t, server)
	h.open()
	mounted := make(chan error)
	go func() {
		_, err := h.store.Mount(t.Context(), "far", "m")
		mounted <- err
	}()
	h.create(volumes.CreateRequest{Name: "near"}) // others do not wait
	if got := h.names(nil); !slices.Equal(got, []string{"far", "near"}) {
		t.Errorf("%q", got)
	}
	server.Start()
	if err := <-mounted; err != nil {
		t.Error(err)
	}
}

func TestVolumeThatVanishedWithItsPluginAway(t *testing.T) {
	h, server := newPluginHost(t, time.Millisecond)
	server.Start()
	h.open()
	h.create(volumes.CreateRequest{Name: "far", Driver: "shelf"})
	h.close()
	if err := server.Remove(&volume.RemoveRequest{Name: "far"}); err != nil {
		t.Fatal(err)
	}
	h.open()
	_, err := h.store.Get(t.Context(), "far", volumes.GetRequest{})
	if !errdefs.IsNotFound(err) {
		t.Errorf("%v", err)
	}
	if buckets := h.records(); len(buckets) != 1 || len(buckets["volumes"]) != 0 {
		t.Errorf("%q", buckets)
	}
}

func TestPluginThatHangsDelaysNobody(t *testing.T) {
	h, server := newPluginHost(t, time.Hour)
	server.Start()
	h.write(map[string]string{"stuck": `{"Name":"stuck","Driver":"mute","Labels":null,"Options":null}`})
	mute(t, h, "mute")
	other := mute(t, h, "other") // which no record names
	adjust := h.adjust
	h.adjust = func(opts *volumes.Options) {
		adjust(opts)
		opts.DriverDeadline = time.Hour // a start or a stop that waits does not end
	}
	h.open()
	h.close()
	h.adjust = adjust
	h.open()
	want := []volumes.Problem{{Volume: "stuck", Driver: "mute", Text: "driver unreachable: it has not answered since the start"}}
	if diff := cmp.Diff(want, h.store.Problems()); diff != "" {
		t.Error(diff)
	}
	h.create(volumes.CreateRequest{Name: "far", Driver: "shelf"})
	list, warnings, err := h.store.List(t.Context(), nil)
	if err != nil || len(list) != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "stuck") {
		t.Errorf("%q", warnings)
	}
	// Having been silent once, they are not asked again about what may be anybody's.
	before := other()
	for _, name := range []string{"one", "two", "three"} {
		h.create(volumes.CreateRequest{Name: name})
	}
	h.names(nil)
	if _, err := h.store.Prune(t.Context(), volumes.PruneRequest{All: true}); err != nil {
		t.Error(err)
	}
	if again := other() - before; before == 0 || again != 0 {
		t.Errorf("it was called %d times, and then %d times more", before, again)
	}
}

func TestCrashInCreateWithItsPluginAwayAfterwards(t *testing.T) {
	for _, point := range []string{"volumes.create.staged", "volumes.create.recorded", "volumes.create.published"} {
		t.Run(point, func(t *testing.T) {
			h, server := newPluginHost(t, time.Millisecond)
			server.Start()
			crashAt(t, h.root, "create far", point)
			created := server.Calls("Create")
			if want := map[bool]int{true: 1}[point == "volumes.create.published"]; created != want {
				t.Fatalf("created %d times, want %d", created, want)
			}
			gone(t, server)
			for range 2 {
				h.open()
				h.close()
			}
			server.Start()
			h.open()
			v, err := h.store.Get(t.Context(), "victim", volumes.GetRequest{})
			if point == "volumes.create.staged" {
				if !errdefs.IsNotFound(err) {
					t.Errorf("never recorded: %+v, %v", v, err)
				}
			} else if err != nil || v.Options["colour"] != "blue" || server.Calls("Create") != 1 {
				t.Errorf("recorded and lost: %+v, %v, created %d times", v, err, server.Calls("Create"))
			}
			listed := h.names(nil)
			if buckets := h.records(); len(buckets) != 1 || len(buckets["volumes"]) != len(listed) {
				t.Errorf("listed %q, recorded %q", listed, buckets)
			}
		})
	}
}
