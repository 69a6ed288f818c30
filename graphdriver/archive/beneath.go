package archive

import (
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// openRoot opens the directory below which everything else is resolved.
func openRoot(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open directory %s: %w", dir, err)
	}
	return fd, nil
}

// openBeneath opens name with root as the root of the file system, as a process confined to it by chroot would:
// "..", absolute symbolic links and all else end inside.
func openBeneath(root int, name string, flags uint64) (int, error) {
	return openat2(root, name, unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
}

// openOneTree opens name below root, and refuses every symbolic link and "..".
func openOneTree(root int, name string, flags uint64) (int, error) {
	return openat2(root, name, unix.OpenHow{Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
}

func openat2(root int, name string, how unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(root, name, &how)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue // a rename somewhere on the host made the kernel unsure about a ".."
		}
		return fd, err
	}
}

// cleanName makes an entry's name relative to the layer's root, "." for the root itself.
func cleanName(name string) string {
	name = path.Clean("/" + name)[1:]
	if name == "" {
		return "."
	}
	return name
}
