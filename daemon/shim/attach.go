package shim

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// helloLimit bounds how long a client takes for its first line.
const helloLimit = 5 * time.Second

// attachServer joins clients to the streams of the container's processes.
type attachServer struct {
	shim     *Shim
	listener net.Listener

	mu     sync.Mutex // guards what is below
	conns  map[net.Conn]struct{}
	closed bool
	wg     sync.WaitGroup
}

// serve accepts clients until close is called.
func (a *attachServer) serve() {
	for {
		conn, err := a.listener.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				slog.Error("accept attach clients", "error", err)
			}
			return
		}
		if !a.add(conn) {
			_ = conn.Close() // the shim ends
			return
		}
		a.wg.Go(func() {
			defer a.remove(conn)
			a.handle(conn)
		})
	}
}

func (a *attachServer) close() {
	_ = a.listener.Close() // ends serve
	a.mu.Lock()
	a.closed = true
	for conn := range a.conns {
		_ = conn.Close() // ends its handler
	}
	a.mu.Unlock()
	a.wg.Wait()
}

func (a *attachServer) add(conn net.Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	if a.conns == nil {
		a.conns = map[net.Conn]struct{}{}
	}
	a.conns[conn] = struct{}{}
	return true
}

func (a *attachServer) remove(conn net.Conn) {
	_ = conn.Close() // often closed already
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.conns, conn)
}

// handle serves one client.
func (a *attachServer) handle(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(helloLimit)) // fails only on a closed connection
	r := bufio.NewReaderSize(conn, 8<<10)
	var hello shimapi.Hello
	if err := shimapi.ReadLine(r, &hello); err != nil {
		return // no client of ours
	}
	_ = conn.SetReadDeadline(time.Time{}) // likewise
	p := a.shim.process(hello.Exec)
	if p == nil {
		_ = shimapi.WriteLine(conn, shimapi.Answer{Error: "no such process: " + hello.Exec, NotFound: true}) // it may be gone
		return
	}
	// The output of a further process goes nowhere but to its client, so it waits for it.
	hello.Paced = hello.Paced || hello.Exec != ""
	c := newClient(conn, hello)
	var head bytes.Buffer
	_ = json.NewEncoder(&head).Encode(shimapi.Answer{}) // ends with the newline; a buffer cannot fail
	p.stdio.fan.join(c, head.Bytes())
	var writer sync.WaitGroup
	writer.Go(c.write)
	a.input(r, p, hello)
	p.stdio.fan.leave(c)
	writer.Wait()
}

// input takes a client's packets until it is gone.
func (a *attachServer) input(r *bufio.Reader, p *process, hello shimapi.Hello) {
	var buf []byte
	open := hello.Stdin
	for {
		if _, err := r.Peek(1); err != nil {
			// The connection broke without a word: the daemon died. A container's stdin stays open for the next one;
			// nobody can come back to a further process.
			if open && hello.Exec != "" {
				a.endInput(p)
			}
			return
		}
		if buf == nil {
			buf = make([]byte, shimapi.MaxPacket) // not before there is something to read
		}
		kind, payload, err := shimapi.ReadPacket(r, buf)
		switch {
		case err != nil:
			continue // Peek will say the same
		case kind == shimapi.PacketData && open:
			if p.stdio.writeStdin(payload) != nil {
				open = false // the process reads no more
			}
		case kind == shimapi.PacketEnd && open:
			open = false
			a.maybeEndInput(p, hello)
		case kind == shimapi.PacketLeave:
			if open {
				a.maybeEndInput(p, hello)
			}
			return
		}
	}
}

// maybeEndInput closes the process's stdin where the end of one client's input means that.
func (a *attachServer) maybeEndInput(p *process, hello shimapi.Hello) {
	if hello.Exec != "" || a.shim.cfg.StdinOnce {
		a.endInput(p)
	}
}

// endInput brings end of file to a process. A terminal has none: it would be hung up.
func (a *attachServer) endInput(p *process) {
	if p.tty || !p.stdio.closeStdin() {
		return
	}
	switch p.snapshot().State {
	case shimapi.StateRunning, shimapi.StatePaused:
		a.shim.closeInnerStdin(namespaces.WithNamespace(context.Background(), shimapi.Namespace), p)
	}
	// Before the start the task service has no end of its own yet; Start closes it then.
}
