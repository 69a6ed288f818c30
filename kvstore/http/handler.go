// Package kvhttp serves the key tree over HTTP as etcd 3.4 serves its v2 API: keys, watches, members, statistics, and
// users with roles. What it answers, down to the order of fields, is in package keystest beside it, which a real etcd
// passes too.
//
// It holds no keys: it reads a kvstore.Store, and changes it through a Replica, so an answer to a change means that the
// change is durable. It opens no listener and decides nothing about the cluster. A watch lives as long as its request: its
// goroutine is the request's own, and ends with the client, with the watcher, or with Close.
//
// Locks: Handler has none; the cache of passwords has its own, never held over the comparison of a password.
package kvhttp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"stated.dev/stated/kvstore"
)

// Replica is what the handlers need of the key tree. *kvstore.Replica is one.
type Replica interface {
	// Do carries out a change and returns when it is durable. Its errors are of type *kvstore.Error.
	Do(ctx context.Context, c kvstore.Command) (*kvstore.Event, error)
	// Get reads what holds every change that was acknowledged before the call.
	Get(ctx context.Context, path string, g kvstore.GetRequest) (kvstore.Found, error)
	// Store is this host's copy, to read and to watch.
	Store() *kvstore.Store
}

// Log is what answers say of the replicated log.
type Log interface {
	// Position is the index of the last entry that this host has applied, and the term it is in.
	Position() (index, term uint64)
}

var _ Replica = (*kvstore.Replica)(nil)

// The directories of the tree in which the API keeps what it serves, as an etcd does.
const (
	clusterSpace = "/0"
	KeySpace     = "/1" // the users' keys
	authSpace    = "/2"
)

// Namespaces are the directories that a store for this API is made with.
func Namespaces() []string { return []string{clusterSpace, KeySpace} }

// Version is the version of etcd whose API this is; clients decide by it what they may ask for.
const (
	Version        = "3.4.23"
	ClusterVersion = "3.4.0"
)

// Options are a handler's limits. The zero value of each is its default.
type Options struct {
	MaxBody        int64         // longest body of a request in bytes; 10 MiB, which is etcd's limit too
	MaxWatches     int           // most watches at one time; 200,000
	MaxConnWatches int           // most watches of one connection, where a connection carries more than one; 1,000
	RequestTimeout time.Duration // how long a change or a read with a quorum may take; 7 s, as etcd with its default timers
	WriteTimeout   time.Duration // how long a client may take to send a body, and to read an answer or a batch of events; 1 min
	PasswordCost   int           // bcrypt's cost of new passwords; 10
	Logger         *slog.Logger  // slog.Default()
}

func (o Options) withDefaults() (Options, error) {
	for _, l := range []struct {
		name  string
		value int64
	}{{"MaxBody", o.MaxBody}, {"MaxWatches", int64(o.MaxWatches)}, {"MaxConnWatches", int64(o.MaxConnWatches)}, {"RequestTimeout", int64(o.RequestTimeout)},
		{"WriteTimeout", int64(o.WriteTimeout)}} {
		if l.value < 0 {
			return o, fmt.Errorf("serve the key tree: %s is negative: %d", l.name, l.value)
		}
	}
	set(&o.MaxBody, 10<<20)
	set(&o.MaxWatches, 200_000)
	set(&o.MaxConnWatches, 1_000)
	set(&o.RequestTimeout, 7*time.Second)
	set(&o.WriteTimeout, time.Minute)
	set(&o.PasswordCost, 10)
	if o.WriteTimeout <= o.RequestTimeout {
		return o, fmt.Errorf("serve the key tree: WriteTimeout (%v) has to be longer than RequestTimeout (%v)", o.WriteTimeout, o.RequestTimeout)
	}
	if o.PasswordCost < 4 || o.PasswordCost > 31 {
		return o, fmt.Errorf("serve the key tree: PasswordCost is %d, not from 4 to 31", o.PasswordCost)
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o, nil
}

func set[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Handler serves the API. It is an http.Handler.
type Handler struct {
	tree    Replica
	log     Log
	cluster Cluster
	auth    *auth
	o       Options

	clusterID []string // of the header, as net/http keeps it
	started   time.Time
	watches   atomic.Int64

	closing context.Context // of watches: it ends with Close
	close   context.CancelFunc
}

// New returns a handler. It blocks on nothing and starts nothing.
func New(tree Replica, log Log, cluster Cluster, o Options) (*Handler, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	h := &Handler{tree: tree, log: log, cluster: cluster, auth: newAuth(tree, o), o: o, clusterID: []string{strconv.FormatUint(cluster.ID(), 16)},
		started: time.Now()}
	h.closing, h.close = context.WithCancel(context.Background())
	return h, nil
}

// Close ends all watches. Requests that come later are served, but watches end at once.
func (h *Handler) Close() { h.close() }

// Watches is the number of watches now.
func (h *Handler) Watches() int { return int(h.watches.Load()) }

// Server returns a server for the handler with limits against clients that send nothing. Its listener should probe idle
// connections, as those of package net do: a watch sends nothing by itself, and learns that its client is gone from there.
func (h *Handler) Server() *http.Server {
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Minute, WriteTimeout: h.o.WriteTimeout, MaxHeaderBytes: 64 << 10, ConnContext: h.ConnContext,
		ErrorLog: slog.NewLogLogger(h.o.Logger.Handler(), slog.LevelDebug)}
	s.RegisterOnShutdown(h.Close)
	return s
}

type connKey struct{}

// ConnContext goes into the http.Server, for MaxConnWatches to hold where a connection carries several requests at once.
func (h *Handler) ConnContext(ctx context.Context, _ net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, new(atomic.Int64))
}

