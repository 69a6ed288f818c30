// Package kvtest does to a real stated with a key tree what hosts do: it kills the daemon, fills its disk and damages its
// files, and holds what clients were answered before against what they read afterwards. STATED_SOAK=long makes the runs
// long. It needs the built binaries and root, and no image.
package kvtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"stated.dev/stated/internal/testenv"
	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/network/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// long says that the runs are to take as long as it takes to be sure.
func long() bool { return os.Getenv("STATED_SOAK") == "long" }

// host is one daemon after the other on the same roots, with a key tree.
type host struct {
	*testing.T
	scratch.Launch
	listen string
	http   *http.Client // of the key tree
	daemon *scratch.Daemon
}

// hosts counts the hosts of this process: each has a port of its own.
var hosts atomic.Int32

// newHost returns a host whose daemon is not started yet.
func newHost(t *testing.T) *host {
	t.Helper()
	dir := scratch.Dir(t)
	h := &host{T: t, listen: fmt.Sprintf("127.0.0.1:%d", 2378+hosts.Add(1)), Launch: scratch.Launch{
		Roots:  testenv.Roots{Data: filepath.Join(dir, "data"), Exec: filepath.Join(dir, "exec")},
		Socket: filepath.Join(dir, "s.sock"),
		Log:    filepath.Join(dir, "log"),
	}}
	h.Flags = []string{"--bridge", "none", "--kv-listen", h.listen}
	h.http = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}}
	t.Cleanup(func() {
		h.http.CloseIdleConnections()
		if h.daemon != nil {
			h.stop(syscall.SIGTERM)
		}
		if t.Failed() {
			t.Logf("the daemon's log ends:\n%s", scratch.Tail(h.Log))
		}
	})
	return h
}

// startedHost returns a host with a running daemon.
func startedHost(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.start()
	return h
}

func (h *host) start() {
	h.Helper()
	d, err := h.Launch.Start()
	if err != nil {
		h.Fatal(err)
	}
	h.daemon = d
}

func (h *host) stop(sig syscall.Signal) {
	h.Helper()
	d := h.daemon
	h.daemon = nil
	if err := d.End(sig); err != nil {
		h.Error(err)
	}
}

// restart kills the daemon and starts another one.
func (h *host) restart() {
	h.Helper()
	h.stop(syscall.SIGKILL)
	h.start()
}

// refuses starts a daemon that must not start, and say why.
func (h *host) refuses(words ...string) {
	h.Helper()
	d, err := h.Launch.Start()
	if err == nil {
		h.daemon = d
		h.Fatal("the daemon starts")
	}
	for _, w := range append(words, "exit status 1") {
		if !strings.Contains(err.Error(), w) {
			h.Errorf("the daemon does not say %q: %v", w, err)
		}
	}
}

// cluster is the directory of the log.
func (h *host) cluster(elem ...string) string {
	return filepath.Join(append([]string{h.Roots.Data, ".stated", "cluster"}, elem...)...)
}

// pid is the daemon's process.
func (h *host) pid() int {
	h.Helper()
	data, err := os.ReadFile(h.cluster("lock"))
	if err != nil {
		h.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		h.Fatal(err)
	}
	return pid
}

// node is a key in an answer.
type node struct {
	Key           string
	Value         *string
	Dir           bool
	TTL           int64
	ModifiedIndex uint64
	CreatedIndex  uint64
	Nodes         []node
}

// value is the node's value, "-" when there is no node.
func (n *node) value() string {
	switch {
	case n == nil:
		return "-"
	case n.Value == nil:
		return ""
	}
	return *n.Value
}

// answer is one of the key tree: an event, or an error.
type answer struct {
	Status int `json:"-"`

	Action   string
	Node     *node
	PrevNode *node

	ErrorCode int
	Message   string
	Cause     string

	Index     uint64 `json:"-"` // X-Etcd-Index
	RaftIndex uint64 `json:"-"`
}

// errNotSent is what request returns when the daemon has certainly not seen the request.
var errNotSent = errors.New("the daemon is not there")

// request asks the key tree for something. Parameters of a change go into its body, others into the address. An error means
// that there was no answer: the outcome is unknown but for errNotSent.
func (h *host) request(method, key string, parameters url.Values) (answer, error) {
	return h.requestAt("http://"+h.listen, h.http, method, key, parameters)
}

func (h *host) requestAt(base string, client *http.Client, method, key string, parameters url.Values) (answer, error) {
	address, body := base+"/v2/keys"+key, io.Reader(nil)
	if method == http.MethodPut || method == http.MethodPost {
		body = strings.NewReader(parameters.Encode())
	} else if len(parameters) > 0 {
		address += "?" + parameters.Encode()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // a hang
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return answer{}, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := client.Do(req)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" {
			return answer{}, fmt.Errorf("%w: %w", errNotSent, err)
		}
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{Status: resp.StatusCode}
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}, err
	}
	if err := json.Unmarshal(data, &a); err != nil {
		return answer{}, fmt.Errorf("%s %s: %w in %q", method, key, err, data)
	}
	a.Index, _ = strconv.ParseUint(resp.Header.Get("X-Etcd-Index"), 10, 64) // 0 is noticed where it matters
	a.RaftIndex, _ = strconv.ParseUint(resp.Header.Get("X-Raft-Index"), 10, 64)
	return a, nil
}

// form makes parameters of names and values.
func form(pairs ...string) url.Values {
	v := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		v.Set(pairs[i], pairs[i+1])
	}
	return v
}

// must asks for something that has to succeed.
func (h *host) must(method, key string, pairs ...string) answer {
	h.Helper()
	a, err := h.request(method, key, form(pairs...))
	if err != nil {
		h.Fatal(err)
	}
	if a.ErrorCode != 0 {
		h.Fatalf("%s %s: %d %s (%s)", method, key, a.ErrorCode, a.Message, a.Cause)
	}
	return a
}

// tree reads all keys below one, as a map to their values.
func (h *host) tree(key string) map[string]string {
	h.Helper()
	a, err := h.request(http.MethodGet, key, form("recursive", "true", "quorum", "true"))
	if err != nil {
		h.Fatal(err)
	}
	values := map[string]string{}
	var walk func(n *node)
	walk = func(n *node) {
		if !n.Dir {
			values[n.Key] = n.value()
		}
		for i := range n.Nodes {
			walk(&n.Nodes[i])
		}
	}
	if a.Node != nil {
		walk(a.Node)
	}
	return values
}

// api asks the daemon's own socket for a document.
func (h *host) api(method, path string, body string, into any) int {
	h.Helper()
	req, err := http.NewRequestWithContext(h.Context(), method, "http://stated"+path, strings.NewReader(body))
	if err != nil {
		h.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := scratch.Client(h.Socket).Do(req)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && into != nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		h.Fatalf("%s %s: %v in %q", method, path, err, data)
	}
	return resp.StatusCode
}

// doctor is what `stated doctor cluster` prints.
func (h *host) doctor() string {
	h.Helper()
	out, _ := exec.Command("stated", "-H", "unix://"+h.Socket, "doctor", "cluster").CombinedOutput() // 2 says that there are problems
	return string(out)
}

// shape is what a directory holds, but for who has it locked.
func shape(t *testing.T, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() == "lock" {
			return err
		}
		st, err := e.Info()
		if err != nil || e.IsDir() {
			fmt.Fprintln(&out, path, e.Type())
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&out, "%s %v %d %x\n", path, st.Mode(), st.Size(), sha256.Sum256(data))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}
