package interchange

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"stated.dev/stated/volumes/plugin/plugintest"
)

// TestPluginVolume lets a dockerd that does not find the plug-in run on a data root with its volume, whose record it
// keeps. In dockerd's own file system there is no plug-in to be found.
func TestPluginVolume(t *testing.T) {
	name := fmt.Sprintf("shelf%d", os.Getpid())
	socket := filepath.Join("/run/docker/plugins", name+".sock")
	plugin := plugintest.New(t, socket)
	plugin.Start()
	t.Cleanup(func() { _ = os.Remove(socket) }) // it may be gone
	r := newRoot(t)
	e := r.stated()
	importBusybox(e)
	e.do(http.MethodPost, "/volumes/create", object{"Name": "far", "Driver": name, "DriverOpts": object{"x": "y"}, "Labels": object{"a": "b"}})
	run(e, "fill", object{"Image": "busybox", "Cmd": list{"sh", "-c", "echo hello >/far/file"}, "HostConfig": object{"Binds": list{"far:/far"}}})
	create(e, "read", object{"Image": "busybox", "Cmd": list{"cat", "/far/file"}, "HostConfig": object{"Binds": list{"far:/far:ro"}}})
	var before, after map[string]any
	e.get("/volumes/far", &before)
	e.stop()

	d := r.dockerd()
	if _, err := d.try(http.MethodGet, "/containers/read/json", nil); err != nil {
		t.Error(err)
	}
	d.stop()

	e = r.stated()
	e.get("/volumes/far", &after)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("after dockerd the volume is another one:\n%s", diff)
	}
	if got := e.output("read"); got != "hello\n" {
		t.Errorf("after dockerd a container reads %q", got)
	}
	e.stop()
}
