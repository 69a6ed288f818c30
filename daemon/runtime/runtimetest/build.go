package runtimetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Prog is the path of the test program in a container.
const Prog = "/prog"

// Build builds a package of this module as a static program into dir and returns its path.
func Build(t testing.TB, dir, pkg string) string {
	t.Helper()
	out := filepath.Join(dir, filepath.Base(pkg))
	cmd := exec.Command("go", "build", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, text)
	}
	return out
}

// Rootfs makes a root file system with the test program in dir.
func Rootfs(t testing.TB, dir string) string {
	t.Helper()
	root := filepath.Join(dir, "rootfs")
	for _, sub := range []string{"proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	built := Build(t, dir, "stated.dev/stated/daemon/runtime/runtimetest/testprog")
	if err := os.Rename(built, filepath.Join(root, Prog)); err != nil {
		t.Fatal(err)
	}
	return root
}

// Spec describes a container that runs the test program.
func Spec(rootfs, cgroup string, args ...string) *specs.Spec {
	return &specs.Spec{
		Version: "1.1.0",
		Root:    &specs.Root{Path: rootfs, Readonly: true},
		Process: Command(args...),
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755", "size=64k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
				Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace},
			},
			Resources: &specs.LinuxResources{},
		},
	}
}

// Command describes a process that runs the test program.
func Command(args ...string) *specs.Process {
	return &specs.Process{Args: append([]string{Prog}, args...), Cwd: "/", Env: []string{"PATH=/"}}
}
