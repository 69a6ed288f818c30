package kvhttp

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// FuzzForm compares the parser of forms with the one of net/url.
func FuzzForm(f *testing.F) {
	for _, s := range []string{"", "value=1", "value=a+b%20c&&ttl=&prevExist", "a=%zz", "value=1;2&value=3", "%76alue=%3D", "=x&value=%", "wait=true&wait=false", "value=%00%ff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.Count(s, "&") > 1000 {
			return // the other one refuses many fields
		}
		var got form
		err := got.parse(s)
		want, wantErr := url.ParseQuery(s)
		if (err == nil) != (wantErr == nil) || err != nil && err.Error() != wantErr.Error() {
			t.Fatalf("%q: %v, want %v", s, err, wantErr)
		}
		for _, name := range []string{"value", "ttl", "dir", "prevExist", "prevIndex", "prevValue", "refresh", "recursive", "sorted", "quorum", "stream", "noValueOnSuccess", "wait", "waitIndex"} {
			p, ok := parameter(name)
			if !ok {
				t.Fatalf("%s is unknown", name)
			}
			if got.given[p] != want.Has(name) || got.value[p] != want.Get(name) {
				t.Fatalf("%q: %s is %t %q, want %q", s, name, got.given[p], got.value[p], want[name])
			}
		}
	})
}

// FuzzRequest gives the whole request for keys to the parser of parameters: it answers with a request or an error, and
// what it accepts is within the limits.
func FuzzRequest(f *testing.F) {
	f.Add("PUT", "prevExist=true&ttl=5", "application/x-www-form-urlencoded", "value=1")
	f.Add("GET", "wait=true&waitIndex=7&recursive=true", "", "")
	f.Add("DELETE", "prevIndex=3", "a;b=c;b=d", "x")
	f.Add("POST", "refresh=1&ttl=18446744073709551615", "text/plain", "")
	f.Fuzz(func(t *testing.T, method, query, kind, body string) {
		r := &http.Request{Method: method, URL: &url.URL{Path: "/v2/keys/f", RawQuery: query}, Header: http.Header{"Content-Type": {kind}},
			Body: http.NoBody, ContentLength: int64(len(body))}
		if body != "" {
			r.Body = httptest.NewRequest("PUT", "/", strings.NewReader(body)).Body
		}
		q, err := parseKeys(r, 1000)
		if err != nil {
			if err.Code < 200 || err.Code > 212 || err.Index != 0 || err.Cause == "" {
				t.Fatalf("an error of no known kind: %+v", err)
			}
			return
		}
		if q.ttl < 0 || q.wait && method != http.MethodGet || q.refresh && !q.hasTTL || len(q.value) > 1000+len(query) {
			t.Fatalf("%+v", q)
		}
		if c := q.command(method, "/1/f"); c.Op == 0 || c.Path != "/1/f" {
			t.Fatalf("%+v", c)
		}
	})
}

// FuzzPath holds that a path which is served is one that cannot leave the space of keys.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/v2/keys", "/v2/keys/../x", "//v2/keys/./a", "/v2/keys/a/..", "/v2/keys/.hidden/..x", "", "v2", "/v2/keys/a//"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		c := clean(p)
		if isClean(p) && c != p {
			t.Fatalf("%q is clean and is cleaned to %q", p, c)
		}
		if clean(c) != c || !strings.HasPrefix(c, "/") {
			t.Fatalf("%q is cleaned to %q, and that to %q", p, c, clean(c))
		}
		if slices.Contains(strings.Split(c, "/"), "..") || strings.Contains(c, "//") {
			t.Fatalf("%q is cleaned to %q", p, c)
		}
		OnDaemonSocket(p)
	})
}

// FuzzBodies reads the JSON of users, roles and members: it never fails but with an answer for the client.
func FuzzBodies(f *testing.F) {
	f.Add([]byte(`{"user":"x","password":"p","grant":["r"]}`))
	f.Add([]byte(`{"role":"x","permissions":{"kv":{"read":["/*"],"write":null}}}`))
	f.Add([]byte(`{"peerURLs":["http://[::1]:80","unix://a:1"]}`))
	f.Add([]byte(`{"user":5} {`))
	f.Fuzz(func(t *testing.T, body []byte) {
		known := func(err error) {
			if err == nil {
				return
			}
			if e, ok := err.(*statusError); !ok || e.status != http.StatusBadRequest || e.text == "" {
				t.Fatalf("%q: %v", body, err)
			}
		}
		u, err := parseUser(body, "x")
		known(err)
		r, err := parseRole(body, "x")
		known(err)
		if err == nil {
			role{r.Role, r.Permissions}.allows("/x", access{})
		}
		urls, err := parsePeerURLs(body)
		known(err)
		if err == nil {
			encoded, err := json.Marshal(map[string][]string{"peerURLs": urls})
			if err != nil {
				t.Fatal(err)
			}
			again, err := parsePeerURLs(encoded)
			if err != nil || !slices.Equal(again, urls) {
				t.Fatalf("%q is read as %q, and that as %q, %v", body, urls, again, err)
			}
		}
		_ = u
	})
}
