package vmtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/scratch"
)

const device = "/dev/vdb" // in the virtual machine: the disk that is kept

// cutDisk is the kept disk below dm-flakey.
type cutDisk struct {
	node         string // to be mounted
	linear, lost string // tables: one that writes, and one that drops all writes
}

// openCutDisk puts the kept disk below dm-flakey.
func openCutDisk(t *testing.T) cutDisk {
	t.Helper()
	sectors := scratch.Run(t, "blockdev", "--getsz", device)
	d := cutDisk{
		linear: "0 " + sectors + " linear " + device + " 0",
		lost:   "0 " + sectors + " flakey " + device + " 0 0 86400 1 drop_writes",
	}
	scratch.Run(t, "dmsetup", "create", "--noudevsync", "--noudevrules", "cut", "--table", d.linear)
	d.node = "/dev/" + scratch.Run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", "cut")
	return d
}

// cutPower drops what p's machine writes from a random instant of its work on, and ends it. It returns what may be on
// the disk. A start takes a second here and a removal a few milliseconds: the wait after an operation has begun or
// ended is of any order between, so that each kind is caught half-way.
func (d cutDisk) cutPower(t *testing.T, p *powered) disk {
	t.Helper()
	scratch.Run(t, "dmsetup", "load", "cut", "--table", d.lost)
	p.work(rand.IntN(24))
	time.Sleep(rand.N(time.Second >> rand.IntN(8)))
	return p.cut(func() { scratch.Run(t, "dmsetup", "resume", "--noudevsync", "--noflush", "--nolockfs", "cut") })
}

// restore lets the disk write again. Nobody has it mounted.
func (d cutDisk) restore(t *testing.T) {
	t.Helper()
	scratch.Run(t, "dmsetup", "load", "cut", "--table", d.linear)
	scratch.Run(t, "dmsetup", "resume", "--noudevsync", "cut")
}

// inside is the machine that runs in the virtual machine on a device.
func inside(device string, before disk) machine {
	return machine{Device: device, Binary: "/usr/bin/stated", Image: "/suite/busybox.tar", Log: "/run/machine.log", Before: before, Work: true}
}

// TestCuts runs in the virtual machine: it cuts the power of a machine twice.
func TestCuts(t *testing.T) {
	if os.Getenv("STATED_INSIDE") == "" {
		return // TestVM starts a virtual machine that runs it
	}
	scratch.Run(t, "mkfs.ext4", "-q", device)
	d := openCutDisk(t)
	state := disk{}
	for n := range 2 {
		m := inside(d.node, state)
		m.BootID = uuid.NewString()
		p := power(t, m)
		p.checked(t)
		state = d.cutPower(t, p)
		waitUnmounted(t)
		d.restore(t)
		removeCgroups()
		t.Logf("cut %d: %d containers in question; acknowledged before: %v", n+1, len(state), p.operations)
	}
	// The last one is checked too.
	m := inside(d.node, state)
	m.BootID, m.Work = uuid.NewString(), false
	p := power(t, m)
	p.checked(t)
	p.cut(func() {})
	waitUnmounted(t)
	removeCgroups()
	scratch.Run(t, "dmsetup", "remove", "--noudevsync", "cut")
	left, err := json.Marshal(p.state)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/run/left.json", left, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCrash runs in the virtual machine: it works on the disk that TestCuts has left until the kernel ends at once.
func TestCrash(t *testing.T) {
	if os.Getenv("STATED_INSIDE") == "" {
		return // TestVM starts a virtual machine that runs it
	}
	data, err := os.ReadFile("/run/left.json")
	if err != nil {
		t.Fatal(err)
	}
	var state disk
	if err := json.Unmarshal(data, &state); err != nil {
		t.Fatal(err)
	}
	m := inside(device, state)
	m.BootID = uuid.NewString()
	p := power(t, m)
	p.checked(t)
	p.report(os.Stdout) // what is told from now on is told outside too
	p.work(4 + rand.IntN(8))
	time.Sleep(rand.N(time.Second))
	endKernel(t)
}

// endKernel ends the virtual machine as a cut of its power would: nothing is written, nobody is told.
func endKernel(t *testing.T) {
	t.Helper()
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("b"), 0); err != nil {
		t.Fatal(err)
	}
	select {} // the kernel ends
}

// powered is a machine that runs.
type powered struct {
	cmd     *exec.Cmd
	found   chan note // the result of its check
	reading sync.WaitGroup

	mu         sync.Mutex // guards what is below
	off        bool       // what is told now may be lost
	state      disk
	operations map[string]int
	notes      chan struct{} // one for each note after the check
	outside    io.Writer
	failed     []string
}

