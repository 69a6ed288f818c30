// Package builtin is the table of the storage drivers that this program has. It opens none of them.
package builtin

import (
	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/overlay2"
	"stated.dev/stated/graphdriver/vfs"
)

// Table returns the constructors by name.
func Table() map[string]graphdriver.Constructor {
	return map[string]graphdriver.Constructor{
		"overlay2": overlay2.New,
		"vfs":      vfs.New,
	}
}
