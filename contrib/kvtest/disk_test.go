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

// smallDisk puts an ext4 of its own at a directory that is not there yet, and returns the name of its device.
func (h *host) smallDisk(dir, size string) string {
	h.Helper()
	image := filepath.Join(filepath.Dir(h.Socket), "disk")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		h.Fatal(err)
	}
	scratch.Run(h.T, "truncate", "-s", size, image)
	scratch.Run(h.T, "mkfs.ext4", "-q", "-m", "0", image)
	scratch.Run(h.T, "mount", "-o", "loop,errors=remount-ro", image, dir) // the loop device goes with the mount
	return filepath.Base(scratch.Run(h.T, "findmnt", "-no", "SOURCE", dir))
}

// filling is a tree whose disk becomes full.
type filling struct {
	*host
	want   map[string]string // what was acknowledged
	next   int               // number of the next key
	reason string            // of every refusal
}

// put makes a change of some bytes, which is acknowledged, or refused with the reason.
func (f *filling) put(size int) answer {
	f.Helper()
	key, value := fmt.Sprintf("/full/%d", f.next), fmt.Sprint(f.next, strings.Repeat("x", size))
	a, err := f.request(http.MethodPut, key, form("value", value))
	if err != nil {
		f.Fatal(err)
	}
	if a.ErrorCode == 0 {
		f.want[key] = value
		f.next++
	} else if a.Status != http.StatusInternalServerError || a.ErrorCode != 300 || !strings.Contains(a.Cause, f.reason) || strings.Contains(a.Cause, ".tmp-") {
		f.Errorf("a refused change is answered with %d %d %s (%s)", a.Status, a.ErrorCode, a.Message, a.Cause)
	}
	return a
}

// exhaust makes changes until not even a small one finds room in what the log has set aside.
func (f *filling) exhaust() (refused answer) {
	f.Helper()
	for _, size := range []int{100 << 10, 10 << 10, 1 << 10, 0} {
		for refused = f.put(size); refused.ErrorCode == 0; refused = f.put(size) {
		}
	}
	return refused
}

// check says whether the tree is what was acknowledged, and whether the daemon serves.
func (f *filling) check(when string) {
	f.Helper()
	if !maps.Equal(f.tree("/full"), f.want) {
		f.Errorf("%s the tree is not what was acknowledged", when)
	}
	if a := f.must(http.MethodGet, "/full/0"); a.Node.value() != f.want["/full/0"] {
		f.Errorf("%s a read without a quorum finds something else", when)
	}
	if status := f.api(http.MethodGet, "/containers/json", "", &[]any{}); status != http.StatusOK {
		f.Errorf("%s the Docker API answers with status %d", when, status)
	}
}

// checkRefused is check while the disk takes no writes; the doctor tells of it.
func (f *filling) checkRefused(when string) {
	f.Helper()
	f.check(when)
	if got := f.doctor(); !strings.Contains(got, "Problems:") || !strings.Contains(got, f.reason) {
		f.Errorf("%s the doctor says %s", when, got)
	}
}

// recovers checks that changes are taken again, and that a kill loses nothing.
func (f *filling) recovers() {
	f.Helper()
	for range 3 {
		if a := f.put(100 << 10); a.ErrorCode != 0 {
			f.Fatalf("with room again: %s (%s)", a.Message, a.Cause)
		}
	}
	if got := f.doctor(); strings.Contains(got, "Problems:") {
		f.Errorf("with room again the doctor says %s", got)
	}
	f.check("with room again")
	f.restart()
	f.check("after a kill")
}

// TestDiskFull: on a full disk a change is refused with the reason, and everything else goes on; nothing that was
// acknowledged is lost, neither when there is room again nor when the daemon is killed there.
func TestDiskFull(t *testing.T) {
	f := &filling{host: newHost(t), want: map[string]string{}, reason: "no space left on device"}
	f.smallDisk(f.Roots.Data, "64M")
	f.start()
	f.put(100 << 10)
	ballast := hostile.FillDisk(t, f.Roots.Data)
	refused := f.exhaust()
	t.Logf("%d changes found room; then: %s (%s)", f.next-1, refused.Message, refused.Cause)
	f.checkRefused("on the full disk")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	f.recovers()

	hostile.FillDisk(t, f.Roots.Data)
	f.exhaust()
	f.stop(syscall.SIGKILL)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.recovers()
}

// TestLogsDiskFull: where only the log's disk is full the daemon starts, too, even when it cannot write the address that it
// has now.
func TestLogsDiskFull(t *testing.T) {
	f := &filling{host: newHost(t), want: map[string]string{}, reason: "no space left on device"}
	f.smallDisk(f.cluster(), "32M")
	f.start()
	f.put(100 << 10)
	ballast := hostile.FillDisk(t, f.cluster())
	f.exhaust()
	f.restart()
	f.check("after a start on the full disk")
	f.exhaust() // what the write that failed left counts as set aside after a start
	f.checkRefused("on the full disk")
	f.stop(syscall.SIGKILL)
	f.listen = fmt.Sprintf("127.0.0.1:%d", 2378+hosts.Add(1))
	f.Flags[len(f.Flags)-1] = f.listen
	f.start()
	f.checkRefused("after a start at another address")
	if log, err := os.ReadFile(f.Log); err != nil || !bytes.Contains(log, []byte("list this host as it was before")) {
		t.Errorf("the start does not say that it could not write its address (%v)", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	f.recovers()
}

// TestDiskTurnsReadOnly: when the log's disk stops taking writes, as ext4 does after an error, changes are refused with the
// reason, and everything else goes on; once the disk is mounted anew and the daemon started, nothing that was acknowledged
// is lost.
func TestDiskTurnsReadOnly(t *testing.T) {
	f := &filling{host: newHost(t), want: map[string]string{}, reason: "read-only file system"}
	device := f.smallDisk(f.cluster(), "32M")
	f.start()
	f.put(100)
	if err := os.WriteFile("/sys/fs/ext4/"+device+"/trigger_fs_error", []byte("a test"), 0); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if a := f.put(0); a.ErrorCode == 0 {
			t.Error("a change was acknowledged on a disk that takes no writes")
		}
	}
	f.checkRefused("on a disk that takes no writes")
	f.stop(syscall.SIGKILL)
	f.refuses(f.cluster(), f.reason)
	scratch.Run(t, "umount", f.cluster())
	scratch.Run(t, "mount", "-o", "loop", filepath.Join(filepath.Dir(f.Socket), "disk"), f.cluster())
	f.start()
	f.recovers()
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
