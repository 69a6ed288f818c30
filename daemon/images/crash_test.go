package images_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	api "stated.dev/stated/api/router/images"
	"stated.dev/stated/internal/fault"
)

// rootVar tells the re-executed test binary where its house is, and with that that it is the one to die.
const rootVar = "STATED_TEST_IMAGES_ROOT"

// verbs are the operations that a crash interrupts. Each starts from an image app:v1 with layer one, and loads or
// removes.
var verbs = map[string]func(t *testing.T, h *house) error{
	"load": func(t *testing.T, h *house) error {
		_, err := load(t, h, legacyArchive(t, makeImage(t, "new", "one", "two"), "app:v1", "new:v1"))
		return err
	},
	"load untagged": func(t *testing.T, h *house) error {
		_, err := load(t, h, legacyArchive(t, makeImage(t, "new", "one", "two")))
		return err
	},
	"import": func(t *testing.T, h *house) error {
		_, err := h.Import(t.Context(), bytes.NewReader(layerTar(t, "imported")), api.ImportRequest{Target: tagged(t, "app:v1")})
		return err
	},
	"remove": func(t *testing.T, h *house) error {
		_, err := h.Remove(t.Context(), "app:v1", api.RemoveRequest{})
		return err
	},
	"tag": func(t *testing.T, h *house) error {
		return h.Tag(t.Context(), "app:v1", tagged(t, "app:v2"))
	},
}

// TestDies is what runs in the re-executed binary.
func TestDies(t *testing.T) {
	root := os.Getenv(rootVar)
	if root == "" {
		return // not the re-executed one
	}
	if err := verbs[os.Getenv("STATED_TEST_VERB")](t, open(t, root)); err != nil {
		t.Fatal(err)
	}
	t.Fatal("the crash point was not reached")
}

// TestCrashLeavesAllOrNothing dies at every point of every verb and checks what a restart finds.
func TestCrashLeavesAllOrNothing(t *testing.T) {
	old, fresh := makeImage(t, "ann", "one"), makeImage(t, "new", "one", "two")
	cases := []struct {
		verb, point string
		done        bool // the operation is found to have happened
	}{
		{"load", "images.load.layers", false},
		{"load", "images.publish.written", false},
		{"load", "images.publish.staged", false},
		{"load", "images.publish.named", true},
		{"load untagged", "images.load.layers", false},
		{"load untagged", "images.publish.written", false},
		{"load untagged", "images.publish.staged", true},
		{"load untagged", "images.publish.named", true},
		{"import", "images.import.layer", false},
		{"import", "images.publish.staged", false},
		{"import", "images.publish.named", true},
		{"remove", "images.remove.withdrawn", false},
		{"remove", "images.remove.unnamed", true},
		{"tag", "images.tag.named", true},
	}
	for _, c := range cases {
		t.Run(c.verb+" at "+c.point, func(t *testing.T) {
			root := t.TempDir()
			mustLoad(t, open(t, root), legacyArchive(t, old, "app:v1"))
			die(t, root, c.verb, c.point)
			h := open(t, root)
			if p := h.Problems(); len(p) != 0 {
				t.Errorf("problems: %v", p)
			}
			app, appErr := h.Get(t.Context(), "app:v1")
			count := 1
			switch {
			case !c.done:
				if appErr != nil || app.ID != old.id {
					t.Errorf("app:v1 is %v, %v; want the old image", app.ID, appErr)
				}
			case c.verb == "load":
				if appErr != nil || app.ID != fresh.id {
					t.Errorf("app:v1 is %v, %v; want the new image", app.ID, appErr)
				}
				if again, err := h.Get(t.Context(), "new:v1"); err != nil || again.ID != fresh.id {
					t.Errorf("new:v1 is %v, %v", again.ID, err)
				}
				count = 2
			case c.verb == "load untagged":
				if _, err := h.Get(t.Context(), fresh.id.String()); err != nil || app.ID != old.id {
					t.Errorf("the loaded image: %v", err)
				}
				count = 2
			case c.verb == "import":
				if appErr != nil || app.ID == old.id {
					t.Errorf("app:v1 is %v, %v; want the import", app.ID, appErr)
				}
				count = 2
			case c.verb == "remove":
				if appErr == nil {
					t.Error("app:v1 is still there")
				}
				count = 0
			case c.verb == "tag":
				if _, err := h.Get(t.Context(), "app:v2"); err != nil {
					t.Error(err)
				}
			}
			if h.Count() != count {
				t.Errorf("%d images, want %d", h.Count(), count)
			}
			wantNoLitter(t, root, count)
		})
	}
}

// die runs verb in a process of its own that ends at point as by SIGKILL.
func die(t *testing.T, root, verb, point string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDies$")
	cmd.Env = append(os.Environ(), rootVar+"="+root, "STATED_TEST_VERB="+verb, fault.EnvVar+"="+point+"=kill")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the process did not die at %s: %v\n%s", point, err, out)
	}
}

// wantNoLitter checks that the content directory holds count configurations and nothing else.
func wantNoLitter(t *testing.T, root string, count int) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(root, "image/fake/imagedb/content/sha256"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != count {
		t.Errorf("content holds %v", entries)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("litter: %s", e.Name())
		}
	}
	if tmp, _ := os.ReadDir(filepath.Join(root, "tmp")); len(tmp) != 0 {
		t.Errorf("tmp holds %v", tmp)
	}
}
