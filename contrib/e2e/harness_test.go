// Package e2e drives a real stated with the real docker command, as users do: in a network and a mount namespace of its
// own, with busybox as the image.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inside marks the process that runs in namespaces of its own.
const inside = "STATED_E2E_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(reexec())
	}
	flag.Parse()
	if err := flag.Set("test.parallel", "2"); err != nil { // each host has a daemon and its containers
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Loopback is down in a new namespace.
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "bring up loopback: %v: %s\n", err, out)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// reexec runs the tests in namespaces of their own and returns their exit code.
func reexec() int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "the end-to-end tests must run as root: they start a daemon that runs containers")
		return 1
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Unshareflags: 0, Pdeathsig: unix.SIGKILL}
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

// host is one daemon with its roots.
type host struct {
	t      *testing.T
	number int32 // of this host among those of the process: their bridges and subnets differ
	dir    string
	socket string
	env    []string // for the daemon
	flags  []string
	cmd    *exec.Cmd
	exited chan struct{}
}

// hosts counts the hosts of this process.
var hosts atomic.Int32

// newHost returns a host whose daemon is not started yet. At the end of the test everything it made is removed.
func newHost(t *testing.T, flags ...string) *host {
	t.Helper()
	dir, err := os.MkdirTemp("", "stated-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, number: hosts.Add(1), dir: dir, socket: filepath.Join(dir, "s.sock"), flags: flags}
	t.Cleanup(h.destroy)
	return h
}

// startedHost returns a host with a running daemon and the image busybox.
func startedHost(t *testing.T, flags ...string) *host {
	t.Helper()
	h := newHost(t, flags...)
	h.start()
	h.importBusybox()
	return h
}

// during returns the host for a subtest: failures are the subtest's.
func (h *host) during(t *testing.T) *host {
	sub := *h
	sub.t = t
	return &sub
}

func binary(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not on PATH: run the tests with make test, which builds it", name)
	}
	return path
}

func (h *host) args() []string {
	return append([]string{"daemon", "--data-root", filepath.Join(h.dir, "data"), "--exec-root", filepath.Join(h.dir, "exec"),
		"-H", "unix://" + h.socket, "--bridge", h.bridge(), "--bip", h.gateway() + "/24",
		"--default-address-pool", fmt.Sprintf("base=10.%d.0.0/16,size=24", h.number)}, h.flags...)
}

// bridge is the name of the host's default bridge.
func (h *host) bridge() string { return fmt.Sprintf("e2e%d", h.number) }

// gateway is the address of the host's default bridge.
func (h *host) gateway() string { return fmt.Sprintf("172.30.%d.1", h.number) }

// start starts the daemon and waits until it serves.
func (h *host) start() {
	h.t.Helper()
	logFile, err := os.OpenFile(filepath.Join(h.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.t.Fatal(err)
	}
	defer logFile.Close()
	cmd := exec.Command(binary(h.t, "stated"), h.args()...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = append(os.Environ(), h.env...)
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in the log
		close(exited)
	}()
	h.cmd, h.exited = cmd, exited
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // also at the end of the test
	defer cancel()
	for {
		if h.ping(ctx) == nil {
			return
		}
		select {
		case <-exited:
			h.t.Fatalf("the daemon ended at its start:\n%s", h.log())
		case <-ctx.Done():
			h.t.Fatalf("the daemon does not serve:\n%s", h.log())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (h *host) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", h.socket)
	}}}
}

