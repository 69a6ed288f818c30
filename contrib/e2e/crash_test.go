package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"stated.dev/stated/internal/testenv"
	"stated.dev/stated/internal/testenv/scratch"
)

// crashPoints are the instants of a container's life at which the daemon dies, by the verb that gets there.
var crashPoints = []string{
	"volumes.create.staged", "volumes.create.recorded", "volumes.create.published",
	"containers.create.volume", "containers.create.volumes", "containers.create.recorded",
	"layer.create.intended", "layer.create.seeded", "layer.create.made", "layer.create.recorded",
	"journal.commit.appended", "journal.commit.applying",
	"runtime.spawn.locked", "runtime.spawn.started",
	"network.attach.namespace", "network.attach.held", "network.attach.connected", "network.attach.recorded", "network.attach.published",
	"containers.start.prepared", "runtime.create.bundled", "containers.start.created", "containers.start.started",
	"containers.exec.started",
	"containers.exit.recorded", "runtime.delete.answered", "network.release.recorded",
	"containers.remove.begun", "containers.remove.unrecorded", "layer.remove.unrecorded", "layer.remove.discarded",
	"volumes.local.mounted", "volumes.remove.prepared", "volumes.remove.unrecorded", "volumes.local.unlimited", "volumes.remove.deleted",
}

// TestCrash kills the daemon at each point of a container's life, starts it again, removes what is left with ordinary
// commands, and finds nothing that was not there before. It has the network namespace to itself: it is not parallel.
func TestCrash(t *testing.T) {
	h := startedHost(t)
	h.Docker("network", "create", "net")
	life := func() {
		for _, args := range [][]string{
			{"create", "--name", "box", "--network", "net", "-p", "127.0.0.1:18080:80", "-v", "named:/named", "-v", "/anonymous",
				"--mount", "type=image,src=busybox,dst=/image,image-subpath=bin",
				"--mount", "type=volume,src=mounted,dst=/mounted,volume-opt=type=tmpfs,volume-opt=device=tmpfs", "--init", "busybox", "sleep", "1000"},
			{"start", "box"},
			{"exec", "box", "true"},
			{"stop", "-t", "0", "box"},
			{"rm", "-v", "box"},
		} {
			if _, err := h.Try(args...); err != nil {
				return // the daemon is gone, or an operation was refused: what matters is what stays
			}
		}
	}
	life() // what the first container makes for good is no leak
	h.Docker("volume", "rm", "named", "mounted")
	h.Stop(syscall.SIGTERM)
	before, err := testenv.Observe(h.Roots)
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range crashPoints {
		t.Run(point, func(t *testing.T) {
			h.During(t)
			h.Env = []string{"STATED_FAULT=" + point + "=kill"}
			h.Start()
			life()
			select {
			case <-h.Exited():
			case <-time.After(time.Second):
				t.Error("the daemon did not come to this point")
				h.Stop(syscall.SIGTERM)
			}
			h.Env = nil
			h.Start()
			if h.Docker("ps", "-q") == "" {
				if mounted, err := mountinfo.Mounted(h.Roots.Data + "/volumes/mounted/_data"); err == nil && mounted {
					t.Error("a volume is mounted that no container uses") // where there is no volume there is no mount
				}
			}
			for _, id := range strings.Fields(h.Docker("ps", "-aq")) {
				if state := h.Docker("inspect", "-f", "{{.State.Status}}", id); !slices.Contains([]string{"created", "running", "exited"}, state) {
					t.Errorf("after the crash the container is %s", state)
				}
				h.Docker("rm", "-f", "-v", id)
			}
			if volumes := h.Docker("volume", "ls", "-q"); volumes != "" {
				h.Docker(append([]string{"volume", "rm"}, strings.Fields(volumes)...)...)
			}
			h.Stop(syscall.SIGTERM)
			after, err := testenv.Observe(h.Roots)
			if err != nil {
				t.Fatal(err)
			}
			if leaks := after.Leaks(before); len(leaks) > 0 {
				t.Errorf("left behind:\n%s", strings.Join(leaks, "\n"))
			}
			if t.Failed() {
				t.Logf("the daemon's log:\n%s", scratch.Tail(h.Log))
			}
		})
	}
}

// TestLinkedDataRoot: a data root may be named by a symbolic link, and what a killed daemon left mounted in it goes.
func TestLinkedDataRoot(t *testing.T) {
	h := host{scratch.New(t)}
	target := filepath.Join(h.Dir, "target")
	if err := errors.Join(os.Mkdir(target, 0o710), os.Symlink(target, h.Roots.Data)); err != nil {
		t.Fatal(err)
	}
	h.Start()
	h.ImportBusybox()
	h.want(target, "info", "-f", "{{.DockerRootDir}}")
	h.Docker("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "memory")
	h.Docker("create", "--name", "web", "-v", "memory:/m", "busybox", "echo", "hello")
	left := func() []*mountinfo.Info {
		t.Helper()
		list, err := mountinfo.GetMounts(mountinfo.PrefixFilter(target))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	h.Stop(syscall.SIGTERM)
	h.Env = []string{"STATED_FAULT=containers.start.prepared=kill"}
	h.Start()
	if r := h.run("start", "web"); r.code == 0 {
		t.Fatalf("%+v", r)
	}
	<-h.Exited()
	if len(left()) == 0 {
		t.Error("the daemon was killed too early")
	}
	h.Env = nil
	h.Start()
	h.eventually("nothing is mounted", func() bool { return len(left()) == 0 })
	h.want("hello", "start", "-a", "web")
}
