package runtime

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// RemoveEmptyCgroups removes the cgroups of shims, and those of the given name that are above containers, from every
// hierarchy in which no daemon on the host has anything below them. It returns their paths.
func RemoveEmptyCgroups(parent string) []string {
	var removed []string
	var patterns []string
	for _, name := range []string{slice, parent} {
		patterns = append(patterns, filepath.Join(cgroupRoot, name), filepath.Join(cgroupRoot, "*", name))
	}
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
