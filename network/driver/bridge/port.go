package bridge

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// openControl opens a socket for requests about interfaces of the calling thread's network namespace.
func openControl() (int, error) {
	return unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
}

// settleCarrier makes the kernel act now upon a change of an interface's carrier, which it otherwise leaves to a
// worker. A port of a bridge forwards no frame before that. The kernel does so whenever it is asked for the state of
// the link (linkwatch_sync_dev in its net/core/link_watch.c); the answer does not matter.
func settleCarrier(control int, name string) error {
	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_GLINK} // struct ethtool_value
	request := struct {                                          // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(control), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(&value)
	if errno != 0 {
		return errno
	}
	return nil
}
