package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// measured is what a process of contrib/bench/v2store answers.
type measured struct{ Value, Allocs float64 }

// treeProcess holds trees of one kind in memory and measures them.
type treeProcess struct {
	name string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
}

func startTrees(binary, side, dir string) (*treeProcess, error) {
	t := &treeProcess{name: side, cmd: exec.Command(binary, "-side", side, "-file", filepath.Join(dir, "saved-"+side))}
	t.cmd.Stderr = os.Stderr
	var err error
	if t.in, err = t.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := t.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	t.out = json.NewDecoder(out)
	return t, t.cmd.Start()
}

func (t *treeProcess) measure(what string) (m measured, err error) {
	if _, err = fmt.Fprintln(t.in, what); err == nil {
		err = t.out.Decode(&m)
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w", t.name, what, err)
	}
	return m, err
}

func (t *treeProcess) end() error { return errors.Join(t.in.Close(), t.cmd.Wait()) }

// treesInMemory compares operations of the tree alone with those of etcd 3.5's own package. Each tree lives in a process of its own.
func (b *bench) treesInMemory() (err error) {
	var sides [2]*treeProcess
	defer func() {
		for _, t := range sides {
			if t != nil {
				err = errors.Join(err, t.end())
			}
		}
	}()
	for i, name := range []string{"stated", "v2store"} {
		if sides[i], err = startTrees(b.trees, name, b.dir); err != nil {
			return err
		}
	}
	compare := func(what string, rounds int) (values, allocs [2][]float64, err error) {
		for range rounds {
			for i, t := range sides {
				m, err := t.measure(what)
				if err != nil {
					return values, allocs, err
				}
				values[i], allocs[i] = append(values[i], m.Value), append(allocs[i], m.Allocs)
			}
		}
		return values, allocs, nil
	}
	scale := func(values [2][]float64, by float64) [2][]float64 {
		for i := range values {
			for j := range values[i] {
				values[i][j] *= by
			}
		}
		return values
	}
	const toMS = 1e-6
	for _, m := range []struct {
		what, name, unit string
		goal, scale      float64
		allocs           float64 // goal of their number; 0: not a row
		few              bool    // a measurement that takes seconds
	}{
		{what: "set", name: "set", unit: "ns", goal: 0.6, allocs: 8},
		{what: "cas", name: "compare and swap", unit: "ns", goal: 0.6, allocs: 8},
		{what: "get", name: "get", unit: "ns", goal: 0.4},
		{what: "parallel get", name: "get, 2 readers", unit: "ns", goal: 0.3},
		{what: "set watched", name: "set, seen by 10,000 watchers", unit: "ms", goal: 0.5, scale: toMS},
		{what: "heap", name: "1,000,000 keys, memory for each", unit: "bytes", goal: 0.5, few: true},
		{what: "save", name: "1,000,000 keys, save to a file", unit: "ms", goal: 0.2, scale: toMS, few: true},
		{what: "recover", name: "1,000,000 keys, recover from a file", unit: "ms", goal: 0.3, scale: toMS, few: true},
		{what: "save document", name: "1,000,000 keys, save as etcd's JSON", unit: "ms", scale: toMS, few: true},
		{what: "recover document", name: "1,000,000 keys, recover from etcd's JSON", unit: "ms", scale: toMS, few: true},
		{what: "clone", name: "1,000,000 keys, clone", unit: "ms", goal: 0.01, scale: toMS, few: true},
	} {
		rounds := b.rounds
		if m.few {
			rounds = min(rounds, 3)
		}
		if m.what == "heap" {
			rounds = 1
		}
		values, allocs, err := compare(m.what, rounds)
		if err != nil {
			return err
		}
		if m.scale != 0 {
			values = scale(values, m.scale)
		}
		b.addMedians(row{name: "in memory: " + m.name, unit: m.unit, goal: m.goal, against: "etcd"}, values)
		if m.allocs != 0 {
			b.addMedians(row{name: "in memory: " + m.name + ", allocations", goal: m.allocs, goalOf: ofUnit, against: "etcd"}, allocs)
		}
	}
	return b.idleWatchers(compare)
}

