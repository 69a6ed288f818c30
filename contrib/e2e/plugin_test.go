package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"

	"stated.dev/stated/volumes/plugin/plugintest"
)

// newPlugin returns a volume plug-in that does not run yet, and its name. The daemons of other tests find it too.
func newPlugin(t *testing.T) (string, *plugintest.Server) {
	t.Helper()
	name := fmt.Sprintf("shelf%d", os.Getpid())
	socket := filepath.Join("/run/docker/plugins", name+".sock")
	p := plugintest.New(t, socket)
	t.Cleanup(func() {
		p.Die()
		_ = os.Remove(socket) // it may never have listened
	})
	return name, p
}

// volumeRecords returns what metadata.db says of each volume. No daemon may have it open.
func (h host) volumeRecords() map[string]string {
	h.T.Helper()
	db, err := bbolt.Open(filepath.Join(h.Roots.Data, "volumes", "metadata.db"), 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		h.T.Fatal(err)
	}
	defer db.Close()
	records := map[string]string{}
	if err := db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("volumes")).ForEach(func(k, v []byte) error {
			records[string(k)] = string(v)
			return nil
		})
	}); err != nil {
		h.T.Fatal(err)
	}
	return records
}

// TestPluginVolume runs containers on the volume of a plug-in, over restarts of the daemon with it and without.
func TestPluginVolume(t *testing.T) {
	h := startedHost(t)
	name, plugin := newPlugin(t)
	h.fails(fmt.Sprintf("error looking up volume plugin %s: plugin %[1]q not found", name), "volume", "create", "-d", name, "data")
	plugin.Start()
	h.want("data", "volume", "create", "-d", name, "--label", "a=b", "-o", "x=y", "data")
	h.want(name+" global map[a:b] map[x:y]", "volume", "inspect", "-f", "{{.Driver}} {{.Scope}} {{.Labels}} {{.Options}}", "data")
	h.Docker("run", "-d", "--name", "web", "-v", "data:/v", "busybox", "sh", "-c", "echo hello >/v/f; sleep 1000")
	h.Docker("run", "-d", "--name", "again", "--restart", "always", "-v", "data:/v", "busybox", "sleep", "1000")
	users := plugin.Users("data")
	if len(users) != 2 {
		t.Fatalf("the plug-in knows the users %q", users)
	}
	works := func() {
		t.Helper()
		h.want("hello", "exec", "web", "cat", "/v/f")
		h.want("data", "volume", "ls", "-q", "-f", "driver="+name)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		h.Stop(sig)
		h.Start()
		works()
		h.fails("volume is in use", "volume", "rm", "data")
		if got := plugin.Users("data"); !slices.Equal(got, users) {
			t.Errorf("after %v the plug-in knows the users %q, and knew %q", sig, got, users)
		}
	}

	// The plug-in and a container end while no daemon runs. Who runs is left alone, and who is to run waits.
	pid, err := strconv.Atoi(h.Docker("inspect", "-f", "{{.State.Pid}}", "again"))
	if err != nil {
		t.Fatal(err)
	}
	h.Stop(syscall.SIGTERM)
	plugin.Die()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.Start()
	works()
	if r := h.stated("doctor"); r.code == 0 || !strings.Contains(r.out, "data") || !strings.Contains(r.out, name) {
		t.Errorf("the doctor says nothing of a plug-in that is away: %+v", r)
	}
	plugin.Start()
	h.eventually("the container that is to be restarted runs", func() bool {
		return h.Docker("inspect", "-f", "{{.State.Running}} {{.State.Pid}}", "again") != fmt.Sprint("true ", pid) &&
			h.run("exec", "again", "cat", "/v/f").out == "hello\n"
	})
	h.want("hello", "run", "--rm", "-v", "data:/v", "busybox", "cat", "/v/f")
	works()
	h.fails("volume is in use", "volume", "rm", "data")

	h.Docker("stop", "-t", "0", "web", "again")
	h.eventually("the plug-in has no users", func() bool { return len(plugin.Users("data")) == 0 })
	h.want("hello", "start", "-a", h.Docker("create", "-v", "data:/v", "busybox", "cat", "/v/f"))
	h.Stop(syscall.SIGTERM)
	var record struct {
		Name, Driver    string
		Labels, Options map[string]string
	}
	if err := json.Unmarshal([]byte(h.volumeRecords()["data"]), &record); err != nil ||
		fmt.Sprint(record) != fmt.Sprintf("{data %s map[a:b] map[x:y]}", name) {
		t.Errorf("the record is %+v, %v", record, err)
	}
	h.Start()
	h.Docker("rm", "-f", "-v", "web", "again", h.Docker("ps", "-aql"))
	h.Docker("volume", "rm", "data")
	h.want("", "volume", "ls", "-q")
	if plugin.Calls("Remove") != 1 {
		t.Errorf("Remove was called %d times", plugin.Calls("Remove"))
	}
}
