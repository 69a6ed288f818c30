package scratch

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"stated.dev/stated/internal/testenv"
)

// Host is one daemon after the other on the same roots, and a docker command against them.
type Host struct {
	T      *testing.T
	Number int    // of this host among those of the process: their bridges and subnets differ
	Dir    string // the roots are in it; tests put what they need beside them
	CLI    string // the docker command
	Launch        // of the next daemon

	daemon *Daemon // nil before the first start and after Stop
}

// hosts counts the hosts of this process.
var hosts atomic.Int32

// New returns a host whose daemon is not started yet. At the end of the test its containers are removed, and all that
// it made.
func New(t *testing.T, flags ...string) *Host {
	t.Helper()
	dir := Dir(t)
	h := &Host{T: t, Number: int(hosts.Add(1)), Dir: dir, CLI: Docker(t), Launch: Launch{
		Roots:  testenv.Roots{Data: filepath.Join(dir, "data"), Exec: filepath.Join(dir, "exec")},
		Socket: filepath.Join(dir, "s.sock"),
		Log:    filepath.Join(dir, "log"),
	}}
	h.Flags = append([]string{"--bridge", h.Bridge(), "--bip", h.Gateway() + "/24",
		"--default-address-pool", fmt.Sprintf("base=10.%d.0.0/16,size=24", h.Number)}, flags...)
	t.Cleanup(h.destroy)
	return h
}

// Started returns a host with a running daemon and the image busybox.
func Started(t *testing.T, flags ...string) *Host {
	t.Helper()
	h := New(t, flags...)
	h.Start()
	h.ImportBusybox()
	return h
}

// During lets failures be a subtest's until that ends. Only one subtest at a time can have a host.
func (h *Host) During(t *testing.T) {
	parent := h.T
	h.T = t
	t.Cleanup(func() { h.T = parent })
}

// Bridge is the name of the host's default bridge.
func (h *Host) Bridge() string { return fmt.Sprintf("scratch%d", h.Number) }

// Gateway is the address of the host's default bridge.
func (h *Host) Gateway() string { return fmt.Sprintf("172.30.%d.1", h.Number) }

// Start starts the daemon, waits until it serves and returns how long that took.
func (h *Host) Start() time.Duration {
	h.T.Helper()
	begun := time.Now()
	d, err := h.Launch.Start()
	if err != nil {
		h.T.Fatal(err)
	}
	h.daemon = d
	return time.Since(begun)
}

// Stop ends the daemon with a signal and waits for it.
func (h *Host) Stop(sig syscall.Signal) {
	h.T.Helper()
	if h.daemon == nil {
		return
	}
	if err := h.daemon.End(sig); err != nil {
		h.T.Error(err)
	}
	h.daemon = nil
}

// Exited is closed when the daemon has ended. The daemon has been started.
func (h *Host) Exited() <-chan struct{} { return h.daemon.Exited }

// destroy removes the containers and ends the daemon. Without a daemon it starts one for that.
func (h *Host) destroy() {
	if h.T.Failed() {
		h.T.Logf("the daemon's log ends:\n%s", Tail(h.Log))
	}
	if _, err := os.Stat(h.Roots.Data); err != nil {
		return // no daemon was started
	}
	if h.daemon != nil {
		select {
		case <-h.daemon.Exited:
			h.Stop(syscall.SIGTERM) // complains
		default:
		}
	}
	if h.daemon == nil {
		h.Env = nil
		h.Start()
	}
	defer h.Stop(syscall.SIGTERM)
	if ids := strings.Fields(h.Docker("ps", "-aq")); len(ids) > 0 {
		h.Docker(append([]string{"rm", "-f", "-v"}, ids...)...)
	}
}

// Command is the docker command against this host.
func (h *Host) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(h.CLI, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+h.Socket, "DOCKER_CONFIG="+filepath.Join(h.Dir, "cli"))
	return cmd
}

// Try runs docker and returns what it printed, on both streams when it failed.
func (h *Host) Try(args ...string) (string, error) {
	cmd := h.Command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String() + stderr.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// Docker runs docker, which must succeed, and returns its output without the last newline.
func (h *Host) Docker(args ...string) string {
	h.T.Helper()
	out, err := h.Try(args...)
	if err != nil {
		h.T.Fatal(err)
	}
	return strings.TrimSuffix(out, "\n")
}

// ImportBusybox gives the host the image busybox.
func (h *Host) ImportBusybox() {
	h.T.Helper()
	h.Docker("import", "-c", `CMD ["/bin/sh"]`, "-c", "ENV PATH=/bin", Busybox(h.T), "busybox")
}
