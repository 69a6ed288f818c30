// Package vmtest cuts the power of hosts that run stated, in a virtual machine, and looks at what their disks have
// then. At a cut the disk, which lies below dm-flakey, drops all writes from a random instant on.
//
// TestVM makes its cuts in one boot of the virtual machine: everything that a host runs lives in namespaces of its own,
// and ends with them; the last cut is the end of the kernel. The same boot runs the tests of systemdtest with a systemd
// on cgroup v2, and those of volumes that need quotas or an NFS server of the kernel.
//
// TestFreshKernels, with STATED_SOAK=long, makes fifty cuts, each of which ends the kernel: the disk is kept, and
// checked by a daemon on the kernel that boots next.
package vmtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"stated.dev/stated/internal/testenv/scratch"
)

func TestMain(m *testing.M) {
	if config := os.Getenv(machineEnv); config != "" {
		var own machine
		if err := json.Unmarshal([]byte(config), &own); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(own.boot())
	}
	os.Exit(m.Run())
}

// volumeSuites are test binaries of which the virtual machine runs what a host's kernel may not be able to, by name.
var volumeSuites = map[string]string{"projectquota": "../../internal/projectquota", "local": "../../volumes/local", "volumes": "../../volumes"}

// bootScript is what the virtual machine runs: cuts, tests of volumes, a systemd with its tests, and an end without
// warning.
const bootScript = `#!/bin/sh
export STATED_INSIDE=1
/suite/vm.test -test.v -test.run '^TestCuts$'
echo "suite cuts $?"
for suite in projectquota local volumes; do
  TMPDIR=/scratch /suite/$suite.test -test.v -test.run 'Quota|NFS'
  echo "suite $suite $?"
done
env -u STATED_INSIDE container=vm unshare -fp --mount-proc /lib/systemd/systemd >/run/systemd.log 2>&1 || true
rm -rf /run/systemd # it is over
cat /suite/log
echo "suite systemd $(cat /suite/status || tail -40 /run/systemd.log)"
exec /suite/vm.test -test.v -test.run '^TestCrash$'
`

// TestVM runs the virtual machine, and then looks at the disk with the host's own kernel and with dockerd.
func TestVM(t *testing.T) {
	if os.Getenv("STATED_INSIDE") != "" {
		return // it is what runs us
	}
	needRoot(t)
	dir := scratch.Dir(t)
	binaries := maps.Clone(volumeSuites)
	binaries["vm"], binaries["systemd"] = ".", "../systemdtest"
	for name, pkg := range binaries {
		scratch.Go(t, "test", "-c", "-o", filepath.Join(dir, name+".test"), pkg)
	}
	tree := filepath.Join(dir, "tree")
	scratch.Run(t, "../env/stated-tree.sh", tree, filepath.Join(dir, "systemd.test"), "-test.v", "-test.run=TestInside")
	scratch.Run(t, "cp", filepath.Join(dir, "vm.test"), filepath.Join(tree, "suite"))
	want := []string{"suite cuts 0", "suite systemd 0"}
	for name := range volumeSuites {
		scratch.Run(t, "cp", filepath.Join(dir, name+".test"), filepath.Join(tree, "suite"))
		want = append(want, "suite "+name+" 0")
	}
	if err := os.WriteFile(filepath.Join(tree, "suite", "boot"), []byte(bootScript), 0o755); err != nil {
		t.Fatal(err)
	}
	image := newDisk(t, dir)
	cmd := exec.Command("../env/vm.sh", "-m", "3072", "-t", "520", "-k", "quota_v2", "-k", "nfsd", "-k", "nfsv4", "-r", tree, "-d", image, "--", "/suite/boot")
	out, err := cmd.CombinedOutput()
	text, state := readConsole(out)
	t.Logf("the virtual machine:\n%s", text)
	if cmd.ProcessState.ExitCode() != endedAtOnce || !strings.Contains(string(out), "=== RUN   TestCrash") || len(state) == 0 {
		t.Fatalf("the virtual machine did not come to its crash: %v", err)
	}
	for _, line := range want {
		if !strings.Contains(text, line) {
			t.Errorf("the virtual machine did not say %q", line)
		}
	}
	if strings.Contains(text, "--- SKIP") || strings.Contains(text, "no tests to run") {
		t.Error("a test that only the virtual machine can run was not run")
	}
	checkDisk(t, image, state)
}

// endedAtOnce is how vm.sh exits when its guest has ended without a status.
const endedAtOnce = 124

// needRoot ends a test that cannot do anything.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("the tests must run as root: they mount disks and start containers")
	}
}

// newDisk returns the image of an empty disk, which a virtual machine keeps when it ends.
func newDisk(t *testing.T, dir string) string {
	t.Helper()
	image := filepath.Join(dir, "disk")
	scratch.Run(t, "truncate", "-s", "2G", image)
	return image
}

// readConsole separates the notes of the last machine from the rest of what the virtual machine printed.
func readConsole(out []byte) (text string, state disk) {
	state = disk{}
	var rest bytes.Buffer
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var n note
		line, ok := strings.CutPrefix(lines.Text(), "note ")
		if !ok {
			if !strings.Contains(lines.Text(), "\x1b") { // systemd's progress
				fmt.Fprintln(&rest, lines.Text())
			}
			continue
		}
		if json.Unmarshal([]byte(line), &n) == nil && n.Name != "" { // the last may be cut
			state[n.Name] = n.Allowed
		}
	}
	return rest.String(), state
}

// checkDisk boots a machine on a disk that a crash has left, and then dockerd.
func checkDisk(t *testing.T, image string, state disk) {
	stated, err := exec.LookPath("stated")
	if err != nil {
		t.Fatalf("%v: run the tests with make test, which builds it", err)
	}
	raw := scratch.Run(t, "losetup", "-f", "--show", image)
	t.Cleanup(func() { scratch.Run(t, "losetup", "-d", raw) })
	p := power(t, machine{Device: raw, Binary: stated, Log: filepath.Join(t.TempDir(), "log"), BootID: uuid.NewString(), Before: state})
	p.checked(t)
	after := p.cut(func() {})

	// The daemon was killed, not stopped: dockerd's files are whole only after handback.
	point := t.TempDir()
	script := `set -eu
mount "$1" "$2"
stated handback --data-root "$2/root"
ls "$2/root/containers" | wc -l
../env/with-dockerd.sh "$2/root" sh -c "
  '$3' version -f 'dockerd {{.Server.Version}}'
  '$3' ps -a --format 'has {{.Names}} {{.State}}'
  '$3' start counter
  n=\$(cat '$2/root/volumes/counter/_data/n')
  timeout 20 sh -c 'until [ \$(cat $2/root/volumes/counter/_data/n) -gt '\$n' ]; do :; done' && echo counter goes on from \$n
  '$3' rm -f \$('$3' ps -aq)"
umount "$2"`
	cmd := exec.Command("unshare", "-m", "sh", "-c", script, "sh", raw, point, scratch.Docker(t))
	log := filepath.Join(t.TempDir(), "dockerd.log")
	cmd.Env = append(os.Environ(), "DOCKERD_LOG="+log)
	out, err := cmd.CombinedOutput()
	t.Logf("dockerd on the result of handback:\n%s", out)
	if err != nil {
		t.Errorf("dockerd: %v\n%s", err, scratch.Tail(log))
	}
	for name := range after {
		if !strings.Contains(string(out), "has "+name+" ") {
			t.Errorf("dockerd does not list container %s", name)
		}
	}
	if !strings.Contains(string(out), "counter goes on") {
		t.Error("the counter does not go on under dockerd")
	}
}
