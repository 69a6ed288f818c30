package ports_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/daemon/shim/ports"
	"stated.dev/stated/network/sandbox"
)

// echoTCP stands for a container: it answers with what it gets, after the client has ended.
func echoTCP(t *testing.T, addr string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				all, err := io.ReadAll(c)
				if err == nil {
					c.Write(all)
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); work.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func echoUDP(t *testing.T, addr string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() { c.Close(); work.Wait() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func newHolder(t *testing.T) *ports.Holder {
	h := ports.NewHolder()
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func port(proto, host string, to netip.AddrPort) sandbox.Port {
	return sandbox.Port{Proto: proto, HostIP: host, ContainerIP: to.Addr().String(), ContainerPort: to.Port()}
}

func hold(t *testing.T, h *ports.Holder, id string, p ...sandbox.Port) []sandbox.Port {
	t.Helper()
	bound, err := h.Hold(t.Context(), id, p)
	if err != nil {
		t.Fatal(err)
	}
	return bound
}

func dialTCP(t *testing.T, host string, port uint16) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func TestForwardsTCPWithHalfClose(t *testing.T) {
	target := echoTCP(t, "127.0.0.1")
	h := newHolder(t)
	bound := hold(t, h, "e", port("tcp", "", target), port("tcp", "::", target))
	if bound[0].HostPort == 0 || bound[0].HostPort != bound[1].HostPort {
		t.Fatalf("both families should have one port: %+v", bound)
	}
	payload := make([]byte, 3<<20)
	rand.Read(payload)
	for _, host := range []string{"127.0.0.1", "::1"} {
		c := dialTCP(t, host, bound[0].HostPort)
		go func() {
			c.Write(payload)
			c.CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, payload) {
			t.Errorf("%s: %d bytes back, %v", host, len(got), err)
		}
	}
}

func TestADeadContainerIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	bound := hold(t, newHolder(t), "e", port("tcp", "127.0.0.1", target))
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", bound[0].HostPort))
	if err != nil {
		return // the reset was there before the connection was reported
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("reading gave %v, want a reset", err)
	}
}

func TestAResetIsPassedOn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	bound := hold(t, newHolder(t), "e", port("tcp", "127.0.0.1", l.Addr().(*net.TCPAddr).AddrPort()))
	client := dialTCP(t, "127.0.0.1", bound[0].HostPort)
	client.Write([]byte("hello"))
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	io.ReadFull(server, make([]byte, 5))
	client.SetLinger(0)
	client.Close()
	if _, err := server.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the server saw %v, want a reset", err)
	}
}

func TestForwardsUDP(t *testing.T) {
	target := echoUDP(t, "127.0.0.1")
	h := newHolder(t)
	bound := hold(t, h, "e", port("udp", "", target), port("udp", "::", target))
	if bound[0].HostPort != bound[1].HostPort {
		t.Fatalf("both families should have one port: %+v", bound)
	}
	// 127.0.0.2 is not the address the kernel would answer from by itself.
	for _, host := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(bound[0].HostPort)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, size := range []int{0, 1, 1400, 9000, 60000, 1} {
			payload := make([]byte, size)
			rand.Read(payload)
			got := make([]byte, 64<<10)
			c.Write(payload)
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			n, err := c.Read(got)
			if err != nil || !bytes.Equal(got[:n], payload) {
				t.Fatalf("%s: %d bytes: got %d, %v", host, size, n, err)
			}
		}
	}
}

func TestConflictHoldsNothing(t *testing.T) {
	target := echoTCP(t, "127.0.0.1")
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	number := taken.Addr().(*net.TCPAddr).AddrPort().Port()

	h := newHolder(t)
	free := port("udp", "127.0.0.1", target)
	used := port("tcp", "127.0.0.1", target)
	used.HostPort = number
	_, err = h.Hold(t.Context(), "e", []sandbox.Port{free, used})
	want := fmt.Sprintf("failed to bind host port for 127.0.0.1:%d:%s/tcp: address already in use", number, target)
	if err == nil || err.Error() != want || !errdefs.IsConflict(err) {
		t.Errorf("got  %v (conflict: %v)\nwant %s", err, errdefs.IsConflict(err), want)
	}
	if held := h.List(); len(held) != 0 {
		t.Errorf("held after a failure: %v", held)
	}

	// The address "" is 0.0.0.0, also in the text.
	used.HostIP = ""
	_, err = h.Hold(t.Context(), "e", []sandbox.Port{used})
	if err == nil || !strings.HasPrefix(err.Error(), "failed to bind host port for 0.0.0.0:") {
		t.Errorf("got %v", err)
	}
}

