package raft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	hraft "github.com/hashicorp/raft"
)

// lines is a machine that keeps commands. It has no snapshot.
type lines struct {
	mu   sync.Mutex // guards list
	list []string
}

func (m *lines) Apply(_ uint64, command []byte) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.list = append(m.list, string(command))
	return nil
}
func (m *lines) Snapshot() (Section, error)      { return Section{}, errors.New("not here") }
func (m *lines) Restore(uint32, io.Reader) error { return errors.New("not here") }
func (m *lines) seen() []string                  { m.mu.Lock(); defer m.mu.Unlock(); return slices.Clone(m.list) }

// voter is one of three.
type voter struct {
	*Log
	machine   *lines
	transport *hraft.InmemTransport
}

// TestThreeVoters: the same Log serves several voters, one of whom may be cut off.
func TestThreeVoters(t *testing.T) {
	voters := make([]voter, 3)
	var servers []hraft.Server
	for i := range voters {
		address, transport := hraft.NewInmemTransport(hraft.ServerAddress(fmt.Sprint("voter", i)))
		voters[i].transport = transport
		servers = append(servers, hraft.Server{ID: hraft.ServerID(address), Address: address})
	}
	connect := func(a, b int) {
		voters[a].transport.Connect(servers[b].Address, voters[b].transport)
		voters[b].transport.Connect(servers[a].Address, voters[a].transport)
	}
	connect(0, 1)
	connect(0, 2)
	connect(1, 2)
	for i := range voters {
		voters[i].machine = &lines{}
		l, err := Open(t.Context(), Options{Dir: t.TempDir(), Machines: []Slot{{ID: 1, Name: "lines", Machine: voters[i].machine}},
			peers: &peers{id: servers[i].ID, transport: voters[i].transport, voters: servers}})
		if err != nil {
			t.Fatal(err)
		}
		voters[i].Log = l
		t.Cleanup(func() {
			if err := l.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	first := leader(t, voters, -1)
	want := []string{"a"}
	if _, err := voters[first].Propose(t.Context(), 1, []byte("a")); err != nil {
		t.Fatal(err)
	}
	if err := voters[first].ReadIndex(t.Context()); err != nil {
		t.Error(err)
	}
	follower := voters[(first+1)%3]
	if _, err := follower.Propose(t.Context(), 1, []byte("b")); !errors.Is(err, ErrNotLeading) {
		t.Errorf("a follower's proposal: %v", err)
	}
	if err := follower.ReadIndex(t.Context()); !errors.Is(err, ErrNotLeading) {
		t.Errorf("a follower's read: %v", err)
	}

	voters[first].transport.DisconnectAll()
	for i := range voters {
		if i != first {
			voters[i].transport.Disconnect(servers[first].Address)
		}
	}
	if _, err := voters[first].Propose(t.Context(), 1, []byte("lost")); !errors.Is(err, ErrOutcomeUnknown) && !errors.Is(err, ErrNotLeading) {
		t.Errorf("a proposal without a majority: %v", err)
	}
	if err := voters[first].ReadIndex(t.Context()); !errors.Is(err, ErrNotLeading) {
		t.Errorf("a read without a majority: %v", err)
	}
	second := leader(t, voters, first)
	for i := range 100 {
		want = append(want, fmt.Sprint("c", i))
		if _, err := voters[second].Propose(t.Context(), 1, []byte(want[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	connect(first, (first+1)%3)
	connect(first, (first+2)%3)
	last := voters[second].Stats().Applied
	for i, v := range voters {
		if err := v.fsm.wait(t.Context(), last, nil); err != nil {
			t.Fatal(err)
		}
		if got := v.machine.seen(); !slices.Equal(got, want) {
			t.Errorf("voter %d has seen %q", i, got)
		}
	}
}

// leader waits until another voter than one leads.
func leader(t *testing.T, voters []voter, but int) int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	found := make(chan int)
	var wg sync.WaitGroup
	for i, v := range voters {
		if i == but {
			continue
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				leading, changed := v.Leading()
				if leading {
					select {
					case found <- i:
					case <-ctx.Done():
					}
					return
				}
				select {
				case <-changed:
				case <-ctx.Done():
				}
			}
		})
	}
	i := <-found
	cancel()
	wg.Wait()
	return i
}
