package vfs_test

import (
	"path/filepath"
	"testing"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/graphtest"
	"stated.dev/stated/graphdriver/vfs"
)

func TestSuite(t *testing.T) {
	graphtest.Run(t, func(t *testing.T) graphdriver.Driver {
		d, err := vfs.New(t.Context(), graphdriver.Config{Home: filepath.Join(t.TempDir(), "vfs")})
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}
