package journal_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"stated.dev/stated/daemon/journal"
	"stated.dev/stated/internal/testenv/hostile"
)

// TestFullDisk: a change fails as a whole with the reason, what frees space does not, and afterwards all goes on.
func TestFullDisk(t *testing.T) {
	root := hostile.SmallDisk(t, "16m")
	j, _ := open(t, root)
	commit(t, j, write("c/config.v2.json", `{"v":1}`), write("c/hostconfig.json", `{"v":1}`), write("d/config.v2.json", `{}`))
	ballast := hostile.FillDisk(t, root)
	err := j.Commit(t.Context(), write("c/config.v2.json", `{"v":2}`), write("c/hostconfig.json", `{"v":2}`))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("commit on a full disk: %v", err)
	}
	if got := content(t, filepath.Join(root, "c/config.v2.json")) + content(t, filepath.Join(root, "c/hostconfig.json")); got != `{"v":1}{"v":1}` {
		t.Errorf("a failed change left %s", got)
	}
	commit(t, j, journal.Change{Path: "d", Remove: true})
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	commit(t, j, write("c/config.v2.json", `{"v":3}`))
	if left, err := os.ReadDir(filepath.Join(root, ".stated", "staged")); err != nil || len(left) > 0 {
		t.Errorf("staged files are left: %v, %v", left, err)
	}
}

// TestOwedIsSettled: an entry whose files could not be put in place is put there as soon as that is possible, unless
// something newer has been said of them.
func TestOwedIsSettled(t *testing.T) {
	root := t.TempDir()
	j, _ := open(t, root)
	for _, name := range []string{"a.json", "b.json"} {
		if err := os.MkdirAll(filepath.Join(root, name, "in the way"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := j.Commit(t.Context(), write(name, `{"v":1}`)); err == nil {
			t.Fatal("a file replaced a directory")
		}
	}
	for _, name := range []string{"a.json", "b.json"} {
		if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, j, write("b.json", `{"v":2}`))
	if a, b := content(t, filepath.Join(root, "a.json")), content(t, filepath.Join(root, "b.json")); a != `{"v":1}` || b != `{"v":2}` {
		t.Errorf("a holds %s, b holds %s", a, b)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOwedSurvivesClose: what cannot be put in place before the end is by the next start.
func TestOwedSurvivesClose(t *testing.T) {
	root := t.TempDir()
	j, _ := open(t, root)
	path := filepath.Join(root, "a.json")
	if err := os.MkdirAll(filepath.Join(path, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := j.Commit(t.Context(), write("a.json", `{"v":1}`)); err == nil {
		t.Fatal("a file replaced a directory")
	}
	if err := j.Close(); err == nil {
		t.Error("Close kept quiet about it")
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	open(t, root)
	if got := content(t, path); got != `{"v":1}` {
		t.Errorf("after the restart the file holds %s", got)
	}
}

// TestCutUnderLoad: writers that leave no pause do not keep the journal from being cut.
func TestCutUnderLoad(t *testing.T) {
	root := t.TempDir()
	j, _ := open(t, root)
	data := `{"x":"` + strings.Repeat("x", 256<<10) + `"}`
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for range 12 {
				if err := j.Commit(t.Context(), write(fmt.Sprintf("%d.json", w), data)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	st, err := os.Stat(filepath.Join(root, ".stated", "journal"))
	if err != nil {
		t.Fatal(err)
	}
	if written := int64(8 * 12 * len(data)); st.Size() > written/2 {
		t.Errorf("the journal holds %d of %d bytes", st.Size(), written)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(filepath.Join(root, ".stated", "journal.old")); err != nil || len(left) > 0 {
		t.Errorf("the old journal is left: %v %v", left, err)
	}
}
