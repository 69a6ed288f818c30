package kvhttp_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"stated.dev/stated/kvstore"
	kvhttp "stated.dev/stated/kvstore/http"
	"stated.dev/stated/kvstore/http/keystest"
	"stated.dev/stated/kvstore/http/servetest"
)

func TestAPI(t *testing.T) {
	keystest.Run(t, func(t *testing.T) keystest.Server {
		return keystest.Server{URL: serve(t, kvhttp.Options{PasswordCost: 4}).URL}
	})
}

// server is a server with what tests ask of it.
type server struct{ *servetest.Server }

func serve(t testing.TB, o kvhttp.Options) server { return server{servetest.Start(t, o)} }

// do sends a request and returns the status and the body of its answer.
func (s server) do(t *testing.T, method, path, form string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// watch opens a watch, which is registered when it returns.
func (s server) watch(t *testing.T, ctx context.Context, query string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/v2/keys/"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, c := range []struct {
		o    kvhttp.Options
		want string
	}{
		{kvhttp.Options{MaxBody: -1}, "MaxBody is negative"},
		{kvhttp.Options{MaxWatches: -1}, "MaxWatches is negative"},
		{kvhttp.Options{WriteTimeout: time.Second}, "WriteTimeout (1s) has to be longer than RequestTimeout (7s)"},
		{kvhttp.Options{PasswordCost: 3}, "PasswordCost is 3"},
	} {
		_, err := kvhttp.New(nil, nil, kvhttp.Alone{}, c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.want)
		}
	}
}

func TestLimits(t *testing.T) {
	s := serve(t, kvhttp.Options{MaxBody: 1000, MaxWatches: 2})
	for _, c := range []struct {
		form   string
		status int
		body   string
	}{
		{"value=" + strings.Repeat("x", 900), 201, `"action":"set"`},
		{"value=" + strings.Repeat("x", 1000), 400, `"errorCode":210,"message":"Invalid POST form","cause":"the body is larger than 1000 bytes"`},
	} {
		if status, body := s.do(t, "PUT", "/v2/keys/f", c.form); status != c.status || !strings.Contains(body, c.body) {
			t.Errorf("a form of %d bytes: %d %s", len(c.form), status, body)
		}
	}
	// A body that does not tell its size is not read further than the limit either.
	req, err := http.NewRequestWithContext(t.Context(), "PUT", s.URL+"/v2/keys/f", io.MultiReader(strings.NewReader("value="), strings.NewReader(strings.Repeat("x", 1<<20))))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a body without a size: %s", resp.Status)
	}

	ctx, cancel := context.WithCancel(t.Context())
	s.watch(t, ctx, "f?wait=true")
	s.watch(t, ctx, "f?wait=true&stream=true")
	if status, body := s.do(t, "GET", "/v2/keys/f?wait=true", ""); status != 503 || !strings.Contains(body, "as many watches as it allows: 2") {
		t.Errorf("one watch too many: %d %s", status, body)
	}
	cancel()
	await(t, "no watches", func() bool { return s.Handler.Watches() == 0 })
	if got := s.Tree.Store().Stats().Watchers; got != 0 {
		t.Errorf("%d watchers are left in the store", got)
	}
	if resp := s.watch(t, t.Context(), "f?wait=true"); resp.StatusCode != http.StatusOK {
		t.Errorf("a watch after others ended: %s", resp.Status)
	}
}

