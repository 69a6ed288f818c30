package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	apikeys "stated.dev/stated/api/router/keys"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/kvstore"
)

// importEnv makes the test's program import a document into a key tree: "DIRECTORY DOCUMENT".
const importEnv = "STATED_TEST_IMPORT"

func TestMain(m *testing.M) {
	if spec := os.Getenv(importEnv); spec != "" {
		if err := importInto(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func importInto(spec string) error {
	dir, file, _ := strings.Cut(spec, " ")
	document, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	k, err := openKeyTree(context.Background(), keyTreeOptions{Dir: dir, EngineID: "x", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	_, err = k.ImportKeys(context.Background(), apikeys.ImportRequest{Document: document, Replace: true})
	return errors.Join(err, k.Close())
}

func openKeys(t *testing.T, dir string) *keyTree {
	t.Helper()
	k, err := openKeyTree(t.Context(), keyTreeOptions{Dir: dir, EngineID: "x", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func closeKeys(t *testing.T, k *keyTree) {
	t.Helper()
	if err := k.Close(); err != nil {
		t.Error(err)
	}
}

func setKey(t *testing.T, k *keyTree, path, value string) {
	t.Helper()
	if _, err := k.replica.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: path, Value: value}); err != nil {
		t.Fatal(err)
	}
}

// counters are what a document says of requests, which reads change too.
var counters = regexp.MustCompile(`"Stats":\{[^}]*\}`)

// content is an export without the counters.
func content(t *testing.T, k *keyTree) string {
	t.Helper()
	return counters.ReplaceAllString(export(t, k), "")
}

func export(t *testing.T, k *keyTree) string {
	t.Helper()
	document, err := k.ExportKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(document)
}

// TestImportIsWhole kills the process when a piece of an import is in the log: the first one of several, which leaves the
// tree as it was, or the only one, which is the whole import.
func TestImportIsWhole(t *testing.T) {
	for name, c := range map[string]struct {
		values int // of a MiB each
		whole  bool
	}{"killed in the middle": {13, false}, "killed at the end": {1, true}} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			source := openKeys(t, filepath.Join(root, "source"))
			for i := range c.values {
				setKey(t, source, fmt.Sprintf("/1/new/%d", i), strings.Repeat("v", 1<<20))
			}
			file := filepath.Join(root, "document")
			if err := os.WriteFile(file, []byte(export(t, source)), 0o600); err != nil {
				t.Fatal(err)
			}
			closeKeys(t, source)

			dir := filepath.Join(root, "host")
			k := openKeys(t, dir)
			setKey(t, k, "/1/old", "o")
			before := content(t, k)
			closeKeys(t, k)
			child := func(env ...string) error {
				cmd := exec.CommandContext(t.Context(), os.Args[0])
				cmd.Env = append(append(os.Environ(), importEnv+"="+dir+" "+file), env...)
				cmd.Stderr = t.Output()
				return cmd.Run()
			}
			var exit *exec.ExitError
			if err := child(fault.EnvVar + "=kvstore.import.piece=kill"); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the child was not killed: %v", err)
			}
			k = openKeys(t, dir)
			after := content(t, k)
			if got := after != before; got != c.whole {
				t.Errorf("the tree has changed: %t, want %t", got, c.whole)
			}
			if c.whole != strings.Contains(after, `"/1/new/0"`) {
				t.Error("the import is there in part, or is missing")
			}
			// What the import had brought is in a snapshot of the log, too.
			if err := k.log.Snapshot(t.Context()); err != nil {
				t.Fatal(err)
			}
			closeKeys(t, k)
			k = openKeys(t, dir)
			if content(t, k) != after {
				t.Error("the tree is another one after a restart")
			}
			closeKeys(t, k)

			if err := child(); err != nil {
				t.Fatalf("another import: %v", err)
			}
			k = openKeys(t, dir)
			defer closeKeys(t, k)
			for i := range c.values {
				if e, err := k.replica.Get(t.Context(), fmt.Sprintf("/1/new/%d", i), kvstore.GetRequest{}); err != nil || len(e.Node.Value) != 1<<20 {
					t.Errorf("key %d: %v", i, err)
				}
			}
			if _, err := k.replica.Get(t.Context(), "/1/old", kvstore.GetRequest{}); err == nil {
				t.Error("the old key is still there")
			}
		})
	}
}
