package kvstore_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"stated.dev/stated/kvstore"
)

// model is the store as one would write it without any thought of speed: a map from paths to nodes.
type model struct {
	index uint64
	nodes map[string]modelNode
	log   []told
}

type modelNode struct {
	dir               bool
	value             string
	created, modified uint64
	expire            time.Time
}

// told is an event with the paths that went away with its directory.
type told struct {
	event *kvstore.Event
	gone  []string
}

func newModel() *model {
	return &model{nodes: map[string]modelNode{"/": {dir: true}, "/1": {dir: true}}}
}

func (m *model) fail(code int, cause string) (*kvstore.Event, *kvstore.Error) {
	return nil, kvstore.NewError(code, cause, m.index)
}

// find returns the node, or the code and the place where the path breaks off.
func (m *model) find(path string) (modelNode, int, string) {
	if path == "/" {
		return m.nodes["/"], 0, ""
	}
	parts := strings.Split(path[1:], "/")
	for i := range parts {
		at := "/" + strings.Join(parts[:i+1], "/")
		n, ok := m.nodes[at]
		if !ok {
			return modelNode{}, 100, at
		}
		if !n.dir && i < len(parts)-1 {
			return modelNode{}, 104, at
		}
	}
	return m.nodes[path], 0, ""
}

func (m *model) outer(path string, n modelNode, now time.Time) *kvstore.Node {
	out := &kvstore.Node{Key: path, Dir: n.dir, CreatedIndex: n.created, ModifiedIndex: n.modified}
	if !n.dir {
		out.Value = n.value
	}
	if !n.expire.IsZero() {
		out.Expiration, out.TTL = n.expire, int64((n.expire.Sub(now)+time.Second-1)/time.Second)
		if n.expire.Before(now) {
			out.TTL = -int64(now.Sub(n.expire) / time.Second)
		}
	}
	return out
}

func (m *model) do(c kvstore.Command) (*kvstore.Event, *kvstore.Error) {
	path := c.Path
	readOnly := path == "/" || path == "/1"
	n, code, stop := m.find(path)
	action := map[kvstore.Op]kvstore.Action{kvstore.OpCreate: "create", kvstore.OpSet: "set", kvstore.OpUpdate: "update",
		kvstore.OpCompareAndSwap: "compareAndSwap", kvstore.OpDelete: "delete", kvstore.OpCompareAndDelete: "compareAndDelete"}[c.Op]
	if c.Op == kvstore.OpSet && (code == 104 || code == 100 && c.Refresh) {
		return m.fail(code, stop)
	}
	if readOnly && c.Op != kvstore.OpCompareAndDelete && !c.Unique {
		return m.fail(107, "/")
	}
	switch c.Op {
	case kvstore.OpCreate:
		if c.Unique {
			path = strings.TrimSuffix(path, "/") + "/" + fmt.Sprintf("%020d", m.index+1)
			n, code, stop = m.find(path)
		}
		if code == 104 {
			return m.fail(104, stop)
		}
		if code == 0 {
			return m.fail(105, path)
		}
	case kvstore.OpSet:
		if code == 0 && n.dir {
			return m.fail(102, path)
		}
	default:
		if code != 0 {
			return m.fail(code, stop)
		}
	}
	e := &kvstore.Event{Action: action, EtcdIndex: m.index + 1}
	if code == 0 {
		e.PrevNode = m.outer(path, n, c.Time)
	}
	switch c.Op {
	case kvstore.OpUpdate:
		if n.dir && c.Value != "" {
			return m.fail(102, path)
		}
	case kvstore.OpCompareAndSwap, kvstore.OpCompareAndDelete:
		if n.dir {
			return m.fail(102, path)
		}
		var causes []string
		if c.PrevValue != "" && c.PrevValue != n.value {
			causes = append(causes, fmt.Sprintf("[%s != %s]", c.PrevValue, n.value))
		}
		if c.PrevIndex != 0 && c.PrevIndex != n.modified {
			causes = append(causes, fmt.Sprintf("[%d != %d]", c.PrevIndex, n.modified))
		}
		if causes != nil {
			return m.fail(101, strings.Join(causes, " "))
		}
	case kvstore.OpDelete:
		if n.dir && !c.Dir && !c.Recursive {
			return m.fail(102, path)
		}
		if n.dir && !c.Recursive && len(m.below(path)) > 0 {
			return m.fail(108, path)
		}
	}
	m.index++
	if c.Op == kvstore.OpDelete || c.Op == kvstore.OpCompareAndDelete {
		m.take(e, path, n)
		return e, nil
	}
	value := c.Value
	if c.Refresh && code == 0 {
		value = n.value
	}
	now := modelNode{dir: c.Dir, value: value, created: m.index, modified: m.index, expire: c.Expire}
	if c.Op == kvstore.OpUpdate || c.Op == kvstore.OpCompareAndSwap {
		now.dir, now.created = n.dir, n.created
		if n.dir {
			now.modified = n.modified
		}
	}
	if now.dir {
		now.value = ""
	}
	for at := path[:strings.LastIndex(path, "/")]; at != ""; at = at[:strings.LastIndex(at, "/")] {
		if _, ok := m.nodes[at]; !ok {
			m.nodes[at] = modelNode{dir: true, created: m.index, modified: m.index}
		}
	}
	m.nodes[path] = now
	e.Node = m.outer(path, now, c.Time)
	e.Node.ModifiedIndex = m.index
	e.Refresh = c.Refresh
	m.log = append(m.log, told{event: e})
	return e, nil
}

