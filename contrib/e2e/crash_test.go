package e2e

import (
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
