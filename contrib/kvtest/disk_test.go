package kvtest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/testenv/hostile"
	"stated.dev/stated/internal/testenv/scratch"
)

// smallDisk puts the host's data root on an ext4 of its own.
func (h *host) smallDisk(size string) {
	h.Helper()
	image := h.Roots.Data + ".disk"
	if err := os.Mkdir(h.Roots.Data, 0o755); err != nil {
		h.Fatal(err)
	}
	scratch.Run(h.T, "truncate", "-s", size, image)
	scratch.Run(h.T, "mkfs.ext4", "-q", "-m", "0", image)
	scratch.Run(h.T, "mount", "-o", "loop", image, h.Roots.Data) // the loop device goes with the mount
}

// TestDiskFull: on a full disk a change is refused with the reason, and everything else goes on; a daemon that is killed
// there starts again, and nothing that was acknowledged is lost.
func TestDiskFull(t *testing.T) {
	h := newHost(t)
	h.smallDisk("64M")
	h.start()
	const reason = "no space left on device"
	want := map[string]string{}
	put := func(i, size int) answer {
		t.Helper()
		key, value := fmt.Sprintf("/full/%d", i), fmt.Sprint(i, strings.Repeat("x", size))
		a, err := h.request(http.MethodPut, key, form("value", value))
		if err != nil {
			t.Fatal(err)
		}
		if a.ErrorCode == 0 {
			want[key] = value
		} else if a.Status != http.StatusInternalServerError || a.ErrorCode != 300 || !strings.Contains(a.Cause, reason) {
			t.Errorf("on a full disk: %d %d %s (%s)", a.Status, a.ErrorCode, a.Message, a.Cause)
		}
		return a
	}
	const size = 100 << 10
	put(0, size)
	ballast := hostile.FillDisk(t, h.Roots.Data)
	i := 1
	for _, size := range []int{size, size / 10, size / 100, 0} {
		for ; put(i, size).ErrorCode == 0; i++ { // what the log has set aside
		}
	}
	refused := put(i, 0)
	t.Logf("%d changes found room; then: %s (%s)", i-1, refused.Message, refused.Cause)

	check := func(when string) {
		t.Helper()
		if !maps.Equal(h.tree("/full"), want) {
			t.Errorf("%s the tree is not what was acknowledged", when)
		}
	}
	check("on the full disk")
	if a := h.must(http.MethodGet, "/full/0"); a.Node.value() != want["/full/0"] {
		t.Error("a read without a quorum on the full disk")
	}
	if status := h.api(http.MethodGet, "/containers/json", "", &[]any{}); status != http.StatusOK {
		t.Errorf("the Docker API on the full disk: %d", status)
	}
	if got := h.doctor(); !strings.Contains(got, "Problems:") || !strings.Contains(got, reason) {
		t.Errorf("the doctor on the full disk: %s", got)
	}

	// A start there writes nothing that it could do without, even when the address has changed that the tree holds.
	h.stop(syscall.SIGKILL)
	h.listen = fmt.Sprintf("127.0.0.1:%d", 2378+hosts.Add(1))
	h.Flags[len(h.Flags)-1] = h.listen
	h.start()
	check("after a start on the full disk")
	put(i, size)

	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if a := put(i, size); a.ErrorCode != 0 {
			t.Fatalf("with room again: %s (%s)", a.Message, a.Cause)
		}
		i++
	}
	if got := h.doctor(); strings.Contains(got, "Problems:") {
		t.Errorf("the doctor with room again: %s", got)
	}
	check("with room again")
	h.restart()
	check("after a kill")
}

