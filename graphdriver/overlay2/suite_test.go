package overlay2_test

import (
	"path/filepath"
	"testing"

	"stated.dev/stated/graphdriver"
	"stated.dev/stated/graphdriver/graphtest"
	"stated.dev/stated/graphdriver/overlay2"
)

func TestSuite(t *testing.T) {
	graphtest.Run(t, func(t *testing.T) graphdriver.Driver {
		d, err := overlay2.New(t.Context(), graphdriver.Config{Home: filepath.Join(t.TempDir(), "overlay2")})
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}
