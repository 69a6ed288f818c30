package keystest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

type watchScenario struct {
	name string
	run  func(*run)
}

func watchScenarios() []watchScenario {
	return []watchScenario{
		{"wait for a key", func(r *run) {
			w := r.watch("GET @/f?wait=true")
			r.checkHeaders(row{send: "GET @/f"}, answer{w.resp.StatusCode, w.resp.Header, ""})
			if got := w.resp.Header.Get("X-Etcd-Index"); got != fmt.Sprint(r.base) {
				r.Errorf("X-Etcd-Index %s, want %d", got, r.base)
			}
			if w.resp.ContentLength != -1 {
				r.Errorf("a watch that waits has the length %d", w.resp.ContentLength)
			}
			r.must("PUT @/g", "value=other")
			r.must("PUT @/f", "value=1")
			w.next(`{"action":"set","node":{"key":"@/f","value":"1","modifiedIndex":{+2},"createdIndex":{+2}}}`)
			w.end()
		}},
		{"wait below a directory", func(r *run) {
			r.must("PUT @/d/f", "value=1")
			direct, below := r.watch("GET @/d?wait=true"), r.watch("GET @/d?wait=true&recursive=true")
			r.must("PUT @/d/f?prevExist=true", "value=2")
			below.next(`{"action":"update","node":{"key":"@/d/f","value":"2","modifiedIndex":{+2},"createdIndex":{+1}},"prevNode":{"key":"@/d/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`)
			below.end()
			r.must("DELETE @/d?recursive=true", "")
			direct.next(`{"action":"delete","node":{"key":"@/d","dir":true,"modifiedIndex":{+3},"createdIndex":{+1}},"prevNode":{"key":"@/d","dir":true,"modifiedIndex":{+1},"createdIndex":{+1}}}`)
			direct.end()
		}},
		{"wait at the root", func(r *run) {
			w := r.watch("GET /v2/keys?wait=true&recursive=true")
			r.must("PUT @/f", "value=1")
			w.next(`{"action":"set","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`)
			w.end()
		}},
		{"a directory goes with what is below it", func(r *run) {
			r.must("PUT @/d/e/f", "value=1")
			w := r.watch("GET @/d/e/f?wait=true")
			r.must("DELETE @/d?recursive=true", "")
			w.next(`{"action":"delete","node":{"key":"@/d","dir":true,"modifiedIndex":{+2},"createdIndex":{+1}},"prevNode":{"key":"@/d","dir":true,"modifiedIndex":{+1},"createdIndex":{+1}}}`)
			w.end()
		}},
		{"from an index", func(r *run) {
			r.must("PUT @/f", "value=1")
			r.must("PUT @/g", "value=2")
			r.must("PUT @/f", "value=3")
			get := func(query string) *stream { return r.watch("GET @" + query) }
			w := get(fmt.Sprintf("/f?wait=true&waitIndex=%d", r.base+1))
			w.next(`{"action":"set","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`)
			w.end()
			w = get(fmt.Sprintf("/f?wait=true&waitIndex=%d", r.base+2))
			w.next(`{"action":"set","node":{"key":"@/f","value":"3","modifiedIndex":{+3},"createdIndex":{+3}},"prevNode":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`)
			w.end()
			w = get(fmt.Sprintf("?wait=true&recursive=true&waitIndex=%d", r.base+2))
			w.next(`{"action":"set","node":{"key":"@/g","value":"2","modifiedIndex":{+2},"createdIndex":{+2}}}`)
			w.end()
			w = get(fmt.Sprintf("/g?wait=true&waitIndex=%d", r.base+3))
			r.must("PUT @/g", "value=4")
			w.next(`{"action":"set","node":{"key":"@/g","value":"4","modifiedIndex":{+4},"createdIndex":{+4}},"prevNode":{"key":"@/g","value":"2","modifiedIndex":{+2},"createdIndex":{+2}}}`)
			w.end()
			// A later index than the next one waits for it.
			w = get(fmt.Sprintf("/f?wait=true&waitIndex=%d", r.base+6))
			r.must("PUT @/f", "value=5")
			r.must("PUT @/f", "value=6")
			w.next(`{"action":"set","node":{"key":"@/f","value":"6","modifiedIndex":{+6},"createdIndex":{+6}},"prevNode":{"key":"@/f","value":"5","modifiedIndex":{+5},"createdIndex":{+5}}}`)
			w.end()
		}},
		{"a stream", func(r *run) {
			w := r.watch("GET @?wait=true&stream=true&recursive=true")
			r.must("PUT @/f", "value=1")
			w.next(`{"action":"set","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`)
			r.must("POST @/q", "value=2")
			r.must("PUT @/f?prevValue=1", "value=3")
			w.next(`{"action":"create","node":{"key":"@/q/{20+2}","value":"2","modifiedIndex":{+2},"createdIndex":{+2}}}`)
			w.next(`{"action":"compareAndSwap","node":{"key":"@/f","value":"3","modifiedIndex":{+3},"createdIndex":{+1}},"prevNode":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`)
			r.must("DELETE @/f?prevValue=3", "")
			w.next(`{"action":"compareAndDelete","node":{"key":"@/f","modifiedIndex":{+4},"createdIndex":{+1}},"prevNode":{"key":"@/f","value":"3","modifiedIndex":{+3},"createdIndex":{+1}}}`)
			r.must("PUT @/d", "dir=true")
			w.next(`{"action":"set","node":{"key":"@/d","dir":true,"modifiedIndex":{+5},"createdIndex":{+5}}}`)
		}},
		{"wait with a quorum is a read", func(r *run) {
			r.rows([]row{{send: "GET @/none?wait=true&quorum=true&stream=true", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@","index":{+0}}`}})
		}},
		{"a value that was not asked for is told to watchers", func(r *run) {
			w := r.watch("GET @/f?wait=true&noValueOnSuccess=true")
			r.must("PUT @/f?noValueOnSuccess=true", "value=1")
			w.next(`{"action":"set","node":{"key":"@/f","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`)
			w.end()
		}},
		{"hidden keys", func(r *run) {
			all, hidden := r.watch("GET @?wait=true&recursive=true&stream=true"), r.watch("GET @/_h?wait=true&recursive=true&stream=true")
			r.must("PUT @/_h/x", "value=1")
			r.must("PUT @/a/_b/c", "value=2")
			r.must("PUT @/a/b", "value=3")
			hidden.next(`{"action":"set","node":{"key":"@/_h/x","value":"1","modifiedIndex":{+1},"createdIndex":{+1}}}`)
			all.next(`{"action":"set","node":{"key":"@/a/b","value":"3","modifiedIndex":{+3},"createdIndex":{+3}}}`)
		}},
		{"a refresh is not told", func(r *run) {
			r.must("PUT @/f", "value=1")
			now, since := r.watch("GET @/f?wait=true"), ""
			r.must("PUT @/f?refresh=true", "ttl=100")
			r.must("PUT @/f?refresh=true&prevExist=true", "ttl=100")
			since = fmt.Sprintf("GET @/f?wait=true&waitIndex=%d", r.base+2)
			later := r.watch(since)
			r.must("PUT @/f?prevExist=true", "value=2")
			want := `{"action":"update","node":{"key":"@/f","value":"2","modifiedIndex":{+4},"createdIndex":{+2}},"prevNode":{"key":"@/f","value":"1","expiration":"{time}","ttl":{ttl100},"modifiedIndex":{+3},"createdIndex":{+2}}}`
			now.next(want)
			now.end()
			later.next(want)
			later.end()
		}},
		{"keys expire", func(r *run) {
			w := r.watch("GET @?wait=true&stream=true&recursive=true")
			r.must("PUT @/x", "value=1&ttl=1")
			r.must("PUT @/d/y", "value=1")
			r.must("PUT @/d?prevExist=true", "dir=true&ttl=1")
			for range 3 {
				if _, err := w.lines.ReadString('\n'); err != nil {
					r.Fatal(err)
				}
			}
			w.next(`{"action":"expire","node":{"key":"@/x","modifiedIndex":{+4},"createdIndex":{+1}},"prevNode":{"key":"@/x","value":"1","expiration":"{time}","modifiedIndex":{+1},"createdIndex":{+1}}}`)
			w.next(`{"action":"expire","node":{"key":"@/d","dir":true,"modifiedIndex":{+5},"createdIndex":{+2}},"prevNode":{"key":"@/d","dir":true,"expiration":"{time}","modifiedIndex":{+2},"createdIndex":{+2}}}`)
			r.rows([]row{
				{send: "GET @/x", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@/x","index":{+5}}`},
				{send: "GET @/d/y", status: 404, body: `{"errorCode":100,"message":"Key not found","cause":"@/d","index":{+5}}`},
			})
		}},
		{"a client that leaves", func(r *run) {
			none := func() bool { return r.stats()["watchers"] == 0 }
			r.await("the watches before to be gone", none)
			var all []*stream
			for i := range 10 {
				all = append(all, r.watch(fmt.Sprintf("GET @/f%d?wait=true&stream=%t", i, i%2 == 0)))
			}
			r.await("ten watchers", func() bool { return r.stats()["watchers"] == 10 })
			for _, w := range all {
				w.cancel()
			}
			r.await("no watchers", none)
		}},
		{"history that is gone", func(r *run) {
			for i := range 1010 {
				r.must("PUT @/f", fmt.Sprintf("value=%d", i))
			}
			r.rows([]row{{send: fmt.Sprintf("GET @/f?wait=true&waitIndex=%d", r.base+5), status: 400,
				body: fmt.Sprintf(`{"errorCode":401,"message":"The event in requested index is outdated and cleared","cause":"the requested history has been cleared [{+11}/%d]","index":{+1010}}`, r.base+5)}})
			w := r.watch(fmt.Sprintf("GET @/f?wait=true&waitIndex=%d", r.base+11))
			w.next(`{"action":"set","node":{"key":"@/f","value":"10","modifiedIndex":{+11},"createdIndex":{+11}},"prevNode":{"key":"@/f","value":"9","modifiedIndex":{+10},"createdIndex":{+10}}}`)
			w.end()
		}},
		{"a client that does not read", func(r *run) {
			const events = 400
			slow, value := r.watch("GET @/f?wait=true&stream=true"), "value="+strings.Repeat("x", 100_000)
			for range events {
				r.must("PUT @/f", value)
			}
			r.await("no watcher", func() bool { return r.stats()["watchers"] == 0 })
			if r.Etcd {
				return // it drops the watcher and leaves the stream open: the client never learns of it
			}
			seen := 0
			for {
				line, err := slow.lines.ReadString('\n')
				if errors.Is(err, io.EOF) && line == "" {
					break
				}
				if err != nil {
					r.Fatalf("the stream ends with %v after %d events and %.100q", err, seen, line)
				}
				seen++
			}
			if seen < 100 || seen >= events {
				r.Errorf("%d of %d events before the stream was closed", seen, events)
			}
		}},
	}
}

// stats are the counters of the tree.
func (r *run) stats() map[string]uint64 {
	r.Helper()
	a := r.must("GET /v2/stats/store", "")
	var m map[string]uint64
	if err := json.Unmarshal([]byte(a.body), &m); err != nil {
		r.Fatalf("%v in %s", err, a.body)
	}
	return m
}

// await asks until ok holds.
func (r *run) await(what string, ok func() bool) {
	r.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.Fatalf("waited in vain for %s", what)
		}
	}
}

// stats compares what each request adds to the counters.
func stats(r *run) {
	names := "getsSuccess,getsFail,setsSuccess,setsFail,deleteSuccess,deleteFail,updateSuccess,updateFail,createSuccess,createFail," +
		"compareAndSwapSuccess,compareAndSwapFail,compareAndDeleteSuccess,compareAndDeleteFail,expireCount,watchers"
	body, last := r.must("GET /v2/stats/store", "").body, 0
	for name := range strings.SplitSeq(names, ",") {
		at := strings.Index(body, `"`+name+`":`)
		if at < last {
			r.Fatalf("%s is missing or out of order in %s", name, body)
		}
		last = at
	}
	miss := "compareAndDeleteFail"
	if r.Etcd {
		miss = "compareAndDeleteSuccess" // it counts a comparison that failed as a removal
	}
	for _, c := range []struct {
		send, form string
		adds       map[string]uint64
	}{
		{"PUT @/f", "value=1", map[string]uint64{"setsSuccess": 1}},
		{"PUT @/f/x", "value=1", map[string]uint64{"setsFail": 1}},
		{"PUT @/f/x?prevExist=false", "value=1", map[string]uint64{"setsFail": 1, "createFail": 1}},
		{"PUT @/f?prevExist=false", "value=1", map[string]uint64{"createFail": 1}},
		{"PUT @/g?prevExist=false", "value=1", map[string]uint64{"createSuccess": 1}},
		{"POST @/q", "value=1", map[string]uint64{"createSuccess": 1}},
		{"PUT @/g?prevExist=true", "value=2", map[string]uint64{"updateSuccess": 1}},
		{"PUT @/none?prevExist=true", "value=2", map[string]uint64{"updateFail": 1}},
		{"PUT @/g?prevValue=2", "value=3", map[string]uint64{"compareAndSwapSuccess": 1}},
		{"PUT @/g?prevValue=2", "value=3", map[string]uint64{"compareAndSwapFail": 1}},
		{"DELETE @/g?prevValue=2", "", map[string]uint64{miss: 1}},
		{"DELETE @/none?prevValue=2", "", map[string]uint64{"compareAndDeleteFail": 1}},
		{"DELETE @/g?prevValue=3", "", map[string]uint64{"compareAndDeleteSuccess": 1}},
		{"DELETE @/none", "", map[string]uint64{"deleteFail": 1}},
		{"DELETE @/f", "", map[string]uint64{"deleteSuccess": 1}},
		{"DELETE @?dir=true", "", map[string]uint64{"deleteFail": 1}},
		{"PUT @", "dir=true", map[string]uint64{"setsFail": 1}},
		{"PUT @/f?ttl=x", "value=1", nil},
	} {
		before := r.stats()
		r.do(row{send: c.send, form: c.form})
		after := r.stats()
		for name := range strings.SplitSeq(names, ",") {
			if name == "getsSuccess" || name == "getsFail" { // the original's own look-ups for auth count too
				continue
			}
			if got := after[name] - before[name]; got != c.adds[name] {
				r.Errorf("%s %s adds %d to %s, want %d", c.send, c.form, got, name, c.adds[name])
			}
		}
	}
	r.must("PUT @/f", "value=1")
	for _, c := range []struct{ send, name string }{{"GET @/f", "getsSuccess"}, {"GET @/none", "getsFail"}, {"GET @/f?quorum=true", "getsSuccess"}} {
		before := r.stats()
		r.do(row{send: c.send})
		if after := r.stats(); after[c.name] <= before[c.name] {
			r.Errorf("%s does not add to %s", c.send, c.name)
		}
	}
	before := r.stats()
	r.must("PUT @/gone", "value=1&ttl=0")
	r.await("the expired key", func() bool { return r.do(row{send: "GET @/gone"}).status == http.StatusNotFound })
	if after := r.stats(); after["expireCount"] != before["expireCount"]+1 {
		r.Errorf("expireCount went from %d to %d", before["expireCount"], after["expireCount"])
	}
}