func (m *model) take(e *kvstore.Event, path string, n modelNode) {
	e.Node = &kvstore.Node{Key: path, Dir: n.dir, CreatedIndex: n.created, ModifiedIndex: m.index}
	gone := m.below(path)
	for _, p := range append(gone, path) {
		delete(m.nodes, p)
	}
	m.log = append(m.log, told{e, gone})
}

func (m *model) below(path string) (list []string) {
	for p := range m.nodes {
		if strings.HasPrefix(p, path+"/") {
			list = append(list, p)
		}
	}
	return list
}

func (m *model) expire(cutoff time.Time) {
	for {
		next := ""
		for p, n := range m.nodes {
			if n.expire.IsZero() || n.expire.After(cutoff) {
				continue
			}
			if next == "" || n.expire.Before(m.nodes[next].expire) || n.expire.Equal(m.nodes[next].expire) && p < next {
				next = p
			}
		}
		if next == "" {
			return
		}
		n := m.nodes[next]
		m.index++
		e := &kvstore.Event{Action: "expire", PrevNode: m.outer(next, n, cutoff), EtcdIndex: m.index}
		m.take(e, next, n)
	}
}

// seen are the events that a stream watcher is told.
func (m *model) seen(path string, recursive bool, since uint64) (list []*kvstore.Event) {
	for _, t := range m.log {
		key := t.event.Node.Key
		below := strings.HasPrefix(key, strings.TrimSuffix(path, "/")+"/")
		hidden := below && strings.Contains("/"+strings.TrimPrefix(key[len(path):], "/"), "/_")
		if !t.event.Refresh && t.event.Node.ModifiedIndex >= since &&
			(key == path || recursive && below && !hidden || slices.Contains(t.gone, path)) {
			list = append(list, t.event)
		}
	}
	return list
}

func (m *model) tree(path string) *kvstore.Node {
	n := m.outer(path, m.nodes[path], time.Time{})
	n.Expiration, n.TTL = m.nodes[path].expire, 0
	prefix := strings.TrimSuffix(path, "/") + "/"
	var names []string
	for p := range m.nodes {
		if rest, ok := strings.CutPrefix(p, prefix); ok && rest != "" && rest[0] != '_' && !strings.Contains(rest, "/") {
			names = append(names, p)
		}
	}
	slices.Sort(names)
	for _, p := range names {
		n.Nodes = append(n.Nodes, m.tree(p))
	}
	return n
}

