// Package keystest is the contract of the key tree's HTTP API as one suite: it drives a server through its base URL and
// knows nothing of who answers there. The same rows pass against etcd 3.4.23 and against the server of kvstore/http;
// the few answers that differ on purpose stand beside each other in their row, with the reason.
//
// It never starts a server and holds no locks. Its scenarios run one after the other: they compare indexes, which every
// write on a server moves.
package keystest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Server is one server that a scenario may use up.
type Server struct {
	// URL is where it answers, without a path.
	URL string
	// Etcd says that it is the original: rows that differ on purpose compare with what the original answers.
	Etcd bool
}

// limit ends a request that a server does not answer.
const limit = 30 * time.Second

// Run drives fresh servers through the whole API. start returns one whose tree is empty and whose auth is off; it goes
// away with the test it was started for.
func Run(t *testing.T, start func(t *testing.T) Server) {
	t.Run("keys", func(t *testing.T) {
		s := start(t)
		for _, c := range keyScenarios() {
			t.Run(c.name, func(t *testing.T) { newRun(t, s, c.name).rows(c.rows) })
		}
		t.Run("headers", func(t *testing.T) { headers(newRun(t, s, "headers")) })
		t.Run("long values", func(t *testing.T) { values(newRun(t, s, "values")) })
	})
	t.Run("watch", func(t *testing.T) {
		s := start(t)
		for _, c := range watchScenarios() {
			t.Run(c.name, func(t *testing.T) { c.run(newRun(t, s, c.name)) })
		}
	})
	t.Run("stats", func(t *testing.T) { stats(newRun(t, start(t), "stats")) })
	t.Run("endpoints", func(t *testing.T) {
		s := start(t)
		for _, c := range endpointScenarios() {
			t.Run(c.name, func(t *testing.T) { newRun(t, s, c.name).rows(c.rows) })
		}
		t.Run("shapes", func(t *testing.T) { shapes(newRun(t, s, "shapes")) })
	})
	t.Run("auth", func(t *testing.T) {
		for _, c := range authScenarios() {
			t.Run(c.name, func(t *testing.T) { newRun(t, start(t), c.name).rows(c.rows) })
		}
	})
	t.Run("change members", func(t *testing.T) { changeMembers(newRun(t, start(t), "members")) })
}

// A row is one request and its answer.
//
// In what is sent and in bodies, @ stands for the scenario's own directory; as the first letter of a path it is below
// /v2/keys. In bodies {+N} is the index that the tree had when the scenario began, plus N; {20+N} is the same with
// twenty digits; {time} is any time; {ttlN} is N or N-1. An expected body that begins with ~ is a regular expression.
type row struct {
	send   string // "PUT @/foo?prevExist=true"
	form   string // the body; sent as a form unless typ says otherwise
	status int
	body   string // without the newline at the end

	typ   string // the request's Content-Type
	user  string // name:password of basic auth, or a whole Authorization header
	allow string // the Allow header of the answer
	plain bool   // the answer is text and says so

	// Where the original answers otherwise: why, and what it answers.
	why        string
	etcdStatus int
	etcdBody   string
}

// keys says that the request is one for keys.
func (w row) keys() bool {
	return strings.Contains(w.send, " /v2/keys") || strings.Contains(w.send, " @")
}

type scenario struct {
	name string
	rows []row
}

// run is one scenario under way.
type run struct {
	*testing.T
	Server
	dir  string
	base uint64 // the tree's index when it began
}

func newRun(t *testing.T, s Server, name string) *run {
	r := &run{T: t, Server: s, dir: "/" + strings.Map(func(c rune) rune {
		if c == ' ' || c == '/' || c == ',' {
			return '-'
		}
		return c
	}, name)}
	r.base = r.index()
	return r
}

// answer is what a server said.
type answer struct {
	status int
	header http.Header
	body   string
}

