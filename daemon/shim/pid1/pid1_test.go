package pid1_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/shim/pid1"
)

// The test binary plays the init when it is called by the init's name.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "docker-init" {
		os.Exit(pid1.Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// initCommand returns the init as process 1 of a new pid namespace, with a command to run.
func initCommand(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Args = append([]string{"/sbin/docker-init"}, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	return cmd
}

func exitCode(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	exit, ok := err.(*exec.ExitError)
	if !ok {
		t.Fatalf("running the init: %v", err)
	}
	return exit.ExitCode()
}

func TestExitCode(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", "no program", 0o644)
	script := write("script", "exit $1\n", 0o755) // no #! line: the shell runs it

	for _, tc := range []struct {
		name string
		args []string
		code int
		text string
	}{
		{"success", []string{"--", "true"}, 0, ""},
		{"without dashes", []string{"true"}, 0, ""},
		{"the command's own", []string{"--", "sh", "-c", "exit 7"}, 7, ""},
		{"killed", []string{"--", "sh", "-c", "kill -KILL $$"}, 137, ""},
		{"terminated", []string{"--", "sh", "-c", "kill -TERM $$"}, 143, ""},
		{"second dashes are the command's", []string{"--", "sh", "-c", `exit $#`, "0", "--", "x"}, 2, ""},
		{"not found", []string{"--", "no-such-command"}, 127, "exec no-such-command failed: no such file or directory"},
		{"not found by path", []string{"--", "/no/such"}, 127, "exec /no/such failed"},
		{"empty name", []string{"--", ""}, 127, "exec  failed"},
		{"not executable", []string{"--", plain}, 126, "permission denied"},
		{"a directory", []string{"--", dir}, 126, "permission denied"},
		{"script without interpreter", []string{"--", script, "9"}, 9, ""},
		{"no command", []string{"--"}, 1, "no command"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := initCommand(t, tc.args...)
			var messages bytes.Buffer
			cmd.Stderr = &messages
			if code := exitCode(t, cmd.Run()); code != tc.code {
				t.Errorf("exit code %d, want %d (%s)", code, tc.code, messages.String())
			}
			if !strings.Contains(messages.String(), tc.text) {
				t.Errorf("message %q has no %q", messages.String(), tc.text)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	out, err := initCommand(t, "--version").Output()
	if err != nil || !strings.HasPrefix(string(out), "stated-init version ") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestSearchPathGoesOnAfterAFileThatIsNotExecutable(t *testing.T) {
	first, second := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(first, "thing"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(second, "thing"), []byte("#!/bin/sh\nexit 5\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := initCommand(t, "--", "thing")
	cmd.Env = []string{"PATH=" + first + ":" + second}
	if code := exitCode(t, cmd.Run()); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
}

// startReady starts the init with a command that says "ready" on its stdout.
func startReady(t *testing.T, script string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := initCommand(t, "--", "sh", "-c", script)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // ended already when the test went well
	lines := bufio.NewReader(stdout)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the command ended before it was ready: %v", err)
		}
		if line == "ready\n" {
			return cmd, lines
		}
	}
}

func TestSignalsReachTheCommand(t *testing.T) {
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGALRM, unix.SIGPIPE, 40} {
		t.Run(fmt.Sprint(int(s)), func(t *testing.T) {
			t.Parallel()
			script := fmt.Sprintf(`trap 'exit 42' %d; echo ready; while :; do sleep 0.01; done`, int(s))
			if s > 31 {
				// dash knows no real-time signals; the default action ends the command.
				script = `echo ready; exec sleep 1000`
			}
			cmd, _ := startReady(t, script)
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			want := 42
			if s > 31 {
				want = 128 + int(s)
			}
			if code := exitCode(t, cmd.Wait()); code != want {
				t.Errorf("exit code %d, want %d", code, want)
			}
		})
	}
}

func TestFaultSignalsAreNotPassedOn(t *testing.T) {
	cmd, _ := startReady(t, `trap 'exit 1' ABRT; trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done`)
	for _, s := range []unix.Signal{unix.SIGABRT, unix.SIGSEGV, unix.SIGTERM} {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	if code := exitCode(t, cmd.Wait()); code != 0 {
		t.Errorf("exit code %d: the command got SIGABRT", code)
	}
}

// children lists a process's children, dead ones included. The kernel lists them by the thread that made them.
func children(t *testing.T, pid int) []int {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, list := range lists {
		data, _ := os.ReadFile(list) // a thread may have ended meanwhile
		for word := range strings.FieldsSeq(string(data)) {
			child, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, child)
		}
	}
	return pids
}

func TestOrphansAreReaped(t *testing.T) {
	// Each inner shell leaves a child behind and ends, so the child becomes the init's.
	cmd, _ := startReady(t, `for i in 1 2 3 4 5 6 7 8 9 10; do sh -c 'sleep 0.05 & exit 0'; done; echo ready; exec sleep 1000`)
	deadline := time.Now().Add(10 * time.Second)
	for {
		pids := children(t, cmd.Process.Pid)
		if len(pids) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the init still has children %v", pids)
		}
		<-time.After(5 * time.Millisecond)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, cmd.Wait()); code != 143 {
		t.Errorf("exit code %d", code)
	}
}

func TestCommandHasAGroupOfItsOwn(t *testing.T) {
	cmd, _ := startReady(t, `echo ready; exec sleep 1000`)
	pids := children(t, cmd.Process.Pid)
	if len(pids) != 1 {
		t.Fatalf("children %v, want one", pids)
	}
	command := pids[0]
	group, err := unix.Getpgid(command)
	if err != nil {
		t.Fatal(err)
	}
	if group != command {
		t.Errorf("process %d is in group %d", command, group)
	}
}

// onTerminal starts the init as the leader of a session on a new terminal.
func onTerminal(t *testing.T, args ...string) (*exec.Cmd, console.Console) {
	t.Helper()
	master, slavePath, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	slave, err := os.OpenFile(slavePath, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	cmd := initCommand(t, append([]string{"--"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid = true
	cmd.SysProcAttr.Setctty = true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, master
}

// readUntil reads the terminal's output up to a text.
func readUntil(t *testing.T, master console.Console, text string) string {
	t.Helper()
	var seen []byte
	buf := make([]byte, 256)
	for !bytes.Contains(seen, []byte(text)) {
		n, err := master.Read(buf)
		seen = append(seen, buf[:n]...)
		if err != nil {
			t.Fatalf("the terminal ended after %q: %v", seen, err)
		}
	}
	return string(seen)
}

func TestCommandOwnsTheTerminal(t *testing.T) {
	cmd, master := onTerminal(t, "sh", "-c", `grep SigIgn /proc/self/status; echo ready; read word; echo "got $word"; exit 6`)
	out := readUntil(t, master, "ready")
	var ignored uint64
	if i := strings.Index(out, "SigIgn:"); i < 0 {
		t.Fatalf("no SigIgn in %q", out)
	} else if _, err := fmt.Sscanf(out[i:], "SigIgn: %x", &ignored); err != nil {
		t.Fatal(err)
	}
	for _, s := range []unix.Signal{unix.SIGTTIN, unix.SIGTTOU} {
		if ignored&(1<<(s-1)) != 0 {
			t.Errorf("the command starts with %v ignored", s)
		}
	}
	// A process in the background would be stopped here instead.
	if _, err := master.Write([]byte("word\n")); err != nil {
		t.Fatal(err)
	}
	readUntil(t, master, "got word")
	if code := exitCode(t, cmd.Wait()); code != 6 {
		t.Errorf("exit code %d, want 6", code)
	}
}

func TestInterruptKeyEndsTheCommand(t *testing.T) {
	cmd, master := onTerminal(t, "sh", "-c", `echo ready; exec sleep 1000`)
	readUntil(t, master, "ready")
	if _, err := master.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, cmd.Wait()); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
}

func TestMissingCommandOnATerminal(t *testing.T) {
	cmd, master := onTerminal(t, "no-such-command")
	out := readUntil(t, master, "exec no-such-command failed")
	if code := exitCode(t, cmd.Wait()); code != 127 {
		t.Errorf("exit code %d, want 127 (%q)", code, out)
	}
}
