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

	"stated.dev/stated/internal/testenv/scratch"
)

// bootLimit bounds a boot with all its tests.
const bootLimit = 3 * time.Minute

// TestNspawn boots a systemd in a container and runs the tests in it.
func TestNspawn(t *testing.T) {
	if os.Getenv("STATED_INSIDE") != "" {
		return // it is what runs us
	}
	dir := scratch.Dir(t)
	suite, tree := filepath.Join(dir, "suite.test"), filepath.Join(dir, "tree")
	scratch.Go(t, "test", "-c", "-o", suite, ".")
	scratch.Run(t, "../env/stated-tree.sh", tree, suite, "-test.v", "-test.run=TestInside")

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
