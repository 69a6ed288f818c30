package vmtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/scratch"
)

const (
	// cutEnv holds the machine, as JSON, that TestOneCut runs.
	cutEnv = "STATED_CUT"
	// outcomePrefix begins the line of the console that has a boot's outcome.
	outcomePrefix = "outcome "
)

// outcome is what one boot of the virtual machine tells right before its kernel ends.
type outcome struct {
	BootID       string            // of its kernel
	Found        map[string]string // the containers' states, all of them right, when the daemon had come up
	Left         disk              // what may be on the disk now
	Acknowledged map[string]int    // how many operations of each kind
}

// TestFreshKernels cuts the power at random instants of operations. After each cut another kernel boots on the disk,
// and its daemon must find every acknowledged operation done, and every other one done wholly or not at all. In the end
// dockerd starts on what is left.
func TestFreshKernels(t *testing.T) {
	if os.Getenv("STATED_SOAK") != "long" {
		t.Skip("it boots fifty kernels, which make soak has the time for")
	}
	needRoot(t)
	dir := scratch.Dir(t)
	root, image := kernelRoot(t, dir), newDisk(t, dir)
	scratch.Run(t, "mkfs.ext4", "-q", image)
	const cuts = 50
	var sum tally
	state, begun := disk{}, time.Now()
	for n := range cuts + 1 { // the last one is checked too
		m := inside("", state)
		m.Work = n < cuts
		booted := time.Now()
		o, err := bootKernel(root, image, m)
		if err != nil {
			t.Fatalf("boot after cut %d: %v", n, err)
		}
		if err := sum.add(state, o); err != nil {
			t.Errorf("boot after cut %d: %v", n, err)
		}
		if m.Work {
			t.Logf("cut %d, %v after its kernel was started: acknowledged %v, interrupted %v", n+1, time.Since(booted).Round(time.Second/10), o.Acknowledged, interrupted(o.Left))
		}
		state = o.Left
	}
	t.Logf("%d cuts, each followed by a kernel of its own, in %v\nacknowledged before a cut: %v\ninterrupted by one: %v, of which were done afterwards: %v",
		cuts, time.Since(begun).Round(time.Second), sum.acknowledged, sum.interrupted, sum.done)
	checkDisk(t, image, state)
}

// kernelRoot makes the image of a root file system from which any number of kernels can boot.
func kernelRoot(t *testing.T, dir string) string {
	t.Helper()
	suite, tree, image := filepath.Join(dir, "suite"), filepath.Join(dir, "tree"), filepath.Join(dir, "root")
	scratch.Go(t, "test", "-c", "-o", suite, ".")
	scratch.Run(t, "../env/stated-tree.sh", tree, suite)
	scratch.Run(t, "truncate", "-s", "1G", image)
	scratch.Run(t, "mkfs.ext4", "-q", "-d", tree, image)
	return image
}

// needless are modules of vm.sh that cuts do without: half of the time of a boot.
var needless = []string{"loop", "dm-thin-pool", "dm-log-writes", "dm-delay", "xfs", "btrfs", "vxlan", "tun"}

// bootKernel boots the virtual machine for one cut. An error has the end of what the console said.
func bootKernel(root, image string, m machine) (outcome, error) {
	config, err := json.Marshal(m)
	if err != nil {
		return outcome{}, err
	}
	args := []string{"-m", "1536", "-t", "300", "-r", root, "-d", image}
	for _, module := range needless {
		args = append(args, "-x", module)
	}
	args = append(args, "--", "/usr/bin/env", "STATED_INSIDE=1", cutEnv+"="+string(config), "/suite/suite.test", "-test.v", "-test.run=^TestOneCut$")
	cmd := exec.Command("../env/vm.sh", args...)
	console, err := cmd.CombinedOutput()
	o, ok := readOutcome(console)
	if !ok || cmd.ProcessState.ExitCode() != endedAtOnce {
		return outcome{}, fmt.Errorf("the virtual machine did not come to its cut: %v; its console ends:\n%s", err, console[max(0, len(console)-8000):])
	}
	return o, nil
}

// readOutcome finds the outcome in what a console said.
func readOutcome(console []byte) (o outcome, ok bool) {
	for line := range bytes.Lines(console) {
		if text, found := bytes.CutPrefix(line, []byte(outcomePrefix)); found {
			ok = json.Unmarshal(text, &o) == nil
		}
	}
	return o, ok
}

// TestOneCut runs in a virtual machine: it checks what the cut before has left, and then makes the next one, which
// ends the kernel.
func TestOneCut(t *testing.T) {
	config := os.Getenv(cutEnv)
	if config == "" {
		return // TestFreshKernels starts virtual machines that run it
	}
	var m machine
	if err := json.Unmarshal([]byte(config), &m); err != nil {
		t.Fatal(err)
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	d := openCutDisk(t)
	m.Device = d.node
	p := power(t, m)
	o := outcome{BootID: string(bytes.TrimSpace(id)), Found: p.checked(t)}
	if m.Work {
		o.Left = d.cutPower(t, p)
	} else {
		o.Left = p.cut(func() {})
	}
	o.Acknowledged = p.operations
	line, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n%s%s\n", outcomePrefix, line)
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		err = unix.IoctlSetInt(1, unix.TCSBRK, 1) // waits until the console has it
	}
	if err != nil {
		t.Fatal(err)
	}
	endKernel(t)
}

// tally adds up boots.
type tally struct {
	kernels                         []string
	acknowledged, interrupted, done map[string]int
}

// add takes in the outcome of a boot on a disk that may have had before.
func (s *tally) add(before disk, o outcome) error {
	if s.acknowledged == nil {
		s.acknowledged, s.interrupted, s.done = map[string]int{}, map[string]int{}, map[string]int{}
	}
	if o.BootID == "" || slices.Contains(s.kernels, o.BootID) {
		return errors.New("the kernel is not a fresh one")
	}
	s.kernels = append(s.kernels, o.BootID)
	for kind, count := range o.Acknowledged {
		s.acknowledged[kind] += count
	}
	for kind, names := range interrupted(before) {
		s.interrupted[kind] += len(names)
		for _, name := range names {
			if found := before[name]; o.state(name) == found[len(found)-1] {
				s.done[kind]++
			}
		}
	}
	return nil
}

// state is a container's state when the daemon had come up.
func (o outcome) state(name string) string {
	if state, ok := o.Found[name]; ok {
		return state
	}
	return absent
}

// interrupted returns the containers on a disk with which a cut found operations begun, by the kind of the last one.
func interrupted(d disk) map[string][]string {
	kinds := map[string]string{created: "create", running: "start", stopped: "stop", absent: "remove"}
	begun := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(d)) {
		if allowed := d[name]; len(allowed) > 1 {
			kind := kinds[allowed[len(allowed)-1]]
			begun[kind] = append(begun[kind], name)
		}
	}
	return begun
}
