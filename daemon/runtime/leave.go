package runtime

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// RemoveEmptyCgroups removes the cgroups of shims in every hierarchy when no daemon on the host has a shim in them. It
// returns their paths.
func RemoveEmptyCgroups() []string {
	var removed []string
	patterns := []string{filepath.Join(cgroupRoot, slice), filepath.Join(cgroupRoot, "*", slice)}
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			continue // the pattern is a constant
		}
		for _, dir := range found {
			err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() && path != dir {
					return errors.New("not empty")
				}
				return nil
			})
			if err == nil && os.Remove(dir) == nil { // the kernel refuses while a process is in it
				removed = append(removed, "cgroup "+dir)
			}
		}
	}
	return removed
}
