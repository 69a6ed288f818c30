package overlay2

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"stated.dev/stated/graphdriver"
)

// CreateSeeded makes a layer with the seeds written straight into its diff directory. A directory that the layers
// below have and that gets new entries is made with their owner, mode and attributes, as overlayfs copies it up.
func (d *Driver) CreateSeeded(_ context.Context, id, parent string, seeds []graphdriver.Seed, opts graphdriver.CreateOptions) error {
	return d.build(id, parent, opts, func(diff int) error {
		p := planter{d: d, diff: diff, made: map[string]bool{}}
		if parent != "" {
			lowers, err := d.lowers(parent)
			if err != nil {
				return err
			}
			p.below = append(view{d.diffPath(parent)}, lowers...)
		}
		for _, s := range seeds {
			if err := p.plant(s); err != nil {
				return fmt.Errorf("make %s: %w", s.Path, err)
			}
		}
		return nil
	})
}

type planter struct {
	d     *Driver
	diff  int
	below view
	made  map[string]bool // directories that stand in diff
}

func (p *planter) plant(s graphdriver.Seed) error {
	f, err := p.d.find(p.below, s.Path)
	if err != nil {
		return err
	}
	if f.isDir() {
		return nil
	}
	if err := p.dir(path.Dir(s.Path)); err != nil {
		return err
	}
	switch s.Kind {
	case graphdriver.SeedDir:
		return p.dir(s.Path)
	case graphdriver.SeedSymlink:
		if err := unix.Symlinkat(s.Target, p.diff, s.Path); err != nil {
			return err
		}
		return p.own(s.Path)
	}
	fd, err := unix.Openat(p.diff, s.Path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, graphdriver.SeedMode)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fchmod(fd, graphdriver.SeedMode), unix.Close(fd), p.own(s.Path))
}

// dir makes a directory in diff, and those above it.
func (p *planter) dir(dir string) error {
	at := ""
	for elem := range strings.SplitSeq(dir, "/") {
		at = path.Join(at, elem)
		if at == "" || at == "." || p.made[at] {
			continue
		}
		p.made[at] = true
		f, err := p.d.find(p.below, at)
		if err != nil {
			return err
		}
		if err := unix.Mkdirat(p.diff, at, 0o700); err != nil {
			return err
		}
		if f.isDir() {
			err = p.copyUp(at, f)
		} else if err = p.own(at); err == nil {
			err = unix.Fchmodat(p.diff, at, graphdriver.SeedMode, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// own gives what was made to the remapped root.
func (p *planter) own(at string) error {
	if p.d.rootID.uid == 0 && p.d.rootID.gid == 0 {
		return nil
	}
	return unix.Fchownat(p.diff, at, p.d.rootID.uid, p.d.rootID.gid, unix.AT_SYMLINK_NOFOLLOW)
}

func (p *planter) copyUp(at string, f found) error {
	if err := unix.Fchownat(p.diff, at, int(f.stat.Uid), int(f.stat.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	var names [1024]byte
	n, err := unix.Llistxattr(f.path, names[:])
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("list attributes of %s: %w", f.path, err)
	}
	for key := range strings.SplitSeq(string(names[:max(n, 0)]), "\x00") {
		if key == "" || strings.HasPrefix(key, "trusted.overlay.") || strings.HasPrefix(key, "user.overlay.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(f.path, key, value)
		if err == nil {
			err = unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", p.diff, at), key, value[:n], 0)
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("copy attribute %s of %s: %w", key, f.path, err)
		}
	}
	return unix.Fchmodat(p.diff, at, f.stat.Mode&0o7777, 0)
}
