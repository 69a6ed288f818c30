// Package interchange moves data roots between a real dockerd 28 and stated, both ways, and compares what the two say
// of them. It runs in a network and a mount namespace of its own; without root or a dockerd to compare with it fails.
package interchange

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
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
const inside = "STATED_INTERCHANGE_INSIDE"

// dataRoot is where both daemons see the data root: records hold absolute paths.
const dataRoot = "/var/lib/docker"

func TestMain(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(reexec())
	}
	if err := errors.Join(
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		exec.Command("ip", "link", "set", "lo", "up").Run(),
		os.MkdirAll(dataRoot, 0o711),
	); err != nil {
		fmt.Fprintln(os.Stderr, "prepare the namespaces:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// reexec runs the tests in namespaces of their own and returns their exit code.
func reexec() int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "the interchange tests must run as root: they start daemons that run containers")
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

// root is a data root on which one daemon after the other runs.
type root struct {
	t   *testing.T
	dir string // the data root is dir/data
}

// newRoot makes an empty data root, which both daemons see at dataRoot.
func newRoot(t *testing.T) *root {
	t.Helper()
	dir, err := os.MkdirTemp("", "stated-interchange-")
	if err != nil {
		t.Fatal(err)
	}
	r := &root{t: t, dir: dir}
	t.Cleanup(r.destroy)
	if err := os.Mkdir(r.data(), 0o710); err != nil {
		t.Fatal(err)
	}
	r.bind()
	return r
}

func (r *root) data() string { return filepath.Join(r.dir, "data") }

func (r *root) bind() {
	r.t.Helper()
	if err := unix.Mount(r.data(), dataRoot, "", unix.MS_BIND, ""); err != nil {
		r.t.Fatal(err)
	}
}

func (r *root) destroy() {
	// Bridges stay when a daemon stops, and would hinder the next root's.
	for _, name := range strings.Fields(output(r.t, "sh", "-c", "ip -o link show type bridge | cut -d: -f2")) {
		output(r.t, "ip", "link", "del", name)
	}
	output(r.t, "nft", "flush", "ruleset") // of this namespace
	r.unmount()
	if err := os.RemoveAll(r.dir); err != nil {
		r.t.Errorf("remove the data root: %v", err)
	}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// unmount takes the data root away from dataRoot, and whatever is still mounted below.
func (r *root) unmount() {
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		r.t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) > 1 && (strings.HasPrefix(f[1], dataRoot) || strings.HasPrefix(f[1], r.dir)) {
			list = append([]string{f[1]}, list...)
		}
	}
	for _, path := range list {
		_ = unix.Unmount(path, unix.MNT_DETACH) // it goes with the namespace at the latest
	}
}

// copy returns an independent copy of the root, which takes the original's place at dataRoot.
func (r *root) copy(t *testing.T) *root {
	t.Helper()
	dir, err := os.MkdirTemp("", "stated-interchange-")
	if err != nil {
		t.Fatal(err)
	}
	c := &root{t: t, dir: dir}
	t.Cleanup(c.destroy)
	if out, err := exec.Command("cp", "-a", r.data(), c.data()).CombinedOutput(); err != nil {
		t.Fatalf("copy the data root: %v: %s", err, out)
	}
	c.bind()
	return c
}

// engine is a running daemon.
type engine struct {
	t      *testing.T
	name   string
	socket string
	log    string
	pid    int // of stated
	end    func()
}

// dockerd runs a real dockerd on the root until stop.
func (r *root) dockerd() *engine {
	t := r.t
	t.Helper()
	log := filepath.Join(r.dir, "dockerd.log")
	cmd := exec.Command("../env/with-dockerd.sh", r.data(), "sh", "-c", `echo "$DOCKER_HOST"; read -r _ || true`)
	cmd.Env = append(os.Environ(), "DOCKERD_LOG="+log)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		_ = cmd.Wait() // what it said is more telling than how it ended
		t.Fatalf("there is no dockerd to compare with: %s\n%s", stderr.String(), tail(log))
	}
	ended := false
	e := &engine{t: t, name: "dockerd", socket: strings.TrimPrefix(strings.TrimSpace(line), "unix://"), log: log}
	e.end = func() {
		if ended {
			return
		}
		ended = true
		_ = stdin.Close() // it is what ends it
		if err := cmd.Wait(); err != nil {
			t.Errorf("end dockerd: %v: %s", err, stderr.String())
		}
	}
	t.Cleanup(e.stop)
	return e
}

