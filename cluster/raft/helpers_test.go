package raft_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"stated.dev/stated/cluster/raft"
	"stated.dev/stated/internal/fault"
)

// tape is a machine that keeps all commands in their order.
type tape struct {
	mu       sync.Mutex // guards what follows
	indexes  []uint64
	commands []string
}

func (t *tape) Apply(index uint64, command []byte) any {
	t.mu.Lock()
	defer t.mu.Unlock()
	if string(command) == "panic" {
		panic("as asked")
	}
	t.indexes, t.commands = append(t.indexes, index), append(t.commands, string(command))
	return index
}

func (t *tape) Snapshot() (raft.Section, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := len(t.indexes)
	indexes, commands := t.indexes[:n:n], t.commands[:n:n]
	return raft.Section{Version: 1, Write: func(w io.Writer) error {
		for i, c := range commands {
			b := binary.BigEndian.AppendUint64(nil, indexes[i])
			b = binary.BigEndian.AppendUint32(b, uint32(len(c)))
			if _, err := w.Write(append(b, c...)); err != nil {
				return err
			}
		}
		return nil
	}}, nil
}

func (t *tape) Restore(version uint32, r io.Reader) error {
	if version != 1 {
		return fmt.Errorf("version %d", version)
	}
	var indexes []uint64
	var commands []string
	in := bufio.NewReader(r)
	for {
		var head [12]byte
		_, err := io.ReadFull(in, head[:])
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		c := make([]byte, binary.BigEndian.Uint32(head[8:]))
		if _, err := io.ReadFull(in, c); err != nil {
			return err
		}
		indexes, commands = append(indexes, binary.BigEndian.Uint64(head[:])), append(commands, string(c))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.indexes, t.commands = indexes, commands
	return nil
}

// list returns the commands; short ones are as they are.
func (t *tape) list() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]string(nil), t.commands...)
}

// sum is a checksum of all commands and their indexes.
func (t *tape) sum() uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := crc32.NewIEEE()
	for i, c := range t.commands {
		fmt.Fprintln(h, t.indexes[i], c)
	}
	return h.Sum32()
}

func options(dir string, t *tape) raft.Options {
	return raft.Options{Dir: dir, Machines: []raft.Slot{{ID: 1, Name: "tape", Machine: t}}}
}

// open opens the log in dir until the end of the test at the latest.
func open(t testing.TB, dir string, change ...func(*raft.Options)) (*raft.Log, *tape) {
	t.Helper()
	m := &tape{}
	o := options(dir, m)
	for _, c := range change {
		c(&o)
	}
	l, err := raft.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLog(t, l) })
	return l, m
}

func closeLog(t testing.TB, l *raft.Log) {
	t.Helper()
	if err := l.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func propose(t testing.TB, l *raft.Log, commands ...string) {
	t.Helper()
	for _, c := range commands {
		if _, err := l.Propose(t.Context(), 1, []byte(c)); err != nil {
			t.Fatal(err)
		}
	}
}

func same(t testing.TB, m *tape, want ...string) {
	t.Helper()
	if got := m.list(); strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the machine has seen %.300q instead of %.300q", got, want)
	}
}

// refuse opens the log, which must fail for a reason and name some words.
func refuse(t *testing.T, dir string, reason error, words ...string) {
	t.Helper()
	l, err := raft.Open(t.Context(), options(dir, &tape{}))
	if err == nil {
		closeLog(t, l)
		t.Fatalf("the log opens")
	}
	if !errors.Is(err, reason) {
		t.Errorf("the error is not %v: %v", reason, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
}

// segments are the files of the log in their order, snapshots those of the snapshots.
func segments(t *testing.T, dir string) []string { return glob(t, dir, "log/*.log") }

func snapshots(t *testing.T, dir string) []string { return glob(t, dir, "snapshots/*.snap") }

func glob(t *testing.T, dir, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// change changes a file by what f does to its bytes.
func change(t *testing.T, path string, f func(data []byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, f(data), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// flip changes a bit in the last place where a file has some words.
func flip(words string) func([]byte) []byte {
	return func(data []byte) []byte {
		data[bytes.LastIndex(data, []byte(words))] ^= 1
		return data
	}
}

// The test binary runs itself as a process that is killed: these variables say what it does, and where.
const (
	childEnv = "STATED_TEST_CHILD"
	childDir = "STATED_TEST_DIR"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(childEnv); what != "" {
		if err := child(what, os.Getenv(childDir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// childCommand is the test binary as a child, with points that are armed.
func childCommand(t *testing.T, what, dir string, points ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+what, childDir+"="+dir, fault.EnvVar+"="+strings.Join(points, ","))
	return cmd
}

func child(what, dir string) error {
	ctx := context.Background()
	m := &tape{}
	l, err := raft.Open(ctx, options(dir, m))
	if err != nil {
		return err
	}
	switch what {
	case "open":
	case "propose":
		if _, err := l.Propose(ctx, 1, []byte("victim")); err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("acknowledged")
		}
	case "snapshot":
		err = l.Snapshot(ctx)
	case "fill":
		for err == nil {
			_, err = l.Propose(ctx, 1, make([]byte, 1<<20))
		}
	case "storm":
		err = storm(ctx, l)
	case "flushes":
		err = flushes(ctx, l)
	default:
		err = fmt.Errorf("nothing is called %q", what)
	}
	return errors.Join(err, l.Close(ctx))
}
