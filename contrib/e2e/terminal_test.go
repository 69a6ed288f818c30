package e2e

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// terminal is a docker command on a terminal of its own.
type terminal struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser

	mu  sync.Mutex // guards out
	out bytes.Buffer
}

func (s *terminal) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *terminal) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// onTerminal starts docker on a terminal of 40 rows and 100 columns.
func (h host) onTerminal(args ...string) *terminal {
	h.T.Helper()
	plain := h.Command(args...)
	cmd := exec.Command("script", "-qefc", "stty rows 40 cols 100; exec \"$DOCKER\" "+strings.Join(args, " "), "/dev/null")
	cmd.Env = append(plain.Env, "DOCKER="+h.CLI, "TERM=xterm", "SHELL=/bin/sh")
	s := &terminal{t: h.T, cmd: cmd}
	cmd.Stdout, cmd.Stderr = s, s
	var err error
	if s.in, err = cmd.StdinPipe(); err != nil {
		h.T.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.T.Fatal(err)
	}
	h.T.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended unless the test failed
	return s
}

func (s *terminal) types(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, text); err != nil {
		s.t.Fatal(err)
	}
}

// shows waits until text has been printed.
func (s *terminal) shows(text string) {
	s.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !strings.Contains(s.text(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("the terminal does not show %q but %q", text, s.text())
		}
	}
}

// ends waits for the end of the command and checks its exit code.
func (s *terminal) ends(code int) {
	s.t.Helper()
	late := time.AfterFunc(20*time.Second, func() { _ = s.cmd.Process.Kill() }) // reported below
	defer late.Stop()
	_ = s.cmd.Wait() // its code is what counts
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		s.t.Errorf("exit code %d, want %d: %q", got, code, s.text())
	}
}

// TestTerminal uses containers and execs through terminals: size, signals, detaching and attaching again.
func TestTerminal(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/dev/ptmx"); err != nil {
		t.Fatal(err)
	}
	h := startedHost(t)
	s := h.onTerminal("run", "-it", "--name", "shell", "busybox")
	s.shows("#")
	s.types("stty size; echo a$((1+1))b\n")
	s.shows("a2b")
	s.shows("40 100")
	s.types("\x10\x11") // ctrl-p ctrl-q
	s.ends(0)
	h.want("running", "inspect", "-f", "{{.State.Status}}", "shell")

	s = h.onTerminal("attach", "--detach-keys=ctrl-x", "shell")
	s.types("echo c$((1+2))d\n")
	s.shows("c3d")
	s.types("\x18")
	s.ends(1) // the command says "read escape sequence"

	s = h.onTerminal("exec", "-it", "shell", "sh")
	s.types("tty; stty size; exit 5\n")
	s.shows("/dev/pts/")
	s.shows("40 100")
	s.ends(5)

	s = h.onTerminal("attach", "shell")
	s.types("echo e$((1+3))f\n")
	s.shows("e4f") // the terminal is the container's from here on
	s.types("sleep 100\n")
	h.eventually("the shell runs its command", func() bool { return strings.Contains(h.Docker("top", "shell"), "sleep 100") })
	s.types("\x03")
	s.types("exit 6\n")
	s.ends(6)
	h.want("6", "inspect", "-f", "{{.State.ExitCode}}", "shell")
	if out := h.Docker("events", "--since", "1m", "--until", h.now(), "--filter", "container=shell", "--format", "{{.Action}}"); !strings.Contains(out, "resize\n") {
		t.Errorf("events: %s", out)
	}

	// A terminal that goes away leaves the container alone.
	s = h.onTerminal("run", "-it", "--name", "left", "busybox")
	s.shows("#")
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait() // killed
	h.eventually("the container runs", func() bool { return h.Docker("inspect", "-f", "{{.State.Status}}", "left") == "running" })
	h.want("left", "exec", "left", "echo", "left")
}

// now is the time as the option --until takes it, to the nanosecond.
func (h host) now() string { return time.Now().UTC().Format(time.RFC3339Nano) }
