package shim

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// pair returns both ends of a connection that holds nothing by itself.
func pair(t *testing.T) (net.Conn, net.Conn) {
	a, b := net.Pipe()
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

func TestFanoutFrames(t *testing.T) {
	f := &fanout{}
	ours, theirs := pair(t)
	c := newClient(ours, shimapi.Hello{Stdout: true, Stderr: true})
	f.join(c, []byte("head\n"))
	var wg sync.WaitGroup
	wg.Go(c.write)
	f.send(stdout, []byte("out"))
	f.send(stderr, []byte("error"))
	f.end()
	got, err := io.ReadAll(theirs)
	want := "head\n\x01\x00\x00\x00\x00\x00\x00\x03out\x02\x00\x00\x00\x00\x00\x00\x05error"
	if string(got) != want || err != nil {
		t.Fatalf("got %q, %v", got, err)
	}
	wg.Wait()
	late, end := pair(t)
	c = newClient(late, shimapi.Hello{Stdout: true})
	f.join(c, nil)
	wg.Go(c.write)
	if got, err := io.ReadAll(end); len(got) != 0 || err != nil {
		t.Fatalf("after the end: %q, %v", got, err)
	}
	wg.Wait()
}

// TestStandingClientIsCut lets a client read nothing. No piece waits for long, and in the end the client is gone.
func TestStandingClientIsCut(t *testing.T) {
	f := &fanout{tty: true}
	ours, _ := pair(t)
	c := newClient(ours, shimapi.Hello{Stdout: true})
	f.join(c, nil)
	var wg sync.WaitGroup
	wg.Go(c.write)
	piece := make([]byte, 1<<20)
	var longest time.Duration
	for range 2 * ringHard / len(piece) {
		begin := time.Now()
		f.send(stdout, piece)
		longest = max(longest, time.Since(begin))
	}
	select {
	case <-c.gone:
	default:
		t.Error("the client is still there")
	}
	if longest > time.Second { // patience, and what a busy host adds
		t.Errorf("a piece waited %v", longest)
	}
	wg.Wait()
}

// TestReadingClientStays reads slower than the process writes, yet at a good pace.
func TestReadingClientStays(t *testing.T) {
	f := &fanout{tty: true}
	ours, theirs := pair(t)
	c := newClient(ours, shimapi.Hello{Stdout: true})
	f.join(c, nil)
	var wg sync.WaitGroup
	wg.Go(c.write)
	const total = 64 << 20
	wg.Go(func() {
		piece := bytes.Repeat([]byte("x"), readSize)
		for range total / readSize {
			f.send(stdout, piece)
		}
		f.end()
	})
	n, err := io.Copy(io.Discard, theirs)
	if n != total || err != nil {
		t.Errorf("got %d bytes, want %d: %v", n, total, err)
	}
	wg.Wait()
}

func TestPacedClientHoldsAndLetsGo(t *testing.T) {
	f := &fanout{tty: true}
	ours, _ := pair(t)
	c := newClient(ours, shimapi.Hello{Stdout: true, Paced: true})
	f.join(c, nil)
	var wg sync.WaitGroup
	wg.Go(c.write)
	sent := make(chan struct{})
	wg.Go(func() {
		for range 3 {
			f.send(stdout, make([]byte, ringSoft-100))
		}
		close(sent)
	})
	for f.held.Load() == 0 {
		select {
		case <-sent:
			t.Fatal("the process did not wait")
		default:
		}
	}
	f.leave(c)
	<-sent
	wg.Wait()
}