// idleWatchers: how many times as long a change takes beside 100,000 watchers of other keys. The two are measured in turn.
func (b *bench) idleWatchers(compare func(what string, rounds int) (values, allocs [2][]float64, err error)) error {
	var without, with, factor [2][]float64
	for range b.rounds {
		w, _, err := compare("set unwatched", 1)
		if err != nil {
			return err
		}
		i, _, err := compare("set beside idle", 1)
		if err != nil {
			return err
		}
		for side := range factor {
			without[side], with[side] = append(without[side], w[side][0]), append(with[side], i[side][0])
			factor[side] = append(factor[side], i[side][0]/w[side][0])
		}
	}
	b.addMedians(row{name: "in memory: set of one key", unit: "ns", against: "etcd"}, without)
	b.addMedians(row{name: "in memory: set of one key beside 100,000 idle watchers", unit: "ns", against: "etcd"}, with)
	b.addMedians(row{name: "in memory: set beside idle watchers over without", unit: "×", goal: 1.05, goalOf: ofUnit, against: "etcd"}, factor)
	return nil
}

// manyClients is the number of clients at once that goals are set for.
const manyClients = 64

// keysOverHTTP compares the two servers, each of which flushes every change to the same disk.
func (b *bench) keysOverHTTP() (err error) {
	address, err := freeAddresses(3)
	if err != nil {
		return err
	}
	stated := newKeyServer(filepath.Join(b.dir, "stated-keys"), b.stated, address[0])
	etcd := newEtcd(filepath.Join(b.dir, "etcd"), b.etcd, address[1], address[2])
	addresses := map[*peer]string{stated: address[0], etcd: address[1]}
	peers := b.peers
	b.peers = [2]*peer{stated, etcd}
	defer func() {
		for _, p := range b.peers {
			err = errors.Join(err, p.down(syscall.SIGTERM))
		}
		b.peers = peers
	}()
	for _, p := range b.peers {
		if err := os.Mkdir(p.dir, 0o755); err != nil {
			return err
		}
		if err := p.spawn(); err != nil {
			return err
		}
		if err := keysReady(addresses[p]); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	put := keyRequest{method: "PUT", body: "value=" + strings.Repeat("x", 128)}
	swap := keyRequest{method: "PUT", body: put.body, query: "?prevExist=true&prevValue=" + strings.Repeat("x", 128)}
	get, quorum := keyRequest{method: "GET"}, keyRequest{method: "GET", query: "?quorum=true"}
	if err := b.each(func(p *peer) error { // all keys are there, and the connections' code is warm
		_, err := put.rate(addresses[p], 8, 4*keysAsked)
		return err
	}); err != nil {
		return err
	}
	for _, m := range []struct {
		name    string
		request keyRequest
		clients int
		goal    float64
		n       int
	}{
		{"put", put, 1, 1, 2000},
		{"put", put, manyClients, 1.15, 20_000},
		{"compare and swap", swap, 1, 0, 2000},
		{"compare and swap", swap, manyClients, 0, 20_000},
		{"quorum get", quorum, 1, 1.5, 4000},
		{"quorum get", quorum, manyClients, 1.5, 20_000},
		{"get", get, 1, 0, 4000},
		{"get", get, manyClients, 0, 20_000},
	} {
		name := fmt.Sprintf("HTTP: %s, %d clients", m.name, m.clients)
		if m.clients == 1 {
			name = fmt.Sprintf("HTTP: %s, 1 client", m.name)
		}
		if err := b.compare(row{name: name, unit: "/s", more: true, goal: m.goal, against: "etcd"}, b.rounds, func(p *peer, _ int) (float64, error) {
			return m.request.rate(addresses[p], m.clients, m.n)
		}); err != nil {
			return err
		}
	}
	for _, m := range []struct {
		name       string
		clients, n int
		goal       float64
	}{{"put, 1 client", 1, 200, 1}, {"put, 64 clients", manyClients, 12_800, 0.1}} {
		// The log may begin a new segment meanwhile, which is a flush too.
		r := row{name: "flushes: " + m.name, goal: m.goal, goalOf: ofUnit, against: "etcd"}
		if err := b.compare(r, 1, func(p *peer, _ int) (float64, error) {
			calls, err := p.flushes(func() error {
				_, err := put.rate(addresses[p], m.clients, m.n)
				return err
			})
			return float64(calls) / float64(m.n), err
		}); err != nil {
			return err
		}
	}
	return nil
}

// newKeyServer is a stated that serves its key tree.
func newKeyServer(dir, binary, address string) *peer {
	return &peer{name: "stated", dir: dir, args: func(p *peer) *exec.Cmd {
		return exec.Command(binary, "daemon", "--data-root", filepath.Join(p.dir, "data"), "--exec-root", filepath.Join(p.dir, "exec"),
			"-H", "unix://"+filepath.Join(p.dir, "d.sock"), "--bridge", "none", "--kv-listen", address)
	}}
}

// newEtcd is an etcd that serves its v2 API.
func newEtcd(dir, binary, client, member string) *peer {
	return &peer{name: "etcd", dir: dir, args: func(p *peer) *exec.Cmd {
		clients, members := "http://"+client, "http://"+member
		return exec.Command(binary, "--enable-v2", "--name=default", "--data-dir="+filepath.Join(p.dir, "data"), "--log-level=error",
			"--listen-client-urls="+clients, "--advertise-client-urls="+clients,
			"--listen-peer-urls="+members, "--initial-advertise-peer-urls="+members, "--initial-cluster=default="+members)
	}}
}

// freeAddresses finds ports of the loopback address on which nobody listens.
func freeAddresses(n int) ([]string, error) {
	var list []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		list = append(list, l.Addr().String())
	}
	return list, nil
}