// power boots a machine.
func power(t *testing.T, m machine) *powered {
	t.Helper()
	config, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	p := &powered{cmd: exec.Command("/proc/self/exe"), found: make(chan note, 1), state: disk{}, operations: map[string]int{}, notes: make(chan struct{}, 1000)}
	p.cmd.Env = append(os.Environ(), machineEnv+"="+string(config))
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	for name, allowed := range m.Before {
		p.state[name] = allowed
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.reading.Go(func() { p.listen(stdout) })
	t.Cleanup(func() {
		p.cut(func() {})
		if t.Failed() {
			t.Logf("the daemon's log ends:\n%s", scratch.Tail(m.Log))
		}
	})
	return p
}

// listen follows what the machine tells.
func (p *powered) listen(r io.Reader) {
	defer close(p.found)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	checked := false
	for lines.Scan() {
		var n note
		if json.Unmarshal(lines.Bytes(), &n) != nil {
			continue // the last line may be cut
		}
		p.mu.Lock()
		p.apply(n)
		p.mu.Unlock()
		if !checked && (n.Found != nil || n.Failed != "") {
			checked = true
			p.found <- n
		} else {
			select {
			case p.notes <- struct{}{}:
			default: // nobody waits for so many
			}
		}
	}
}

// apply takes in a note; p.mu is held.
func (p *powered) apply(n note) {
	if p.outside != nil {
		line, _ := json.Marshal(n) // it was JSON
		_, _ = fmt.Fprintf(p.outside, "note %s\n", line)
	}
	switch {
	case n.Failed != "":
		if !p.off {
			p.failed = append(p.failed, n.Failed)
		}
	case n.Found != nil:
		p.state = disk{}
		for name, state := range n.Found {
			if name != counter {
				p.state[name] = []string{state}
			}
		}
	case p.off: // the disk may have had it, or not
		for _, state := range n.Allowed {
			if !slices.Contains(p.state[n.Name], state) {
				p.state[n.Name] = append(slices.Clone(p.state[n.Name]), state)
			}
		}
	default:
		p.state[n.Name] = n.Allowed
		if n.Operation != "" {
			p.operations[n.Operation]++
		}
	}
}

// report copies what the machine tells to w from now on, after all that is known.
func (p *powered) report(w io.Writer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, allowed := range p.state {
		line, _ := json.Marshal(note{Name: name, Allowed: allowed}) // it has no value that JSON lacks
		_, _ = fmt.Fprintf(w, "note %s\n", line)
	}
	p.outside = w
}

// checked waits for the machine's check, which must have found all in order, and returns the containers' states.
func (p *powered) checked(t *testing.T) map[string]string {
	t.Helper()
	select {
	case n, ok := <-p.found:
		if !ok || n.Failed != "" {
			t.Fatalf("after the boot: %s", n.Failed)
		}
		return n.Found
	case <-time.After(3 * time.Minute):
		t.Fatal("the machine does not come up")
		return nil
	}
}

// cut takes the power away: writes stops the disk, then every process ends. It returns what may be on the disk.
// A note that arrives while the disk stops rules nothing out.
func (p *powered) cut(writes func()) disk {
	p.mu.Lock()
	p.off = true
	p.mu.Unlock()
	writes()
	_ = p.cmd.Process.Kill() // it may have ended
	p.reading.Wait()
	_ = p.cmd.Wait() // it was killed
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// work waits until the machine has told that many notes: beginnings and ends of operations.
func (p *powered) work(notes int) {
	for range notes {
		select {
		case <-p.notes:
		case <-time.After(30 * time.Second):
			return // its check will tell why
		}
	}
}

// waitUnmounted waits until the kernel has let go of the disk.
func waitUnmounted(t *testing.T) {
	t.Helper()
	scratch.Eventually(t, time.Minute, "the disk is unmounted after every process has ended", func() bool {
		return scratch.Run(t, "dmsetup", "info", "-c", "--noheadings", "-o", "open", "cut") == "0"
	})
}

// removeCgroups removes what a fresh kernel would not have.
func removeCgroups() {
	for range 3 { // children go first, whatever the order
		for _, pattern := range []string{"docker/*", "docker", "stated-shims.slice"} {
			paths, _ := filepath.Glob("/sys/fs/cgroup/" + pattern) // the pattern is good
			for _, path := range paths {
				_ = unix.Rmdir(path) // the next round, or the next boot, says when it matters
			}
		}
	}
}
