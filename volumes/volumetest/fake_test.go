package volumetest_test

import (
	"testing"

	"stated.dev/stated/volumes"
	"stated.dev/stated/volumes/volumetest"
)

func TestFake(t *testing.T) {
	volumetest.Run(t, volumetest.Harness{New: func(*testing.T) volumes.Driver {
		return &volumetest.Fake{DriverName: "fake", Scope: "global"}
	}})
}