func (r *run) do(w row) answer {
	r.Helper()
	resp := r.open(r.Context(), w)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.Fatalf("%s: read the answer: %v", w.send, err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

// open sends a request and returns when the answer's headers have come.
func (r *run) open(ctx context.Context, w row) *http.Response {
	r.Helper()
	method, path, ok := strings.Cut(w.send, " ")
	if !ok {
		r.Fatalf("not a request: %q", w.send)
	}
	if rest, own := strings.CutPrefix(path, "@"); own {
		path = "/v2/keys" + r.dir + rest
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	r.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, r.URL+path, strings.NewReader(strings.ReplaceAll(w.form, "@", r.dir)))
	if err != nil {
		r.Fatal(err)
	}
	switch {
	case w.typ == "none":
	case w.typ != "":
		req.Header.Set("Content-Type", w.typ)
	case w.form != "":
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if name, password, basic := strings.Cut(w.user, ":"); basic {
		req.SetBasicAuth(name, password)
	} else if w.user != "" {
		req.Header.Set("Authorization", w.user)
	}
	resp, err := client.Do(req)
	if err != nil {
		r.Fatalf("%s: %v", w.send, err)
	}
	return resp
}

// client follows no redirects: that there is one is part of an answer.
var client = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 4},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (r *run) rows(rows []row) {
	for _, w := range rows {
		a := r.do(w)
		status, body := w.status, w.body
		if r.Etcd && w.why != "" {
			status, body = w.etcdStatus, w.etcdBody
		}
		if a.status != status {
			r.Errorf("%s %s: status %d, want %d: %s", w.send, w.form, a.status, status, a.body)
			continue
		}
		r.match(w, a, body)
		r.checkHeaders(w, a)
	}
}

func (r *run) match(w row, a answer, want string) {
	r.Helper()
	got, ended := strings.CutSuffix(a.body, "\n")
	if strings.HasPrefix(w.send, "HEAD ") {
		if a.body != "" {
			r.Errorf("%s: an answer to HEAD has a body: %q", w.send, a.body)
		}
		return
	}
	if !r.pattern(want).MatchString(got) {
		r.Errorf("%s %s: answers\n     %s\nwant %s", w.send, w.form, got, strings.ReplaceAll(want, "@", r.dir))
	}
	if lines := strings.Contains(w.send, " /v2/members") || strings.Contains(w.send, " /v2/auth/"); lines && a.status < 300 && want != "~" && want != "" && !ended {
		r.Errorf("%s: the body does not end in a newline: %q", w.send, a.body)
	} else if lines && strings.HasPrefix(got, "{") && a.status >= 400 && ended {
		r.Errorf("%s: the body ends in a newline: %q", w.send, a.body)
	}
	if w.keys() && a.status != http.StatusMovedPermanently && !strings.HasPrefix(w.send, "OPTIONS ") {
		if !ended {
			r.Errorf("%s: the body does not end in a newline: %q", w.send, a.body)
		}
	}
}

var holes = regexp.MustCompile(`\\\{(time|ttl\d+|20\\\+\d+|\\\+\d+)\\\}`)

func (r *run) pattern(want string) *regexp.Regexp {
	if p, ok := strings.CutPrefix(want, "~"); ok {
		return regexp.MustCompile(`(?s)^(?:` + p + `)$`)
	}
	quoted := regexp.QuoteMeta(strings.ReplaceAll(want, "@", r.dir))
	filled := holes.ReplaceAllStringFunc(quoted, func(hole string) string {
		hole = strings.ReplaceAll(hole, `\`, "")
		hole = hole[1 : len(hole)-1]
		number := func(prefix string) uint64 {
			n, err := strconv.ParseUint(strings.TrimPrefix(hole, prefix), 10, 64)
			if err != nil {
				r.Fatal(err)
			}
			return n
		}
		switch {
		case hole == "time":
			return `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z`
		case strings.HasPrefix(hole, "ttl"):
			n := number("ttl")
			return fmt.Sprintf("(?:%d|%d)", n, n-1)
		case strings.HasPrefix(hole, "20+"):
			return fmt.Sprintf("%020d", r.base+number("20+"))
		default:
			return strconv.FormatUint(r.base+number("+"), 10)
		}
	})
	return regexp.MustCompile("^" + filled + "$")
}

// checkHeaders holds what is the same for every answer of a path.
func (r *run) checkHeaders(w row, a answer) {
	r.Helper()
	want := map[string]string{
		"Access-Control-Allow-Origin":  "*",
		"Access-Control-Allow-Methods": "POST, GET, OPTIONS, PUT, DELETE",
		"Access-Control-Allow-Headers": "accept, content-type, authorization",
		"Allow":                        w.allow,
	}
	for name, value := range want {
		if a.header.Get(name) != value {
			r.Errorf("%s: header %s is %q, want %q", w.send, name, a.header.Get(name), value)
		}
	}
	if !w.keys() || w.plain || a.status == http.StatusMethodNotAllowed || a.status == http.StatusMovedPermanently || strings.HasPrefix(w.send, "OPTIONS ") {
		return
	}
	if a.header.Get("Content-Type") != "application/json" {
		r.Errorf("%s: Content-Type %q", w.send, a.header.Get("Content-Type"))
	}
	if !regexp.MustCompile(`^[0-9a-f]+$`).MatchString(a.header.Get("X-Etcd-Cluster-Id")) {
		r.Errorf("%s: X-Etcd-Cluster-Id %q", w.send, a.header.Get("X-Etcd-Cluster-Id"))
	}
	number := regexp.MustCompile(`^[0-9]+$`)
	if !number.MatchString(a.header.Get("X-Etcd-Index")) {
		r.Errorf("%s: X-Etcd-Index %q", w.send, a.header.Get("X-Etcd-Index"))
	}
	for _, name := range []string{"X-Raft-Index", "X-Raft-Term"} {
		value, failed := a.header.Get(name), a.status >= 400
		if failed && value != "" || !failed && !number.MatchString(value) {
			r.Errorf("%s: status %d with %s %q", w.send, a.status, name, value)
		}
	}
	if a.status >= 400 && a.body != "" {
		var e struct{ Index uint64 }
		if err := json.Unmarshal([]byte(a.body), &e); err != nil {
			r.Errorf("%s: %v in %q", w.send, err, a.body)
		}
		if a.header.Get("X-Etcd-Index") != strconv.FormatUint(e.Index, 10) {
			r.Errorf("%s: X-Etcd-Index %q, index %d", w.send, a.header.Get("X-Etcd-Index"), e.Index)
		}
	}
}

// index is the tree's index now.
func (r *run) index() uint64 {
	r.Helper()
	a := r.do(row{send: "GET /v2/keys"})
	n, err := strconv.ParseUint(a.header.Get("X-Etcd-Index"), 10, 64)
	if err != nil || n == 0 {
		r.Fatalf("X-Etcd-Index of %d %s is %q", a.status, a.body, a.header.Get("X-Etcd-Index"))
	}
	return n
}

// must sends a request that has to succeed.
func (r *run) must(send, form string) answer {
	r.Helper()
	a := r.do(row{send: send, form: form})
	if a.status >= 300 {
		r.Fatalf("%s %s: status %d: %s", send, form, a.status, a.body)
	}
	return a
}

// stream is a watch under way.
type stream struct {
	r      *run
	resp   *http.Response
	lines  *bufio.Reader
	cancel context.CancelFunc
}

// watch opens a watch. When it returns, the watcher is registered.
func (r *run) watch(send string) *stream {
	r.Helper()
	ctx, cancel := context.WithCancel(r.Context())
	r.Cleanup(cancel)
	resp := r.open(ctx, row{send: send})
	r.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body) // for the message only
		r.Fatalf("%s: status %d: %s", send, resp.StatusCode, body)
	}
	return &stream{r, resp, bufio.NewReader(resp.Body), cancel}
}

// next matches the next event.
func (s *stream) next(want string) {
	s.r.Helper()
	line, err := s.lines.ReadString('\n')
	if err != nil {
		s.r.Fatalf("read an event: %v, after %q, want %s", err, line, want)
	}
	if got := strings.TrimSuffix(line, "\n"); !s.r.pattern(want).MatchString(got) {
		s.r.Errorf("event\n     %s\nwant %s", got, strings.ReplaceAll(want, "@", s.r.dir))
	}
}

// end matches the end of the answer.
func (s *stream) end() {
	s.r.Helper()
	if rest, err := io.ReadAll(s.lines); err != nil || len(rest) > 0 {
		s.r.Errorf("more came than was expected: %q, %v", rest, err)
	}
}
