package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"stated.dev/stated/internal/testenv/scratch"
)

// external is a containerd that the daemon uses and does not keep.
type external struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
}

func newExternal(t *testing.T) *external {
	t.Helper()
	e := &external{t: t, dir: scratch.Dir(t)}
	t.Cleanup(func() {
		e.kill()
		if t.Failed() {
			t.Logf("containerd's log ends:\n%s", scratch.Tail(filepath.Join(e.dir, "containerd.log")))
		}
	})
	e.start()
	return e
}

func (e *external) address() string { return filepath.Join(e.dir, "containerd.sock") }

// start starts containerd. The daemon waits until it answers.
func (e *external) start() {
	e.t.Helper()
	e.cmd = exec.Command("../env/containerd.sh", e.dir)
	e.cmd.Stderr = os.Stderr
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
}

func (e *external) kill() {
	_ = e.cmd.Process.Kill() // it may have ended
	_ = e.cmd.Wait()
}

// bundles lists what containerd keeps of the daemon's containers.
func (e *external) bundles() []string {
	list, _ := filepath.Glob(filepath.Join(e.dir, "state/io.containerd.runtime.v2.task/stated/*")) // the pattern is sound
	return list
}

// TestExternalContainerd runs containers through a containerd, and kills it and the daemon.
func TestExternalContainerd(t *testing.T) {
	t.Parallel()
	e := newExternal(t)
	h := startedHost(t, "--containerd", e.address())
	h.want("stated "+e.address(), "info", "-f", "{{.Containerd.Namespaces.Containers}} {{.Containerd.Address}}")

	h.want("hello", "run", "--rm", "busybox", "echo", "hello")
	if r := h.run("run", "--rm", "busybox", "sh", "-c", "echo bad >&2; exit 3"); r.code != 3 || r.err != "bad\n" {
		t.Errorf("run ends with %+v", r)
	}
	if r := h.pipe("typed\n", "run", "--rm", "-i", "busybox", "cat"); r.out != "typed\n" {
		t.Errorf("run -i prints %+v", r)
	}
	h.fails("no such file or directory", "run", "--rm", "busybox", "/nowhere")

	h.Docker("network", "create", "net")
	h.Docker("run", "-d", "--name", "server", "--network", "net", "-p", "127.0.0.1::80", "busybox", "httpd", "-f", "-h", "/bin")
	port := h.Docker("port", "server", "80/tcp")
	h.Docker("run", "-d", "--name", "counter", "--network", "net", "busybox", "sh", "-c", `i=0; while :; do echo $i; i=$((i+1)); usleep 10000; done`)
	h.want("/bin/busybox", "exec", "server", "ls", "/bin/busybox")
	if len(e.bundles()) != 2 {
		t.Errorf("containerd has %v", e.bundles())
	}
	pid := h.Docker("inspect", "-f", "{{.State.Pid}}", "counter")

	// Neither containerd nor the daemon is needed by what runs.
	e.kill()
	h.Stop(syscall.SIGKILL)
	if body := fetch(t, "busybox", port); body == "" {
		t.Error("the published port does not answer while nobody is there")
	}
	e.start()
	h.Start()
	h.want(pid, "inspect", "-f", "{{.State.Pid}}", "counter")
	h.want("server", "exec", "server", "sh", "-c", "wget -q -O /dev/null http://server/busybox && echo server")
	h.Docker("stop", "-t", "0", "counter")
	lines := strings.Fields(h.Docker("logs", "counter"))
	for i, line := range lines {
		if line != strconv.Itoa(i) {
			t.Fatalf("line %d of the log is %q", i, line)
		}
	}

	// The same container starts again under the same name.
	h.Docker("start", "counter")
	h.Docker("restart", "-t", "0", "counter")
	h.want("true", "inspect", "-f", "{{.State.Running}}", "counter")
	h.Docker("rm", "-f", "counter", "server")
	if left := e.bundles(); len(left) > 0 {
		t.Errorf("containerd keeps %v", left)
	}
}
