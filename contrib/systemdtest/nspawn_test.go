// Package systemdtest runs stated under a systemd that has booted. The tests in inside_test.go run within it: in
// systemd-nspawn here, and in the virtual machine of contrib/vmtest.
package systemdtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bootLimit bounds a boot with all its tests.
const bootLimit = 3 * time.Minute

// TestNspawn boots a systemd in a container and runs the tests in it.
func TestNspawn(t *testing.T) {
	if os.Getenv("STATED_INSIDE") != "" {
		return // it is what runs us
	}
	dir, err := os.MkdirTemp("", "stated-nspawn-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	suite := filepath.Join(dir, "suite.test")
	build := exec.Command("go", "test", "-c", "-o", suite, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	must(t, build)
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, exec.Command("../env/stated-tree.sh", tree, suite, "-test.v", "-test.run=TestInside"))

	boot := exec.Command("timeout", "-k", "5", fmt.Sprint(int(bootLimit.Seconds())), "systemd-nspawn", "--quiet", "--boot", "--directory="+tree, "--machine=stated-test-"+fmt.Sprint(os.Getpid()),
		"--register=no", "--keep-unit", "--private-network", "--capability=all", "--console=pipe")
	boot.Env = append(os.Environ(), "SYSTEMD_SECCOMP=0")
	console, err := boot.CombinedOutput()
	log, _ := os.ReadFile(filepath.Join(tree, "suite", "log")) // the status says whether it is there
	t.Logf("within:\n%s", log)
	status, statusErr := os.ReadFile(filepath.Join(tree, "suite", "status"))
	switch {
	case statusErr != nil:
		t.Errorf("the tests did not end: %v\n%s", err, console)
	case strings.TrimSpace(string(status)) != "0":
		t.Errorf("the tests failed\n%s", console[max(0, len(console)-3000):])
	}
}

func must(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", cmd.Args, err, out)
	}
}
