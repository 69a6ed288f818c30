package ocispec

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	pathrs "github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// LookupUser resolves "user", "user:group", "uid", "uid:gid" and any mix against the user and group files of a root
// file system, and adds the groups that were asked for beside. The empty spec is root. Symbolic links in the root file
// system lead nowhere outside it. A numeric id needs no entry; a name that has none is an error such as "unable to find
// user x: no matching entries in passwd file".
func LookupUser(rootfs, spec string, extraGroups []string) (specs.User, error) {
	passwd, closePasswd, err := openInRoot(rootfs, "/etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	defer closePasswd()
	group, closeGroup, err := openInRoot(rootfs, "/etc/group")
	if err != nil {
		return specs.User{}, err
	}
	defer closeGroup()
	return lookupUser(spec, extraGroups, passwd, group)
}

func lookupUser(spec string, extraGroups []string, passwd io.Reader, group io.ReadSeeker) (specs.User, error) {
	// The library takes nil for "no such file", and a nil pointer in an interface is not nil.
	var groupReader io.Reader
	if group != nil {
		groupReader = group
	}
	found, err := user.GetExecUser(spec, nil, passwd, groupReader)
	if err != nil {
		return specs.User{}, err
	}
	gids := append([]int{found.Gid}, found.Sgids...)
	if slices.Contains(extraGroups, "") {
		return specs.User{}, fmt.Errorf("unable to find group %q: %w", "", user.ErrNoGroupEntries)
	}
	if len(extraGroups) > 0 {
		if group != nil {
			if _, err := group.Seek(0, io.SeekStart); err != nil {
				return specs.User{}, fmt.Errorf("reading the group file again: %w", err)
			}
		}
		extra, err := user.GetAdditionalGroups(extraGroups, groupReader)
		if err != nil {
			return specs.User{}, err
		}
		slices.Sort(extra) // the library gives them in any order
		gids = append(gids, extra...)
	}
	out := specs.User{UID: uint32(found.Uid), GID: uint32(found.Gid)}
	for _, gid := range gids {
		out.AdditionalGids = append(out.AdditionalGids, uint32(gid))
	}
	return out, nil
}

// openInRoot opens a file of a root file system for reading. A missing file gives nil readers. Only regular files are
// read: the image chooses what lies there, and opening its pipe would wait for ever.
func openInRoot(rootfs, path string) (io.ReadSeeker, func(), error) {
	none := func() {}
	handle, err := pathrs.OpenInRoot(rootfs, path)
	if err != nil {
		return nil, none, nil //nolint:nilerr // a file that is not to be had counts as absent, as in Docker
	}
	defer handle.Close()
	fi, err := handle.Stat()
	if err != nil {
		return nil, none, fmt.Errorf("looking at %s in %s: %w", path, rootfs, err)
	}
	if !fi.Mode().IsRegular() {
		return nil, none, nil
	}
	file, err := pathrs.Reopen(handle, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK)
	if err != nil {
		return nil, none, fmt.Errorf("opening %s in %s: %w", path, rootfs, err)
	}
	return file, func() { _ = file.Close() }, nil // read-only
}

// EnsureWorkdir makes the container's working directory in its mounted root file system where it is missing. New
// directories belong to uid and gid (the container's root) with mode 0755; existing ones are left as they are.
func EnsureWorkdir(rootfs, workdir string, uid, gid int) error {
	if workdir == "" || workdir == "/" {
		return nil
	}
	if handle, err := pathrs.OpenInRoot(rootfs, workdir); err == nil {
		defer handle.Close()
		if fi, err := handle.Stat(); err == nil && !fi.IsDir() {
			return fmt.Errorf("Cannot mkdir: %s is not a directory", workdir) //nolint:staticcheck // Docker's text
		}
		return nil
	}
	// A link to what is missing names a place in the root file system, too, and that is what is made.
	resolved, err := securejoin.SecureJoin(rootfs, workdir)
	if err != nil {
		return fmt.Errorf("resolving working directory %s: %w", workdir, err)
	}
	return mkdirAll(rootfs, strings.TrimPrefix(resolved, filepath.Clean(rootfs)), uid, gid)
}

// mkdirAll makes one missing component after another, so that it knows which ones are new and to be given away.
func mkdirAll(rootfs, path string, uid, gid int) error {
	root, err := os.OpenFile(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, prefix := range prefixes(path) {
		if handle, err := pathrs.OpenatInRoot(root, prefix); err == nil {
			handle.Close()
			continue
		}
		handle, err := pathrs.MkdirAllHandle(root, prefix, 0o755)
		if err != nil {
			return fmt.Errorf("making working directory %s: %w", path, err)
		}
		err = unix.Fchownat(int(handle.Fd()), "", uid, gid, unix.AT_EMPTY_PATH)
		if err == nil {
			// The process's umask has cut the mode.
			err = os.Chmod(fmt.Sprintf("/proc/self/fd/%d", handle.Fd()), 0o755)
		}
		handle.Close()
		if err != nil {
			return fmt.Errorf("giving working directory %s to %d:%d: %w", path, uid, gid, err)
		}
	}
	return nil
}
