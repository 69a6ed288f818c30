package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"

	apikeys "stated.dev/stated/api/router/keys"
	"stated.dev/stated/api/types"
	"stated.dev/stated/cluster/raft"
	"stated.dev/stated/kvstore"
	kvhttp "stated.dev/stated/kvstore/http"
)

// keysMachine is the key tree's number in the log. It never changes.
const keysMachine = 1

// keyTreeOptions is what the key tree needs of the daemon.
type keyTreeOptions struct {
	Dir         string // of the log
	EngineID    string
	Listen      string // host:port; empty: nowhere
	TLS         *tls.Config
	InsecureTCP bool
	Limits      map[string]string // see keyLimits
	Log         *slog.Logger
}

// keyTree is the key tree, the log that makes it durable, and the API that serves it.
type keyTree struct {
	logger  *slog.Logger
	log     *raft.Log
	replica *kvstore.Replica
	api     *kvhttp.Handler
	server  *http.Server // nil without an address of its own
	stop    context.CancelFunc
	tasks   sync.WaitGroup
}

// openKeyTree opens the log, or begins one, and serves the tree on an address of its own if it has one.
func openKeyTree(ctx context.Context, o keyTreeOptions) (_ *keyTree, err error) {
	tree, api, err := keyLimits(o.Limits)
	if err != nil {
		return nil, err
	}
	listener, err := listenKeys(ctx, o)
	if err != nil {
		return nil, err
	}
	tree.Namespaces, tree.Limited, api.Logger = kvhttp.Namespaces(), kvhttp.KeySpace, o.Log
	k := &keyTree{logger: o.Log, replica: kvstore.NewReplica(kvstore.New(tree), kvstore.ReplicaOptions{Logger: o.Log})}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	k.stop = stop
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close())
			if listener != nil {
				_ = listener.Close() // nobody was served
			}
		}
	}()
	machines := []raft.Slot{{ID: keysMachine, Name: "keys", Machine: machine{k.replica}}}
	if k.log, err = raft.Open(ctx, raft.Options{Dir: o.Dir, Machines: machines, Logger: o.Log}); err != nil {
		return nil, err
	}
	k.replica.Attach(replicaLog{k.log})
	cluster := alone(o, listener)
	if err := kvhttp.Register(ctx, k.replica, cluster); err != nil {
		// A disk that refuses writes, as a full one, is no reason not to start: what an earlier start wrote stands there
		// until the next one. A tree that has nothing yet would answer with the index 0.
		if k.log.Stats().Fault == nil || k.replica.Store().Index() == 0 {
			return nil, err
		}
		o.Log.Warn("the key tree's members list this host as it was before", "err", err)
	}
	if k.api, err = kvhttp.New(k.replica, k.log, cluster, api); err != nil {
		return nil, err
	}
	k.tasks.Go(func() { _ = k.replica.Run(running) }) // it ends with its context, and says no more
	if listener == nil {
		return k, nil
	}
	k.server = k.api.Server()
	k.tasks.Go(func() {
		if err := k.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			o.Log.Error("the key tree is not served any more", "address", listener.Addr(), "err", err)
		}
	})
	return k, nil
}

// Close ends requests and watches and closes the log.
func (k *keyTree) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if k.api != nil {
		k.api.Close()
	}
	var err error
	if k.server != nil {
		if err = k.server.Shutdown(ctx); err != nil {
			err = errors.Join(fmt.Errorf("end requests to the key tree: %w", err), k.server.Close())
		}
	}
	k.stop()
	k.tasks.Wait()
	if k.log != nil {
		s := k.log.Stats()
		k.logger.Info("the key tree's log is being closed", "entries", s.LastIndex, "flushes", s.Flushes)
		err = errors.Join(err, k.log.Close(ctx))
	}
	return err
}

// ExportKeys is for the API.
func (k *keyTree) ExportKeys(ctx context.Context) ([]byte, error) {
	return kvhttp.Export(ctx, k.replica)
}

