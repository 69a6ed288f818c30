package interchange

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/volumes/plugin/plugintest"
)

// TestPluginVolumes hands a data root with volumes of a plug-in over to dockerd, and back.
func TestPluginVolumes(t *testing.T) {
	name := fmt.Sprintf("shelf%d", os.Getpid())
	socket := filepath.Join("/run/docker/plugins", name+".sock")
	plugin := plugintest.New(t, socket)
	plugin.Start()
	t.Cleanup(func() { _ = os.Remove(socket) }) // it may be gone
	r := newRoot(t)
	made := func(e *engine, volume string) {
		t.Helper()
		e.do(http.MethodPost, "/volumes/create", object{"Name": volume, "Driver": name, "DriverOpts": object{"from": e.name}, "Labels": object{"of": volume}})
		run(e, "fill-"+volume, object{"Image": "busybox", "Cmd": list{"sh", "-c", "echo " + volume + " >/far/file"}, "HostConfig": object{"Binds": list{volume + ":/far"}}})
		create(e, "read-"+volume, object{"Image": "busybox", "Cmd": list{"cat", "/far/file"}, "HostConfig": object{"Binds": list{volume + ":/far:ro"}}})
	}
	shown := func(e *engine, volumes ...string) (all []map[string]any) {
		t.Helper()
		for _, volume := range volumes {
			var v map[string]any
			e.get("/volumes/"+volume, &v)
			all = append(all, v)
		}
		return all
	}
	read := func(e *engine, volume string) {
		t.Helper()
		if got := e.output("read-" + volume); got != volume+"\n" {
			t.Errorf("with %s the reader of %s printed %q", e.name, volume, got)
		}
		scratch.Eventually(t, 10*time.Second, "the volume has no users", func() bool { return len(plugin.Users(volume)) == 0 })
	}

	e := r.stated()
	importBusybox(e)
	made(e, "a")
	before := shown(e, "a")
	e.stop()
	e = r.dockerd()
	if diff := cmp.Diff(before, shown(e, "a")); diff != "" {
		t.Errorf("to dockerd the volume is another one (-stated +dockerd):\n%s", diff)
	}
	read(e, "a")
	made(e, "b")
	before = shown(e, "a", "b")
	e.stop()
	e = r.stated()
	if diff := cmp.Diff(before, shown(e, "a", "b")); diff != "" {
		t.Errorf("to stated the volumes are others (-dockerd +stated):\n%s", diff)
	}
	read(e, "b")
	e.do(http.MethodDelete, "/containers/fill-b?v=1", nil)
	e.do(http.MethodDelete, "/containers/read-b?v=1", nil)
	e.do(http.MethodDelete, "/volumes/b", nil)
	e.stop()
}
