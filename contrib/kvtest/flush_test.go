package kvtest

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"stated.dev/stated/internal/testenv/scratch"
)

// flushes counts how often the daemon waits for the disk with a file of the log while f runs. Each takes longer by slower.
func (h *host) flushes(slower time.Duration, f func()) (n int) {
	h.Helper()
	out := filepath.Join(filepath.Dir(h.Roots.Data), "strace")
	const calls = "fsync,fdatasync,sync_file_range,syncfs,msync"
	args := []string{"-f", "-y", "-qq", "-e", "trace=" + calls, "-e", "signal=none", "-o", out, "-p", strconv.Itoa(h.pid())}
	if slower > 0 {
		args = append(args, "-e", fmt.Sprintf("inject=%s:delay_enter=%d", calls, slower.Microseconds()))
	}
	cmd := exec.Command("strace", args...)
	if err := cmd.Start(); err != nil {
		h.Fatal(err)
	}
	scratch.Eventually(h.T, 20*time.Second, "strace is attached", func() bool { return traced(h.pid()) })
	f()
	_ = cmd.Process.Signal(os.Interrupt) // it detaches
	_ = cmd.Wait()                       // it ends by that signal
	file, err := os.Open(out)
	if err != nil {
		h.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// "PID fdatasync(FD</path>) = 0", or with "<unfinished ...>" and a line for its end, which names no path.
		if strings.Contains(lines.Text(), "<"+h.cluster()+"/") {
			n++
		}
	}
	if err := lines.Err(); err != nil {
		h.Fatal(err)
	}
	return n
}

// traced says whether every thread of a process names its tracer.
func traced(pid int) bool {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) == 0 {
		return false
	}
	for _, path := range tasks {
		if status, err := os.ReadFile(path); err == nil && strings.Contains(string(status), "TracerPid:\t0") {
			return false
		}
	}
	return true
}

// TestFlushes: a change that stands alone costs one flush; a tree that nobody changes costs none, and nothing is proposed.
func TestFlushes(t *testing.T) {
	h := startedHost(t)
	h.must(http.MethodPut, "/later", "value", "1", "ttl", "1000000")
	const alone = 50
	n := h.flushes(0, func() {
		for i := range alone {
			h.must(http.MethodPut, "/a", "value", fmt.Sprint(i))
		}
	})
	t.Logf("one client: %d changes, %d flushes", alone, n)
	if n != alone {
		t.Errorf("%d changes one after the other cost %d flushes", alone, n)
	}

	before := h.must(http.MethodGet, "/later", "quorum", "true")
	n = h.flushes(0, func() {
		for i := range 3 {
			if status := h.api(http.MethodPost, "/volumes/create", fmt.Sprintf(`{"Name":"v%d"}`, i), nil); status != http.StatusCreated {
				t.Errorf("create a volume: %d", status)
			}
			h.must(http.MethodGet, "/later", "quorum", "true")
			h.tree("/")
		}
	})
	after := h.must(http.MethodGet, "/later", "quorum", "true")
	t.Logf("nobody changes the tree: %d flushes, the log goes from %d to %d", n, before.RaftIndex, after.RaftIndex)
	if n != 0 || before.RaftIndex != after.RaftIndex {
		t.Errorf("a tree that nobody changed cost %d flushes, and the log went from %d to %d", n, before.RaftIndex, after.RaftIndex)
	}
}

// TestSharedFlushes: 64 clients share their flushes. The disk is a slow one, so that they do whatever else the machine is busy
// with: all have their next change in the log before a flush ends.
func TestSharedFlushes(t *testing.T) {
	const clients, each = 64, 20
	h := startedHost(t)
	n := h.flushes(50*time.Millisecond, func() {
		var work sync.WaitGroup
		for c := range clients {
			work.Go(func() {
				for i := range each {
					a, err := h.request(http.MethodPut, fmt.Sprintf("/many/%d", c), form("value", fmt.Sprint(i)))
					if err != nil || a.ErrorCode != 0 {
						t.Errorf("%v (%v)", a, err)
						return
					}
				}
			})
		}
		work.Wait()
	})
	t.Logf("%d clients: %d changes, %d flushes, %.4f each", clients, clients*each, n, float64(n)/(clients*each))
	if n < each || n*10 > clients*each {
		t.Errorf("%d changes of %d clients cost %d flushes", clients*each, clients, n)
	}
}