func TestStoreLimitsAreTold(t *testing.T) {
	tree := kvstore.NewReplica(kvstore.New(kvstore.Options{Namespaces: kvhttp.Namespaces(), MaxValue: 10, MaxDepth: 5, MaxKey: 40}), kvstore.ReplicaOptions{})
	log := &servetest.Log{Replica: tree}
	tree.Attach(log)
	h, err := kvhttp.New(tree, log, kvhttp.Alone{}, kvhttp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listening := h.Server()
	var work sync.WaitGroup
	work.Go(func() { _ = listening.Serve(l) }) // ErrServerClosed
	defer work.Wait()
	defer listening.Close()
	s := server{&servetest.Server{URL: "http://" + l.Addr().String()}}
	for _, c := range []struct{ path, form, cause string }{
		{"/v2/keys/f", "value=" + strings.Repeat("x", 11), "value is longer than 10 bytes"},
		{"/v2/keys/a/b/c/d/e", "value=x", "key has more than 5 elements"},
		{"/v2/keys/" + strings.Repeat("k", 50), "value=x", "key is longer than 40 bytes"},
	} {
		if status, body := s.do(t, "PUT", c.path, c.form); status != 400 || !strings.Contains(body, c.cause) {
			t.Errorf("%s %s: %d %s", c.path, c.form, status, body)
		}
	}
}

// TestClose ends watches with the handler, and leaves no goroutine of theirs.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("serve", func(t *testing.T) {
		s := serve(t, kvhttp.Options{})
		var streams []*bufio.Reader
		for i := range 50 {
			streams = append(streams, bufio.NewReader(s.watch(t, t.Context(), fmt.Sprintf("f?wait=true&stream=%t", i%2 == 0)).Body))
		}
		s.Handler.Close()
		for _, r := range streams {
			if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
				t.Errorf("after Close a watch ends with %q, %v", rest, err)
			}
		}
		await(t, "no watches", func() bool { return s.Handler.Watches() == 0 })
		if status, body := s.do(t, "GET", "/v2/keys/?wait=true", ""); status != 200 || body != "" {
			t.Errorf("a watch after Close: %d %q", status, body)
		}
	})
	http.DefaultClient.CloseIdleConnections()
	await(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

// TestSlowWatch cuts a client that does not read, says so in the log, counts it, and slows nobody down.
func TestSlowWatch(t *testing.T) {
	s := serve(t, kvhttp.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow := s.watch(t, ctx, "f?wait=true&stream=true")
	value := "value=" + strings.Repeat("x", 100_000)
	for range 400 {
		if status, body := s.do(t, "PUT", "/v2/keys/f", value); status >= 300 {
			t.Fatalf("%d %s", status, body)
		}
	}
	if got := s.Tree.Store().Stats().CutWatchers; got != 1 {
		t.Errorf("%d watchers were cut, want 1", got)
	}
	if _, err := io.Copy(io.Discard, slow.Body); err != nil {
		t.Errorf("the stream ends with %v", err)
	}
	await(t, "no watches", func() bool { return s.Handler.Watches() == 0 })
	if !strings.Contains(s.Logged(), kvstore.ErrSlowWatcher.Error()) {
		t.Errorf("the log does not tell why the watch was ended: %s", s.Logged())
	}
}

// TestStalledWatch lets a client that never reads again not hold its connection for longer than the limit.
func TestStalledWatch(t *testing.T) {
	s := serve(t, kvhttp.Options{RequestTimeout: 50 * time.Millisecond, WriteTimeout: 200 * time.Millisecond})
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /v2/keys/f?wait=true&stream=true HTTP/1.1\r\nHost: x\r\n\r\n")
	await(t, "the watch", func() bool { return s.Handler.Watches() == 1 })
	value := strings.Repeat("x", 1<<20)
	for range 20 {
		if _, err := s.Tree.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: "/1/f", Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "the watch to end", func() bool { return s.Handler.Watches() == 0 })
}

// TestIdleWatch delivers after a time that is longer than what a client has to read an answer.
func TestIdleWatch(t *testing.T) {
	s := serve(t, kvhttp.Options{RequestTimeout: 20 * time.Millisecond, WriteTimeout: 40 * time.Millisecond})
	w := bufio.NewReader(s.watch(t, t.Context(), "f?wait=true&stream=true").Body)
	for i := range 3 {
		begin := time.Now()
		await(t, "the time to pass", func() bool { return time.Since(begin) > 100*time.Millisecond })
		if _, err := s.Tree.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: "/1/f", Value: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
		if line, err := w.ReadString('\n'); err != nil || !strings.Contains(line, fmt.Sprintf(`"value":"%d"`, i)) {
			t.Fatalf("event %d: %q, %v", i, line, err)
		}
	}
}

func TestUsersAreInTheTree(t *testing.T) {
	s := serve(t, kvhttp.Options{PasswordCost: 4})
	s.do(t, "PUT", "/v2/auth/users/alice", `{"user":"alice","password":"secret"}`)
	s.do(t, "PUT", "/v2/auth/roles/r", `{"role":"r","permissions":{"kv":{"read":["/a*"],"write":[]}}}`)
	for path, want := range map[string]string{
		"/2/users/alice": `{"user":"alice","password":"$2a$04$`,
		"/2/roles/r":     `{"role":"r","permissions":{"kv":{"read":["/a*"],"write":[]}}}`,
		"/0/version":     "3.4.0",
	} {
		event, err := s.Tree.Store().Get(path, kvstore.GetRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(event.Node.Value, want) {
			t.Errorf("%s is %s", path, event.Node.Value)
		}
	}
	if status, body := s.do(t, "PUT", "/v2/auth/users/bob", `{"user":"bob","password":"`+strings.Repeat("x", 73)+`"}`); status != 400 || !strings.Contains(body, "at most 72 bytes") {
		t.Errorf("a long password: %d %s", status, body)
	}
	// A key is no role, whatever a role is called.
	s.do(t, "PUT", "/v2/keys/evil", "value="+url.QueryEscape(`{"role":"evil","permissions":{"kv":{"read":["/*"],"write":["/*"]}}}`))
	s.do(t, "PUT", "/v2/auth/users/eve", `{"user":"eve","password":"pw","roles":["../../1/evil"]}`)
	if status, body := s.do(t, "GET", "/v2/auth/users/eve", ""); status != 404 {
		t.Errorf("a role outside of the roles: %d %s", status, body)
	}
	// Other parts of the tree are not reached through the keys.
	for _, path := range []string{"/v2/keys/..%2f2/users/alice", "/v2/keys/%2e%2e/2/users/alice", "/v2/keys%2f..%2f2"} {
		if status, body := s.do(t, "GET", path, ""); status == 200 || strings.Contains(body, "secret") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestOnDaemonSocket(t *testing.T) {
	for path, want := range map[string]bool{
		"/v2/keys": true, "/v2/keys/x": true, "/v2/keysx": false, "/v2/members/leader": true, "/v2/auth/enable": true, "/v2/machines": true, "/v2/stats/self": true, "/health": true,
		"/health/x": false, "/version": false, "/v2": false, "/v1.41/info": false, "/": false,
	} {
		if got := kvhttp.OnDaemonSocket(path); got != want {
			t.Errorf("OnDaemonSocket(%q) = %t", path, got)
		}
	}
}

// TestFollower answers for members and health as one that does not lead.
func TestFollower(t *testing.T) {
	tree := kvstore.NewReplica(kvstore.New(kvstore.Options{Namespaces: kvhttp.Namespaces()}), kvstore.ReplicaOptions{})
	for _, c := range []struct {
		cluster fakeCluster
		path    string
		status  int
		body    string
	}{
		{fakeCluster{leader: 2}, "/v2/stats/leader", 403, `{"message":"not current leader"}`},
		{fakeCluster{leader: 2}, "/health", 200, `{"health":"true"}`},
		{fakeCluster{}, "/health", 503, `{"health":"false"}`},
		{fakeCluster{}, "/v2/members/leader", 503, `{"message":"During election"}`},
		{fakeCluster{err: kvhttp.ErrMemberRemoved}, "DELETE /v2/members/5", 410, `{"message":"Member permanently removed: 5"}`},
		{fakeCluster{err: kvhttp.ErrNoSuchMember}, "DELETE /v2/members/5", 404, `{"message":"No such member: 5"}`},
		{fakeCluster{}, "DELETE /v2/members/5", 204, ``},
		{fakeCluster{}, "PUT /v2/members/5", 204, ``},
		{fakeCluster{err: kvhttp.ErrMemberExists}, "POST /v2/members", 409, `{"message":"membership: peerURL exists"}`},
		{fakeCluster{}, "POST /v2/members", 201, `{"id":"9","name":"","peerURLs":["http://h:1"],"clientURLs":[]}` + "\n"},
		{fakeCluster{err: fmt.Errorf("the disk is full")}, "POST /v2/members", 500, `{"message":"Internal Server Error"}`},
	} {
		h, err := kvhttp.New(tree, &servetest.Log{}, c.cluster, kvhttp.Options{Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		method, path, found := strings.Cut(c.path, " ")
		if !found {
			method, path = "GET", c.path
		}
		w := &recorder{header: http.Header{}}
		r, err := http.NewRequest(method, path, strings.NewReader(`{"peerURLs":["http://h:1"]}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		h.ServeHTTP(w, r)
		if w.status != c.status || w.String() != c.body {
			t.Errorf("%s: %d %q, want %d %q", c.path, w.status, w.String(), c.status, c.body)
		}
	}
}

type recorder struct {
	bytes.Buffer
	header http.Header
	status int
}

func (r *recorder) Header() http.Header    { return r.header }
func (r *recorder) WriteHeader(status int) { r.status = status }

type fakeCluster struct {
	leader uint64
	err    error
}

func (c fakeCluster) ID() uint64               { return 7 }
func (c fakeCluster) Self() kvhttp.Member      { return kvhttp.Member{ID: 1} }
func (c fakeCluster) Members() []kvhttp.Member { return []kvhttp.Member{{ID: 1}, {ID: 2}} }
func (c fakeCluster) Leader() (kvhttp.Member, bool) {
	return kvhttp.Member{ID: c.leader}, c.leader != 0
}
func (c fakeCluster) Add(_ context.Context, urls []string) (kvhttp.Member, error) {
	return kvhttp.Member{ID: 9, PeerURLs: urls}, c.err
}
func (c fakeCluster) Update(context.Context, uint64, []string) error { return c.err }
func (c fakeCluster) Remove(context.Context, uint64) error           { return c.err }

// TestConnectionLimit counts the watches of a connection that carries several requests at once.
func TestConnectionLimit(t *testing.T) {
	s := serve(t, kvhttp.Options{MaxConnWatches: 2})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listening := s.Handler.Server()
	listening.Protocols = new(http.Protocols)
	listening.Protocols.SetUnencryptedHTTP2(true)
	var work sync.WaitGroup
	work.Go(func() { _ = listening.Serve(l) }) // ErrServerClosed
	defer work.Wait()
	defer listening.Close()
	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	get := func(ctx context.Context, path string) *http.Response {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	get(ctx, "/v2/keys/f?wait=true")
	stream := bufio.NewReader(get(t.Context(), "/v2/keys/f?wait=true&stream=true").Body)
	third := get(t.Context(), "/v2/keys/f?wait=true")
	body, err := io.ReadAll(third.Body)
	if err != nil || third.ProtoMajor != 2 || third.StatusCode != 503 || !strings.Contains(string(body), "as many watches as it may have: 2") {
		t.Fatalf("one watch too many: %s %s %s %v", third.Proto, third.Status, body, err)
	}
	cancel()
	await(t, "one watch", func() bool { return s.Handler.Watches() == 1 })
	if resp := get(t.Context(), "/v2/keys/f?wait=true"); resp.StatusCode != http.StatusOK {
		t.Errorf("a watch after another one ended: %s", resp.Status)
	}
	if status, body := s.do(t, "PUT", "/v2/keys/f", "value=1"); status != 201 {
		t.Fatalf("%d %s", status, body)
	}
	if line, err := stream.ReadString('\n'); err != nil || !strings.Contains(line, `"value":"1"`) {
		t.Errorf("the stream has %q, %v", line, err)
	}
}

// stuckLog commits nothing.
type stuckLog struct{ servetest.Log }

func (*stuckLog) Propose(ctx context.Context, _ []byte) (any, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (*stuckLog) ReadIndex(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// TestRequestTimeout answers when the log does not.
func TestRequestTimeout(t *testing.T) {
	tree := kvstore.NewReplica(kvstore.New(kvstore.Options{Namespaces: kvhttp.Namespaces()}), kvstore.ReplicaOptions{})
	tree.Attach(&stuckLog{})
	h, err := kvhttp.New(tree, &stuckLog{}, fakeCluster{leader: 1}, kvhttp.Options{RequestTimeout: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"PUT", "/v2/keys/f?value=1", 500, `"errorCode":300,"message":"Raft Internal Error","cause":"context deadline exceeded"`},
		{"GET", "/v2/keys?quorum=true", 500, `"errorCode":300,"message":"Raft Internal Error","cause":"context deadline exceeded"`},
		{"GET", "/v2/keys", 200, `"action":"get"`},
		{"GET", "/v2/auth/users", 500, `{"message":"Internal Server Error"}`},
	} {
		w := &recorder{header: http.Header{}}
		r, err := http.NewRequestWithContext(t.Context(), c.method, c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		h.ServeHTTP(w, r)
		if w.status != c.status || !strings.Contains(w.String(), c.body) {
			t.Errorf("%s %s: %d %s", c.method, c.path, w.status, w.String())
		}
	}
}
