package raft_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"stated.dev/stated/cluster/raft"
	"stated.dev/stated/internal/testenv/hostile"
)

func TestProposalsSurvive(t *testing.T) {
	dir := t.TempDir()
	l, m := open(t, dir)
	if leading, _ := l.Leading(); !leading {
		t.Error("an only voter does not lead after Open")
	}
	value, err := l.Propose(t.Context(), 1, []byte("a"))
	if err != nil || value.(uint64) == 0 {
		t.Errorf("Propose returned %v, %v", value, err)
	}
	propose(t, l, "b", "")
	if err := l.ReadIndex(t.Context()); err != nil {
		t.Error(err)
	}
	same(t, m, "a", "b", "")
	closeLog(t, l)
	if _, err := l.Propose(t.Context(), 1, nil); !errors.Is(err, raft.ErrClosed) {
		t.Errorf("after Close, Propose returned %v", err)
	}
	if err := l.ReadIndex(t.Context()); !errors.Is(err, raft.ErrClosed) {
		t.Errorf("after Close, ReadIndex returned %v", err)
	}
	_, again := open(t, dir)
	same(t, again, "a", "b", "")
	if m.sum() != again.sum() {
		t.Error("the machine is not the same after a restart")
	}
}

func TestRefusals(t *testing.T) {
	l, m := open(t, t.TempDir())
	if _, err := l.Propose(t.Context(), 1, make([]byte, raft.MaxCommand+1)); !errors.Is(err, raft.ErrTooLarge) {
		t.Errorf("a command that is too large: %v", err)
	}
	if _, err := l.Propose(t.Context(), 2, nil); err == nil || !strings.Contains(err.Error(), "no such machine") {
		t.Errorf("a machine that is not there: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Propose(ctx, 1, nil); !errors.Is(err, context.Canceled) || errors.Is(err, raft.ErrOutcomeUnknown) {
		t.Errorf("a context that had ended before: %v", err)
	}
	same(t, m)
	big := strings.Repeat("x", raft.MaxCommand)
	propose(t, l, big)
	same(t, m, big)
	for _, slots := range [][]raft.Slot{{{ID: 1, Name: "a", Machine: m}, {ID: 1, Name: "b", Machine: m}}, {{ID: 1, Name: "a", Machine: m}, {ID: 2, Name: "a", Machine: m}}, {{ID: 1, Name: "a"}}} {
		if _, err := raft.Open(t.Context(), raft.Options{Dir: t.TempDir(), Machines: slots}); err == nil {
			t.Errorf("machines %v are taken", slots)
		}
	}
}

// slow is a machine that waits in Apply until it is let go.
type slow struct {
	tape
	entered chan struct{}
	leave   chan struct{}
}

func (s *slow) Apply(index uint64, command []byte) any {
	s.entered <- struct{}{}
	<-s.leave
	return s.tape.Apply(index, command)
}

func TestContextEndsMeanwhile(t *testing.T) {
	m := &slow{entered: make(chan struct{}, 1), leave: make(chan struct{})}
	l, _ := open(t, t.TempDir(), func(o *raft.Options) { o.Machines[0].Machine = m })
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := l.Propose(ctx, 1, []byte("a"))
		result <- err
	}()
	<-m.entered
	reads, stop := context.WithCancel(t.Context())
	read := make(chan error)
	go func() { read <- l.ReadIndex(reads) }()
	cancel()
	if err := <-result; !errors.Is(err, raft.ErrOutcomeUnknown) || !errors.Is(err, context.Canceled) {
		t.Errorf("Propose returned %v", err)
	}
	stop()
	if err := <-read; !errors.Is(err, context.Canceled) {
		t.Errorf("ReadIndex did not wait for a command that is committed: %v", err)
	}
	close(m.leave)
	if err := l.ReadIndex(t.Context()); err != nil {
		t.Error(err)
	}
	same(t, &m.tape, "a")
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	refuse(t, dir, raft.ErrLocked, fmt.Sprintf("pid %d", os.Getpid()), dir)
	closeLog(t, l)
	open(t, dir)
}

