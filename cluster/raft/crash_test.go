package raft_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"stated.dev/stated/cluster/raft"
	"stated.dev/stated/internal/fault"
)

// TestCrash ends the process at each point and starts again: what had been acknowledged is there, and what had not is
// wholly there or not at all.
func TestCrash(t *testing.T) {
	for _, c := range []struct {
		point, what string
		before      []string
		after       []string // any of these
	}{
		{"raft.vote.written", "open", nil, []string{""}},
		{"raft.segment.written", "open", nil, []string{""}},
		{"raft.segment.begun", "open", nil, []string{""}},
		{"raft.vote.written", "open", []string{"a"}, []string{"a"}},
		{"raft.propose.written", "propose", []string{"a"}, []string{"a", "a victim"}},
		{"raft.propose.flushed", "propose", []string{"a"}, []string{"a victim"}},
		{"raft.apply", "propose", []string{"a"}, []string{"a", "a victim"}},
		{"raft.snapshot.written", "snapshot", []string{"a", "b"}, []string{"a b"}},
		{"raft.snapshot.placed", "snapshot", []string{"a", "b"}, []string{"a b"}},
		{"raft.segment.written", "fill", nil, nil},
		{"raft.segment.begun", "fill", nil, nil},
	} {
		t.Run(c.point+" "+c.what+" after "+strconv.Itoa(len(c.before)), func(t *testing.T) {
			dir := t.TempDir()
			if c.before != nil || c.what == "fill" {
				l, _ := open(t, dir)
				propose(t, l, c.before...)
				if err := l.Snapshot(t.Context()); err != nil { // so that the child need not apply them
					t.Fatal(err)
				}
				closeLog(t, l)
			}
			out, err := childCommand(t, c.what, dir, c.point+"=kill").CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the child was not killed: %v, %s", err, out)
			}
			if bytes.Contains(out, []byte("acknowledged")) {
				t.Fatal("the child had acknowledged the command")
			}
			l, m := open(t, dir)
			got := strings.Join(m.list(), " ")
			ok := c.after == nil
			for _, want := range c.after {
				ok = ok || got == want
			}
			if !ok {
				t.Errorf("after the crash the machine has seen %.100q", got)
			}
			if left := append(glob(t, dir, "log/.tmp-*"), glob(t, dir, "snapshots/.tmp-*")...); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			propose(t, l, "b")
			closeLog(t, l)
			_, again := open(t, dir)
			if m.sum() != again.sum() {
				t.Error("the machine is another one after a restart")
			}
		})
	}
}

// TestFailedWrite: a write that fails is taken back, so that the command is not found later, and the log goes on.
func TestFailedWrite(t *testing.T) {
	for _, point := range []string{"raft.propose.written", "raft.propose.flushed"} {
		t.Run(point, func(t *testing.T) {
			dir := t.TempDir()
			l, _ := open(t, dir)
			propose(t, l, "a")
			closeLog(t, l)
			out, err := childCommand(t, "propose", dir, point+"=error").CombinedOutput()
			if err != nil || !bytes.Contains(out, []byte(fault.ErrInjected.Error())) || bytes.Contains(out, []byte(raft.ErrOutcomeUnknown.Error())) {
				t.Fatalf("the child: %v, %s", err, out)
			}
			l, m := open(t, dir)
			same(t, m, "a")
			propose(t, l, "b")
			same(t, m, "a", "b")
		})
	}
}

// TestFaultsAreTold: what raft would end the process for is an error, and the next start goes well.
func TestFaultsAreTold(t *testing.T) {
	for _, c := range []struct{ what, point, says string }{
		{"open", "raft.vote.written", "raft.vote.written: " + fault.ErrInjected.Error()},
		{"propose", "raft.apply", raft.ErrStopped.Error()},
		{"open", "raft.apply", raft.ErrStopped.Error()},
		{"snapshot", "raft.snapshot.written", "raft.snapshot.written: " + fault.ErrInjected.Error()},
	} {
		t.Run(c.what+" "+c.point, func(t *testing.T) {
			dir := t.TempDir()
			l, _ := open(t, dir)
			propose(t, l, "a")
			closeLog(t, l)
			out, _ := childCommand(t, c.what, dir, c.point+"=error").CombinedOutput() // what it says tells more than how it ended
			if !bytes.Contains(out, []byte(c.says)) || bytes.Contains(out, []byte("goroutine")) {
				t.Errorf("the child: %s", out)
			}
			l, m := open(t, dir)
			if got := m.list(); len(got) == 0 || got[0] != "a" {
				t.Errorf("the machine has seen %q", got)
			}
			propose(t, l, "b")
		})
	}
}

