package journal_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"stated.dev/stated/daemon/journal"
	"stated.dev/stated/internal/fault"
)

func open(t *testing.T, root string) (*journal.Journal, journal.Report) {
	t.Helper()
	j, report, err := journal.Open(root, filepath.Join(root, ".stated"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = j.Close() })
	return j, report
}

func commit(t *testing.T, j *journal.Journal, changes ...journal.Change) {
	t.Helper()
	if err := j.Commit(t.Context(), changes...); err != nil {
		t.Fatal(err)
	}
}

func write(path, data string) journal.Change {
	return journal.Change{Path: path, Data: []byte(data), Mode: 0o600}
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return "(none)"
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// forget leaves the journal as a process that was killed would, with its entries, and pretends that the machine was
// rebooted since, by writing another boot id of the same length.
func forget(t *testing.T, root string, rebooted bool) {
	t.Helper()
	path := filepath.Join(root, ".stated", "journal")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if rebooted {
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			t.Fatal(err)
		}
		data = journal.Rewrite(data, string(bytes.TrimSpace(boot)), "00000000-0000-0000-0000-000000000000")
	}
	t.Cleanup(func() { _ = os.Remove(path) })
	if err := os.WriteFile(path+".saved", data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func restoreSaved(t *testing.T, root string) {
	t.Helper()
	path := filepath.Join(root, ".stated", "journal")
	if err := os.Rename(path+".saved", path); err != nil {
		t.Fatal(err)
	}
}

func TestCommitPutsFilesInPlace(t *testing.T) {
	root := t.TempDir()
	j, _ := open(t, root)
	a, b := filepath.Join(root, "containers/x/config.v2.json"), filepath.Join(root, "layerdb/x/mount-id")
	commit(t, j, write(a, `{"a":1}`), write(b, "id"))
	if got := content(t, a) + content(t, b); got != `{"a":1}id` {
		t.Errorf("files hold %q", got)
	}
	commit(t, j, journal.Change{Path: filepath.Dir(a), Remove: true})
	if _, err := os.Stat(filepath.Dir(a)); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
}

func TestRefusesPathsOutside(t *testing.T) {
	root := t.TempDir()
	j, _ := open(t, root)
	for _, path := range []string{"/etc/passwd", "../x", root, "a/../../x"} {
		if err := j.Commit(t.Context(), write(path, "x")); err == nil {
			t.Errorf("a change of %s was accepted", path)
		}
	}
}

// TestReplayAfterPowerCut damages the files in every way and expects the last committed content, except where somebody
// else has written since.
func TestReplayAfterPowerCut(t *testing.T) {
	cases := map[string]struct {
		damage func(path string) error
		want   string
	}{
		"missing":      {os.Remove, `{"v":2}`},
		"empty":        {func(p string) error { return os.Truncate(p, 0) }, `{"v":2}`},
		"zeros":        {func(p string) error { return os.WriteFile(p, make([]byte, 7), 0o600) }, `{"v":2}`},
		"half":         {func(p string) error { return os.Truncate(p, 3) }, `{"v":2}`},
		"older":        {func(p string) error { return os.WriteFile(p, []byte(`{"v":1}`), 0o600) }, `{"v":2}`},
		"foreign":      {func(p string) error { return os.WriteFile(p, []byte(`{"dockerd":1}`), 0o600) }, `{"dockerd":1}`},
		"as committed": {func(string) error { return nil }, `{"v":2}`},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, "c/config.v2.json")
			j, _ := open(t, root)
			commit(t, j, write(path, `{"v":1}`))
			commit(t, j, write(path, `{"v":2}`))
			forget(t, root, true)
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			restoreSaved(t, root)
			if err := c.damage(path); err != nil {
				t.Fatal(err)
			}
			_, report := open(t, root)
			if got := content(t, path); got != c.want {
				t.Errorf("after the restart the file holds %q, want %q", got, c.want)
			}
			if kept := slices.Contains(report.Kept, "c/config.v2.json"); kept != (name == "foreign") {
				t.Errorf("reported as kept: %v", report.Kept)
			}
		})
	}
}

