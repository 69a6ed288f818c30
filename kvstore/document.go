package kvstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Save returns the store as one JSON document, in the form in which an etcd of the lines 3.4 and 3.5 keeps its v2 store. Children
// are in the order of their names, so equal stores have equal documents.
func (s *Store) Save() ([]byte, error) {
	p := s.Snapshot()
	b := make([]byte, 0, 1<<16)
	b = append(b, `{"Root":`...)
	b = appendSavedDir(b, "/", p.version.root)

	// etcd indexes the list of events by its capacity, so the list is as long as that.
	capacity := max(s.options.HistoryEvents, len(p.events))
	b = append(b, `,"WatcherHub":{"EventHistory":{"Queue":{"Events":[`...)
	for i := range capacity {
		if i > 0 {
			b = append(b, ',')
		}
		if i < len(p.events) {
			b = p.events[i].AppendJSON(b, "")
		} else {
			b = append(b, "null"...)
		}
	}
	start, last := uint64(0), uint64(0)
	if n := len(p.events); n > 0 {
		start, last = p.events[0].Index(), p.events[n-1].Index()
	}
	b = fmt.Appendf(b, `],"Size":%d,"Front":0,"Back":%d,"Capacity":%d},"StartIndex":%d,"LastIndex":%d}},"CurrentIndex":%d,"Stats":`,
		len(p.events), len(p.events)%capacity, capacity, start, last, p.version.index)
	stats, err := json.Marshal(p.stats)
	if err != nil {
		return nil, fmt.Errorf("save the key store: %w", err)
	}
	b = append(b, stats...)
	return append(b, `,"CurrentVersion":2}`...), nil
}

// SaveNoCopy is Save. Nothing is copied in either case, since a state of the tree never changes.
func (s *Store) SaveNoCopy() ([]byte, error) { return s.Save() }

func appendSavedDir(b []byte, path string, d *dir) []byte {
	b = appendSaved(b, path, d.attributes, "")
	if path == "/" {
		path = ""
	}
	first := len(b)
	d.each(func(name string, e entry) {
		b = append(b, "{,"[min(1, len(b)-first)])
		b = appendJSONString(b, name)
		b = append(b, ':')
		if e.dir != nil {
			b = appendSavedDir(b, path+"/"+name, e.dir)
			return
		}
		a, value := e.file.read()
		b = appendSaved(b, path+"/"+name, a, value)
		b = append(b, "null}"...)
	})
	if len(b) == first {
		b = append(b, '{')
	}
	return append(b, "}}"...)
}

func appendSaved(b []byte, path string, a attributes, value string) []byte {
	b = append(b, `{"Path":`...)
	b = appendJSONString(b, path)
	b = append(b, `,"CreatedIndex":`...)
	b = strconv.AppendUint(b, a.created, 10)
	b = append(b, `,"ModifiedIndex":`...)
	b = strconv.AppendUint(b, a.modified, 10)
	b = append(b, `,"ExpireTime":"`...)
	b = a.expire.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","Value":`...)
	b = appendJSONString(b, value)
	return append(b, `,"Children":`...)
}

// The document as it is read.
type savedStore struct {
	Root       *savedNode
	WatcherHub struct {
		EventHistory struct {
			Queue struct {
				Events                      []*savedEvent
				Size, Front, Back, Capacity int
			}
		}
	}
	CurrentIndex   uint64
	Stats          Stats
	CurrentVersion int
}

type savedNode struct {
	CreatedIndex, ModifiedIndex uint64
	ExpireTime                  time.Time
	Value                       string
	Children                    map[string]*savedNode
}

type savedEvent struct {
	Action   Action      `json:"action"`
	Node     *savedOuter `json:"node"`
	PrevNode *savedOuter `json:"prevNode"`
	Refresh  bool        `json:"refresh"`
}

type savedOuter struct {
	Key           string    `json:"key"`
	Value         string    `json:"value"`
	Dir           bool      `json:"dir"`
	Expiration    time.Time `json:"expiration"`
	TTL           int64     `json:"ttl"`
	ModifiedIndex uint64    `json:"modifiedIndex"`
	CreatedIndex  uint64    `json:"createdIndex"`
}

// Recovery replaces the store's state by that of a document of Save's form, whoever wrote it. Keys that are overdue stay
// until the next OpExpire. When the document is damaged the store stays as it was. Watchers fare as in Restore.
func (s *Store) Recovery(document []byte) error {
	var saved savedStore
	if err := json.Unmarshal(document, &saved); err != nil {
		return fmt.Errorf("recover the key store from a document: %w", err)
	}
	c := content{index: saved.CurrentIndex, stats: saved.Stats}
	var err error
	if c.events, err = saved.events(); err == nil {
		c.root, err = saved.Root.build("", "", 0, &c.expiry)
	}
	if err != nil {
		return fmt.Errorf("recover the key store from a document: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.becomeLocked(c)
	return nil
}

// build makes the directory that a node stands for.
func (n *savedNode) build(path, name string, depth int, x *expiry) (*dir, error) {
	if n == nil || depth > maxDepth {
		return nil, errors.New("a node is missing or lies too deep")
	}
	b := newBuilder(name, n.attributes())
	names := make([]string, 0, len(n.Children))
	for name := range n.Children {
		if !isName(name) {
			return nil, fmt.Errorf("a key has the name %.100q", name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		child := n.Children[name]
		below := path + "/" + name
		var e entry
		switch {
		case child == nil:
			return nil, fmt.Errorf("the node of %.100q is missing", below)
		case child.Children == nil:
			e.file = newRecord(name, child.attributes(), child.Value)
		default:
			var err error
			if e.dir, err = child.build(below, name, depth+1, x); err != nil {
				return nil, err
			}
		}
		x.set(below, child.attributes().expire)
		b.add(name, e)
	}
	return b.dir, nil
}

func (n *savedNode) attributes() attributes {
	return attributes{created: n.CreatedIndex, modified: n.ModifiedIndex, expire: tidyExpire(n.ExpireTime)}
}

// events puts the ring in order.
func (s *savedStore) events() ([]*Event, error) {
	q := &s.WatcherHub.EventHistory.Queue
	if q.Size == 0 {
		return nil, nil
	}
	if q.Size < 0 || q.Size > q.Capacity || q.Front < 0 || q.Front >= q.Capacity || q.Capacity > len(q.Events) {
		return nil, errors.New("the numbers of the event queue do not fit together")
	}
	events := make([]*Event, 0, q.Size)
	last := uint64(0)
	for i := range q.Size {
		e := q.Events[(q.Front+i)%q.Capacity]
		if e == nil || e.Node == nil || !slices.Contains(actions[:], e.Action) || e.Node.ModifiedIndex <= last || e.Node.ModifiedIndex > s.CurrentIndex {
			return nil, errors.New("the events of the history are not in order")
		}
		last = e.Node.ModifiedIndex
		events = append(events, &Event{Action: e.Action, Node: e.Node.node(), PrevNode: e.PrevNode.node(), Refresh: e.Refresh, EtcdIndex: last})
	}
	return events, nil
}

func (n *savedOuter) node() *Node {
	if n == nil {
		return nil
	}
	return &Node{Key: n.Key, Value: n.Value, Dir: n.Dir, Expiration: tidyExpire(n.Expiration), TTL: n.TTL, ModifiedIndex: n.ModifiedIndex, CreatedIndex: n.CreatedIndex}
}