func TestSnapshots(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	for i := range 4 {
		propose(t, l, fmt.Sprint("a", i))
		if err := l.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(snapshots(t, dir)); n != 2 {
		t.Errorf("%d snapshots are kept", n)
	}
	if err := l.Snapshot(t.Context()); err != nil {
		t.Error(err)
	}
	propose(t, l, "b")
	closeLog(t, l)
	_, m := open(t, dir)
	same(t, m, "a0", "a1", "a2", "a3", "b")
}

// TestLogIsCut: when the log has outgrown the last snapshot another one is taken, and what two of them make needless goes.
func TestLogIsCut(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir, func(o *raft.Options) { o.SnapshotBytes = 1 << 20; o.Machines[0].Machine = &count{} })
	command := make([]byte, 2<<10)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 3000 {
				if _, err := l.Propose(context.Background(), 1, command); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	closeLog(t, l)
	if n := len(snapshots(t, dir)); n != 2 {
		t.Errorf("%d snapshots are there", n)
	}
	if first := segments(t, dir)[0]; strings.HasSuffix(first, "/00000000000000000001.log") {
		t.Error("the log begins with its first entry")
	}
	m := &count{}
	open(t, dir, func(o *raft.Options) { o.Machines[0].Machine = m })
	if m.n != 16*3000 {
		t.Errorf("after the restart %d commands have been seen", m.n)
	}
}

// count is a machine that counts.
type count struct{ n uint64 }

func (c *count) Apply(uint64, []byte) any { c.n++; return c.n }
func (c *count) Snapshot() (raft.Section, error) {
	n := c.n
	return raft.Section{Version: 1, Write: func(w io.Writer) error { _, err := fmt.Fprint(w, n); return err }}, nil
}
func (c *count) Restore(_ uint32, r io.Reader) error {
	_, err := fmt.Fscan(bufio.NewReader(r), &c.n)
	return err
}

func TestPanicStopsTheLog(t *testing.T) {
	dir := t.TempDir()
	l, m := open(t, dir)
	propose(t, l, "a")
	if _, err := l.Propose(t.Context(), 1, []byte("panic")); !errors.Is(err, raft.ErrStopped) || !strings.Contains(err.Error(), "as asked") {
		t.Errorf("the proposal that panics: %v", err)
	}
	if _, err := l.Propose(t.Context(), 1, []byte("b")); !errors.Is(err, raft.ErrStopped) {
		t.Errorf("the one after it: %v", err)
	}
	if err := l.Snapshot(t.Context()); err == nil {
		t.Error("a snapshot is taken of what cannot be trusted")
	}
	same(t, m, "a")
	closeLog(t, l)
	refuse(t, dir, raft.ErrStopped, "as asked")
}

func TestSealed(t *testing.T) {
	dir := t.TempDir()
	old, fresh := make([]byte, raft.KeySize), []byte(strings.Repeat("k", raft.KeySize))
	l, _ := open(t, dir)
	propose(t, l, "in the clear")
	closeLog(t, l)
	l, _ = open(t, dir, func(o *raft.Options) { o.Keys = [][]byte{old} })
	propose(t, l, "secret one")
	if err := l.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	propose(t, l, "secret two")
	closeLog(t, l)
	for _, path := range append(segments(t, dir), snapshots(t, dir)...) {
		data, err := os.ReadFile(path)
		if err != nil || strings.Contains(string(data), "secret") {
			t.Errorf("%s can be read without a key: %v", path, err)
		}
	}
	refuse(t, dir, raft.ErrKey, "no key was given")
	if _, err := raft.Open(t.Context(), raft.Options{Dir: dir, Keys: [][]byte{fresh}, Machines: options("", &tape{}).Machines}); !errors.Is(err, raft.ErrKey) {
		t.Errorf("with another key: %v", err)
	}
	l, m := open(t, dir, func(o *raft.Options) { o.Keys = [][]byte{fresh, old} })
	same(t, m, "in the clear", "secret one", "secret two")
	propose(t, l, "secret three")
	if err := l.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	closeLog(t, l)
	_, m = open(t, dir, func(o *raft.Options) { o.Keys = [][]byte{fresh, old} })
	same(t, m, "in the clear", "secret one", "secret two", "secret three")
}

// TestFullDisk: proposals fail with the reason, nothing that failed is there later, the host goes on leading, starts on
// the full disk, and takes proposals again when there is room.
func TestFullDisk(t *testing.T) {
	root := hostile.SmallDisk(t, "24m")
	dir := filepath.Join(root, "log")
	l, m := open(t, dir)
	propose(t, l, "a")
	ballast := hostile.FillDisk(t, root)
	big := strings.Repeat("x", 256<<10)
	accepted := 1
	var err error
	for ; err == nil; accepted++ {
		_, err = l.Propose(t.Context(), 1, []byte(big))
	}
	if !errors.Is(err, syscall.ENOSPC) || errors.Is(err, raft.ErrOutcomeUnknown) {
		t.Fatalf("on a full disk: %v", err)
	}
	accepted--
	if leading, _ := l.Leading(); !leading {
		t.Error("the full disk has cost the leadership")
	}
	if err := l.ReadIndex(t.Context()); err != nil {
		t.Error(err)
	}
	if err := l.Snapshot(t.Context()); err == nil {
		t.Error("a snapshot found room on a full disk")
	}
	closeLog(t, l)
	l, m = open(t, dir)
	if n := len(m.list()); n != accepted {
		t.Errorf("after a restart on the full disk there are %d commands instead of %d", n, accepted)
	}
	if _, err := l.Propose(t.Context(), 1, []byte(big)); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("after the restart: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	propose(t, l, "b", big)
	closeLog(t, l)
	_, m = open(t, dir)
	if n := len(m.list()); n != accepted+2 {
		t.Errorf("in the end there are %d commands instead of %d", n, accepted+2)
	}
}

// TestReadOnlyDisk: a disk that refuses writes costs what was not acknowledged, and nothing more.
func TestReadOnlyDisk(t *testing.T) {
	root := hostile.SmallDisk(t, "24m")
	dir := filepath.Join(root, "log")
	l, _ := open(t, dir)
	propose(t, l, "a")
	closeLog(t, l)
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	refuse(t, dir, syscall.EROFS)
	if err := unix.Mount("", root, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	_, m := open(t, dir)
	same(t, m, "a")
}