// TestSameBootKeepsForeignRemoval: without a power cut the files of settled entries are in place, so one that is
// missing was removed by somebody else and does not come back.
func TestSameBootKeepsForeignRemoval(t *testing.T) {
	root := t.TempDir()
	a, b := filepath.Join(root, "a.json"), filepath.Join(root, "b.json")
	j, _ := open(t, root)
	commit(t, j, write(a, `{}`))
	commit(t, j, write(b, `{}`))
	forget(t, root, false)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	restoreSaved(t, root)
	if err := os.Remove(a); err != nil {
		t.Fatal(err)
	}
	open(t, root)
	if got := content(t, a); got != "(none)" {
		t.Errorf("a removed file came back: %q", got)
	}
}

func TestTornTailIsCut(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "a.json")
	j, _ := open(t, root)
	commit(t, j, write(path, `{"v":1}`))
	forget(t, root, true)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	restoreSaved(t, root)
	f, err := os.OpenFile(filepath.Join(root, ".stated", "journal"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write([]byte{200, 0, 0, 0, 1, 2, 3, 4, '{'})
	if err := errorsJoin(err, f.Close(), os.Remove(path)); err != nil {
		t.Fatal(err)
	}
	_, report := open(t, root)
	if !report.Torn || content(t, path) != `{"v":1}` {
		t.Errorf("torn %v, file %q", report.Torn, content(t, path))
	}
}

func errorsJoin(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestConcurrentCommits(t *testing.T) {
	root := t.TempDir()
	j, _ := open(t, root)
	var wg sync.WaitGroup
	const writers, rounds = 8, 50
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				path := filepath.Join(root, fmt.Sprintf("c%d/config.v2.json", w))
				if err := j.Commit(context.Background(), write(path, fmt.Sprintf(`{"r":%d}`, r))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for w := range writers {
		if got, want := content(t, filepath.Join(root, fmt.Sprintf("c%d/config.v2.json", w))), fmt.Sprintf(`{"r":%d}`, rounds-1); got != want {
			t.Errorf("writer %d left %q, want %q", w, got, want)
		}
	}
}

// TestCrashPoints dies at each point of a commit of two files and expects both or neither after the next start.
func TestCrashPoints(t *testing.T) {
	if root := os.Getenv("JOURNAL_CRASH_ROOT"); root != "" {
		j, _ := open(t, root)
		commit(t, j, write("a.json", `{"v":2}`), write("b.json", `{"v":2}`))
		return
	}
	for _, point := range []string{"journal.commit.appended", "journal.commit.applying"} {
		t.Run(point, func(t *testing.T) {
			root := t.TempDir()
			j, _ := open(t, root)
			commit(t, j, write("a.json", `{"v":1}`), write("b.json", `{"v":1}`))
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], "-test.run=^TestCrashPoints$")
			cmd.Env = append(os.Environ(), "JOURNAL_CRASH_ROOT="+root, fault.EnvVar+"="+point+"=kill")
			if err := cmd.Run(); err == nil {
				t.Fatal("the process did not die")
			}
			open(t, root)
			a, b := content(t, filepath.Join(root, "a.json")), content(t, filepath.Join(root, "b.json"))
			if a != b || (a != `{"v":1}` && a != `{"v":2}`) {
				t.Errorf("a holds %q and b holds %q", a, b)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{3, 0, 0, 0, 0, 0, 0, 0, '{', '}', ' '})
	f.Fuzz(func(t *testing.T, data []byte) {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, ".stated"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, ".stated", "journal"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		j, _, err := journal.Open(root, filepath.Join(root, ".stated"), slog.New(slog.DiscardHandler))
		if err != nil {
			return
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
