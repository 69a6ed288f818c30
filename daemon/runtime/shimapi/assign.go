package shimapi

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A shim is started before it knows its container. It waits at AwaitFD, one end of a pair of packet sockets, for the
// one packet that tells it: the path of the container's runtime directory, with four descriptors. When the other end
// is closed instead, it is not needed and goes.

// AwaitFD is the descriptor at which a new shim waits for its assignment.
const AwaitFD = 3

// Assignment is what a waiting shim is given.
type Assignment struct {
	Dir           string   // the container's runtime directory
	Tasks, Attach *os.File // listening sockets
	Lock          *os.File // the directory's lock, which lives as long as this descriptor
	Log           *os.File // for the shim's own errors
}

// files are the descriptors in the order in which they are sent.
func (a *Assignment) files() [4]**os.File {
	return [...]**os.File{&a.Tasks, &a.Attach, &a.Lock, &a.Log}
}

// Assign sends an assignment to the shim at the other end of fd. The shim has its own copies of the files then.
func Assign(fd int, a Assignment) error {
	var fds []int
	for _, f := range a.files() {
		fds = append(fds, int((*f).Fd()))
	}
	return unix.Sendmsg(fd, []byte(a.Dir), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
}

// Await waits for an assignment at fd. It returns io.EOF when there will be none.
func Await(fd int) (Assignment, error) {
	var a Assignment
	dir, oob := make([]byte, unix.PathMax), make([]byte, unix.CmsgSpace(len(a.files())*4))
	n, oobn, err := receive(fd, dir, oob)
	if err != nil {
		return a, fmt.Errorf("receive an assignment: %w", err)
	}
	if n == 0 {
		return a, io.EOF
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err == nil && len(messages) != 1 {
		err = fmt.Errorf("%d control messages, not one", len(messages))
	}
	var fds []int
	if err == nil {
		fds, err = unix.ParseUnixRights(&messages[0])
	}
	if err == nil && len(fds) != len(a.files()) {
		err = fmt.Errorf("%d descriptors, not %d", len(fds), len(a.files()))
	}
	if err != nil {
		return a, fmt.Errorf("read an assignment: %w", err)
	}
	for i, f := range a.files() {
		*f = os.NewFile(uintptr(fds[i]), "")
	}
	a.Dir = string(dir[:n])
	return a, nil
}

func receive(fd int, p, oob []byte) (n, oobn int, err error) {
	for {
		n, oobn, _, _, err = unix.Recvmsg(fd, p, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			return n, oobn, err
		}
	}
}
