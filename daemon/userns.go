package daemon

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"stated.dev/stated/internal/subid"
)

// remap is what --userns-remap means on this host; zero without it.
type remap struct {
	name   string // of the user whose ranges they are
	ids    user.IdentityMapping
	parent string // the --data-root, in which the remapped users have theirs
}

// on says whether containers have user namespaces.
func (r remap) on() bool { return !r.ids.Empty() }

// remapUsers finds out which ids --userns-remap stands for, and moves the data root to the one of these ids: what they
// own is of no use to containers with others.
func (c *Config) remapUsers() error {
	if c.UsernsRemap == "" {
		return nil
	}
	found, err := subid.Host().Remap(c.UsernsRemap)
	if err != nil {
		return err
	}
	c.remap = remap{name: found.User, ids: found.Mapping, parent: c.Root}
	if c.remap.on() {
		uid, gid := c.remap.ids.RootPair()
		c.Root = filepath.Join(c.Root, fmt.Sprintf("%d.%d", uid, gid))
	}
	return nil
}

// prepareRemappedRoot makes the data root of remapped users, with their root's group as Docker has it, so that the
// runtime, which acts as that user, reaches the layers. A directory above that keeps it out is an error now: containers
// would only fail to start.
func (c *Config) prepareRemappedRoot() error {
	uid, gid := c.remap.ids.RootPair()
	for _, dir := range []string{c.remap.parent, c.Root} {
		if err := user.MkdirAllAndChown(dir, 0o710, os.Getuid(), gid); err != nil {
			return fmt.Errorf("prepare the data root of remapped users: %w", err)
		}
	}
	for dir := filepath.Dir(c.remap.parent); dir != "/"; dir = filepath.Dir(dir) {
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: dir, Err: err}
		}
		if !mayPass(&st, uid, gid) {
			return fmt.Errorf("the directory %s above the data root keeps out the remapped root %d:%d: allow it to pass with: chmod o+x %[1]s", dir, uid, gid)
		}
	}
	return nil
}

// mayPass says whether a user may go through a directory.
func mayPass(st *unix.Stat_t, uid, gid int) bool {
	switch {
	case int(st.Uid) == uid:
		return st.Mode&0o100 != 0
	case int(st.Gid) == gid:
		return st.Mode&0o010 != 0
	}
	return st.Mode&0o001 != 0
}
