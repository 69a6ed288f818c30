package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// ListenOptions say where to listen and who may connect.
type ListenOptions struct {
	// Addr is unix:///path, tcp://host:port, or fd:// for all sockets that systemd passed.
	Addr string
	// Group owns a unix socket: a name or a number. Empty means root's group.
	Group string
	// TLS must ask for and verify a client certificate, or InsecureTCP be set, before a TCP socket is opened.
	TLS         *tls.Config
	InsecureTCP bool
}

// Listen opens the sockets of an address. A unix socket is root's with mode 0660; a file left there by a daemon that
// is gone is replaced, a socket that somebody answers on is not.
func Listen(ctx context.Context, o ListenOptions) ([]net.Listener, error) {
	scheme, addr, found := strings.Cut(o.Addr, "://")
	if !found {
		return nil, fmt.Errorf("listen on %q: address is not unix://PATH, tcp://HOST:PORT or fd://", o.Addr)
	}
	switch scheme {
	case "unix":
		l, err := listenUnix(ctx, addr, o.Group)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", o.Addr, err)
		}
		return []net.Listener{l}, nil
	case "tcp":
		if err := o.checkTCP(); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", o.Addr, err)
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", o.Addr, err)
		}
		return []net.Listener{o.secure(l)}, nil
	case "fd":
		ls, err := o.passed()
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", o.Addr, err)
		}
		return ls, nil
	}
	return nil, fmt.Errorf("listen on %s: unknown scheme %q: use unix, tcp or fd", o.Addr, scheme)
}

// checkTCP refuses a TCP socket that would let anybody in: who reaches the API has root on the host.
func (o ListenOptions) checkTCP() error {
	switch {
	case o.TLS != nil && o.TLS.ClientAuth == tls.RequireAndVerifyClientCert && o.TLS.ClientCAs != nil, o.InsecureTCP:
		return nil
	case o.TLS != nil:
		return errors.New("TLS without verified client certificates gives everybody root on this host: use --tlsverify with --tlscacert, or --insecure-tcp if that is wanted")
	}
	return errors.New("TCP without TLS gives everybody root on this host: use --tlsverify with --tlscacert, --tlscert and --tlskey, or --insecure-tcp if that is wanted")
}

func (o ListenOptions) secure(l net.Listener) net.Listener {
	if o.TLS == nil {
		return l
	}
	cfg := o.TLS.Clone()
	cfg.NextProtos = []string{"http/1.1"}
	return tls.NewListener(l, cfg)
}

// passed takes over the sockets that systemd has opened for this process. They can be taken once.
func (o ListenOptions) passed() ([]net.Listener, error) {
	found, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take sockets from systemd: %w", err)
	}
	var taken []net.Listener
	for _, l := range found {
		if l == nil {
			continue // not a stream socket
		}
		if l.Addr().Network() == "tcp" {
			if err := o.checkTCP(); err != nil {
				return nil, fmt.Errorf("socket %s passed by systemd: %w", l.Addr(), err)
			}
			l = o.secure(l)
		}
		taken = append(taken, l)
	}
	if len(taken) == 0 {
		return nil, errors.New("systemd passed no socket: check that stated.socket is active and the daemon was started by its unit")
	}
	return taken, nil
}

// listenUnix makes the socket under a name of its own, gives it owner and mode, and then renames it to path, so that
// nobody can connect before it is protected, and no moment passes in which path is missing.
func listenUnix(ctx context.Context, path, group string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, errors.New("path of a unix socket must be absolute")
	}
	gid, err := lookupGroup(group)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of socket: %w", err)
	}
	if err := checkStale(ctx, path); err != nil {
		return nil, err
	}
	staged := path + "." + strconv.Itoa(os.Getpid())
	if err := os.Remove(staged); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove left-over socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", staged)
	if err != nil {
		return nil, err
	}
	ul := l.(*net.UnixListener)
	ul.SetUnlinkOnClose(false)
	err = os.Chown(staged, 0, gid)
	if err == nil {
		err = os.Chmod(staged, 0o660)
	}
	if err == nil {
		err = os.Rename(staged, path)
	}
	if err != nil {
		_, _ = ul.Close(), os.Remove(staged) // the first error says more
		return nil, fmt.Errorf("set up socket: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		_ = ul.Close() // as above
		return nil, fmt.Errorf("set up socket: %w", err)
	}
	return &unixListener{UnixListener: ul, path: path, file: info}, nil
}

// checkStale refuses a path at which a daemon answers, or something that is not a socket.
func checkStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and is not a socket", path)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		_ = conn.Close() // nothing was sent
		return errors.New("another daemon listens here: stop it, or choose another socket with -H")
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("see whether another daemon listens: %w", err)
}

func lookupGroup(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	if g, err := user.LookupGroup(name); err == nil {
		return strconv.Atoi(g.Gid)
	}
	gid, err := strconv.Atoi(name)
	if err != nil {
		return 0, fmt.Errorf("group %s of the socket does not exist: create it, or choose another with --group", name)
	}
	return gid, nil
}

// unixListener removes its socket when it closes, unless another daemon has put its own there.
type unixListener struct {
	*net.UnixListener
	path  string
	file  fs.FileInfo
	once  sync.Once
	after error
}

// Addr is the address that clients use.
func (l *unixListener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }

func (l *unixListener) Close() error {
	l.once.Do(func() {
		if info, err := os.Lstat(l.path); err == nil && os.SameFile(info, l.file) {
			_ = os.Remove(l.path) // a socket that is left is found stale
		}
		l.after = l.UnixListener.Close()
	})
	return l.after
}
