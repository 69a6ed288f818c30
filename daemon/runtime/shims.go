package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/runtime/shimapi"
	"stated.dev/stated/internal/fault"
	"stated.dev/stated/internal/ids"
)

const (
	// answerLimit is how long a shim may take for its first answer. On a host that has just booted, and starts all its
	// containers at once, that is seconds.
	answerLimit = 30 * time.Second
	// reconnectLimit is the same for one that was started earlier.
	reconnectLimit = 2 * time.Second
	// maxAddress is how long the path of a unix socket may be.
	maxAddress = 107
)

// Options say where shims work and which programs they are made of.
type Options struct {
	// ExecRoot holds containers/<id> for each container and runc for runc's state. It should be on a tmpfs.
	ExecRoot string
	// ShimPath and RuncPath name the programs; without a slash they are looked up on PATH. Empty means
	// "stated-shim" and "runc".
	ShimPath, RuncPath string
	// CgroupDriver is used for a SpawnRequest that names none: "cgroupfs" or "systemd".
	CgroupDriver string
	// Tasks creates, starts and deletes tasks in place of the shims, to which it passes that on. Nil means that the
	// shims are asked themselves.
	Tasks Tasks
}

// Shims is the Runtime that starts a shim of our own for each container.
type Shims struct {
	root     string // ExecRoot
	dir      string // ExecRoot/containers
	shimPath string
	runcPath string
	driver   string
	place    *placement
	tasks    Tasks // or nil

	mu        sync.Mutex // guards what is below
	closed    bool
	conns     map[*conn]struct{}
	reapers   map[*os.File]struct{} // pidfds of shims that this process started
	spare     *waiting              // for the next container, or nil
	preparing bool                  // a spare is on its way
	wg        sync.WaitGroup        // of the reapers, and of a spare on its way
}

var _ Runtime = (*Shims)(nil)

// New prepares the directories under opts.ExecRoot and removes what an interrupted deletion left there.
func New(opts Options) (*Shims, error) {
	r := &Shims{driver: opts.CgroupDriver, tasks: opts.Tasks, conns: map[*conn]struct{}{}, reapers: map[*os.File]struct{}{}}
	var err error
	if r.root, err = filepath.Abs(opts.ExecRoot); err != nil {
		return nil, err
	}
	if r.shimPath, err = lookUp(opts.ShimPath, "stated-shim"); err != nil {
		return nil, err
	}
	if r.runcPath, err = lookUp(opts.RuncPath, "runc"); err != nil {
		return nil, err
	}
	if link := shimapi.ShortSocket(r.root, ""); r.tasks != nil && len(link) > maxAddress {
		return nil, fmt.Errorf("path %s is too long for a socket's address: choose an exec root with a shorter path: %w", link, errdefs.ErrInvalidArgument)
	}
	r.dir = filepath.Join(r.root, "containers")
	if err := os.MkdirAll(r.dir, 0o711); err != nil {
		return nil, fmt.Errorf("make the runtime directory: %w", err)
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("read the runtime directory: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			if err := os.RemoveAll(filepath.Join(r.dir, e.Name())); err != nil {
				return nil, fmt.Errorf("remove a deleted container: %w", err)
			}
		}
	}
	if err := r.dropLinks(); err != nil {
		return nil, err
	}
	r.place = newPlacement()
	return r, nil
}

func lookUp(path, name string) (string, error) {
	if path == "" {
		path = name
	}
	found, err := exec.LookPath(path)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	return filepath.Abs(found)
}

// Dir is the directory of all runtime directories.
func (r *Shims) Dir() string { return r.dir }

// containerDir returns the runtime directory of a container.
func (r *Shims) containerDir(id string) (string, error) {
	if id == "" || id[0] == '.' || strings.ContainsAny(id, "/\x00") {
		return "", fmt.Errorf("container id %q: %w", id, errdefs.ErrInvalidArgument)
	}
	return filepath.Join(r.dir, id), nil
}

// List returns the ids of all runtime directories.
func (r *Shims) List(ctx context.Context) ([]string, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("list containers with a runtime directory: %w", err)
	}
	found := make([]string, 0, len(entries))
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if dir := filepath.Join(r.dir, e.Name()); !wasUsed(dir) && dropUnused(dir) {
			continue
		}
		found = append(found, e.Name())
	}
	return found, nil
}

// dropUnused removes a directory that a daemon made and died before it had started the shim. It reports whether that
// was so.
func dropUnused(dir string) bool {
	lock, err := takeLock(dir)
	if err != nil {
		return false // a shim runs
	}
	defer lock.Close() // nothing was written
	return removeDir(dir) == nil
}