func (h *host) ping(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://stated/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := h.client().Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// stop ends the daemon with a signal and waits for it.
func (h *host) stop(sig syscall.Signal) {
	h.t.Helper()
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Signal(sig) // it may have ended
	select {
	case <-h.exited:
	case <-time.After(30 * time.Second):
		h.t.Errorf("the daemon did not end after %v:\n%s", sig, h.log())
		_ = h.cmd.Process.Kill() // it must not outlive the test
		<-h.exited
	}
	h.cmd = nil
}

func (h *host) log() string {
	data, err := os.ReadFile(filepath.Join(h.dir, "log"))
	if err != nil {
		return err.Error()
	}
	if len(data) > 8000 {
		data = data[len(data)-8000:]
	}
	return string(data)
}

// destroy removes containers, daemon, mounts and directories.
func (h *host) destroy() {
	if h.t.Failed() {
		h.t.Logf("the daemon's log:\n%s", h.log())
	}
	if h.cmd == nil {
		h.env = nil
		if _, err := os.Stat(filepath.Join(h.dir, "data")); err == nil && !h.t.Failed() {
			h.start()
		}
	}
	if h.cmd != nil {
		if ids, err := h.try("ps", "-aq"); err == nil && strings.TrimSpace(ids) != "" {
			if out, err := h.try(append([]string{"rm", "-f", "-v"}, strings.Fields(ids)...)...); err != nil {
				h.t.Errorf("remove the containers: %s", out)
			}
		}
		h.stop(syscall.SIGTERM)
	}
	h.unmountAll()
	if err := os.RemoveAll(h.dir); err != nil {
		h.t.Errorf("remove the test's directory: %v", err)
	}
}

// unmountAll unmounts what is left below the host's directory, deepest first, and complains about it.
func (h *host) unmountAll() {
	for _, path := range h.mounts() {
		_ = unix.Unmount(path, unix.MNT_DETACH) // it goes with the namespace at the latest
	}
}

// mounts lists the mount points below the host's directory, last mounted first.
func (h *host) mounts() []string {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		h.t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], h.dir) {
			list = append([]string{f[1]}, list...)
		}
	}
	return list
}

// dockerPath finds a docker command of version 28 or newer, and busyboxTar the tar that is imported as busybox.
var (
	dockerPath = sync.OnceValue(func() string { return script("../env/docker-cli.sh") })
	busyboxTar = sync.OnceValue(func() string { return script("../env/busybox.sh") })
)

// script returns what a script prints, without the last newline. It panics when it fails: no test works then.
func script(name string) string {
	out, err := exec.Command(name).Output()
	if err != nil {
		panic(fmt.Sprintf("%s: %v", name, err))
	}
	return strings.TrimSpace(string(out))
}

// result is what a docker command printed and how it ended.
type result struct {
	out, err string
	code     int
}

// runCommand runs a command with text as its standard input.
func runCommand(t *testing.T, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Stdin = &stdout, &stderr, strings.NewReader(stdin)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it hangs
	defer stop()
	err := cmd.Wait()
	if ctx.Err() != nil {
		t.Errorf("%s did not end", strings.Join(cmd.Args[1:], " "))
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run runs docker and returns all about it.
func (h *host) run(args ...string) result {
	h.t.Helper()
	return runCommand(h.t, h.command(args...), "")
}

// pipe is run with text as the standard input.
func (h *host) pipe(stdin string, args ...string) result {
	h.t.Helper()
	return runCommand(h.t, h.command(args...), stdin)
}

// want runs docker and complains when it does not succeed with this output, spaces around it aside.
func (h *host) want(out string, args ...string) {
	h.t.Helper()
	if r := h.run(args...); r.code != 0 || strings.TrimSpace(r.out) != out {
		h.t.Errorf("docker %q printed %q, want %q; code %d, %s", args, strings.TrimSpace(r.out), out, r.code, r.err)
	}
}

// command is the docker command against this host.
func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command(dockerPath(), args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.socket, "DOCKER_CONFIG="+filepath.Join(h.dir, "cli"))
	return cmd
}

// try runs docker and returns what it printed, on both streams when it failed.
func (h *host) try(args ...string) (string, error) {
	cmd := h.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String() + stderr.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// docker runs docker, which must succeed, and returns its output without the last newline.
func (h *host) docker(args ...string) string {
	h.t.Helper()
	out, err := h.try(args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSuffix(out, "\n")
}

// fails runs docker, which must fail, and checks that its message holds text.
func (h *host) fails(text string, args ...string) {
	h.t.Helper()
	out, err := h.try(args...)
	if err == nil {
		h.t.Fatalf("docker %s succeeded: %s", strings.Join(args, " "), out)
	}
	if !strings.Contains(out, text) {
		h.t.Errorf("docker %s says %q, which does not hold %q", strings.Join(args, " "), out, text)
	}
}

// importBusybox gives the host the image busybox.
func (h *host) importBusybox() {
	h.t.Helper()
	h.docker("import", "-c", `CMD ["/bin/sh"]`, "-c", "ENV PATH=/bin", busyboxTar(), "busybox")
}

// eventually waits until ok holds.
func (h *host) eventually(what string, ok func() bool) {
	h.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			h.t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
