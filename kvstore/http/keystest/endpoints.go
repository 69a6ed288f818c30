package keystest

import (
	"encoding/json"
	"regexp"
	"strings"
	"time"
)

const (
	notAllowed  = "Method Not Allowed"
	noPage      = "404 page not found"
	jsonType    = "application/json"
	badType     = `{"message":"Bad Content-Type application/x-www-form-urlencoded, accept application/json"}`
	onMembers   = "GET,POST,DELETE,PUT"
	onAuth      = "GET,PUT,DELETE"
	unreachable = `["http://127.0.0.1:1"]` // of a member that does not exist
)

func endpointScenarios() []scenario {
	return []scenario{
		{"members", []row{
			{send: "GET /v2/members", status: 200, body: `~\{"members":\[\{"id":"[0-9a-f]+","name":"[^"]*","peerURLs":\[.*\],"clientURLs":\[.*\]\}\]\}`},
			{send: "GET /v2/members/", status: 200, body: `~\{"members":\[\{.*\}\]\}`},
			{send: "GET /v2/members?x=%zz", status: 200, body: `~\{"members":\[\{.*\}\]\}`},
			{send: "GET /v2/members/leader", status: 200, body: `~\{"id":"[0-9a-f]+","name":"[^"]*","peerURLs":\[.*\],"clientURLs":\[.*\]\}`},
			{send: "GET /v2/members/leader/", status: 404, body: `{"message":"Not found"}`},
			{send: "GET /v2/members/xyz", status: 404, body: `{"message":"Not found"}`},
			{send: "GET /v2/members//", status: 301, body: "~.*"},
			{send: "HEAD /v2/members", status: 405, allow: onMembers},
			{send: "PATCH /v2/members", status: 405, body: notAllowed, allow: onMembers},
			{send: "PUT /v2/members", status: 405, body: notAllowed},
			{send: "DELETE /v2/members/", status: 405, body: notAllowed},
			{send: "POST /v2/members", form: "x=1", status: 415, body: badType},
			{send: "POST /v2/members", form: `{bad`, typ: jsonType, status: 400, body: `{"message":"invalid character 'b' looking for beginning of object key string"}`},
			{send: "POST /v2/members", typ: jsonType, status: 400, body: `{"message":"unexpected end of JSON input"}`},
			{send: "POST /v2/members", form: `{"peerURLs":[]}`, typ: jsonType, status: 400, body: `{"message":"no valid URLs given"}`},
			{send: "POST /v2/members", form: `{"peerURLs":["foo"]}`, typ: jsonType, status: 400, body: `{"message":"URL scheme must be http, https, unix, or unixs: foo"}`},
			{send: "POST /v2/members", form: `{"peerURLs":["http://127.0.0.1"]}`, typ: jsonType, status: 400, body: `{"message":"URL address does not have the form \"host:port\": http://127.0.0.1"}`},
			{send: "POST /v2/members", form: `{"peerURLs":["http://127.0.0.1:1/path"]}`, typ: jsonType, status: 400, body: `{"message":"URL must not contain a path: http://127.0.0.1:1/path"}`},
			{send: "DELETE /v2/members/12345", status: 404, body: `{"message":"No such member: 12345"}`},
			{send: "DELETE /v2/members/zz", status: 404, body: `{"message":"No such member: zz"}`},
			{send: "DELETE /v2/members/12345/x", status: 404, body: `{"message":"No such member: 12345/x"}`},
			{send: "PUT /v2/members/12345", form: `{"peerURLs":` + unreachable + `}`, typ: jsonType, status: 404, body: `{"message":"No such member: 12345"}`},
			{send: "PUT /v2/members/leader", form: `{"peerURLs":` + unreachable + `}`, typ: jsonType, status: 404, body: `{"message":"No such member: leader"}`},
			{send: "PUT /v2/members/12345", form: `{"peerURLs":[]}`, typ: jsonType, status: 400, body: `{"message":"no valid URLs given"}`},
			{send: "PUT /v2/members/12345", form: `x=1`, status: 415, body: badType},
			{send: "OPTIONS /v2/members", status: 200, body: "~"},
		}},
		{"machines", []row{
			{send: "GET /v2/machines", status: 200, body: `~\S+(, \S+)*`},
			{send: "HEAD /v2/machines", status: 200},
			{send: "PUT /v2/machines", status: 405, body: notAllowed, allow: "GET,HEAD"},
			{send: "GET /v2/machines/", status: 404, body: noPage},
		}},
		{"stats", []row{
			{send: "GET /v2/stats/leader", status: 200, body: `~\{"leader":"[0-9a-f]+","followers":\{\}\}`},
			{send: "PUT /v2/stats/self", status: 405, body: notAllowed, allow: "GET"},
			{send: "HEAD /v2/stats/self", status: 405, allow: "GET"},
			{send: "POST /v2/stats/store", status: 405, body: notAllowed, allow: "GET"},
			{send: "HEAD /v2/stats/leader", status: 405, allow: "GET"},
			{send: "GET /v2/stats", status: 404, body: noPage},
			{send: "GET /v2/stats/", status: 404, body: noPage},
			{send: "GET /v2/stats/self/", status: 404, body: noPage},
			{send: "GET /v2/stats/none", status: 404, body: noPage},
		}},
		{"operations", []row{
			{send: "GET /version", status: 200, body: `~\{"etcdserver":"[^"]+","etcdcluster":"[^"]+"\}`},
			{send: "PUT /version", status: 405, body: notAllowed, allow: "GET"},
			{send: "HEAD /version", status: 405, allow: "GET"},
			{send: "GET /version/", status: 404, body: noPage},
			{send: "GET /health", status: 200, body: `{"health":"true"}`},
			{send: "HEAD /health", status: 405, allow: "GET"},
			{send: "PUT /health", status: 405, body: notAllowed, allow: "GET"},
			{send: "GET /", status: 404, body: noPage},
			{send: "GET /nothing", status: 404, body: noPage},
			{send: "GET /v2", status: 404, body: noPage},
			{send: "GET /v2/auth", status: 404, body: noPage},
			{send: "OPTIONS /nothing", status: 200, body: "~"},
		}},
	}
}

