package logs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Notifier tells readers that something happened in the directories of their logs. A process needs one only: the
// kernel allows a user 128 inotify instances by default, which is less than the clients that may follow logs.
type Notifier struct {
	f    *os.File
	done chan struct{} // closed when the reading goroutine has ended

	mu   sync.Mutex // guards the tables
	dirs map[string]*dirWatch
	byWD map[int32]*dirWatch
}

type dirWatch struct {
	path      string
	wd        int32
	listeners map[*listener]struct{}
}

type listener struct {
	n    *Notifier
	dir  *dirWatch
	wake chan struct{} // holds one signal
}

// NewNotifier opens an inotify instance and starts the goroutine that reads it. Close ends both.
func NewNotifier() (*Notifier, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open inotify instance: %w", err)
	}
	n := &Notifier{
		f:    os.NewFile(uintptr(fd), "inotify"),
		done: make(chan struct{}),
		dirs: map[string]*dirWatch{},
		byWD: map[int32]*dirWatch{},
	}
	go n.run()
	return n, nil
}

// Close ends all notices. Readers that still follow look at their files from time to time instead.
func (n *Notifier) Close() error {
	err := n.f.Close()
	<-n.done
	return err
}

func (n *Notifier) run() {
	defer close(n.done)
	buf := make([]byte, 4<<10)
	for {
		count, err := n.f.Read(buf)
		if err != nil {
			return // closed
		}
		n.dispatch(buf[:count])
	}
}

func (n *Notifier) dispatch(events []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		mask := binary.NativeEndian.Uint32(events[4:])
		name := int(binary.NativeEndian.Uint32(events[12:]))
		events = events[min(unix.SizeofInotifyEvent+name, len(events)):]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			for _, dir := range n.dirs {
				dir.signal()
			}
		} else if dir := n.byWD[wd]; dir != nil {
			dir.signal()
			if mask&unix.IN_IGNORED != 0 {
				n.forgetLocked(dir) // the directory was removed
			}
		}
	}
}

func (n *Notifier) forgetLocked(dir *dirWatch) {
	delete(n.byWD, dir.wd)
	maps.DeleteFunc(n.dirs, func(_ string, d *dirWatch) bool { return d == dir })
}

func (d *dirWatch) signal() {
	for l := range d.listeners {
		select {
		case l.wake <- struct{}{}:
		default: // it has a signal already
		}
	}
}

// listen starts notices about the files of a directory.
func (n *Notifier) listen(path string) (*listener, error) {
	path = filepath.Clean(path)
	n.mu.Lock()
	defer n.mu.Unlock()
	dir := n.dirs[path]
	if dir == nil {
		raw, err := n.f.SyscallConn()
		if err != nil {
			return nil, err
		}
		var wd int
		var watchErr error
		err = raw.Control(func(fd uintptr) {
			wd, watchErr = unix.InotifyAddWatch(int(fd), path, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_ONLYDIR)
		})
		if err == nil {
			err = watchErr
		}
		if err != nil {
			return nil, fmt.Errorf("watch %s: %w", path, err)
		}
		dir = &dirWatch{path: path, wd: int32(wd), listeners: map[*listener]struct{}{}}
		if other := n.byWD[dir.wd]; other != nil {
			// Two paths lead to one directory: the kernel has one watch for it.
			dir = other
		}
		n.dirs[path], n.byWD[dir.wd] = dir, dir
	}
	l := &listener{n: n, dir: dir, wake: make(chan struct{}, 1)}
	dir.listeners[l] = struct{}{}
	return l, nil
}

// close ends the notices to l, and the watch with the last of them.
func (l *listener) close() {
	n := l.n
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(l.dir.listeners, l)
	if len(l.dir.listeners) > 0 {
		return
	}
	n.forgetLocked(l.dir)
	if raw, err := n.f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_, _ = unix.InotifyRmWatch(int(fd), uint32(l.dir.wd)) // the directory may be gone, and the watch with it
		})
	}
}
