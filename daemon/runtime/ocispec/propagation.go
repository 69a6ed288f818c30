package ocispec

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// propagate checks that the source of a mount can have the propagation asked for, and makes the root file system's own
// propagation wide enough for it.
func propagate(in Input, m Mount, linux *specs.Linux) error {
	switch m.Propagation {
	case propagationShared, propagationRShared:
		at, optional, err := mountOf(m.Source)
		if err != nil {
			return err
		}
		if !hasPeerGroup(optional, "shared:") {
			return fmt.Errorf("path %s is mounted on %s but it is not a shared mount", m.Source, at)
		}
		linux.RootfsPropagation = propagationShared
	case propagationSlave, propagationRSlave:
		at, optional, err := mountOf(m.Source)
		if err == nil && !hasPeerGroup(optional, "shared:") && !hasPeerGroup(optional, "master:") {
			err = fmt.Errorf("path %s is mounted on %s but it is not a shared or slave mount", m.Source, at)
		}
		if err != nil {
			// Mounts around the data root are made rslave without the user's asking, so that the daemon's own mounts
			// do not get stuck in containers. There the source decides.
			if m.PropagationDefaulted && in.Host.DataRoot != "" &&
				(strings.HasPrefix(m.Source, in.Host.DataRoot) || strings.HasPrefix(in.Host.DataRoot, m.Source)) {
				return nil
			}
			return err
		}
		if linux.RootfsPropagation != propagationShared {
			linux.RootfsPropagation = propagationRSlave
		}
	}
	return nil
}

// mountOf returns the mount point that a path lies on, and the propagation fields of its line in the mount table.
func mountOf(path string) (at, optional string, err error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", "", err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(resolved))
	if err != nil {
		return "", "", fmt.Errorf("reading the mount table for %s: %w", path, err)
	}
	var found *mountinfo.Info
	for _, m := range mounts {
		// Of several on one point the last covers the others.
		if found == nil || len(m.Mountpoint) >= len(found.Mountpoint) {
			found = m
		}
	}
	if found == nil {
		return "", "", fmt.Errorf("no mount point of %s", path)
	}
	return found.Mountpoint, found.Optional, nil
}

func hasPeerGroup(optional, prefix string) bool {
	for field := range strings.FieldsSeq(optional) {
		if strings.HasPrefix(field, prefix) {
			return true
		}
	}
	return false
}

// lockedFlags returns the mount options of a path's file system that a user namespace may not take away. A bind mount
// there has to repeat them.
func lockedFlags(path string) ([]string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return nil, fmt.Errorf("looking at the mount flags of %s: %w", path, err)
	}
	var out []string
	for _, f := range []struct {
		flag int64
		name string
	}{
		{unix.ST_RDONLY, "ro"},
		{unix.ST_NODEV, "nodev"},
		{unix.ST_NOEXEC, "noexec"},
		{unix.ST_NOSUID, "nosuid"},
		{unix.ST_NOATIME, "noatime"},
		{unix.ST_RELATIME, "relatime"},
		{unix.ST_NODIRATIME, "nodiratime"},
	} {
		if int64(st.Flags)&f.flag != 0 {
			out = append(out, f.name)
		}
	}
	return out, nil
}
