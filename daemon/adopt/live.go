package adopt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LiveDockerd returns an error that says so when a dockerd uses the data root: a process that has one of its databases
// open under a lock, or whose data root this is by its command line and pid file.
func LiveDockerd(root string) error {
	for _, rel := range []string{"volumes/metadata.db", "network/files/local-kv.db"} {
		path := filepath.Join(root, rel)
		pid, locked := locker(path)
		if !locked {
			continue
		}
		if name := programName(pid); pid != 0 && strings.HasPrefix(name, "stated") {
			return fmt.Errorf("the data root %s is in use by stated, process %d", root, pid)
		}
		if pid == 0 {
			return fmt.Errorf("the data root %s is in use: %s is locked by a process that cannot be seen from here; stop the dockerd that runs on it first", root, rel)
		}
		return fmt.Errorf("the data root %s is in use by %s, process %d, which has %s open: stop it first (systemctl stop docker.socket docker), or choose another --data-root", root, programName(pid), pid, rel)
	}
	return nil
}

// locker tries the lock that bbolt takes. It returns who holds it, 0 when that cannot be seen.
func locker(path string) (pid int, locked bool) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return 0, false // whoever needs the file will say why it cannot be opened
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, false // closing the file gives the lock back
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0, true
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, true
	}
	inode := ":" + strconv.FormatUint(st.Ino, 10)
	for line := range strings.Lines(string(locks)) {
		f := strings.Fields(line) // 1: FLOCK ADVISORY WRITE 1234 fe:00:5678 0 EOF
		if len(f) >= 6 && f[1] == "FLOCK" && strings.HasSuffix(f[5], inode) {
			pid, _ = strconv.Atoi(f[4]) // one of another pid namespace reads 0
			return pid, true
		}
	}
	return 0, true
}

func programName(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "another program"
	}
	return strings.TrimSpace(string(data))
}
