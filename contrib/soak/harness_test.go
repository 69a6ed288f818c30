// Package soak keeps containers busy while their daemon is killed, and counts what they notice. STATED_SOAK=long makes
// the runs as long as the promises that they check.
package soak

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inside marks the process that runs in namespaces of its own.
const inside = "STATED_SOAK_INSIDE"

// long says that the runs have their full length.
func long() bool { return os.Getenv("STATED_SOAK") == "long" }

func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(inside) == "" {
		os.Exit(reexec())
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "bring up loopback: %v: %s\n", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// reexec runs the tests in network and mount namespaces of their own and returns their exit code.
func reexec() int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "the soak runs must run as root: they start a daemon that runs containers")
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exit.ExitCode()
	case err != nil:
		fmt.Fprintln(os.Stderr, "start the tests in namespaces of their own:", err)
		return 1
	}
	return 0
}

// host is one daemon with its roots and the image busybox.
type host struct {
	t           *testing.T
	dir, socket string
	docker28    string
	cmd         *exec.Cmd
	log         *os.File
}

func newHost(t *testing.T) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "stated-soak-")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: dir, socket: filepath.Join(dir, "s.sock"), docker28: script(t, "../env/docker-cli.sh")}
	if h.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.destroy)
	h.start()
	h.docker("import", "-c", "ENV PATH=/bin", script(t, "../env/busybox.sh"), "busybox")
	return h
}

// script returns what a script prints.
func script(t *testing.T, name string) string {
	t.Helper()
	cmd := exec.Command(name)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return strings.TrimSpace(string(out))
}

// start starts the daemon, waits until it serves and returns how long that took.
func (h *host) start() time.Duration {
	h.t.Helper()
	begun := time.Now()
	h.cmd = exec.Command("stated", "daemon", "--data-root", filepath.Join(h.dir, "data"), "--exec-root", filepath.Join(h.dir, "exec"),
		"-H", "unix://"+h.socket, "--bridge", "soak0", "--bip", "172.30.0.1/24", "--default-address-pool", "base=10.30.0.0/16,size=24")
	h.cmd.Stdout, h.cmd.Stderr = h.log, h.log
	if err := h.cmd.Start(); err != nil {
		h.t.Fatalf("start the daemon: %v; make test builds it", err)
	}
	for time.Since(begun) < 30*time.Second {
		if h.ping() == nil {
			return time.Since(begun)
		}
		time.Sleep(time.Millisecond)
	}
	h.t.Fatal("the daemon does not serve")
	return 0
}

func (h *host) ping() error {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.socket)
	}}}
	resp, err := client.Get("http://stated/_ping")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// kill ends the daemon without warning.
func (h *host) kill() {
	h.t.Helper()
	if err := h.cmd.Process.Kill(); err != nil {
		h.t.Fatal(err)
	}
	_ = h.cmd.Wait() // it was killed
}

// docker runs docker, which must succeed, and returns its output without the last newline.
func (h *host) docker(args ...string) string {
	h.t.Helper()
	out, err := h.command(args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			h.t.Fatalf("docker %q: %v: %s", args, err, exit.Stderr)
		}
		h.t.Fatal(err)
	}
	return strings.TrimSuffix(string(out), "\n")
}

func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command(h.docker28, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.socket, "DOCKER_CONFIG="+filepath.Join(h.dir, "cli"))
	return cmd
}

// destroy removes containers, daemon and directories.
func (h *host) destroy() {
	if h.t.Failed() {
		if data, err := os.ReadFile(h.log.Name()); err == nil {
			h.t.Logf("the daemon's log ends:\n%s", data[max(0, len(data)-6000):])
		}
	}
	if h.ping() != nil {
		h.start()
	}
	if ids, err := h.command("ps", "-aq").Output(); err == nil && len(ids) > 0 {
		if out, err := h.command(append([]string{"rm", "-f", "-v"}, strings.Fields(string(ids))...)...).CombinedOutput(); err != nil {
			h.t.Errorf("remove the containers: %s", out)
		}
	}
	_ = h.cmd.Process.Signal(syscall.SIGTERM) // Wait says how it ended
	if err := h.cmd.Wait(); err != nil {
		h.t.Errorf("the daemon ended with %v", err)
	}
	_ = h.log.Close() // only the daemon wrote to it
	if err := os.RemoveAll(h.dir); err != nil {
		h.t.Error(err)
	}
}

// readJSON decodes a file.
func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}
