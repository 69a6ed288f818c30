package adopt_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"stated.dev/stated/daemon/adopt"
)

func write(t *testing.T, root, rel, data string) {
	t.Helper()
	path := filepath.Join(root, rel)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	id := strings.Repeat("ab", 32)
	for _, tc := range []struct{ name, rel, data, want string }{
		{"record", "containers/" + id + "/config.v2.json", "{", "containers " + id + ": its record, config.v2.json, cannot be read"},
		{"stray record", "containers/" + id + "/config.v2.json", `{"ID":"x"}`, "its record is that of container x"},
		{"foreign", "containers/" + id + "/config.v2.json", `{"ID":"` + id + `","Driver":"overlayfs"}`, "listed as foreign and not started"},
		{"image", "image/overlay2/imagedb/content/sha256/" + id, "{}", "images sha256:" + id + ": its configuration is damaged"},
		{"layer", "image/overlay2/layerdb/sha256/" + id + "/diff", "no digest", "layers " + id + ": file diff holds no digest"},
		{"names", "image/overlay2/repositories.json", `{"Repositories":{"a":{"a:1":"sha256:x"}}}`, "images a:1: names image sha256:x, which is missing or broken"},
		{"volumes", "volumes/metadata.db", "", "volumes/metadata.db: the labels and options of volumes cannot be read: it is empty"},
		{"networks", "network/files/local-kv.db", strings.Repeat("x", 8192), "networks network/files/local-kv.db: the networks cannot be read"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			write(t, root, tc.rel, tc.data)
			r, err := adopt.Check(t.Context(), root)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Problems) != 1 || !strings.Contains(r.Problems[0].String(), tc.want) {
				t.Errorf("got %v, want %q", r.Problems, tc.want)
			}
		})
	}
}

func TestCheckListsUnknownFiles(t *testing.T) {
	root := t.TempDir()
	for _, rel := range []string{"strange", "containers/file", "image/overlay2/extra/x", "volumes/file", "engine-id"} {
		write(t, root, rel, "x")
	}
	r, err := adopt.Check(t.Context(), root)
	if err != nil || len(r.Problems) > 0 {
		t.Fatal(err, r.Problems)
	}
	if got, want := strings.Join(r.Unknown, " "), "strange image/overlay2/extra volumes/file containers/file"; got != want {
		t.Errorf("unknown: %s, want %s", got, want)
	}
	if _, err := adopt.Check(t.Context(), filepath.Join(root, "none")); err == nil {
		t.Error("a root that is not there is reported on")
	}
}

func TestBackupIsWholeOrNotThere(t *testing.T) {
	root := t.TempDir()
	if adopt.IsDockers(root) {
		t.Error("an empty root is taken for dockerd's")
	}
	write(t, root, "containers/x/config.v2.json", "{}")
	write(t, root, ".stated.new/backup-half/file", "left by a start that was cut short")
	if !adopt.IsDockers(root) {
		t.Error("a root with containers is not taken for dockerd's")
	}
	dir, err := adopt.Backup(root, time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(root, ".stated", "backup-20260203T040506Z"); dir != want {
		t.Errorf("backup in %s, want %s", dir, want)
	}
	if data, err := os.ReadFile(filepath.Join(dir, "containers/x/config.v2.json")); err != nil || string(data) != "{}" {
		t.Errorf("the record in the backup: %q, %v", data, err)
	}
	if adopt.IsDockers(root) {
		t.Error("the root is dockerd's after stated has begun")
	}
	entries, err := os.ReadDir(filepath.Join(root, ".stated"))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v %v", entries, err)
	}
}