// TestTornEnd: a last write that was cut short anywhere goes, and nothing else does.
func TestTornEnd(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	propose(t, l, "a", "b")
	closeLog(t, l)
	path := segments(t, dir)[0]
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(data, "\x00"))
	at := bytes.LastIndex(data[:used], []byte("btch")) // the batch of b is the last one
	for cut := at; cut < used; cut++ {
		change(t, path, func([]byte) []byte { return append(append([]byte(nil), data[:cut]...), make([]byte, len(data)-cut)...) })
		l, m := open(t, dir)
		same(t, m, "a")
		if cut%8 == 0 {
			propose(t, l, "c")
			same(t, m, "a", "c")
		}
		closeLog(t, l)
	}
	// A later part may have reached the disk before an earlier one.
	change(t, path, func([]byte) []byte {
		torn := append([]byte(nil), data...)
		clear(torn[at : at+8])
		return torn
	})
	l, m := open(t, dir)
	same(t, m, "a")
	propose(t, l, "d")
	closeLog(t, l)
	_, m = open(t, dir)
	same(t, m, "a", "d")
}

// TestDamage: what is not the end of a write that was cut short stops the start, and nothing is changed.
func TestDamage(t *testing.T) {
	zeros := func(words string) func([]byte) []byte {
		return func(data []byte) []byte {
			clear(data[bytes.Index(data, []byte(words))-64:][:128])
			return data
		}
	}
	for _, c := range []struct {
		name string
		file func(t *testing.T, dir string) string
		f    func([]byte) []byte
	}{
		{"a command in the middle", func(t *testing.T, dir string) string { return segments(t, dir)[0] }, flip("middle")},
		{"a hole in the middle", func(t *testing.T, dir string) string { return segments(t, dir)[0] }, zeros("middle")},
		{"the header", func(t *testing.T, dir string) string { return segments(t, dir)[0] }, flip("stated")},
		{"an end that is missing", func(t *testing.T, dir string) string { return segments(t, dir)[0] }, func(d []byte) []byte { return d[:len(d)/2] }},
		{"both votes", func(t *testing.T, dir string) string { return dir + "/vote" }, func(d []byte) []byte { d[20] ^= 1; d[4096+20] ^= 1; return d }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			l, _ := open(t, dir)
			propose(t, l, "first", "the middle", strings.Repeat("x", 1<<20))
			for len(segments(t, dir)) < 2 {
				propose(t, l, strings.Repeat("x", 1<<20))
			}
			propose(t, l, "last")
			closeLog(t, l)
			path := c.file(t, dir)
			change(t, path, c.f)
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, unfinished := range []string{"log/.tmp-1", "snapshots/.tmp-1"} {
				if err := os.WriteFile(filepath.Join(dir, unfinished), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			refuse(t, dir, raft.ErrDamaged, path, "backup")
			if left := append(glob(t, dir, "log/.tmp-*"), glob(t, dir, "snapshots/.tmp-*")...); len(left) != 2 {
				t.Errorf("the refused start left %v only", left)
			}
			after, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(before, after) {
				t.Errorf("the damaged file was changed (%v)", err)
			}
		})
	}
	for _, gone := range []func(t *testing.T, dir string) string{
		func(_ *testing.T, dir string) string { return dir + "/vote" },
		func(_ *testing.T, dir string) string { return dir + "/log" },
		func(t *testing.T, dir string) string { return segments(t, dir)[0] },
		func(t *testing.T, dir string) string { return segments(t, dir)[1] },
	} {
		dir := t.TempDir()
		l, _ := open(t, dir)
		for len(segments(t, dir)) < 3 {
			propose(t, l, strings.Repeat("x", 1<<20))
		}
		closeLog(t, l)
		if err := os.RemoveAll(gone(t, dir)); err != nil {
			t.Fatal(err)
		}
		refuse(t, dir, raft.ErrDamaged, "backup")
	}
}

func TestDamagedSnapshot(t *testing.T) {
	for _, n := range []int{1, 2, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			dir := t.TempDir()
			l, _ := open(t, dir)
			var want []string
			for i := range n {
				want = append(want, fmt.Sprint("command", i))
				propose(t, l, want[i])
				if err := l.Snapshot(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			want = append(want, "last")
			propose(t, l, "last")
			closeLog(t, l)
			list := snapshots(t, dir)
			newest := list[len(list)-1]
			change(t, newest, flip("command"))
			l, m := open(t, dir)
			same(t, m, want...)
			if _, err := os.Stat(newest + ".damaged"); err != nil {
				t.Error(err)
			}
			if err := l.Snapshot(t.Context()); err != nil {
				t.Error(err)
			}
			closeLog(t, l)
			_, m = open(t, dir)
			same(t, m, want...)
		})
	}
}

// TestDamagedSnapshots: two damaged ones are too many once the log has been cut.
func TestDamagedSnapshots(t *testing.T) {
	dir := t.TempDir()
	counted := func(o *raft.Options) { o.SnapshotBytes = 1 << 40; o.Machines[0].Machine = &tape{} }
	l, _ := open(t, dir, counted)
	fill := func() {
		for n := len(segments(t, dir)); len(segments(t, dir)) <= n; {
			propose(t, l, "command"+strings.Repeat("x", 4<<20-100))
		}
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for range 200 {
					if _, err := l.Propose(context.Background(), 1, []byte("c")); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if err := l.Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for strings.HasSuffix(segments(t, dir)[0], "/00000000000000000001.log") {
		fill()
	}
	closeLog(t, l)
	for _, path := range snapshots(t, dir) {
		change(t, path, flip("command"))
	}
	refuse(t, dir, raft.ErrDamaged, snapshots(t, dir)[0], snapshots(t, dir)[1], "backup")
	if n := len(snapshots(t, dir)); n != 2 {
		t.Errorf("%d snapshots are in their place", n)
	}
}

// TestLaterVersion: what a later version wrote stops the start, and the error says so.
func TestLaterVersion(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	propose(t, l, "a")
	closeLog(t, l)
	if _, err := raft.Open(t.Context(), raft.Options{Dir: dir, Machines: []raft.Slot{{ID: 2, Name: "other", Machine: &tape{}}}}); !errors.Is(err, raft.ErrVersion) {
		t.Errorf("a command for a machine that is not there: %v", err)
	}
	if l, m := open(t, dir); len(m.list()) != 1 {
		t.Error("the command is gone")
	} else if err := l.Snapshot(t.Context()); err != nil {
		t.Error(err)
	} else {
		closeLog(t, l)
	}
	if _, err := raft.Open(t.Context(), raft.Options{Dir: dir, Machines: []raft.Slot{{ID: 1, Name: "other", Machine: &tape{}}}}); !errors.Is(err, raft.ErrVersion) {
		t.Errorf("a snapshot of a machine that is not there: %v", err)
	}
}

// storm proposes from some writers, "writer.number", until it is killed, and tells what was acknowledged.
func storm(ctx context.Context, l *raft.Log) error {
	from, err := strconv.Atoi(os.Getenv("STATED_TEST_FROM"))
	if err != nil {
		return err
	}
	var mu sync.Mutex // guards the lines of output
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for n := from; ; n++ {
				command := fmt.Sprintf("%d.%d", w, n)
				index, err := l.Propose(ctx, 1, []byte(command))
				mu.Lock()
				if err != nil {
					fmt.Println("error", err)
				} else {
					fmt.Println(command, index)
				}
				mu.Unlock()
				if w == 0 && n%500 == 499 {
					_ = l.Snapshot(ctx) // only that it is killed meanwhile matters
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// TestKillStorm kills writers again and again. No command that was acknowledged is lost or comes twice, no index is used
// for two, and a replay makes the same machine.
func TestKillStorm(t *testing.T) {
	rounds := 12
	if os.Getenv("STATED_SOAK") == "long" {
		rounds = 200
	}
	dir := t.TempDir()
	acknowledged := map[string]string{}
	for round := range rounds {
		cmd := childCommand(t, "storm", dir)
		cmd.Env = append(cmd.Env, fmt.Sprintf("STATED_TEST_FROM=%d", round*1_000_000))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for left := 1 + rand.IntN(2000); lines.Scan(); left-- {
			command, index, _ := strings.Cut(lines.Text(), " ")
			if command == "error" {
				t.Error(lines.Text())
			}
			acknowledged[command] = index
			if left == 0 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // it was killed
		if round%10 != 9 && round != rounds-1 {
			continue
		}
		l, m := open(t, dir)
		checkStorm(t, m, acknowledged)
		closeLog(t, l)
		l, again := open(t, dir)
		if m.sum() != again.sum() {
			t.Fatal("a replay makes another machine")
		}
		closeLog(t, l)
	}
	t.Logf("%d commands were acknowledged in %d rounds", len(acknowledged), rounds)
}

func checkStorm(t *testing.T, m *tape, acknowledged map[string]string) {
	t.Helper()
	seen := map[string]string{}
	last := uint64(0)
	next := map[string]int{} // number that a writer has come to
	for i, c := range m.commands {
		if m.indexes[i] <= last {
			t.Fatalf("index %d follows %d", m.indexes[i], last)
		}
		last = m.indexes[i]
		if _, twice := seen[c]; twice {
			t.Fatalf("command %s has come twice", c)
		}
		seen[c] = strconv.FormatUint(last, 10)
		writer, number, _ := strings.Cut(c, ".")
		n, err := strconv.Atoi(number)
		if err != nil || n < next[writer] {
			t.Fatalf("command %s comes after number %d (%v)", c, next[writer], err)
		}
		next[writer] = n
	}
	for c, index := range acknowledged {
		if seen[c] != index {
			t.Fatalf("command %s was acknowledged with index %s and is at %q", c, index, seen[c])
		}
	}
}

// flushes prints how many flushes the log had asked for after each of some steps.
func flushes(ctx context.Context, l *raft.Log) error {
	for _, step := range []struct {
		writers, times int
		do             func() error
	}{
		{},
		{1, 100, func() error { _, err := l.Propose(ctx, 1, []byte("one")); return err }},
		{64, 20, func() error { _, err := l.Propose(ctx, 1, []byte("many")); return err }},
		{1, 100, func() error { return l.ReadIndex(ctx) }},
	} {
		errs := make([]error, step.writers)
		var wg sync.WaitGroup
		for w := range errs {
			wg.Go(func() {
				for range step.times {
					errs[w] = errors.Join(errs[w], step.do())
				}
			})
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		fmt.Println(l.Stats().Flushes)
	}
	return nil
}

// TestFlushes counts system calls: a proposal is one flush, proposals at once share theirs, reads and rest need none.
func TestFlushes(t *testing.T) {
	dir := t.TempDir()
	l, _ := open(t, dir)
	propose(t, l, "a")
	closeLog(t, l)
	trace := t.TempDir() + "/trace"
	direct := childCommand(t, "flushes", dir)
	cmd := exec.CommandContext(t.Context(), "strace", "-f", "-qq", "-e", "trace=fsync,fdatasync,syncfs,sync,msync,sync_file_range",
		"-e", "signal=none", "-o", trace, direct.Path)
	cmd.Env, cmd.Stderr = direct.Env, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var opened, one, many, reads int
	if _, err := fmt.Sscan(string(out), &opened, &one, &many, &reads); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if n := one - opened; n != 100 {
		t.Errorf("100 proposals, one after the other, took %d flushes", n)
	}
	if n := many - one; n > 64*20/2 {
		t.Errorf("64 times 20 proposals at once took %d flushes", n)
	}
	if reads != many {
		t.Errorf("100 reads took %d flushes", reads-many)
	}
	data, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	calls := 0
	for line := range strings.Lines(string(data)) {
		if !strings.Contains(line, "resumed>") {
			calls++
		}
	}
	if calls != reads {
		t.Errorf("the process made %d flushes, and the log knows of %d:\n%.2000s", calls, reads, data)
	}
	t.Logf("flushes: %d to start, %d for 100 proposals one by one, %d for 1280 by 64 writers", opened, one-opened, many-one)
}