// keysReady waits until a server answers and has done its own first writes.
func keysReady(address string) error {
	var last error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get("http://" + address + "/version")
		if err != nil {
			last = err
			continue
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil && bytes.Contains(body, []byte(`"etcdcluster":"3.4.0"`)) {
			return nil
		}
		last = errors.Join(err, fmt.Errorf("it said %q", body))
	}
	return fmt.Errorf("the key tree is not served: %w", last)
}

// keysAsked is how many keys requests are spread over.
const keysAsked = 1000

// keyRequest is a request that is made for many keys.
type keyRequest struct{ method, query, body string }

// rate makes n requests from some clients, each with a connection of its own that is open before the clock starts, and
// returns how many were answered in a second.
func (k keyRequest) rate(address string, clients, n int) (float64, error) {
	conns := make([]*keyConn, clients)
	for i := range conns {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return 0, err
		}
		defer c.Close()
		conns[i] = &keyConn{conn: c, in: bufio.NewReaderSize(c, 4096)}
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, clients)
	started := time.Now()
	for i, c := range conns {
		wg.Go(func() {
			for at := next.Add(1); at <= int64(n) && errs[i] == nil; at = next.Add(1) {
				errs[i] = c.do(k, at*7%keysAsked)
			}
		})
	}
	wg.Wait()
	return float64(n) / time.Since(started).Seconds(), errors.Join(errs...)
}

// keyConn speaks just enough HTTP on a connection that the client costs little beside the server.
type keyConn struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte
}

func (c *keyConn) do(k keyRequest, key int64) error {
	c.out = append(c.out[:0], k.method...)
	c.out = strconv.AppendInt(append(c.out, " /v2/keys/bench/key"...), key, 10)
	c.out = append(append(c.out, k.query...), " HTTP/1.1\r\nHost: bench\r\n"...)
	if k.body != "" {
		c.out = append(c.out, "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: "...)
		c.out = append(strconv.AppendInt(c.out, int64(len(k.body)), 10), "\r\n"...)
	}
	c.out = append(append(c.out, "\r\n"...), k.body...)
	if _, err := c.conn.Write(c.out); err != nil {
		return err
	}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(line) < 12 || line[9] != '2' {
		return fmt.Errorf("%s of key %d: %q", k.method, key, line)
	}
	length := -1
	for {
		if line, err = c.in.ReadSlice('\n'); err != nil {
			return err
		}
		name, value, found := bytes.Cut(line, []byte(": "))
		if !found {
			break // the empty line
		}
		if string(name) == "Content-Length" {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
	}
	if length < 0 {
		return fmt.Errorf("%s of key %d: an answer without a length", k.method, key)
	}
	_, err = c.in.Discard(length)
	return err
}