func wire(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// withoutTTL is a tree without what depends on when one looks.
func withoutTTL(n *kvstore.Node) *kvstore.Node {
	c := *n
	c.TTL, c.Nodes = 0, nil
	for _, child := range n.Nodes {
		c.Nodes = append(c.Nodes, withoutTTL(child))
	}
	return &c
}

func dump(t *testing.T, s *kvstore.Store) string {
	t.Helper()
	e, err := s.Get("/", kvstore.GetRequest{Recursive: true, Sorted: true})
	if err != nil {
		t.Fatal(err)
	}
	return strconv.FormatUint(e.EtcdIndex, 10) + wire(t, withoutTTL(&e.Node))
}

// TestRandomHistories runs random commands against the store and the model, with watchers, snapshots and clones on the way.
func TestRandomHistories(t *testing.T) {
	for _, shape := range []struct {
		name           string
		wide, deep     int
		steps, between int
	}{{"narrow", 3, 4, 3000, 50}, {"wide", 150, 2, 6000, 500}} {
		for seed := range uint64(6) {
			t.Run(fmt.Sprintf("%s/%d", shape.name, seed), func(t *testing.T) {
				t.Parallel()
				r := rand.New(rand.NewPCG(seed, 7))
				clock := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
				options := kvstore.Options{Namespaces: []string{"/1"}, HistoryEvents: 20000, WatchBuffer: shape.steps * 4, Now: func() time.Time { return clock }}
				s, m := kvstore.New(options), newModel()
				path := func() string {
					b := strings.Builder{}
					b.WriteString("/1")
					for range r.IntN(shape.deep + 1) {
						name := strconv.Itoa(r.IntN(shape.wide))
						if r.IntN(8) == 0 {
							name = "_" + name
						}
						b.WriteString("/" + name)
					}
					return b.String()
				}
				type watch struct {
					w         *kvstore.Watcher
					path      string
					recursive bool
					since     uint64
				}
				var watches []watch
				for step := range shape.steps {
					if r.IntN(3) == 0 {
						clock = clock.Add(time.Duration(r.IntN(2000)) * time.Millisecond)
					}
					c := kvstore.Command{Op: kvstore.Op(1 + r.IntN(6)), Path: path(), Time: clock}
					if r.IntN(2) == 0 {
						c.Op = kvstore.OpSet
					}
					switch c.Op {
					case kvstore.OpCreate:
						c.Dir, c.Unique = r.IntN(3) == 0, r.IntN(8) == 0
					case kvstore.OpSet:
						c.Dir, c.Refresh = r.IntN(5) == 0, r.IntN(8) == 0
					case kvstore.OpUpdate:
						c.Refresh = r.IntN(3) == 0
					case kvstore.OpCompareAndSwap, kvstore.OpCompareAndDelete:
						if n, ok := m.nodes[c.Path]; ok && r.IntN(3) > 0 {
							c.PrevIndex, c.PrevValue = n.modified, n.value
						}
						if r.IntN(4) == 0 {
							c.PrevIndex += uint64(r.IntN(2))
							c.PrevValue += strconv.Itoa(r.IntN(2))
						}
					case kvstore.OpDelete:
						c.Dir, c.Recursive = r.IntN(2) == 0, r.IntN(6) == 0
					}
					if !c.Dir && r.IntN(6) > 0 {
						c.Value = strings.Repeat("v", r.IntN(4)) + strconv.Itoa(step)
					}
					if c.Op <= kvstore.OpCompareAndSwap && r.IntN(6) == 0 {
						c.Expire = clock.Add(time.Duration(r.IntN(20000)) * time.Millisecond)
					}
					decoded, err := kvstore.DecodeCommand(c.Append(nil))
					if err != nil {
						t.Fatal(err)
					}
					e, err := s.Do(decoded)
					want, wantErr := m.do(c)
					switch {
					case (err != nil) != (wantErr != nil):
						t.Fatalf("step %d: %+v: got %v, want %v", step, c, err, wantErr)
					case err != nil:
						if wire(t, err) != wire(t, wantErr) {
							t.Fatalf("step %d: %+v: got %s, want %s", step, c, wire(t, err), wire(t, wantErr))
						}
					case wire(t, e) != wire(t, want) || e.EtcdIndex != want.EtcdIndex:
						t.Fatalf("step %d: %+v:\n got %s\nwant %s", step, c, wire(t, e), wire(t, want))
					}
					if r.IntN(10) == 0 {
						if _, err := s.Do(kvstore.Command{Op: kvstore.OpExpire, Time: clock}); err != nil {
							t.Fatal(err)
						}
						m.expire(clock)
					}
					if r.IntN(30) == 0 {
						w := watch{path: path(), recursive: r.IntN(2) == 0, since: m.index + 1}
						if w.w, err = s.Watch(w.path, kvstore.WatchRequest{Recursive: w.recursive, Stream: true}); err != nil {
							t.Fatal(err)
						}
						watches = append(watches, w)
					}
					if step%shape.between != 0 && step != shape.steps-1 {
						continue
					}
					want1 := strconv.FormatUint(m.index, 10) + wire(t, m.tree("/"))
					if got := dump(t, s); got != want1 {
						t.Fatalf("step %d: the trees differ:\n got %s\nwant %s", step, got, want1)
					}
					checkCopies(t, s, options, want1)
				}
				for _, w := range watches {
					got, err := come(w.w)
					if err != nil {
						t.Error(err)
					}
					w.w.Close()
					if want := m.seen(w.path, w.recursive, w.since); wire(t, got) != wire(t, want) {
						t.Errorf("the watcher of %s (recursive %v) from %d:\n got %s\nwant %s", w.path, w.recursive, w.since, wire(t, got), wire(t, want))
					}
				}
				if n := s.Stats().Watchers; n != 0 {
					t.Errorf("%d watchers are left", n)
				}
			})
		}
	}
}

var watchersInDocument = regexp.MustCompile(`"watchers":[0-9]+`)

// checkCopies makes the store again in each way there is and compares.
func checkCopies(t *testing.T, s *kvstore.Store, o kvstore.Options, want string) {
	t.Helper()
	document, err := s.Save()
	if err != nil {
		t.Fatal(err)
	}
	snapshot := s.Snapshot()
	var stream bytes.Buffer
	if _, err := snapshot.WriteTo(&stream); err != nil {
		t.Fatal(err)
	}
	recovered, restored := kvstore.New(o), kvstore.New(o)
	if err := recovered.Recovery(document); err != nil {
		t.Fatal(err)
	}
	if err := restored.Restore(&stream); err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]*kvstore.Store{"Recovery": recovered, "Restore": restored, "Clone": s.Clone()} {
		at, due := s.NextExpiry()
		at2, due2 := other.NextExpiry()
		if !at.Equal(at2) || due != due2 {
			t.Errorf("%s: the next key expires at %v, %v, want %v, %v", name, at2, due2, at, due)
		}
		again, err := other.Save()
		if err != nil {
			t.Fatal(err)
		}
		// Watchers are the store's own.
		again = watchersInDocument.ReplaceAll(again, []byte(`"watchers":0`))
		expected := watchersInDocument.ReplaceAll(document, []byte(`"watchers":0`))
		if !bytes.Equal(again, expected) {
			at := 0
			for at < min(len(again), len(expected))-1 && again[at] == expected[at] {
				at++
			}
			at = max(0, at-100)
			t.Errorf("%s: its document differs:\n got %.300s\nwant %.300s", name, again[at:], expected[at:])
		}
		if got := dump(t, other); got != want {
			t.Errorf("%s: its tree differs", name)
		}
	}
}