func TestRangeTakesTheFirstFreePort(t *testing.T) {
	target := echoTCP(t, "127.0.0.1")
	// A place with three free ports in a row.
	var first uint16
	for range 100 {
		l, err := net.Listen("tcp4", "127.0.0.9:0")
		if err != nil {
			t.Fatal(err)
		}
		first = l.Addr().(*net.TCPAddr).AddrPort().Port()
		l.Close()
		if first < 65000 {
			break
		}
	}
	h := newHolder(t)
	p := port("tcp", "127.0.0.9", target)
	p.HostPort, p.HostPortEnd = first, first+2
	for i := range uint16(3) {
		bound := hold(t, h, fmt.Sprint("e", i), p)
		if got := bound[0].HostPort; got != first+i || bound[0].HostPortEnd != got {
			t.Errorf("container %d: %+v, want port %d", i, bound[0], first+i)
		}
	}
	if _, err := h.Hold(t.Context(), "e3", []sandbox.Port{p}); !errdefs.IsConflict(err) {
		t.Errorf("range is used up: %v", err)
	}
	if err := h.Release("e1"); err != nil {
		t.Fatal(err)
	}
	if bound := hold(t, h, "e4", p); bound[0].HostPort != first+1 {
		t.Errorf("released port is not used again: %+v", bound)
	}
}

func TestAskingAgainGivesTheSameAnswer(t *testing.T) {
	target := echoTCP(t, "127.0.0.1")
	h := newHolder(t)
	p := port("tcp", "127.0.0.1", target)
	first := hold(t, h, "e", p)
	if again := hold(t, h, "e", p); again[0] != first[0] {
		t.Errorf("got %+v, had %+v", again, first)
	}
	if restored := hold(t, h, "e", first...); restored[0] != first[0] {
		t.Errorf("asking for what is bound: %+v, had %+v", restored, first)
	}
	if _, err := h.Hold(t.Context(), "e", []sandbox.Port{port("udp", "127.0.0.1", target)}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another request: %v", err)
	}
	if held := h.List(); len(held) != 1 || held["e"][0] != first[0] {
		t.Errorf("list: %v", held)
	}
}

func TestReleaseEndsConnectionsAndGoroutines(t *testing.T) {
	before := runtime.NumGoroutine()
	target := echoTCP(t, "127.0.0.1")
	h := newHolder(t)
	bound := hold(t, h, "e", port("tcp", "127.0.0.1", target), port("udp", "127.0.0.1", echoUDP(t, "127.0.0.1")))
	servers := 2 + 1 // what stands for the container, and its connection
	if idle := runtime.NumGoroutine() - before - 2; idle > 2 {
		t.Errorf("%d goroutines for two idle ports", idle)
	}
	c := dialTCP(t, "127.0.0.1", bound[0].HostPort)
	c.Write([]byte("x"))
	u, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", bound[1].HostPort))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	u.Write([]byte("x"))
	if _, err := u.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if err := h.Release("e"); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(c).ReadByte(); err == nil {
		t.Error("connection lives on")
	}
	if err := h.Release("e"); err != nil {
		t.Errorf("releasing again: %v", err)
	}
	// A goroutine that has reported its end may take a moment to be gone.
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine()-before > servers; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines left", runtime.NumGoroutine()-before-servers)
		}
	}
}

func TestRefusals(t *testing.T) {
	target := netip.MustParseAddrPort("127.0.0.1:80")
	h := newHolder(t)
	_, err := h.Hold(t.Context(), "e", []sandbox.Port{port("sctp", "127.0.0.1", target)})
	if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "sctp") {
		t.Errorf("sctp: %v", err)
	}
	_, err = h.Hold(t.Context(), "e", []sandbox.Port{port("tcp", "192.0.2.1", target)})
	if err == nil || !strings.HasSuffix(err.Error(), "cannot assign requested address") {
		t.Errorf("foreign address: %v", err)
	}
	_, err = h.Hold(t.Context(), "e", []sandbox.Port{port("tcp", "nonsense", target)})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("nonsense: %v", err)
	}
}