// Spawn starts the shim of a container.
func (r *Shims) Spawn(ctx context.Context, req SpawnRequest) (_ Task, err error) {
	dir, err := r.containerDir(req.ID)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("spawn the shim of %s: %w", ids.Short(req.ID), err)
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	lock, err := takeLock(dir)
	if err != nil {
		return nil, err
	}
	defer lock.Close() // the shim has its own descriptor of the same lock
	if wasUsed(dir) {
		return nil, fmt.Errorf("a container that ended is still recorded in %s: %w", dir, errdefs.ErrAlreadyExists)
	}
	if err := fault.Point("runtime.spawn.locked"); err != nil {
		return nil, err
	}
	shim, err := r.startShim(dir, lock, req)
	if err != nil {
		_ = removeDir(dir) // the first error is the one to report
		return nil, err
	}
	if err := fault.Point("runtime.spawn.started"); err != nil {
		return nil, err
	}
	placed := make(chan struct{})
	go func() { // ends with place, which is bounded, and is waited for below
		defer close(placed)
		r.place.move(ctx, shim.pid, req.ID, r.root)
	}()
	t := &task{r: r, id: req.ID, dir: dir, conn: r.newConn(dir)}
	err = t.firstAnswer(ctx, shim)
	<-placed
	if err != nil {
		t.conn.close()
		log := shimLog(dir)
		_ = unix.Kill(shim.pid, unix.SIGKILL) // it holds nothing yet; reaped by the reaper
		_ = removeDir(dir)                    // the first error is the one to report
		return nil, fmt.Errorf("%w%s", err, log)
	}
	return t, nil
}

// firstAnswer waits until the shim answers, or has ended.
func (t *task) firstAnswer(ctx context.Context, shim *waiting) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	answered := make(chan error, 1)
	go func() { // ends with the context at the latest
		_, err := t.info(ctx)
		answered <- err
	}()
	select {
	case err := <-answered:
		return err
	case <-shim.exited:
		cancel()
		<-answered
		return errors.New("the shim has ended before it answered")
	}
}

// startShim gives a shim everything that it needs for its container.
func (r *Shims) startShim(dir string, lock *os.File, req SpawnRequest) (_ *waiting, err error) {
	driver := req.CgroupDriver
	if driver == "" {
		driver = r.driver
	}
	cfg, err := json.Marshal(shimapi.Config{
		ID:            req.ID,
		ExecRoot:      r.root,
		RuncPath:      r.runcPath,
		SystemdCgroup: driver == "systemd",
		Tty:           req.Tty,
		OpenStdin:     req.OpenStdin,
		StdinOnce:     req.StdinOnce,
		UID:           req.UID,
		GID:           req.GID,
		Log:           shimapi.Log(req.Log),
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, shimapi.ConfigFile), cfg, 0o600); err != nil {
		return nil, err
	}
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close() // the shim has its own
		}
	}()
	for _, name := range []string{shimapi.TaskSocket, shimapi.AttachSocket} {
		l, err := shimapi.Listen(dir, name)
		if err != nil {
			return nil, err
		}
		f, err := l.File()
		_ = l.Close() // f is a copy
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	log, err := os.OpenFile(filepath.Join(dir, shimapi.LogFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the shim has its own
	return r.assign(shimapi.Assignment{Dir: dir, Tasks: files[0], Attach: files[1], Lock: lock, Log: log})
}

// shimEnv is the environment of a shim, which runc inherits: little, so that the daemon's does not leak.
func (r *Shims) shimEnv() []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"),
		"GOMAXPROCS=2",
		"XDG_RUNTIME_DIR=" + r.root, // where console sockets are made, rather than in /tmp
	}
	if v, ok := os.LookupEnv(fault.EnvVar); ok {
		env = append(env, fault.EnvVar+"="+v)
	}
	return env
}

// reap takes the exit of a shim that this process started, without a thread that waits for it. The channel is closed
// when there is nothing to wait for any more.
func (r *Shims) reap(pidfd int) <-chan struct{} {
	exited := make(chan struct{})
	if pidfd < 0 {
		close(exited)
		return exited // an old kernel; the zombie goes with the daemon
	}
	_ = unix.SetNonblock(pidfd, true) // makes the poller take it
	f := os.NewFile(uintptr(pidfd), "pidfd")
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		_ = f.Close() // nobody waits any more
		close(exited)
		return exited
	}
	r.reapers[f] = struct{}{}
	r.wg.Go(func() {
		defer close(exited)
		defer func() {
			r.mu.Lock()
			delete(r.reapers, f)
			r.mu.Unlock()
			_ = f.Close() // a handle
		}()
		raw, err := f.SyscallConn()
		if err != nil {
			return
		}
		_ = raw.Read(func(fd uintptr) bool { // an error says that Close closed it
			var info unix.Siginfo
			err := unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG, nil)
			return err != nil && !errors.Is(err, unix.EAGAIN) || err == nil && info.Signo != 0
		})
	})
	return exited
}

// Reconnect takes up a container whose shim was started earlier.
func (r *Shims) Reconnect(ctx context.Context, id string) (Task, error) {
	dir, err := r.containerDir(id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, reconnectLimit)
	defer cancel()
	t := &task{r: r, id: id, dir: dir, conn: r.newConn(dir)}
	_, err = t.State(ctx)
	if err == nil {
		return t, nil
	}
	t.conn.close()
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("shim does not answer: %w", errdefs.ErrUnavailable)
	}
	return nil, fmt.Errorf("reconnect to %s: %w", ids.Short(id), err)
}

// Close drops the connections to the shims and leaves the shims running, but for the spare.
func (r *Shims) Close() error {
	r.mu.Lock()
	r.closed = true
	spare := r.spare
	r.spare = nil
	r.mu.Unlock()
	if spare != nil {
		spare.dismiss()
	}
	r.mu.Lock()
	var conns []*conn
	for c := range r.conns {
		conns = append(conns, c)
	}
	for f := range r.reapers {
		_ = f.Close() // ends its goroutine
	}
	r.mu.Unlock()
	for _, c := range conns {
		c.close()
	}
	r.wg.Wait()
	return nil
}
