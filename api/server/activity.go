package server

import (
	"net"
	"net/http"
	"sync"
)

// activity counts running handlers, those of taken-over connections included.
type activity struct {
	mu   sync.Mutex // guards the fields below
	n    int
	none []chan struct{} // closed when n falls to 0
}

func (a *activity) enter() {
	a.mu.Lock()
	a.n++
	a.mu.Unlock()
}

func (a *activity) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.n--
	if a.n > 0 {
		return
	}
	for _, c := range a.none {
		close(c)
	}
	a.none = nil
}

func (a *activity) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n
}

// idle returns a channel that is closed once no handler runs.
func (a *activity) idle() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := make(chan struct{})
	if a.n == 0 {
		close(c)
	} else {
		a.none = append(a.none, c)
	}
	return c
}

// newcomers are connections on which no request has come yet. An orderly shutdown of net/http gives them five seconds
// to send one; a daemon that stops does not wait for them.
type newcomers struct {
	mu    sync.Mutex // guards conns
	conns map[net.Conn]struct{}
}

// note is told of every change of a connection's state.
func (n *newcomers) note(c net.Conn, state http.ConnState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if state != http.StateNew {
		delete(n.conns, c)
		return
	}
	if n.conns == nil {
		n.conns = map[net.Conn]struct{}{}
	}
	n.conns[c] = struct{}{}
}

// close closes them all.
func (n *newcomers) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for c := range n.conns {
		_ = c.Close() // nothing was sent on it
	}
}
