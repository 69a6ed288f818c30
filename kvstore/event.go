package kvstore

import (
	"strconv"
	"strings"
	"time"

	"stated.dev/stated/internal/jsonquote"
)

// Action says what an event did. Its values are those of the API.
type Action string

// The actions.
const (
	ActionGet              Action = "get"
	ActionCreate           Action = "create"
	ActionSet              Action = "set"
	ActionUpdate           Action = "update"
	ActionDelete           Action = "delete"
	ActionCompareAndSwap   Action = "compareAndSwap"
	ActionCompareAndDelete Action = "compareAndDelete"
	ActionExpire           Action = "expire"
)

// Event is what a Get returns, what a change did, and what a watcher is told. It is shared between whoever sees it:
// nobody changes an event or what it points to.
type Event struct {
	Action   Action
	Node     *Node // nil when the request wanted no value
	PrevNode *Node // what the change replaced or removed, without its children; nil when there was nothing
	Refresh  bool  // only the time to live changed; watchers are not told

	EtcdIndex uint64 // the store's index when the event was made; not part of its JSON form
}

// Found is what a Get returns. It is no event, so that reading a key needs no memory of its own.
type Found struct {
	Node      Node
	EtcdIndex uint64 // the store's index when the node was found so
}

// Event returns the form in which the API answers with it.
func (f *Found) Event() *Event {
	return &Event{Action: ActionGet, Node: &f.Node, EtcdIndex: f.EtcdIndex}
}

// Index is the index of the change that the event tells of.
func (e *Event) Index() uint64 { return e.Node.ModifiedIndex }

// IsCreated says whether the event made a key that was not there, which the API answers with 201.
func (e *Event) IsCreated() bool {
	return e.Action == ActionCreate || e.Action == ActionSet && e.PrevNode == nil
}

// Node is the form in which a key or directory leaves the store.
type Node struct {
	Key           string
	Value         string // "" for directories and for what was deleted or has expired
	Dir           bool
	Expiration    time.Time // UTC; zero for a permanent key
	TTL           int64     // seconds that were left when the event was made, rounded up
	Nodes         []*Node   // a directory's children, where they were asked for
	ModifiedIndex uint64
	CreatedIndex  uint64
}

// MarshalJSON writes the event with its fields in the API's order, keys as they are in the store.
func (e *Event) MarshalJSON() ([]byte, error) {
	return e.AppendJSON(make([]byte, 0, 256), ""), nil
}

// MarshalJSON writes the node with its fields in the API's order, keys as they are in the store.
func (n *Node) MarshalJSON() ([]byte, error) {
	return n.appendJSON(make([]byte, 0, 256), "", false), nil
}

// AppendJSON appends the event's JSON form to b and returns it. It cuts prefix off each key, so that a name space's events
// are encoded without a copy.
func (e *Event) AppendJSON(b []byte, prefix string) []byte {
	b = append(b, `{"action":`...)
	b = appendJSONString(b, string(e.Action))
	if e.Node != nil {
		b = append(b, `,"node":`...)
		b = e.Node.appendJSON(b, prefix, e.Removes())
	}
	if e.PrevNode != nil {
		b = append(b, `,"prevNode":`...)
		b = e.PrevNode.appendJSON(b, prefix, false)
	}
	if e.Refresh {
		b = append(b, `,"refresh":true`...)
	}
	return append(b, '}')
}

// Removes says whether the event's node is gone, and so has no value, not even an empty one.
func (e *Event) Removes() bool {
	return e.Action == ActionDelete || e.Action == ActionCompareAndDelete || e.Action == ActionExpire
}

func (n *Node) appendJSON(b []byte, prefix string, isGone bool) []byte {
	b = append(b, '{')
	start := len(b)
	field := func(name string) {
		if len(b) > start {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = append(b, name...)
		b = append(b, `":`...)
	}
	if key := strings.TrimPrefix(n.Key, prefix); key != "" {
		field("key")
		b = appendJSONString(b, key)
	}
	if !n.Dir && !isGone {
		field("value")
		b = appendJSONString(b, n.Value)
	}
	if n.Dir {
		field("dir")
		b = append(b, "true"...)
	}
	if !n.Expiration.IsZero() {
		field("expiration")
		b = append(b, '"')
		b = n.Expiration.UTC().AppendFormat(b, time.RFC3339Nano)
		b = append(b, '"')
	}
	if n.TTL != 0 {
		field("ttl")
		b = strconv.AppendInt(b, n.TTL, 10)
	}
	if len(n.Nodes) > 0 {
		field("nodes")
		for i, child := range n.Nodes {
			b = append(b, "[,"[min(i, 1)])
			b = child.appendJSON(b, prefix, false)
		}
		b = append(b, ']')
	}
	if n.ModifiedIndex != 0 {
		field("modifiedIndex")
		b = strconv.AppendUint(b, n.ModifiedIndex, 10)
	}
	if n.CreatedIndex != 0 {
		field("createdIndex")
		b = strconv.AppendUint(b, n.CreatedIndex, 10)
	}
	return append(b, '}')
}

// quoting is that of encoding/json, the characters that matter to HTML escaped too, since clients have seen them so.
var quoting = jsonquote.Escaping("\b\f\n\r\t")

func appendJSONString(b []byte, s string) []byte { return jsonquote.Append(b, s, quoting) }
