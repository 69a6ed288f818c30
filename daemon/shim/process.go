package shim

import (
	"sync"
	"time"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// process is init, or a further process of the container.
type process struct {
	id    string // empty for init
	tty   bool
	stdio *stdio

	mu        sync.Mutex // guards what is below
	state     string
	paused    bool
	pid       int
	startedAt time.Time
	exit      *shimapi.Exit
	ending    bool

	ended chan struct{} // closed when exit is set and recorded
}

func newProcess(id string, tty bool, io *stdio, state string) *process {
	return &process{id: id, tty: tty, stdio: io, state: state, ended: make(chan struct{})}
}

// created notes that the process exists. An exit that was quicker wins.
func (p *process) created(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid = pid
	if p.state == shimapi.StateSpawned {
		p.state = shimapi.StateCreated
	}
}

// started notes that the process runs. An exit that was quicker wins.
func (p *process) started(pid int, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pid != 0 {
		p.pid = pid
	}
	p.startedAt = at
	if p.state == shimapi.StateCreated {
		p.state = shimapi.StateRunning
	}
}

func (p *process) setPaused(paused bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.paused = paused
}

// beginEnd reports whether the caller is the first to bring the process's end about.
func (p *process) beginEnd() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := !p.ending
	p.ending = true
	return first
}

// end wakes who waits for the process.
func (p *process) end(exit shimapi.Exit) {
	p.mu.Lock()
	p.state = shimapi.StateStopped
	p.exit = &exit
	p.mu.Unlock()
	close(p.ended)
}

func (p *process) snapshot() shimapi.Process {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := shimapi.Process{
		ID: p.id, State: p.state, Pid: p.pid, StartedAt: p.startedAt, Exit: p.exit, Tty: p.tty,
	}
	if p.paused && p.state == shimapi.StateRunning {
		s.State = shimapi.StatePaused
	}
	return s
}
