package shim

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/go-runc"

	"stated.dev/stated/daemon/runtime/shimapi"
)

func TestMadeBy(t *testing.T) {
	for _, c := range []struct {
		args []string
		id   string
		ok   bool
	}{
		{[]string{"runc", "--root", "/run/r", "create", "--bundle", "/b", "--pid-file", "/b/init.pid", "web"}, "", true},
		{[]string{"runc", "--root", "/run/r", "restore", "--detach", "--pid-file", "/b/init.pid", "web"}, "", true},
		{[]string{"runc", "--root", "/run/r", "exec", "--process", "/tmp/p", "--pid-file", "/b/0a1b.pid", "web"}, "0a1b", true},
		{[]string{"runc", "--root", "/run/r", "start", "web"}, "", false},
		{[]string{"runc", "create", "--pid-file"}, "", false},
	} {
		if id, ok := madeBy(c.args); id != c.id || ok != c.ok {
			t.Errorf("%q makes %q, %v; want %q, %v", c.args, id, ok, c.id, c.ok)
		}
	}
}

// TestHandover has one program fail as runc would and another print as a container would: only the latter is heard.
func TestHandover(t *testing.T) {
	heard := &memLog{}
	io, err := openStdio(t.TempDir(), "init", false, true, owner{}, &sink{w: heard})
	if err != nil {
		t.Fatal(err)
	}
	p := newProcess("", false, io, shimapi.StateSpawned)
	monitor := handover{ProcessMonitor: runc.Monitor, find: func(string) *process { return p }}
	run := func(script string) {
		t.Helper()
		cmd := exec.Command("sh", "-c", script, "sh", "--pid-file", "init.pid")
		ended, err := monitor.Start(cmd)
		if err == nil {
			_, err = monitor.Wait(cmd, ended)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	run("echo cannot >&2; exit 1")
	io.forget()
	if err := io.writeStdin([]byte("in\n")); err != nil {
		t.Fatal(err)
	}
	io.closeStdin()
	run("cat; echo out; echo err >&2")
	io.begin()
	io.release()
	select {
	case <-io.drained:
	case <-time.After(time.Minute):
		t.Fatal("the output does not end")
	}
	if got := strings.Join(heard.texts("stdout"), ""); got != "in\nout\n" {
		t.Errorf("heard %q on stdout", got)
	}
	if got := strings.Join(heard.texts("stderr"), ""); got != "err\n" {
		t.Errorf("heard %q on stderr", got)
	}
}
