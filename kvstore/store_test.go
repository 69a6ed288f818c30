package kvstore_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"stated.dev/stated/kvstore"
)

var noon = time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)

func newStore() *kvstore.Store {
	return kvstore.New(kvstore.Options{Namespaces: []string{"/0", "/1"}, Now: func() time.Time { return noon }})
}

func do(t *testing.T, s *kvstore.Store, commands ...kvstore.Command) *kvstore.Event {
	t.Helper()
	var last *kvstore.Event
	for _, c := range commands {
		e, err := s.Do(c)
		if err != nil {
			t.Fatalf("%+v: %v", c, err)
		}
		last = e
	}
	return last
}

func set(path, value string) kvstore.Command {
	return kvstore.Command{Op: kvstore.OpSet, Path: path, Value: value}
}

func mkdir(path string) kvstore.Command {
	return kvstore.Command{Op: kvstore.OpCreate, Path: path, Dir: true}
}

func TestCommands(t *testing.T) {
	soon := noon.Add(90 * time.Second)
	const soonJSON = `"expiration":"2030-06-01T12:01:30Z","ttl":90`
	foo, dir := set("/1/foo", "bar"), mkdir("/1/d")
	for _, c := range []struct {
		name    string
		before  []kvstore.Command
		command kvstore.Command
		want    string
	}{
		{"create", nil, kvstore.Command{Op: kvstore.OpCreate, Path: "/1/foo", Value: "v"},
			`{"action":"create","node":{"key":"/1/foo","value":"v","modifiedIndex":1,"createdIndex":1}}`},
		{"create with an empty value", nil, kvstore.Command{Op: kvstore.OpCreate, Path: "/1/foo"},
			`{"action":"create","node":{"key":"/1/foo","value":"","modifiedIndex":1,"createdIndex":1}}`},
		{"create below missing directories", nil, kvstore.Command{Op: kvstore.OpCreate, Path: "1//a/./b/../c/", Dir: true},
			`{"action":"create","node":{"key":"/1/a/c","dir":true,"modifiedIndex":1,"createdIndex":1}}`},
		{"create with a time to live", nil, kvstore.Command{Op: kvstore.OpCreate, Path: "/1/foo", Expire: soon},
			`{"action":"create","node":{"key":"/1/foo","value":"",` + soonJSON + `,"modifiedIndex":1,"createdIndex":1}}`},
		{"create in order", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpCreate, Path: "/1/q", Unique: true, Value: "j1"},
			`{"action":"create","node":{"key":"/1/q/00000000000000000002","value":"j1","modifiedIndex":2,"createdIndex":2}}`},
		{"create the root", nil, kvstore.Command{Op: kvstore.OpCreate, Path: "/"},
			`{"errorCode":107,"message":"Root is read only","cause":"/","index":0}`},
		{"create a name space", nil, kvstore.Command{Op: kvstore.OpCreate, Path: "/1"},
			`{"errorCode":107,"message":"Root is read only","cause":"/","index":0}`},
		{"create below a file", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpCreate, Path: "/1/foo/x/y"},
			`{"errorCode":104,"message":"Not a directory","cause":"/1/foo","index":1}`},
		{"create what exists", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpCreate, Path: "/1/foo"},
			`{"errorCode":105,"message":"Key already exists","cause":"/1/foo","index":1}`},
		{"set", nil, foo, `{"action":"set","node":{"key":"/1/foo","value":"bar","modifiedIndex":1,"createdIndex":1}}`},
		{"set again", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpSet, Path: "/1/foo", Value: "baz", Expire: soon},
			`{"action":"set","node":{"key":"/1/foo","value":"baz",` + soonJSON + `,"modifiedIndex":2,"createdIndex":2},"prevNode":{"key":"/1/foo","value":"bar","modifiedIndex":1,"createdIndex":1}}`},
		{"set makes permanent", []kvstore.Command{{Op: kvstore.OpSet, Path: "/1/foo", Expire: soon}}, foo,
			`{"action":"set","node":{"key":"/1/foo","value":"bar","modifiedIndex":2,"createdIndex":2},"prevNode":{"key":"/1/foo","value":"",` + soonJSON + `,"modifiedIndex":1,"createdIndex":1}}`},
		{"set a directory in the place of a file", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpSet, Path: "/1/foo", Dir: true},
			`{"action":"set","node":{"key":"/1/foo","dir":true,"modifiedIndex":2,"createdIndex":2},"prevNode":{"key":"/1/foo","value":"bar","modifiedIndex":1,"createdIndex":1}}`},
		{"set below a file", []kvstore.Command{foo}, set("/1/foo/bar", ""),
			`{"errorCode":104,"message":"Not a directory","cause":"/1/foo","index":1}`},
		{"set a directory's value", []kvstore.Command{dir}, set("/1/d", "v"),
			`{"errorCode":102,"message":"Not a file","cause":"/1/d","index":1}`},
		{"set the root", nil, set("/", "1"), `{"errorCode":107,"message":"Root is read only","cause":"/","index":0}`},
		{"refresh by set", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpSet, Path: "/1/foo", Refresh: true, Expire: soon},
			`{"action":"set","node":{"key":"/1/foo","value":"bar",` + soonJSON + `,"modifiedIndex":2,"createdIndex":2},"prevNode":{"key":"/1/foo","value":"bar","modifiedIndex":1,"createdIndex":1},"refresh":true}`},
		{"refresh what is missing", nil, kvstore.Command{Op: kvstore.OpSet, Path: "/1/a/b", Refresh: true, Expire: soon},
			`{"errorCode":100,"message":"Key not found","cause":"/1/a","index":0}`},
		{"set with a very old time", nil, kvstore.Command{Op: kvstore.OpSet, Path: "/1/foo", Expire: time.Date(1999, 12, 31, 23, 59, 59, 0, time.UTC)},
			`{"action":"set","node":{"key":"/1/foo","value":"","modifiedIndex":1,"createdIndex":1}}`},
		{"update", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpUpdate, Path: "/1/foo", Value: "baz"},
			`{"action":"update","node":{"key":"/1/foo","value":"baz","modifiedIndex":2,"createdIndex":1},"prevNode":{"key":"/1/foo","value":"bar","modifiedIndex":1,"createdIndex":1}}`},
		{"update what is missing", nil, kvstore.Command{Op: kvstore.OpUpdate, Path: "/1/foo", Value: "baz"},
			`{"errorCode":100,"message":"Key not found","cause":"/1/foo","index":0}`},
		{"update a directory's value", []kvstore.Command{dir}, kvstore.Command{Op: kvstore.OpUpdate, Path: "/1/d", Value: "v"},
			`{"errorCode":102,"message":"Not a file","cause":"/1/d","index":1}`},
		{"update a directory's time to live", []kvstore.Command{dir}, kvstore.Command{Op: kvstore.OpUpdate, Path: "/1/d", Expire: soon},
			`{"action":"update","node":{"key":"/1/d","dir":true,` + soonJSON + `,"modifiedIndex":2,"createdIndex":1},"prevNode":{"key":"/1/d","dir":true,"modifiedIndex":1,"createdIndex":1}}`},
		{"update the root", nil, kvstore.Command{Op: kvstore.OpUpdate, Path: "/"}, `{"errorCode":107,"message":"Root is read only","cause":"/","index":0}`},
		{"compare and swap by value", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: "/1/foo", PrevValue: "bar", Value: "baz"},
			`{"action":"compareAndSwap","node":{"key":"/1/foo","value":"baz","modifiedIndex":2,"createdIndex":1},"prevNode":{"key":"/1/foo","value":"bar","modifiedIndex":1,"createdIndex":1}}`},
		{"swap, wrong value", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: "/1/foo", PrevValue: "nope", PrevIndex: 1},
			`{"errorCode":101,"message":"Compare failed","cause":"[nope != bar]","index":1}`},
		{"swap, wrong index", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: "/1/foo", PrevValue: "bar", PrevIndex: 5},
			`{"errorCode":101,"message":"Compare failed","cause":"[5 != 1]","index":1}`},
		{"swap, both wrong", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: "/1/foo", PrevValue: "nope", PrevIndex: 5},
			`{"errorCode":101,"message":"Compare failed","cause":"[nope != bar] [5 != 1]","index":1}`},
		{"swap a directory", []kvstore.Command{dir}, kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: "/1/d", PrevIndex: 1},
			`{"errorCode":102,"message":"Not a file","cause":"/1/d","index":1}`},
		{"swap what is missing", nil, kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: "/1/d", PrevIndex: 1},
			`{"errorCode":100,"message":"Key not found","cause":"/1/d","index":0}`},
		{"swap the root", nil, kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: "/1", PrevIndex: 1}, `{"errorCode":107,"message":"Root is read only","cause":"/","index":0}`},
		{"delete", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpDelete, Path: "/1/foo"},
			`{"action":"delete","node":{"key":"/1/foo","modifiedIndex":2,"createdIndex":1},"prevNode":{"key":"/1/foo","value":"bar","modifiedIndex":1,"createdIndex":1}}`},
		{"delete what is missing", nil, kvstore.Command{Op: kvstore.OpDelete, Path: "/1/foo"}, `{"errorCode":100,"message":"Key not found","cause":"/1/foo","index":0}`},
		{"delete a directory as a file", []kvstore.Command{dir}, kvstore.Command{Op: kvstore.OpDelete, Path: "/1/d"},
			`{"errorCode":102,"message":"Not a file","cause":"/1/d","index":1}`},
		{"delete an empty directory", []kvstore.Command{dir}, kvstore.Command{Op: kvstore.OpDelete, Path: "/1/d", Dir: true},
			`{"action":"delete","node":{"key":"/1/d","dir":true,"modifiedIndex":2,"createdIndex":1},"prevNode":{"key":"/1/d","dir":true,"modifiedIndex":1,"createdIndex":1}}`},
		{"delete a full directory", []kvstore.Command{set("/1/d/x", "")}, kvstore.Command{Op: kvstore.OpDelete, Path: "/1/d", Dir: true},
			`{"errorCode":108,"message":"Directory not empty","cause":"/1/d","index":1}`},
		{"delete a subtree", []kvstore.Command{set("/1/d/x/y", "")}, kvstore.Command{Op: kvstore.OpDelete, Path: "/1/d", Recursive: true},
			`{"action":"delete","node":{"key":"/1/d","dir":true,"modifiedIndex":2,"createdIndex":1},"prevNode":{"key":"/1/d","dir":true,"modifiedIndex":1,"createdIndex":1}}`},
		{"delete the root", nil, kvstore.Command{Op: kvstore.OpDelete, Path: "/", Recursive: true}, `{"errorCode":107,"message":"Root is read only","cause":"/","index":0}`},
		{"compare and delete", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpCompareAndDelete, Path: "/1/foo", PrevIndex: 1},
			`{"action":"compareAndDelete","node":{"key":"/1/foo","modifiedIndex":2,"createdIndex":1},"prevNode":{"key":"/1/foo","value":"bar","modifiedIndex":1,"createdIndex":1}}`},
		{"compare and delete, mismatch", []kvstore.Command{foo}, kvstore.Command{Op: kvstore.OpCompareAndDelete, Path: "/1/foo", PrevValue: "x"},
			`{"errorCode":101,"message":"Compare failed","cause":"[x != bar]","index":1}`},
		{"compare and delete a directory", nil, kvstore.Command{Op: kvstore.OpCompareAndDelete, Path: "/1", PrevValue: "x"},
			`{"errorCode":102,"message":"Not a file","cause":"/1","index":0}`},
		{"compare and delete what is missing", nil, kvstore.Command{Op: kvstore.OpCompareAndDelete, Path: "/1/x"},
			`{"errorCode":100,"message":"Key not found","cause":"/1/x","index":0}`},
		{"an unknown operation", nil, kvstore.Command{Op: 99, Path: "/1/x"},
			`{"errorCode":209,"message":"Invalid field","cause":"unknown operation 99","index":0}`},
		{"quotes", nil, set("/1/a\"<\x01é\xff\u2028", "\n"),
			`{"action":"set","node":{"key":"/1/a\"\u003c\u0001é\ufffd\u2028","value":"\n","modifiedIndex":1,"createdIndex":1}}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore()
			do(t, s, c.before...)
			index := s.Index()
			e, err := s.Do(c.command)
			var got string
			if err != nil {
				got = wire(t, err)
				if s.Index() != index {
					t.Errorf("a failure moved the index from %d to %d", index, s.Index())
				}
			} else {
				got = wire(t, e)
				if s.Index() != index+1 || e.EtcdIndex != index+1 || e.Index() != index+1 {
					t.Errorf("index %d, EtcdIndex %d, event %d, want %d", s.Index(), e.EtcdIndex, e.Index(), index+1)
				}
			}
			if got != c.want {
				t.Errorf("\n got %s\nwant %s", got, c.want)
			}
			// The quoting is that of encoding/json.
			var any1 any
			if err := json.Unmarshal([]byte(got), &any1); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestGet(t *testing.T) {
	s := newStore()
	do(t, s, set("/1/b", "1"), set("/1/a/x", "2"), set("/1/a/_h", "3"), set("/1/_d/y", "4"), mkdir("/1/e"),
		kvstore.Command{Op: kvstore.OpSet, Path: "/1/t", Expire: noon.Add(1500 * time.Millisecond)})
	const a, h = `{"key":"/1/a","dir":true,"modifiedIndex":2,"createdIndex":2}`, `"modifiedIndex":3,"createdIndex":3}`
	const b, e = `{"key":"/1/b","value":"1","modifiedIndex":1,"createdIndex":1}`, `{"key":"/1/e","dir":true,"modifiedIndex":5,"createdIndex":5}`
	const x = `{"key":"/1/a/x","value":"2","modifiedIndex":2,"createdIndex":2}`
	const tt = `{"key":"/1/t","value":"","expiration":"2030-06-01T12:00:01.5Z","ttl":2,"modifiedIndex":6,"createdIndex":6}`
	for _, c := range []struct {
		path    string
		request kvstore.GetRequest
		want    string
	}{
		{"/1/b", kvstore.GetRequest{}, b},
		{"1/t/", kvstore.GetRequest{}, tt},
		{"/1", kvstore.GetRequest{Sorted: true}, `{"key":"/1","dir":true,"nodes":[` + a + `,` + b + `,` + e + `,` + tt + `]}`},
		{"/1", kvstore.GetRequest{Sorted: true, Recursive: true},
			`{"key":"/1","dir":true,"nodes":[{"key":"/1/a","dir":true,"nodes":[` + x + `],"modifiedIndex":2,"createdIndex":2},` + b + `,` + e + `,` + tt + `]}`},
		{"/", kvstore.GetRequest{Sorted: true}, `{"key":"/","dir":true,"nodes":[{"key":"/0","dir":true},{"key":"/1","dir":true}]}`},
		{"/1/a/_h", kvstore.GetRequest{}, `{"key":"/1/a/_h","value":"3",` + h},
		{"/1/_d", kvstore.GetRequest{}, `{"key":"/1/_d","dir":true,"nodes":[{"key":"/1/_d/y","value":"4","modifiedIndex":4,"createdIndex":4}],"modifiedIndex":4,"createdIndex":4}`},
		{"/1/e", kvstore.GetRequest{Recursive: true}, e},
		{"/1/no/such", kvstore.GetRequest{}, `{"errorCode":100,"message":"Key not found","cause":"/1/no","index":6}`},
		{"/1/b/c/d", kvstore.GetRequest{}, `{"errorCode":104,"message":"Not a directory","cause":"/1/b","index":6}`},
	} {
		event, err := s.Get(c.path, c.request)
		got := ""
		if err != nil {
			got = wire(t, err)
		} else {
			got = wire(t, &event.Node)
			if event.EtcdIndex != 6 || event.Event().Action != kvstore.ActionGet {
				t.Errorf("%s: %+v", c.path, event)
			}
		}
		if got != c.want {
			t.Errorf("%s %+v:\n got %s\nwant %s", c.path, c.request, got, c.want)
		}
	}
	event, err := s.Get("/1", kvstore.GetRequest{Recursive: true, Sorted: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(event.Event().AppendJSON(nil, "/1")); strings.Contains(got, `"/1/`) || !strings.HasPrefix(got, `{"action":"get","node":{"dir":true,"nodes":[{"key":"/a",`) {
		t.Errorf("without the name space's prefix: %s", got)
	}
}

