package ocispec

import (
	"path/filepath"
	"slices"
	"strings"
)

// prefixes returns a path's ancestors and itself, the outermost first: "/a/b" gives "/a", "/a/b".
func prefixes(path string) []string {
	path = filepath.Clean("/" + path)
	var out []string
	for i := 1; i < len(path); i++ {
		if path[i] == '/' {
			out = append(out, path[:i])
		}
	}
	if path != "/" {
		out = append(out, path)
	}
	return out
}

// SortMounts returns mounts with parents before what lies below them. Equal depth keeps its order.
func SortMounts(mounts []Mount) []Mount {
	sorted := slices.Clone(mounts)
	slices.SortStableFunc(sorted, func(a, b Mount) int { return depth(a.Destination) - depth(b.Destination) })
	return sorted
}

func depth(path string) int { return strings.Count(filepath.Clean(path), "/") }
