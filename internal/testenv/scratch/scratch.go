// Package scratch gives suites what they drive the built binaries on: the programs that contrib/env makes, directories, hosts with a
// stated of their own, and a dockerd to compare with, all gone at the end of the test that asked for them. It never
// judges what a daemon answers, never touches a host but the one it made, and holds no locks.
package scratch

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Dir makes a directory whose path is short enough for sockets. At the end of the test what is mounted below it is
// unmounted, and it is removed.
func Dir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "stated-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		Unmount(t, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's directory: %v", err)
		}
	})
	return dir
}

// Unmount unmounts what is at a path that begins with prefix, last mounted first.
func Unmount(t *testing.T, prefix string) {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], prefix) {
			list = append([]string{f[1]}, list...)
		}
	}
	for _, path := range list {
		_ = unix.Unmount(path, unix.MNT_DETACH) // it goes with the namespace at the latest
	}
}

// Run runs a command, which must succeed, and returns its output without the spaces around it.
func Run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := run(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// run is Run without a test. The error has what the command printed on both streams.
func run(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%q: %w: %s", cmd.Args, err, bytes.TrimSpace(append(out, stderr.Bytes()...)))
	}
	return strings.TrimSpace(string(out)), nil
}

// Go runs the go command without cgo: what it builds runs in any root file system.
func Go(t *testing.T, args ...string) {
	t.Helper()
	Run(t, "env", append([]string{"CGO_ENABLED=0", "go"}, args...)...)
}

// What scripts of contrib/env make is found once for all tests: making it again disturbs those that use it.
var (
	docker  = sync.OnceValues(func() (string, error) { return script("docker-cli.sh") })
	busybox = sync.OnceValues(func() (string, error) { return script("busybox.sh") })
	etcd    = sync.OnceValues(func() (string, error) { return script("etcd.sh") })
)

// script runs a script of contrib/env, which it finds from any directory of the repository.
func script(name string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		path := filepath.Join(dir, "contrib/env", name)
		if _, err := os.Stat(path); err == nil {
			return run(path)
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no directory above the test has contrib/env/%s", name)
		}
	}
}

// Etcd is the directory with the programs of etcd 3.4.23.
func Etcd(t testing.TB) string {
	t.Helper()
	return found(t, etcd)
}

// Docker is the path of a docker command of version 28 or newer.
func Docker(t *testing.T) string {
	t.Helper()
	return found(t, docker)
}

// Busybox is the path of a tar that can be imported as an image.
func Busybox(t *testing.T) string {
	t.Helper()
	return found(t, busybox)
}

func found(t testing.TB, find func() (string, error)) string {
	t.Helper()
	path, err := find()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// Client speaks HTTP on a unix socket, with a new connection for each request.
func Client(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
}

// Eventually waits until ok holds. It fails the test after the limit.
func Eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Tail is the end of a file, for messages: of one that cannot be read it says why.
func Tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-8000):])
}
