package ocispec_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon/runtime/ocispec"
)

// Report is what the probe in testdata tells of the container it runs in.
type Report struct {
	Args, Env []string
	Cwd       string
	UID, GID  int
	Groups    []int
	Hostname  string
	Domain    string
	Umask     int
	OOMScore  string
	Status    map[string]string
	Limits    map[string][2]uint64
	Mounts    map[string]string
	Devices   []string
	Cgroups   string
	Sysctls   map[string]string
	Tries     map[string]string
	Reads     map[string]int
	Links     map[string]string
	Files     map[string]string
}

// probeBinary builds the probe once, without the C library, so that it runs in an empty root file system.
var probeBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ocispec-probe-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-o", path, "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", &buildError{string(out), err}
	}
	return path, nil
})

type buildError struct {
	output string
	err    error
}

func (e *buildError) Error() string { return e.err.Error() + ": " + e.output }

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := probeBinary(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // a directory below the temporary one
	}
	os.Exit(code)
}

const passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1::/:/bin/false
ann:x:1000:1000::/home/ann:/bin/sh
`

const group = `root:x:0:
daemon:x:1:
wheel:x:10:ann,root
audio:x:29:
ann:x:1000:
`

// newRootfs makes a root file system with the probe and a few files.
func newRootfs(t *testing.T) string {
	t.Helper()
	probe, err := probeBinary()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{"etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Dir(filepath.Dir(root)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(probe, filepath.Join(root, "probe")); err != nil {
		data, err := os.ReadFile(probe)
		if err == nil {
			err = os.WriteFile(filepath.Join(root, "probe"), data, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"etc/passwd": passwd, "etc/group": group} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func newID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// newInput is a container that runs the probe, as "docker run" with no option would have it.
func newInput(t *testing.T, args ...string) ocispec.Input {
	t.Helper()
	id := newID()
	in := ocispec.Input{
		ID:     id,
		Config: &types.ContainerConfig{},
		HostConfig: &container.HostConfig{
			NetworkMode: "none", IpcMode: "private", CgroupnsMode: "host", ShmSize: 1 << 20,
		},
		Path: "/probe", Args: args,
		Rootfs: newRootfs(t),
		Host: ocispec.Host{
			CgroupDriver: ocispec.CgroupDriverCgroupfs, CgroupParent: "/ocispec-test-" + id[:8],
			SeccompSupported: true, PingGroupRange: true, UnprivilegedPortStart: true, RecursiveReadOnly: true,
		},
	}
	in.Config.Hostname = "box"
	return in
}

// run starts the container with the real runtime and returns what the probe found.
func run(t *testing.T, in ocispec.Input) Report {
	t.Helper()
	if err := ocispec.EnsureWorkdir(in.Rootfs, in.Config.WorkingDir, 0, 0); err != nil {
		t.Fatal(err)
	}
	spec, err := ocispec.Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return runSpec(t, in, spec)
}

func runSpec(t *testing.T, in ocispec.Input, spec *specs.Spec) Report {
	t.Helper()
	out, messages, err := runc(t, in, spec)
	if err != nil {
		t.Fatalf("runc: %v: %s", err, messages)
	}
	var r Report
	if err := json.Unmarshal(out, &r); err != nil {
		t.Fatalf("the probe's answer %q: %v", out, err)
	}
	return r
}

func runc(t *testing.T, in ocispec.Input, spec *specs.Spec) (out []byte, messages string, err error) {
	t.Helper()
	binary := runcBinary(t)
	bundle := t.TempDir()
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(bundle, "state")
	cmd := exec.Command(binary, "--root", state, "run", "--bundle", bundle, in.ID)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	t.Cleanup(func() {
		_ = exec.CommandContext(context.Background(), binary, "--root", state, "delete", "--force", in.ID).Run() // gone already when all went well
		parents, _ := filepath.Glob("/sys/fs/cgroup/*" + in.Host.CgroupParent)
		for _, dir := range append(parents, "/sys/fs/cgroup"+in.Host.CgroupParent) {
			_ = os.Remove(dir) // a cgroup is removed as a directory is; not all of these exist
		}
	})
	out, err = cmd.Output()
	return out, stderr.String(), err
}

// runcBinary finds the runtime: on PATH, or where the project builds its own.
func runcBinary(t *testing.T) string {
	t.Helper()
	if path, err := exec.LookPath("runc"); err == nil {
		return path
	}
	path, err := filepath.Abs("../../../bin/runc")
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("no runc on PATH and none in bin/, where make build puts it: %v", err)
	}
	return path
}

func (r Report) env(key string) (string, bool) {
	for _, kv := range r.Env {
		if k, v, _ := strings.Cut(kv, "="); k == key {
			return v, true
		}
	}
	return "", false
}

// mountHas says whether a mount exists with an option, its own or its file system's.
func (r Report) mountHas(point, option string) bool {
	for field := range strings.FieldsSeq(r.Mounts[point]) {
		for o := range strings.SplitSeq(field, ",") {
			if o == option {
				return true
			}
		}
	}
	return false
}