func TestErrors(t *testing.T) {
	status := map[int]int{100: 404, 101: 412, 102: 403, 104: 400, 105: 412, 107: 400, 108: 403, 110: 401, 209: 400, 300: 500, 301: 500, 400: 400, 401: 400, 500: 400}
	for code, want := range status {
		if e := kvstore.NewError(code, "", 0); e.StatusCode() != want || e.Message == "" {
			t.Errorf("%d: status %d, want %d, message %q", code, e.StatusCode(), want, e.Message)
		}
	}
	e := kvstore.NewError(100, "/1/foo", 7)
	if got := e.Error(); got != "Key not found (/1/foo)" {
		t.Error(got)
	}
	if got := wire(t, kvstore.NewError(100, "/foo", 7)); got != `{"errorCode":100,"message":"Key not found","cause":"/foo","index":7}` {
		t.Error(got)
	}
	if got := wire(t, kvstore.NewError(300, "", 0)); got != `{"errorCode":300,"message":"Raft Internal Error","index":0}` {
		t.Error(got)
	}
}

func TestExpiry(t *testing.T) {
	s := newStore()
	at := func(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }
	w, err := s.Watch("/", kvstore.WatchRequest{Recursive: true, Stream: true, Since: 5})
	if err != nil {
		t.Fatal(err)
	}
	do(t, s,
		kvstore.Command{Op: kvstore.OpSet, Path: "/1/c", Expire: at(100)},
		kvstore.Command{Op: kvstore.OpSet, Path: "/1/b", Expire: at(100)},
		kvstore.Command{Op: kvstore.OpCreate, Path: "/1/d", Dir: true, Expire: at(50)},
		kvstore.Command{Op: kvstore.OpSet, Path: "/1/d/x", Expire: at(300)})
	if next, ok := s.NextExpiry(); !ok || !next.Equal(at(50)) {
		t.Errorf("next is %v, %v", next, ok)
	}
	if e := do(t, s, kvstore.Command{Op: kvstore.OpExpire, Time: at(49)}); e != nil || s.Index() != 4 {
		t.Errorf("something expired early: %v", e)
	}
	do(t, s, kvstore.Command{Op: kvstore.OpExpire, Time: at(100)})
	var got []string
	for range 3 {
		got = append(got, wire(t, next(t, w)))
	}
	want := []string{
		`{"action":"expire","node":{"key":"/1/d","dir":true,"modifiedIndex":5,"createdIndex":3},"prevNode":{"key":"/1/d","dir":true,"expiration":"2030-06-01T12:00:00.05Z","modifiedIndex":3,"createdIndex":3}}`,
		`{"action":"expire","node":{"key":"/1/b","modifiedIndex":6,"createdIndex":2},"prevNode":{"key":"/1/b","value":"","expiration":"2030-06-01T12:00:00.1Z","modifiedIndex":2,"createdIndex":2}}`,
		`{"action":"expire","node":{"key":"/1/c","modifiedIndex":7,"createdIndex":1},"prevNode":{"key":"/1/c","value":"","expiration":"2030-06-01T12:00:00.1Z","modifiedIndex":1,"createdIndex":1}}`,
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, ok := s.NextExpiry(); ok {
		t.Error("a key below an expired directory is still to expire")
	}
	if n := s.Stats().ExpireCount; n != 3 {
		t.Errorf("%d have expired, want 3", n)
	}
}

func TestUpdateOfADirectoryKeepsItsChildren(t *testing.T) {
	s := newStore()
	do(t, s, set("/1/d/x", "v"), kvstore.Command{Op: kvstore.OpUpdate, Path: "/1/d", Expire: noon.Add(time.Minute)})
	e, err := s.Get("/1/d", kvstore.GetRequest{})
	if err != nil || len(e.Node.Nodes) != 1 || e.Node.ModifiedIndex != 1 || e.Node.TTL != 60 {
		t.Errorf("%v, %v", e, err)
	}
}

func TestWatch(t *testing.T) {
	// Events 1 to 5 are in the history, event 4 being a refresh.
	history := []kvstore.Command{set("/1/a/b", "1"), set("/1/a/_h/c", "2"), set("/1/ab", "3"),
		{Op: kvstore.OpUpdate, Path: "/1/a/b", Refresh: true, Expire: noon.Add(time.Hour)}, {Op: kvstore.OpDelete, Path: "/1/a", Recursive: true}}
	for _, c := range []struct {
		path string
		r    kvstore.WatchRequest
		want []uint64
	}{
		{"/1/a/b", kvstore.WatchRequest{Since: 1}, []uint64{1}},
		{"/1/a/b", kvstore.WatchRequest{Since: 2}, []uint64{5}}, // not the refresh, but the delete of the directory
		{"/1/a/b", kvstore.WatchRequest{Since: 1, Stream: true}, []uint64{1, 5}},
		{"/1/a", kvstore.WatchRequest{Since: 1, Stream: true}, []uint64{5}},
		{"/1/a", kvstore.WatchRequest{Since: 1, Stream: true, Recursive: true}, []uint64{1, 5}},
		{"/1/a/_h", kvstore.WatchRequest{Since: 1, Stream: true, Recursive: true}, []uint64{2, 5}},
		{"/", kvstore.WatchRequest{Since: 1, Stream: true, Recursive: true}, []uint64{1, 3, 5}},
		{"/1", kvstore.WatchRequest{Since: 1, Stream: true}, nil},
		{"/1/a/no/such", kvstore.WatchRequest{Since: 5}, []uint64{5}},
	} {
		for _, live := range []bool{false, true} {
			s := newStore()
			if !live {
				do(t, s, history...)
			}
			w, err := s.Watch(c.path, c.r)
			if err != nil {
				t.Fatal(err)
			}
			if live {
				do(t, s, history...)
			} else if w.StartIndex() != 5 {
				t.Errorf("StartIndex %d", w.StartIndex())
			}
			var got []uint64
			events, ended := come(w)
			for _, e := range events {
				got = append(got, e.Index())
			}
			var wantEnded error
			if !c.r.Stream && len(got) > 0 {
				wantEnded = kvstore.ErrWatchEnded
			}
			w.Close()
			w.Close()
			if e, err := w.Next(t.Context()); e != nil || err != kvstore.ErrWatchEnded {
				t.Errorf("after Close: %v, %v", e, err)
			}
			want := c.want
			if live && c.path == "/1/a/no/such" {
				want = nil // a path that never was does not go away
			}
			if fmt.Sprint(got) != fmt.Sprint(want) || ended != wantEnded {
				t.Errorf("%s %+v, live %v: got %v, want %v, reason %v", c.path, c.r, live, got, want, ended)
			}
			if n := s.Stats().Watchers; n != 0 {
				t.Errorf("%d watchers are left", n)
			}
		}
	}
}

func TestWatchFromNowOn(t *testing.T) {
	s := newStore()
	do(t, s, set("/1/a", "1"))
	w, err := s.Watch("/1/a", kvstore.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if n := s.Stats().Watchers; n != 1 {
		t.Errorf("%d watchers", n)
	}
	do(t, s, set("/1/a", "2"), set("/1/a", "3"))
	if n := s.Stats().Watchers; n != 0 { // it has ended, though nobody has read its event yet
		t.Errorf("%d watchers", n)
	}
	if e := next(t, w); e.Node.Value != "2" {
		t.Errorf("got %s", wire(t, e))
	}
	if e, err := w.Next(t.Context()); err != kvstore.ErrWatchEnded {
		t.Errorf("a second event: %s, %v", wire(t, e), err)
	}
	if n := s.Stats().Watchers; n != 0 {
		t.Errorf("%d watchers", n)
	}
}

func TestHistoryIsCleared(t *testing.T) {
	s := newStore()
	for range 1005 {
		do(t, s, set("/1/a", "v"))
	}
	_, err := s.Watch("/1/a", kvstore.WatchRequest{Since: 5})
	if want := `{"errorCode":401,"message":"The event in requested index is outdated and cleared","cause":"the requested history has been cleared [6/5]","index":1005}`; err == nil || wire(t, err) != want {
		t.Errorf("got %v", err)
	}
	w, err := s.Watch("/1/a", kvstore.WatchRequest{Since: 6, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	if events, err := come(w); len(events) != 1000 || err != nil {
		t.Errorf("%d events from the history, want 1000: %v", len(events), err)
	}
}

func TestHistoryIsBoundedByBytes(t *testing.T) {
	s := kvstore.New(kvstore.Options{HistoryBytes: 10_000})
	for range 20 {
		do(t, s, set("/a", strings.Repeat("v", 1500)))
	}
	// An event counts its key, both values and 256: 3258, so three fit.
	if _, err := s.Watch("/a", kvstore.WatchRequest{Since: 18}); err != nil {
		t.Error(err)
	}
	if _, err := s.Watch("/a", kvstore.WatchRequest{Since: 17}); err == nil {
		t.Error("four events are kept")
	}
	do(t, s, set("/a", strings.Repeat("v", 50_000)))
	w, err := s.Watch("/a", kvstore.WatchRequest{Since: 21})
	if err != nil {
		t.Fatalf("the last event is not kept: %v", err)
	}
	if events, _ := come(w); len(events) != 1 {
		t.Errorf("%d events, want the last", len(events))
	}
}

func TestSlowWatcherIsCut(t *testing.T) {
	s := newStore()
	w, err := s.Watch("/1", kvstore.WatchRequest{Recursive: true, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 102 {
		do(t, s, set("/1/a", "v"))
	}
	if st := s.Stats(); st.CutWatchers != 1 || st.Watchers != 0 {
		t.Errorf("%+v", st)
	}
	if events, err := come(w); len(events) != 100 || !errors.Is(err, kvstore.ErrSlowWatcher) {
		t.Errorf("%d events, reason %v", len(events), err)
	}
	if st := s.Stats(); st.CutWatchers != 1 || st.Watchers != 0 {
		t.Errorf("%+v", st)
	}
}

// TestConcurrentReadersAndWatchers removes watchers while events reach them, and reads while keys change.
func TestConcurrentReadersAndWatchers(t *testing.T) {
	s := newStore()
	do(t, s, set("/1/a/b", "0"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				w, err := s.Watch([]string{"/1/a/b", "/1/a", "/", "/1/other"}[i], kvstore.WatchRequest{Recursive: i%2 == 0, Stream: i < 2})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := w.Poll(); err != nil && err != kvstore.ErrWatchEnded && err != kvstore.ErrSlowWatcher {
					t.Error(err)
				}
				closed := make(chan struct{})
				go func() { w.Close(); close(closed) }()
				w.Close()
				<-closed
			}
		})
		wg.Go(func() {
			last := uint64(0)
			for {
				select {
				case <-stop:
					return
				default:
				}
				e, err := s.Get("/1/a/b", kvstore.GetRequest{})
				if err != nil {
					t.Error(err)
					return
				}
				if e.EtcdIndex < last || e.Node.ModifiedIndex != e.EtcdIndex {
					t.Errorf("index %d after %d, key's %d", e.EtcdIndex, last, e.Node.ModifiedIndex)
					return
				}
				last = e.EtcdIndex
			}
		})
	}
	for i := range 1000 {
		if _, err := s.Do(set("/1/a/b", fmt.Sprint(i))); err != nil {
			t.Error(err)
		}
		if i%100 == 0 {
			s.Clone()
			s.Snapshot().Release()
		}
	}
	close(stop)
	wg.Wait()
	if n := s.Stats().Watchers; n != 0 {
		t.Errorf("%d watchers are left", n)
	}
}

func TestStats(t *testing.T) {
	s := newStore()
	ignore := func(_ any, _ error) {}
	do(t, s, set("/1/f", "v"), mkdir("/1/d"))
	ignore(s.Get("/1/f", kvstore.GetRequest{}))
	ignore(s.Get("/1/x", kvstore.GetRequest{}))
	ignore(s.Do(set("/1/d", "v")))
	ignore(s.Do(mkdir("/1/d")))
	ignore(s.Do(mkdir("/1/f/x"))) // counts a failed set, too
	ignore(s.Do(kvstore.Command{Op: kvstore.OpUpdate, Path: "/1/f"}))
	ignore(s.Do(kvstore.Command{Op: kvstore.OpUpdate, Path: "/1/x"}))
	ignore(s.Do(kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: "/1/f", PrevIndex: 99}))
	ignore(s.Do(kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: "/1/f", PrevIndex: 3}))
	ignore(s.Do(kvstore.Command{Op: kvstore.OpCompareAndDelete, Path: "/1/f", PrevIndex: 99}))
	ignore(s.Do(kvstore.Command{Op: kvstore.OpCompareAndDelete, Path: "/1/f", PrevIndex: 4}))
	ignore(s.Do(kvstore.Command{Op: kvstore.OpDelete, Path: "/1/f"}))
	ignore(s.Do(kvstore.Command{Op: kvstore.OpDelete, Path: "/1/d", Dir: true}))
	if _, err := s.Watch("/", kvstore.WatchRequest{}); err != nil {
		t.Fatal(err)
	}
	const want = `{"getsSuccess":1,"getsFail":1,"setsSuccess":1,"setsFail":2,"deleteSuccess":1,"deleteFail":1,"updateSuccess":1,"updateFail":1,"createSuccess":1,"createFail":2,"compareAndSwapSuccess":1,"compareAndSwapFail":1,"compareAndDeleteSuccess":1,"compareAndDeleteFail":1,"expireCount":0,"watchers":1}`
	if got := wire(t, s.Stats()); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestLimits(t *testing.T) {
	s := kvstore.New(kvstore.Options{MaxKey: 10, MaxDepth: 3, MaxValue: 5})
	for _, c := range []kvstore.Command{set("/0123456789", ""), set("/a/b/c/d", ""), set("/a", "123456"), {Op: kvstore.OpCreate, Path: "/a/b/c", Unique: true}} {
		_, err := s.Do(c)
		var e *kvstore.Error
		if !errors.As(err, &e) || e.Code != kvstore.CodeInvalidField || e.Index != 0 {
			t.Errorf("%+v: %v", c, err)
		}
	}
	do(t, s, set("/a/b/c", "12345"))
	if _, err := kvstore.New(kvstore.Options{}).Do(set(strings.Repeat("/a", 5000), "")); err == nil {
		t.Error("a key of 5000 elements was taken")
	}
}

func TestTimesToLive(t *testing.T) {
	s := newStore()
	ttl := func(d time.Duration) *time.Duration { return &d }
	for _, c := range []struct {
		ttl  time.Duration
		want int64
	}{{0, 0}, {1, 1}, {time.Second, 1}, {time.Second + 1, 2}, {math.MaxInt64, 9223372037}} {
		if e := do(t, s, kvstore.Command{Op: kvstore.OpSet, Path: "/1/a", TTL: ttl(c.ttl)}); e.Node.TTL != c.want || e.Node.Expiration.IsZero() {
			t.Errorf("%v: ttl %d, want %d, expiration %v", c.ttl, e.Node.TTL, c.want, e.Node.Expiration)
		}
	}
	// A year that RFC 3339 cannot write is cut down to the last that it can.
	e := do(t, s, kvstore.Command{Op: kvstore.OpSet, Path: "/1/a", Expire: time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)})
	if y := e.Node.Expiration.Year(); y != 9999 || e.Node.TTL < 200_000_000_000 {
		t.Errorf("year %d, ttl %d", y, e.Node.TTL)
	}
}

// TestRestoreUnderWatchers lets one watcher go on where the new history covers what it has missed, and ends the others.
func TestRestoreUnderWatchers(t *testing.T) {
	leader, follower := newStore(), newStore()
	for range 10 {
		do(t, leader, set("/1/a", "v"))
		do(t, follower, set("/1/a", "v"))
	}
	old, err := follower.Save()
	if err != nil {
		t.Fatal(err)
	}
	w, err := follower.Watch("/1/a", kvstore.WatchRequest{Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		do(t, leader, set("/1/a", "v"))
	}
	restore := func(s *kvstore.Store) {
		t.Helper()
		pr := new(strings.Builder)
		if _, err := s.Snapshot().WriteTo(pr); err != nil {
			t.Fatal(err)
		}
		if err := follower.Restore(strings.NewReader(pr.String())); err != nil {
			t.Fatal(err)
		}
	}
	restore(leader)
	for i := range uint64(20) {
		if e := next(t, w); e.Index() != 11+i {
			t.Fatalf("event %d, want %d", e.Index(), 11+i)
		}
	}
	do(t, follower, set("/1/a", "v"))
	if e := next(t, w); e.Index() != 31 {
		t.Errorf("event %d after the restore, want 31", e.Index())
	}
	for range 1100 {
		do(t, leader, set("/1/a", "v"))
	}
	restore(leader) // index 1130, history from 131 on: the watcher has a gap
	e, err := w.Next(t.Context())
	if e != nil {
		t.Errorf("an event after a gap: %s", wire(t, e))
	}
	var cleared *kvstore.Error
	if !errors.As(err, &cleared) || cleared.Code != kvstore.CodeWatcherCleared {
		t.Errorf("reason %v", err)
	}
	w2, err := follower.Watch("/1/a", kvstore.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := follower.Recovery(old); err != nil {
		t.Fatal(err)
	}
	if e, err := w2.Next(t.Context()); e != nil || !errors.As(err, &cleared) || cleared.Code != kvstore.CodeWatcherCleared {
		t.Errorf("a watcher lives on in a store that went back: %v, %v", e, err)
	}
	if n := follower.Stats().Watchers; n != 0 {
		t.Errorf("%d watchers are left", n)
	}
}

func TestDamagedSnapshots(t *testing.T) {
	s := newStore()
	for i := range 5000 {
		do(t, s, set(fmt.Sprintf("/1/d%d/k%d", i%7, i), strings.Repeat("v", 20)))
	}
	var b strings.Builder
	if _, err := s.Snapshot().WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	whole := b.String()
	other := newStore()
	do(t, other, set("/1/x", "v"))
	before := dump(t, other)
	for at := 0; at < len(whole); at += 997 {
		flipped := []byte(whole)
		flipped[at] ^= 0x10
		for what, stream := range map[string]string{"cut": whole[:at], "flipped": string(flipped)} {
			if err := other.Restore(strings.NewReader(stream)); err == nil {
				t.Errorf("a stream that was %s at %d was taken", what, at)
			}
		}
	}
	if dump(t, other) != before {
		t.Error("a damaged snapshot changed the store")
	}
	p := s.Snapshot()
	p.Release()
	if _, err := p.WriteTo(&b); err == nil {
		t.Error("a released snapshot was written")
	}
}
