package scratch

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Dockerd is a real dockerd that serves a data root in namespaces of its own.
type Dockerd struct {
	Socket string

	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.Closer // its end ends dockerd, so dockerd ends with the test binary at the latest
	stderr bytes.Buffer
	log    string
	ended  bool // End was called
}

// StartDockerd starts a dockerd on a data root and waits until it serves. What it prints goes to the file log. The
// variables are for with-dockerd.sh. It ends with the test at the latest.
func StartDockerd(t *testing.T, root, log string, env ...string) *Dockerd {
	t.Helper()
	d := &Dockerd{t: t, cmd: exec.Command("../env/with-dockerd.sh", root, "sh", "-c", `echo "$DOCKER_HOST"; read -r _ || true`), log: log}
	d.cmd.Env = append(append(os.Environ(), "DOCKERD_LOG="+log), env...)
	d.cmd.Stderr = &d.stderr
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := d.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.stdin = stdin
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = d.cmd.Wait() // what it said is more telling than how it ended
		t.Fatalf("there is no dockerd to compare with: %s\n%s", d.stderr.String(), Tail(log))
	}
	d.Socket = strings.TrimPrefix(strings.TrimSpace(line), "unix://")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("dockerd's log ends:\n%s", Tail(log))
		}
		d.End()
	})
	return d
}

// End ends dockerd and waits for it; a second call does nothing. One that does not end in time is killed.
func (d *Dockerd) End() {
	d.t.Helper()
	if d.ended {
		return
	}
	d.ended = true
	_ = d.stdin.Close() // Wait says how it ended
	late := time.AfterFunc(endLimit, func() { _ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL) })
	defer late.Stop()
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("end dockerd: %v: %s\n%s", err, d.stderr.String(), Tail(d.log))
	}
}