// TestReadOnlyDisk: on a disk that takes no writes the start is refused with the reason, and nothing is lost by it.
func TestReadOnlyDisk(t *testing.T) {
	h := startedHost(t)
	h.must(http.MethodPut, "/a", "value", "1")
	h.stop(syscall.SIGKILL)
	dir := h.cluster()
	for _, flags := range []uintptr{unix.MS_BIND, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY} {
		if err := unix.Mount(dir, dir, "", flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	before := shape(t, dir)
	h.refuses("cluster store", dir, "read-only file system")
	if after := shape(t, dir); !bytes.Equal(before, after) {
		t.Errorf("the refused start made\n%s of\n%s", after, before)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	h.start()
	if got := h.must(http.MethodGet, "/a").Node.value(); got != "1" {
		t.Errorf("a is %q", got)
	}
}

// glob lists files of the log's directory.
func (h *host) glob(pattern string) []string {
	h.Helper()
	list, err := filepath.Glob(h.cluster(pattern))
	if err != nil {
		h.Fatal(err)
	}
	return list
}

// flip changes the bit in a file behind the first place that has some words.
func flip(t *testing.T, path, words string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(data, []byte(words))
	if at < 0 {
		t.Fatalf("%s has no %q", path, words)
	}
	data[at] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDamagedLog: damage in the middle of the log stops the start, which names the file and what to do, and changes nothing.
func TestDamagedLog(t *testing.T) {
	h := startedHost(t)
	for _, value := range []string{"the first", "the middle", "the last"} {
		h.must(http.MethodPut, "/a", "value", value)
	}
	h.stop(syscall.SIGKILL)
	segment := h.glob("log/*.log")[0]
	flip(t, segment, "the middle")
	before := shape(t, h.cluster())
	for range 2 {
		h.refuses("cluster store", segment, "restore the directory of the log as a whole from a backup")
		if after := shape(t, h.cluster()); !bytes.Equal(before, after) {
			t.Errorf("the refused start made\n%s of\n%s", after, before)
		}
	}
	flip(t, segment, "uhe middle") // the repair
	h.start()
	if got := h.must(http.MethodGet, "/a").Node.value(); got != "the last" {
		t.Errorf("a is %q", got)
	}
}

// TestDamagedSnapshot: without the newest snapshot the log makes up for it, and the one before it if there is one, and the
// doctor tells; without any, and without the log that they stand for, the start is refused and nothing is changed. Only the
// long run writes enough for two of them.
func TestDamagedSnapshot(t *testing.T) {
	h := startedHost(t)
	count := 1
	if long() {
		count = 2
	}
	value := strings.Repeat("x", 6<<20)
	for i := 0; len(h.glob("snapshots/*.snap")) < count; i++ {
		if i > 100 {
			t.Fatal("the log grows and grows, and no snapshot is taken")
		}
		h.must(http.MethodPut, "/big", "value", fmt.Sprint(i, value))
		h.must(http.MethodPut, "/count", "value", fmt.Sprint(i))
	}
	want := h.tree("/count")
	h.stop(syscall.SIGKILL)
	list := h.glob("snapshots/*.snap")
	newest := list[count-1]
	flip(t, newest, "xxxxxx")
	h.start()
	if !maps.Equal(h.tree("/count"), want) {
		t.Error("without the newest snapshot the tree is another one")
	}
	if got := h.doctor(); !strings.Contains(got, "Problems:") || !strings.Contains(got, newest+".damaged") {
		t.Errorf("the doctor does not tell of the damaged snapshot: %s", got)
	}
	h.stop(syscall.SIGKILL)

	// The log is cut only when it has many entries more; here it is done by hand.
	if err := os.Rename(newest+".damaged", newest); err != nil {
		t.Fatal(err)
	}
	if count == 2 {
		flip(t, list[0], "xxxxxx")
	}
	if err := os.Remove(h.glob("log/*.log")[0]); err != nil {
		t.Fatal(err)
	}
	before := shape(t, h.cluster())
	h.refuses("cluster store", newest, list[0], "restore the directory of the log as a whole from a backup")
	if after := shape(t, h.cluster()); !bytes.Equal(before, after) {
		t.Errorf("the refused start made\n%s of\n%s", after, before)
	}
	for _, path := range list { // the repair
		flip(t, path, "yxxxxx")
	}
	h.start()
	if !maps.Equal(h.tree("/count"), want) {
		t.Error("with sound snapshots again the tree is another one")
	}
}

// TestStart: the key tree is a phase of the start, and a data root has one daemon.
func TestStart(t *testing.T) {
	h := startedHost(t)
	var phases []struct{ Name, State string }
	h.api(http.MethodGet, "/stated/phases", "", &phases)
	if !strings.Contains(fmt.Sprint(phases), "{cluster store open}") {
		t.Errorf("the phases are %v", phases)
	}
	second := newHost(t)
	second.Roots = h.Roots
	second.refuses(h.Roots.Data, "in use by another stated", fmt.Sprint(h.pid()))

	// On the daemon's own socket the same tree answers.
	h.must(http.MethodPut, "/a", "value", "1")
	a, err := h.requestAt("http://stated", scratch.Client(h.Socket), http.MethodGet, "/a", nil)
	if err != nil || a.Node.value() != "1" {
		t.Errorf("on the daemon's socket: %v, %v", a, err)
	}

	// An address that is taken stops the start, and says which.
	h.stop(syscall.SIGTERM)
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", h.listen)
	if err != nil {
		t.Fatal(err)
	}
	h.refuses("--kv-listen "+h.listen, "address already in use")
	_ = l.Close() // it has done its work
	h.start()
	h.must(http.MethodGet, "/a")
}
