package scratch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// RemapUser is a user whom AddRemapUser makes, with subordinate ids that begin with RemapUID and RemapGID.
const (
	RemapUser = "stated-remap"
	RemapUID  = 500000
	RemapGID  = 600000
)

// AddRemapUser lets the test binary, which has a mount namespace of its own, see RemapUser: the files of users lie over
// those of /etc from now on. It returns the directory that they are in, which the caller removes at the end.
func AddRemapUser() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "stated-test-etc-"); err != nil {
		return "", err
	}
	if err = os.Chmod(dir, 0o755); err == nil {
		err = layUsers(dir)
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("add the user %s: %w", RemapUser, err), os.RemoveAll(dir))
	}
	return dir, nil
}

func layUsers(dir string) error {
	for name, line := range map[string]string{
		"passwd": RemapUser + ":x:4711:4711::/:/bin/false\n", "group": RemapUser + ":x:4711:\n",
		"subuid": fmt.Sprintf("%s:%d:65536\n", RemapUser, RemapUID), "subgid": fmt.Sprintf("%s:%d:65536\n", RemapUser, RemapGID),
		"hosts": "", "hostname": "", "resolv.conf": "", // these may be mounted over those of /etc
	} {
		text, err := os.ReadFile(filepath.Join("/etc", name))
		if errors.Is(err, fs.ErrNotExist) {
			if line == "" {
				continue
			}
			err = nil
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), append(text, line...), 0o644)
		}
		if err != nil {
			return err
		}
	}
	return unix.Mount("overlay", "/etc", "overlay", unix.MS_RDONLY, "lowerdir="+dir+":/etc")
}
