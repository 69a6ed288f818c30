package runtime

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestSliceRemoved has somebody remove the cgroup of the shims between two starts, when none lives in it.
func TestSliceRemoved(t *testing.T) {
	var p placement
	p.findUnified()
	if p.unified == "" {
		t.Skip("no cgroup v2 hierarchy is mounted on this host")
	}
	p.unified = filepath.Join(filepath.Dir(p.unified), fmt.Sprintf("stated-test-%d", os.Getpid()))
	for range 2 {
		cmd := exec.Command("cat", "/proc/self/cgroup")
		cmd.SysProcAttr = &syscall.SysProcAttr{}
		done := p.prepare(cmd.SysProcAttr)
		where, err := cmd.Output()
		done()
		if err := os.Remove(p.unified); err != nil {
			t.Error(err)
		}
		if err != nil || !strings.Contains(string(where), "/"+filepath.Base(p.unified)+"\n") {
			t.Fatalf("born in %q: %v", where, err)
		}
	}
}
