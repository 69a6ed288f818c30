package store_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/cluster/raft"
	"stated.dev/stated/cluster/store"
)

// machine is a store as a log sees it, and the log as the store does.
type machine struct {
	*store.Store
	log *raft.Log
}

func (m *machine) Snapshot() (raft.Section, error) {
	p := m.Store.Snapshot()
	return raft.Section{Version: 1, Release: p.Release, Write: func(w io.Writer) error {
		_, err := p.WriteTo(w)
		return err
	}}, nil
}

func (m *machine) Restore(version uint32, r io.Reader) error {
	if version != 1 {
		return fmt.Errorf("version %d", version)
	}
	return m.Store.Restore(r)
}

func (m *machine) Propose(ctx context.Context, command []byte) (any, error) {
	return m.log.Propose(ctx, 2, command)
}

func (m *machine) Version() (uint64, bool) {
	index, _ := m.log.Position()
	return index, true
}

func openLog(t testing.TB, dir string) (*machine, func()) {
	t.Helper()
	m := &machine{Store: store.New(store.Options{})}
	l, err := raft.Open(t.Context(), raft.Options{Dir: dir, Machines: []raft.Slot{{ID: 2, Name: "objects", Machine: m}}})
	if err != nil {
		t.Fatal(err)
	}
	m.log = l
	m.Attach(m)
	return m, sync.OnceFunc(func() {
		if err := l.Close(context.Background()); err != nil {
			t.Error(err)
		}
		m.Close()
	})
}

func TestRealLog(t *testing.T) {
	dir := t.TempDir()
	m, end := openLog(t, dir)
	defer end()
	everything(t, m.Store)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 25 {
				if err := m.Retry(t.Context(), func(tx *store.Tx) error {
					n := objects.Copy(store.Nodes.Get(tx, "a"))
					n.Description.Hostname += "."
					return store.Nodes.Update(tx, n)
				}); err != nil {
					t.Error(err)
				}
				if err := m.Update(t.Context(), func(tx *store.Tx) error {
					return store.Nodes.Create(tx, node(objects.NewID(), fmt.Sprint(i)))
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := getNode(m.Store, "a").Name(); got != "First"+strings.Repeat(".", 200) {
		t.Errorf("changes were lost: %s", got)
	}
	if err := m.log.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	must(t, m.Store, func(tx *store.Tx) error { return store.Nodes.Delete(tx, "b") })
	before, state := dump(t, m.Store), written(t, m.Store.Snapshot())
	end()

	again, end := openLog(t, dir)
	defer end()
	if after := dump(t, again.Store); !slices.Equal(before, after) {
		t.Errorf("after a restart there are %d objects instead of %d, or others", len(after), len(before))
	}
	if !bytes.Equal(state, written(t, again.Store.Snapshot())) {
		t.Error("after a restart the snapshot is another one")
	}
	n := objects.Copy(getNode(again.Store, "a"))
	must(t, again.Store, func(tx *store.Tx) error { return store.Nodes.Update(tx, n) })
}

const childDir = "STATED_TEST_DIR"

// TestMain lets the test binary be a process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		fmt.Fprintln(os.Stderr, storm(dir))
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// storm makes objects until it is killed and says which are acknowledged.
func storm(dir string) error {
	m := &machine{Store: store.New(store.Options{})}
	l, err := raft.Open(context.Background(), raft.Options{Dir: dir, Machines: []raft.Slot{{ID: 2, Name: "objects", Machine: m}}})
	if err != nil {
		return err
	}
	m.log = l
	m.Attach(m)
	errs := make(chan error)
	for range 4 {
		go func() {
			for {
				id := objects.NewID()
				if err := m.Update(context.Background(), func(tx *store.Tx) error { return store.Nodes.Create(tx, node(id, "n")) }); err != nil {
					errs <- err
					return
				}
				fmt.Println(id)
			}
		}()
	}
	return <-errs
}

func TestKill(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[string]bool{}
	for range 3 {
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), childDir+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err == nil {
			err = child.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		var all bytes.Buffer
		if _, err := io.CopyN(&all, out, 100*(objects.IDLen+1)); err != nil {
			t.Fatal(err)
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_, _ = all.ReadFrom(out) // what it still had said
		_ = child.Wait()         // it was killed
		for id := range strings.Lines(all.String()) {
			if strings.HasSuffix(id, "\n") {
				acknowledged[strings.TrimSpace(id)] = true
			}
		}
	}
	if list, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	m, end := openLog(t, dir)
	defer end()
	m.View(func(tx *store.ReadTx) {
		for id := range acknowledged {
			if store.Nodes.Get(tx, id) == nil {
				t.Errorf("%s was acknowledged and is lost", id)
			}
		}
		// Four writers of each process may have had one more under way.
		if list, err := store.Nodes.Find(tx, store.All()); err != nil || len(list) > len(acknowledged)+12 {
			t.Errorf("there are %d objects and %d were acknowledged: %v", len(list), len(acknowledged), err)
		}
	})
}
