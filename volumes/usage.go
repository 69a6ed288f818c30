package volumes

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"syscall"

	"github.com/moby/moby/api/types/volume"
)

// Usage is what one volume costs.
type Usage struct {
	Volume
	Size     int64 // bytes; -1 when it could not be determined
	RefCount int64
}

// API returns u as GET /system/df shows it.
func (u Usage) API() volume.Volume {
	v := u.Volume.API()
	v.UsageData = &volume.UsageData{Size: u.Size, RefCount: u.RefCount}
	return v
}

// DiskUsage measures local volumes without options, by name: what an option mounts is seldom this host's disk.
func (s *Store) DiskUsage(ctx context.Context) ([]Usage, error) {
	entries := s.localEntries(func(e *entry) bool { return len(e.options) == 0 })
	list := make([]Usage, 0, len(entries))
	for _, e := range entries {
		size, err := diskUsage(ctx, e.path())
		if ctx.Err() != nil {
			return nil, &OpError{Op: "list", Err: ctx.Err()}
		}
		if err != nil {
			slog.Warn("could not determine size of volume", "volume", e.name, "error", err)
			size = -1
		}
		s.learnTime(ctx, e)
		list = append(list, Usage{Volume: e.volume(), Size: size, RefCount: int64(len(s.Refs(e.name)))})
	}
	return list, nil
}

// diskUsage adds up the lengths of the files below dir. A file with several names counts once; what disappears
// meanwhile does not count.
func diskUsage(ctx context.Context, dir string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	var total int64
	seen := map[inode]struct{}{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && d.IsDir() {
			return nil
		}
		var info fs.FileInfo
		if err == nil {
			info, err = d.Info()
		}
		if err != nil {
			if path != dir && errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if st := info.Sys().(*syscall.Stat_t); st.Nlink > 1 {
			key := inode{dev: st.Dev, ino: st.Ino}
			if _, counted := seen[key]; counted {
				return nil
			}
			seen[key] = struct{}{}
		}
		total += info.Size()
		return nil
	})
	return total, err
}
