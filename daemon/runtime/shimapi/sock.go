package shimapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// A socket address holds 108 bytes, which a runtime directory with its 64-digit name may exceed. Both functions below
// therefore name the socket through an open directory.

// Listen makes a socket in dir, in place of one that is there.
func Listen(dir, name string) (*net.UnixListener, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := os.Remove(filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fdPath(d, name)})
	if err != nil {
		return nil, fmt.Errorf("listen on %s in %s: %w", name, dir, err)
	}
	l.SetUnlinkOnClose(false) // the path through the descriptor will be gone by then
	return l, nil
}

// Dial connects to a socket in dir.
func Dial(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	d, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", fdPath(d, name))
	if err != nil {
		return nil, fmt.Errorf("connect to %s in %s: %w", name, dir, err)
	}
	return c.(*net.UnixConn), nil
}

func openDir(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

func fdPath(d *os.File, name string) string {
	return "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + name
}

// ShortDir is the directory below the exec root that holds the short paths of task sockets.
const ShortDir = "s"

// ShortSocket is a path of the task socket that fits into a socket address, for those who cannot go through an open
// directory. It is a link that Shorten makes.
func ShortSocket(execRoot, id string) string {
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(execRoot, ShortDir, hex.EncodeToString(sum[:8]))
}

// Shorten makes the short path of a container's task socket, in place of one that is there, and returns it.
func Shorten(execRoot, id, dir string) (string, error) {
	path := ShortSocket(execRoot, id)
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return "", err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return "", err
	}
	if err := os.Symlink(filepath.Join(dir, TaskSocket), path); err != nil {
		return "", err
	}
	return path, nil
}
