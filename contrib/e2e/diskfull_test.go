package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk puts the host's data root on an ext4 of its own.
func (h *host) smallDisk(size string) {
	h.t.Helper()
	data, image := filepath.Join(h.dir, "data"), filepath.Join(h.dir, "disk")
	for _, args := range [][]string{
		{"mkdir", data}, {"truncate", "-s", size, image}, {"mkfs.ext4", "-q", "-m", "0", image},
		{"mount", "-o", "loop", image, data}, // the loop device goes with the mount
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			h.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
}

// fillDisk uses up the data root's space and returns what gives it back.
func (h *host) fillDisk() (free func()) {
	h.t.Helper()
	path := filepath.Join(h.dir, "data", "ballast")
	f, err := os.Create(path)
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 4 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			h.t.Fatal(err)
		}
		if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
			h.t.Fatal(err)
		}
	}
	return func() {
		h.t.Helper()
		if err := os.Remove(path); err != nil {
			h.t.Fatal(err)
		}
	}
}

// TestDiskFull: with the data root's disk full the calls that need space say so and leave nothing half-made, and all
// others go on; with space again everything works.
func TestDiskFull(t *testing.T) {
	h := newHost(t)
	h.smallDisk("128M")
	h.start()
	h.importBusybox()
	saved := filepath.Join(h.dir, "busybox.tar")
	h.docker("save", "-o", saved, "busybox")
	h.docker("run", "-d", "--name", "writer", "busybox", "sh", "-c",
		`n=0; while :; do n=$((n+1)); echo $n > /dev/shm/n; echo line $n of a log that fills a disk in the end; sleep 0.01; done`)
	h.docker("run", "-d", "--name", "steady", "busybox", "sleep", "1000")
	h.docker("create", "--name", "idle", "busybox", "sleep", "1000")
	written := func() (n int) {
		h.eventually("the writer counts", func() bool {
			var err error
			n, err = strconv.Atoi(h.docker("exec", "writer", "cat", "/dev/shm/n"))
			return err == nil // it may be at it just now
		})
		return n
	}

	free := h.fillDisk()
	const reason = "no space left on device"
	h.fails(reason, "create", "--name", "half", "busybox", "true")
	h.fails(reason, "volume", "create", "half")
	h.fails(reason, "import", busyboxTar(), "half")
	for _, args := range [][]string{{"network", "create", "half"}, {"start", "idle"}, {"rename", "idle", "half"}} {
		// These may find the little that they need.
		if out, err := h.try(args...); err != nil && !strings.Contains(out, reason) {
			t.Errorf("docker %s says %s", strings.Join(args, " "), out)
		} else if err == nil {
			t.Logf("docker %s found space", strings.Join(args, " "))
		}
	}
	before := written()
	h.eventually("the writer goes on", func() bool { return written() > before+50 })
	h.docker("stop", "-t", "0", "steady")
	h.want("exited 137", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "steady")
	h.docker("rm", "steady")
	for what, list := range map[string]string{"volumes": h.docker("volume", "ls", "-q"), "images": h.docker("images", "-q", "half")} {
		if list != "" {
			t.Errorf("half-made %s: %s", what, list)
		}
	}
	if names := h.docker("ps", "-a", "--format", "{{.Names}}"); strings.Contains(names, "steady") || len(strings.Fields(names)) != 2 {
		t.Errorf("containers on a full disk: %s", names)
	}

	free()
	last := written()
	h.eventually("the log goes on", func() bool {
		f := strings.Fields(h.docker("logs", "--tail", "1", "writer"))
		if len(f) < 2 {
			return false
		}
		n, err := strconv.Atoi(f[1])
		return err == nil && n > last
	})
	if h.run("container", "inspect", "idle").code != 0 {
		h.docker("rename", "half", "idle")
	}
	h.docker("create", "--name", "half", "busybox", "true")
	h.docker("start", "-a", "half")
	h.docker("volume", "create", "half")
	if h.run("network", "inspect", "half").code != 0 {
		h.docker("network", "create", "half")
	}
	h.docker("load", "-i", saved)
	h.docker("start", "idle")

	h.stop(syscall.SIGKILL)
	h.start()
	for name, want := range map[string]string{"writer": "running", "idle": "running", "half": "exited"} {
		h.want(want, "inspect", "-f", "{{.State.Status}}", name)
	}
}