// shapes looks at answers whose content is the server's own.
func shapes(r *run) {
	for path, want := range map[string]string{
		"/v2/members": jsonType, "/v2/members/leader": jsonType, "/v2/members/none": jsonType, "/v2/stats/self": jsonType, "/v2/stats/store": jsonType, "/v2/stats/leader": jsonType,
		"/version": jsonType, "/v2/auth/enable": jsonType, "/v2/auth/users": jsonType, "/v2/machines": "text/plain; charset=utf-8", "/nothing": "text/plain; charset=utf-8",
		"/health": "text/plain; charset=utf-8",
	} {
		a := r.do(row{send: "GET " + path})
		if got := a.header.Get("Content-Type"); got != want {
			r.Errorf("%s: Content-Type %q, want %q", path, got, want)
		}
		if sized := a.header.Get("Content-Length"); sized == "" {
			r.Errorf("%s: no Content-Length", path)
		}
	}
	var members struct {
		Members []struct {
			ID         string
			ClientURLs []string
		}
	}
	r.decode("/v2/members", &members)
	if len(members.Members) != 1 || len(members.Members[0].ClientURLs) == 0 {
		r.Fatalf("members: %+v", members)
	}
	one := members.Members[0]
	if machines := r.do(row{send: "GET /v2/machines"}).body; machines != strings.Join(one.ClientURLs, ", ") {
		r.Errorf("machines %q, members have %q", machines, one.ClientURLs)
	}
	var leader struct{ ID string }
	r.decode("/v2/members/leader", &leader)
	if leader.ID != one.ID {
		r.Errorf("the leader is %q, the member %q", leader.ID, one.ID)
	}
	var follows struct{ Leader string }
	r.decode("/v2/stats/leader", &follows)
	if follows.Leader != one.ID {
		r.Errorf("stats/leader: %q, the member %q", follows.Leader, one.ID)
	}
	self := r.decode("/v2/stats/self", nil)
	// The order is part of the answer, the values are the server's own.
	shape := regexp.MustCompile(`^\{"name":"[^"]*","id":"` + one.ID + `","state":"StateLeader","startTime":"([^"]*)","leaderInfo":\{"leader":"` + one.ID +
		`","uptime":"([^"]*)","startTime":"([^"]*)"\},"recvAppendRequestCnt":\d+,.*"sendAppendRequestCnt":\d+.*\}\n?$`).FindStringSubmatch(self)
	if shape == nil {
		r.Fatalf("stats/self: %s", self)
	}
	for _, at := range []string{shape[1], shape[3]} {
		if _, err := time.Parse(time.RFC3339Nano, at); err != nil {
			r.Errorf("stats/self: %v", err)
		}
	}
	if _, err := time.ParseDuration(shape[2]); err != nil {
		r.Errorf("stats/self: %v", err)
	}
}

// decode reads a JSON answer into v and returns it.
func (r *run) decode(path string, v any) string {
	r.Helper()
	a := r.must("GET "+path, "")
	if v != nil {
		if err := json.Unmarshal([]byte(a.body), v); err != nil {
			r.Fatalf("%s: %v in %s", path, err, a.body)
		}
	}
	return a.body
}

// changeMembers adds a member that does not exist, so the server is of no use afterwards.
func changeMembers(r *run) {
	const alone = "a host that is in no cluster has no members to change"
	var members struct{ Members []struct{ ID, Name string } }
	r.decode("/v2/members", &members)
	self := members.Members[0].ID
	refused := `~\{"message":"[^"]*cluster[^"]*"\}`
	rows := []row{
		{send: "PUT /v2/members/" + self, form: `{"peerURLs":` + unreachable + `}`, typ: jsonType, status: 501, body: refused, why: alone, etcdStatus: 204},
		{send: "POST /v2/members", form: `{"peerURLs":` + unreachable + `}`, typ: jsonType, status: 501, body: refused, why: alone, etcdStatus: 409, etcdBody: `{"message":"membership: peerURL exists"}`},
		{send: "POST /v2/members", form: `{"peerURLs":["http://127.0.0.1:2"],"name":"x","clientURLs":["http://127.0.0.1:3"]}`, typ: jsonType + "; charset=utf-8", status: 501, body: refused, why: alone, etcdStatus: 201,
			etcdBody: `~\{"id":"[0-9a-f]+","name":"","peerURLs":\["http://127.0.0.1:2"\],"clientURLs":\[\]\}`},
	}
	r.rows(rows)
}
