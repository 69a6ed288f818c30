package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// RemapUser is a user whom AddRemapUser makes, with subordinate ids that begin with RemapUID and RemapGID.
const (
	RemapUser = "stated-remap"
	RemapUID  = 500000
	RemapGID  = 600000
)

// AddRemapUser lets this process see RemapUser until the end of the test: the files of users lie over those of /etc, in
// the mount namespace that the test binary has for itself. It returns the directory that they are in.
func AddRemapUser(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(Dir(t), "etc")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(dir, 0o755))
	for name, line := range map[string]string{
		"passwd": RemapUser + ":x:4711:4711::/:/bin/false\n", "group": RemapUser + ":x:4711:\n",
		"subuid": fmt.Sprintf("%s:%d:65536\n", RemapUser, RemapUID), "subgid": fmt.Sprintf("%s:%d:65536\n", RemapUser, RemapGID),
		"hosts": "", "hostname": "", "resolv.conf": "", // which may be mounted over those of /etc
	} {
		text, err := os.ReadFile(filepath.Join("/etc", name))
		if errors.Is(err, fs.ErrNotExist) && line == "" {
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			must(err)
		}
		must(os.WriteFile(filepath.Join(dir, name), append(text, line...), 0o644))
	}
	must(unix.Mount("overlay", "/etc", "overlay", unix.MS_RDONLY, "lowerdir="+dir+":/etc"))
	t.Cleanup(func() { must(unix.Unmount("/etc", unix.MNT_DETACH)) })
	return dir
}
