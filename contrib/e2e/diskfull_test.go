package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/scratch"
)

// smallDisk puts the host's data root on an ext4 of its own.
func (h host) smallDisk(size string) {
	h.T.Helper()
	image := filepath.Join(h.Dir, "disk")
	scratch.Run(h.T, "mkdir", h.Roots.Data)
	scratch.Run(h.T, "truncate", "-s", size, image)
	scratch.Run(h.T, "mkfs.ext4", "-q", "-m", "0", image)
	scratch.Run(h.T, "mount", "-o", "loop", image, h.Roots.Data) // the loop device goes with the mount
}

// fillDisk uses up the data root's space and returns what gives it back.
func (h host) fillDisk() (free func()) {
	h.T.Helper()
	path := filepath.Join(h.Roots.Data, "ballast")
	f, err := os.Create(path)
	if err != nil {
		h.T.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; size /= 4 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			h.T.Fatal(err)
		}
		if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
			h.T.Fatal(err)
		}
	}
	return func() {
		h.T.Helper()
		if err := os.Remove(path); err != nil {
			h.T.Fatal(err)
		}
	}
}

// TestDiskFull: with the data root's disk full the calls that need space say so and leave nothing half-made, and all
// others go on; with space again everything works.
func TestDiskFull(t *testing.T) {
	h := host{scratch.New(t)}
	h.smallDisk("128M")
	h.Start()
	h.ImportBusybox()
	saved := filepath.Join(h.Dir, "busybox.tar")
	h.Docker("save", "-o", saved, "busybox")
	h.Docker("run", "-d", "--name", "writer", "busybox", "sh", "-c",
		`n=0; while :; do n=$((n+1)); echo $n > /dev/shm/n; echo line $n of a log that fills a disk in the end; sleep 0.01; done`)
	h.Docker("run", "-d", "--name", "steady", "busybox", "sleep", "1000")
	h.Docker("create", "--name", "idle", "busybox", "sleep", "1000")
	written := func() (n int) {
		h.eventually("the writer counts", func() bool {
			var err error
			n, err = strconv.Atoi(h.Docker("exec", "writer", "cat", "/dev/shm/n"))
			return err == nil // it may be at it just now
		})
		return n
	}

	free := h.fillDisk()
	const reason = "no space left on device"
	h.fails(reason, "create", "--name", "half", "busybox", "true")
	h.fails(reason, "volume", "create", "half")
	h.fails(reason, "import", scratch.Busybox(t), "half")
	for _, args := range [][]string{{"network", "create", "half"}, {"start", "idle"}, {"rename", "idle", "half"}} {
		// These may find the little that they need.
		if out, err := h.Try(args...); err != nil && !strings.Contains(out, reason) {
			t.Errorf("docker %s says %s", strings.Join(args, " "), out)
		} else if err == nil {
			t.Logf("docker %s found space", strings.Join(args, " "))
		}
	}
	before := written()
	h.eventually("the writer goes on", func() bool { return written() > before+50 })
	h.Docker("stop", "-t", "0", "steady")
	h.want("exited 137", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "steady")
	h.Docker("rm", "steady")
	for what, list := range map[string]string{"volumes": h.Docker("volume", "ls", "-q"), "images": h.Docker("images", "-q", "half")} {
		if list != "" {
			t.Errorf("half-made %s: %s", what, list)
		}
	}
	if names := h.Docker("ps", "-a", "--format", "{{.Names}}"); strings.Contains(names, "steady") || len(strings.Fields(names)) != 2 {
		t.Errorf("containers on a full disk: %s", names)
	}

	free()
	last := written()
	h.eventually("the log goes on", func() bool {
		f := strings.Fields(h.Docker("logs", "--tail", "1", "writer"))
		if len(f) < 2 {
			return false
		}
		n, err := strconv.Atoi(f[1])
		return err == nil && n > last
	})
	if h.run("container", "inspect", "idle").code != 0 {
		h.Docker("rename", "half", "idle")
	}
	h.Docker("create", "--name", "half", "busybox", "true")
	h.Docker("start", "-a", "half")
	h.Docker("volume", "create", "half")
	if h.run("network", "inspect", "half").code != 0 {
		h.Docker("network", "create", "half")
	}
	h.Docker("load", "-i", saved)
	h.Docker("start", "idle")

	h.Stop(syscall.SIGKILL)
	h.Start()
	for name, want := range map[string]string{"writer": "running", "idle": "running", "half": "exited"} {
		h.want(want, "inspect", "-f", "{{.State.Status}}", name)
	}
}

// TestDiskFullNetworks: a network is made whole or refused with the reason, also by a daemon that starts on a full disk.
func TestDiskFullNetworks(t *testing.T) {
	h := host{scratch.New(t)}
	h.smallDisk("64M")
	h.Start()
	label := "large=" + strings.Repeat("x", 30000)
	want := map[string]bool{"bridge": true, "host": true, "none": true}
	create := func(name string) bool {
		t.Helper()
		third := len(want)
		out, err := h.Try("network", "create", "--subnet", fmt.Sprintf("10.99.%d.0/24", third), "--label", label, name)
		switch {
		case err == nil:
			want[name] = true
		case !strings.Contains(out, "no space left on device"):
			t.Fatalf("docker network create says %s", out)
		}
		return err == nil
	}
	listed := func() {
		t.Helper()
		got := strings.Fields(h.Docker("network", "ls", "--format", "{{.Name}}"))
		slices.Sort(got)
		if names := slices.Sorted(maps.Keys(want)); !slices.Equal(got, names) {
			t.Errorf("there are the networks %q, want %q", got, names)
		}
	}
	create("first")
	var free func()
	refused := func() {
		t.Helper()
		free = h.fillDisk() // anew: ends and starts give space back
		for i := 0; create(fmt.Sprintf("net%d.%d", len(want), i)); i++ {
			if i == 100 {
				t.Fatal("a full disk takes a hundred networks")
			}
		}
		listed()
	}
	refused()
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		h.Stop(sig)
		h.Start()
		listed()
		refused()
	}
	free()
	if !create("last") {
		t.Error("no network with space again")
	}
	h.Stop(syscall.SIGKILL)
	h.Start()
	listed()
	for name := range want {
		if !slices.Contains([]string{"bridge", "host", "none"}, name) {
			h.Docker("network", "rm", name)
		}
	}
}