// stated runs stated on the root until stop.
func (r *root) stated(flags ...string) *engine {
	t := r.t
	t.Helper()
	e, err := r.tryStated(flags...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// tryStated is stated for a root on which it may refuse to start.
func (r *root) tryStated(flags ...string) (*engine, error) {
	t := r.t
	log := filepath.Join(r.dir, "stated.log")
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	socket := filepath.Join(r.dir, "stated.sock")
	cmd := exec.Command(binary(t), append([]string{"daemon", "--data-root", dataRoot, "--exec-root", filepath.Join(r.dir, "exec"),
		"-H", "unix://" + socket}, flags...)...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in the log
		close(exited)
	}()
	e := &engine{t: t, name: "stated", socket: socket, log: log, pid: cmd.Process.Pid}
	ended := false
	e.end = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-exited:
		case <-time.After(30 * time.Second):
			t.Errorf("stated did not end:\n%s", tail(log))
			_ = cmd.Process.Kill() // it must not outlive the test
			<-exited
		}
	}
	deadline := time.After(60 * time.Second)
	for {
		if _, err := e.try(http.MethodGet, "/_ping", nil); err == nil {
			t.Cleanup(e.stop)
			return e, nil
		}
		select {
		case <-exited:
			return nil, fmt.Errorf("stated ended at its start:\n%s", tail(log))
		case <-deadline:
			e.end()
			return nil, fmt.Errorf("stated does not serve:\n%s", tail(log))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func binary(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("stated")
	if err != nil {
		t.Fatal("stated is not on PATH: run the tests with make test, which builds it")
	}
	return path
}

// stop ends the daemon; its containers have been stopped or removed before.
func (e *engine) stop() {
	if e.t.Failed() {
		e.t.Logf("the log of %s:\n%s", e.name, tail(e.log))
	}
	e.end()
}

func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-6000):])
}

// try sends a request; body is JSON, or an io.Reader that is sent as it is.
func (e *engine) try(method, path string, body any) ([]byte, error) {
	var reader io.Reader
	contentType := "application/json"
	switch b := body.(type) {
	case nil:
	case io.Reader:
		reader, contentType = b, "application/x-tar"
	default:
		data, err := json.Marshal(b)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(data)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://engine"+versioned(path), reader)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", e.socket)
	}}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s: %s %s: %s: %s", e.name, method, path, resp.Status, bytes.TrimSpace(answer))
	}
	return answer, err
}

func versioned(path string) string {
	if path == "/_ping" || strings.HasPrefix(path, "/stated/") {
		return path
	}
	return "/v1.51" + path
}

// do sends a request that must succeed.
func (e *engine) do(method, path string, body any) []byte {
	e.t.Helper()
	answer, err := e.try(method, path, body)
	if err != nil {
		e.t.Fatal(err)
	}
	return answer
}

// get decodes an answer.
func (e *engine) get(path string, v any) {
	e.t.Helper()
	if err := json.Unmarshal(e.do(http.MethodGet, path, nil), v); err != nil {
		e.t.Fatalf("%s: GET %s: %v", e.name, path, err)
	}
}

// wait waits until a container does not run, and returns its exit code.
func (e *engine) wait(name string) int {
	e.t.Helper()
	var answer struct{ StatusCode int }
	if err := json.Unmarshal(e.do(http.MethodPost, "/containers/"+name+"/wait", nil), &answer); err != nil {
		e.t.Fatal(err)
	}
	return answer.StatusCode
}

// output runs a container to its end and returns what it printed since, whole log records without their frames.
func (e *engine) output(name string) string {
	e.t.Helper()
	since := time.Now()
	e.do(http.MethodPost, "/containers/"+name+"/start", nil)
	if code := e.wait(name); code != 0 {
		e.t.Errorf("%s: container %s ended with %d", e.name, name, code)
	}
	raw := e.do(http.MethodGet, fmt.Sprintf("/containers/%s/logs?stdout=1&stderr=1&since=%d.%09d", name, since.Unix(), since.Nanosecond()), nil)
	var text []byte
	for len(raw) >= 8 {
		n := int(raw[4])<<24 | int(raw[5])<<16 | int(raw[6])<<8 | int(raw[7])
		text = append(text, raw[8:8+n]...)
		raw = raw[8+n:]
	}
	return string(text)
}

// files returns the digest of every file below the data root but those that skip names; directories and links too.
func (r *root) files(skip func(rel string) bool) map[string]string {
	r.t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(r.data(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(r.data(), path)
		if err != nil {
			return err
		}
		if skip(rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		sum := info.Mode().String()
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			sum += fmt.Sprintf(" %d bytes %x", len(data), sha256.Sum256(data))
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			sum += " -> " + target
		}
		sums[rel] = sum
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return sums
}
