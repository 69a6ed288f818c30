// Package sessions lets a command that is proposed to a replicated log more than once take effect once. A client names its
// commands by numbers, and the state machine remembers the results of those that the client still waits for.
//
// Names are the proposing host's and no part of the state. A Table is: it depends on nothing but the names that it was
// given, so all hosts have the same. Names may be used from any goroutine; a Table is guarded by the machine's lock.
package sessions

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// Name is what a command is known by. A Client of 0 has no sessions: its commands take effect as often as they come.
type Name struct {
	Client, Sequence uint64
	Acked            uint64 // the client awaits no result of a sequence below it
}

// Names gives names to one client's commands.
type Names struct {
	client uint64

	mu       sync.Mutex // guards what follows; never held over a proposal
	next     uint64     // the next sequence
	acked    uint64     // no result of a sequence below is awaited
	finished map[uint64]bool
}

// NewNames returns the names of a client. A client of 0 stands for a random one, which is right outside tests: a host is one
// client between two starts.
func NewNames(client uint64) *Names {
	for client == 0 {
		client = rand.Uint64()
	}
	return &Names{client: client, next: 1, acked: 1, finished: map[uint64]bool{}}
}

// Client is the number in all the names.
func (n *Names) Client() uint64 { return n.client }

// Begin returns the name of a new command. Its result is awaited until Finish.
func (n *Names) Begin() Name {
	n.mu.Lock()
	defer n.mu.Unlock()
	name := Name{Client: n.client, Sequence: n.next, Acked: n.acked}
	n.next++
	return name
}

// Finish says that the result of a command is not awaited any more.
func (n *Names) Finish(name Name) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.finished[name.Sequence] = true
	for n.finished[n.acked] {
		delete(n.finished, n.acked)
		n.acked++
	}
}

// limit bounds the clients that a table remembers. The one that was silent for longest is forgotten.
const limit = 256

// Client is what a table knows of one client.
type Client[R any] struct {
	ID, Acked uint64
	Used      uint64       // how many commands there had been at its last one
	Results   map[uint64]R // by sequence
}

// Table is what a machine knows of its clients. The zero value knows none.
type Table[R any] struct {
	applied uint64 // commands so far, which orders clients by their last one
	clients map[uint64]*Client[R]
}

// Verdict says what a machine is to do with a command.
type Verdict int

// The verdicts.
const (
	New    Verdict = iota // carry it out, and then call End
	Repeat                // answer with the first result
	Late                  // drop it: it is a repeat whose result nobody awaits
)

// Begin counts a command and says what to do with it. The result is that of a repeat.
func (t *Table[R]) Begin(name Name) (result R, v Verdict) {
	t.applied++
	if name.Client == 0 {
		return result, New
	}
	c := t.clients[name.Client]
	if c == nil {
		if t.clients == nil {
			t.clients = map[uint64]*Client[R]{}
		}
		c = &Client[R]{ID: name.Client, Results: map[uint64]R{}}
		t.clients[name.Client] = c
	}
	c.Used = t.applied
	t.forget()
	if result, done := c.Results[name.Sequence]; done {
		return result, Repeat
	}
	if name.Sequence < c.Acked {
		return result, Late
	}
	if name.Acked > c.Acked {
		c.Acked = name.Acked
		maps.DeleteFunc(c.Results, func(sequence uint64, _ R) bool { return sequence < name.Acked })
	}
	return result, New
}

// End remembers the result of a new command.
func (t *Table[R]) End(name Name, result R) {
	if name.Client != 0 {
		t.clients[name.Client].Results[name.Sequence] = result
	}
}

func (t *Table[R]) forget() {
	if len(t.clients) <= limit {
		return
	}
	var oldest uint64
	used := t.applied + 1
	for id, c := range t.clients {
		if c.Used < used {
			oldest, used = id, c.Used
		}
	}
	delete(t.clients, oldest)
}

// Applied is how many commands there have been.
func (t *Table[R]) Applied() uint64 { return t.applied }

// Clients returns copies of what is known, by ID. Load is the reverse.
func (t *Table[R]) Clients() []Client[R] {
	list := make([]Client[R], 0, len(t.clients))
	for _, id := range slices.Sorted(maps.Keys(t.clients)) {
		c := *t.clients[id]
		c.Results = maps.Clone(c.Results)
		list = append(list, c)
	}
	return list
}

// Load returns a table of what another one knew. It keeps the clients' results.
func Load[R any](applied uint64, clients []Client[R]) Table[R] {
	t := Table[R]{applied: applied, clients: make(map[uint64]*Client[R], len(clients))}
	for _, c := range clients {
		t.clients[c.ID] = &c
	}
	return t
}