// OnDaemonSocket says whether a path belongs to this API on a socket where others answer too. There /version is theirs.
func OnDaemonSocket(p string) bool {
	for _, prefix := range []string{"/v2/keys", "/v2/members", "/v2/machines", "/v2/stats", "/v2/auth", "/health"} {
		if rest, ok := strings.CutPrefix(p, prefix); ok && (rest == "" || rest[0] == '/' && prefix != "/health") {
			return true
		}
	}
	return false
}

// Header values that are the same in each answer. Nobody changes them: appending to one makes a copy.
var (
	anyOrigin      = []string{"*"}
	originMethods  = []string{"POST, GET, OPTIONS, PUT, DELETE"}
	originHeaders  = []string{"accept, content-type, authorization"}
	jsonType       = []string{"application/json"}
	textType       = []string{"text/plain; charset=utf-8"}
	allowKeys      = []string{"HEAD,GET,PUT,POST,DELETE"}
	contentTypeKey = "Content-Type"
)

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header["Access-Control-Allow-Origin"] = anyOrigin
	header["Access-Control-Allow-Methods"] = originMethods
	header["Access-Control-Allow-Headers"] = originHeaders
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusOK)
		return
	}
	p := r.URL.Path
	if !isClean(p) {
		if p = clean(p); p != r.URL.Path {
			u := url.URL{Path: p, RawQuery: r.URL.RawQuery}
			http.Redirect(w, r, u.String(), http.StatusMovedPermanently)
			return
		}
	}
	if key, ok := strings.CutPrefix(p, "/v2/keys"); ok && (key == "" || key[0] == '/') {
		h.serveKeys(w, r, key)
		return
	}
	switch {
	case p == "/v2/members" || strings.HasPrefix(p, "/v2/members/"):
		h.serveMembers(w, r, strings.TrimPrefix(p, "/v2/members"))
	case p == "/v2/machines":
		h.serveMachines(w, r)
	case strings.HasPrefix(p, "/v2/stats/"):
		h.serveStats(w, r, strings.TrimPrefix(p, "/v2/stats/"))
	case strings.HasPrefix(p, "/v2/auth/"):
		h.serveAuth(w, r, strings.TrimPrefix(p, "/v2/auth/"))
	case p == "/version":
		if allow(w, r, http.MethodGet) {
			writeBody(w, r, http.StatusOK, jsonType, []byte(`{"etcdserver":"`+Version+`","etcdcluster":"`+ClusterVersion+`"}`))
		}
	case p == "/health":
		h.serveHealth(w, r)
	default:
		http.NotFound(w, r)
	}
}

// isClean says that a path has nothing that clean would change. It may say no to one that is clean.
func isClean(p string) bool {
	if p == "" || p[0] != '/' {
		return false
	}
	for i := 0; i+1 < len(p); i++ {
		if p[i] == '/' && (p[i+1] == '/' || p[i+1] == '.') {
			return false
		}
	}
	return true
}

// clean resolves a path's dots and double slashes; a slash at its end stays.
func clean(p string) string {
	c := path.Clean("/" + p)
	if strings.HasSuffix(p, "/") && c != "/" {
		c += "/"
	}
	return c
}

// allow says whether a request's method is one of methods; if not, it has answered.
func allow(w http.ResponseWriter, r *http.Request, methods ...string) bool {
	for _, m := range methods {
		if r.Method == m {
			return true
		}
	}
	notAllowed(w, []string{strings.Join(methods, ",")})
	return false
}

func notAllowed(w http.ResponseWriter, methods []string) {
	w.Header()["Allow"] = methods
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
}

func writeBody(w http.ResponseWriter, r *http.Request, status int, kind []string, body []byte) {
	header := w.Header()
	header[contentTypeKey] = kind
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client is gone; net/http closes the connection
	}
}

// statusError is an error with an answer: a status and a text for the client.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func refuse(status int, format string, args ...any) error {
	return &statusError{status, fmt.Sprintf(format, args...)}
}

// writeMessage answers a request for anything but keys with an error.
func (h *Handler) writeMessage(w http.ResponseWriter, r *http.Request, err error) {
	var e *statusError
	if !errors.As(err, &e) {
		h.o.Logger.Warn("A request to the key tree failed", "method", r.Method, "path", r.URL.Path, "error", err)
		e = &statusError{http.StatusInternalServerError, "Internal Server Error"}
	}
	writeBody(w, r, e.status, jsonType, encode(struct {
		Message string `json:"message"`
	}{e.text}))
}
