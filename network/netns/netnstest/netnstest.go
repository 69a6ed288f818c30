// Package netnstest gives a test binary a machine of its own: a network and a mount namespace in which it may make
// bridges, rules and routes, and which vanish with it.
package netnstest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const marker = "STATED_TEST_NAMESPACES"

// Main is to be called by TestMain: it moves the whole process into fresh namespaces and runs the tests there.
func Main(m *testing.M) {
	Enter()
	os.Exit(m.Run())
}

// Enter is Main for a test binary that does something else than running its tests.
func Enter() {
	if os.Getenv(marker) != "" {
		return
	}
	if err := enter(); err != nil {
		fmt.Fprintln(os.Stderr, "enter test namespaces:", err)
		os.Exit(1)
	}
}

func enter() error {
	runtime.LockOSThread() // exec keeps the namespaces of the calling thread
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare, which takes root: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), marker+"=1"))
}