// ImportKeys is for the API.
func (k *keyTree) ImportKeys(ctx context.Context, req apikeys.ImportRequest) (types.KeyImport, error) {
	done, err := kvhttp.Import(ctx, k.replica, kvhttp.ImportRequest{Document: req.Document, Replace: req.Replace})
	if errors.Is(err, kvstore.ErrHasKeys) {
		err = fmt.Errorf("%w: to lose them for those of the document, import with --replace (replace=1)", err)
	}
	return types.KeyImport{Keys: done.Keys, Directories: done.Directories, Index: done.Index}, err
}

// listenKeys opens the key tree's own socket; nil if it has none. What is on the loopback address needs no TLS, as with an
// etcd: keys are not root's power.
func listenKeys(ctx context.Context, o keyTreeOptions) (net.Listener, error) {
	if o.Listen == "" {
		return nil, nil
	}
	host, _, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return nil, fmt.Errorf("--kv-listen %s: %w: use HOST:PORT, as 127.0.0.1:2379", o.Listen, err)
	}
	if ip := net.ParseIP(host); o.TLS == nil && !o.InsecureTCP && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("--kv-listen %s: whoever reaches the port may read and write all keys: use --tlsverify with --tlscacert, --tlscert and --tlskey, "+
			"or --insecure-tcp if that is wanted", o.Listen)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("--kv-listen %s: %w", o.Listen, err)
	}
	if o.TLS != nil {
		config := o.TLS.Clone()
		config.NextProtos = []string{"http/1.1"}
		l = tls.NewListener(l, config)
	}
	return l, nil
}

// alone is what the API says of a host that is in no cluster.
func alone(o keyTreeOptions, listener net.Listener) kvhttp.Alone {
	name, err := os.Hostname()
	if err != nil {
		name = "default"
	}
	sum := sha256.Sum256([]byte(o.EngineID))
	a := kvhttp.Alone{
		Cluster: binary.BigEndian.Uint64(sum[:]),
		Member:  kvhttp.Member{ID: binary.BigEndian.Uint64(sum[8:]), Name: name},
	}
	if listener != nil {
		scheme := "http"
		if o.TLS != nil {
			scheme = "https"
		}
		a.Member.ClientURLs = []string{scheme + "://" + reachable(listener.Addr())}
	}
	return a
}

// reachable is where clients find a listener: one that has all addresses is found at the first that others can reach.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	own := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: tcp.Port}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return own.String()
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			own.IP = n.IP
			break
		}
	}
	return own.String()
}

// machine is the key tree as the log knows it.
type machine struct{ replica *kvstore.Replica }

// keysVersion is that of the key tree's sections in snapshots. The first had no imports.
const keysVersion = 2

func (m machine) Apply(_ uint64, command []byte) any { return m.replica.Apply(command) }

func (m machine) Snapshot() (raft.Section, error) {
	s := m.replica.Snapshot()
	write := func(w io.Writer) error {
		_, err := s.WriteTo(w)
		return err
	}
	return raft.Section{Version: keysVersion, Write: write, Release: s.Release}, nil
}

func (m machine) Restore(version uint32, r io.Reader) error {
	if version < 1 || version > keysVersion {
		return fmt.Errorf("the key tree's snapshot has version %d: %w", version, raft.ErrVersion)
	}
	return m.replica.Restore(r)
}

// replicaLog is the log as the key tree knows it.
type replicaLog struct{ *raft.Log }

func (l replicaLog) Propose(ctx context.Context, command []byte) (any, error) {
	result, err := l.Log.Propose(ctx, keysMachine, command)
	if err == nil {
		return result, nil
	}
	for _, final := range []error{raft.ErrClosed, raft.ErrStopped} {
		if errors.Is(err, final) {
			return nil, verdict{err, kvstore.ErrLogClosed}
		}
	}
	switch {
	case errors.Is(err, raft.ErrOutcomeUnknown):
		return nil, err
	case errors.Is(err, raft.ErrNotLeading) && l.Stats().Fault == nil:
		return nil, err // for a moment only
	}
	return nil, verdict{err, kvstore.ErrLogRefused}
}

// verdict is an error of the log with what the key tree makes of it. Its text is the log's alone, since clients read it.
type verdict struct {
	error
	kind error
}

func (v verdict) Unwrap() []error { return []error{v.error, v.kind} }
