package server

import "sync"

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
