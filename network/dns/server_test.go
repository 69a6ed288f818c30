package dns_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"stated.dev/stated/network/dns"
	"stated.dev/stated/network/netns"
	"stated.dev/stated/network/sandbox"
)

// newNamespace makes a network namespace with nothing but its loopback interface.
func newNamespace(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ns")
	if err := netns.Create(path, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

func serve(t testing.TB, cfg sandbox.DNSConfig) *dns.Server {
	t.Helper()
	s, err := dns.Serve(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func zone(t testing.TB, z dns.Zone) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "zone")
	if err := dns.WriteZone(path, z); err != nil {
		t.Fatal(err)
	}
	return path
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// dialIn connects as a process in the namespace does.
func dialIn(ns, network, addr string) (c net.Conn, err error) {
	err = netns.Do(ns, func() error {
		c, err = net.Dial(network, addr)
		return err
	})
	return c, err
}

// resolver asks 127.0.0.11:53 from inside of the namespace.
func resolver(ns string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(_ context.Context, network, _ string) (net.Conn, error) {
		return dialIn(ns, network, "127.0.0.11:53")
	}}
}

func question(t testing.TB, id uint16, name string, typ dnsmessage.Type, edns int) []byte {
	t.Helper()
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{ID: id, RecursionDesired: true})
	b.StartQuestions()
	b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: typ, Class: dnsmessage.ClassINET})
	if edns > 0 {
		b.StartAdditionals()
		var h dnsmessage.ResourceHeader
		h.SetEDNS0(edns, 0, false)
		b.OPTResource(h, dnsmessage.OPTResource{})
	}
	message, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return message
}

// exchange sends one question over UDP and returns the reply.
func exchange(t testing.TB, ns string, message []byte) dnsmessage.Message {
	t.Helper()
	c, err := dialIn(ns, "udp", "127.0.0.11:53")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write(message); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	var reply dnsmessage.Message
	if err := reply.Unpack(buf[:n]); err != nil {
		t.Fatal(err)
	}
	if reply.ID != binary.BigEndian.Uint16(message) {
		t.Errorf("reply has identifier %d", reply.ID)
	}
	return reply
}

func ask(t testing.TB, ns, name string, typ dnsmessage.Type) dnsmessage.Message {
	t.Helper()
	return exchange(t, ns, question(t, 4711, name, typ, 0))
}

// upstream is another resolver, in a namespace or ("") on the host, at a loopback address.
type upstream struct {
	addr  string
	asked atomic.Int32
	tcp   atomic.Int32
}

// newUpstream answers every A question with address, or, when reply is given, with what it makes of the question.
func newUpstream(t testing.TB, ns, at string, reply func(q dnsmessage.Message, tcp bool) *dnsmessage.Message) *upstream {
	t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	listen := func() (err error) {
		if udp, err = net.ListenPacket("udp", at+":0"); err != nil {
			return err
		}
		tcp, err = net.Listen("tcp", udp.LocalAddr().String())
		return err
	}
	var err error
	if ns == "" {
		err = listen()
	} else {
		err = netns.Do(ns, listen)
	}
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{addr: udp.LocalAddr().String()}
	answer := func(raw []byte, overTCP bool) []byte {
		u.asked.Add(1)
		if overTCP {
			u.tcp.Add(1)
		}
		var q dnsmessage.Message
		if q.Unpack(raw) != nil {
			return nil
		}
		q.Response = true
		q.Additionals = nil
		m := reply(q, overTCP)
		if m == nil {
			return nil
		}
		packed, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return packed
	}
	var work sync.WaitGroup
	work.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			if m := answer(buf[:n], false); m != nil {
				udp.WriteTo(m, from)
			}
		}
	})
	work.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			var length [2]byte
			io.ReadFull(c, length[:])
			raw := make([]byte, binary.BigEndian.Uint16(length[:]))
			io.ReadFull(c, raw)
			m := answer(raw, true)
			c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
			c.Close()
		}
	})
	t.Cleanup(func() { udp.Close(); tcp.Close(); work.Wait() })
	return u
}

func withA(address string) func(dnsmessage.Message, bool) *dnsmessage.Message {
	return func(q dnsmessage.Message, _ bool) *dnsmessage.Message {
		q.Answers = append(q.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: netip.MustParseAddr(address).As4()},
		})
		return &q
	}
}

func withCode(code dnsmessage.RCode) func(dnsmessage.Message, bool) *dnsmessage.Message {
	return func(q dnsmessage.Message, _ bool) *dnsmessage.Message {
		q.RCode = code
		return &q
	}
}

func silent(dnsmessage.Message, bool) *dnsmessage.Message { return nil }

func TestAnswersFromZones(t *testing.T) {
	ns := newNamespace(t)
	serve(t, sandbox.DNSConfig{NetNS: ns, Zones: []string{
		filepath.Join(t.TempDir(), "not written yet"),
		zone(t, dns.Zone{
			Records: map[string][]netip.Addr{"web": addrs("172.18.0.2"), "v6": addrs("fd00::6"), "many": addrs("172.18.0.3", "172.18.0.4")},
			Reverse: map[string]string{"172.18.0.2": "web.front", "fd00::6": "v6.front"},
		}),
		zone(t, dns.Zone{Records: map[string][]netip.Addr{"web": addrs("172.19.0.2", "fd01::2"), "db": addrs("172.19.0.3")}}),
	}})
	r := resolver(ns)
	for _, c := range []struct {
		network, name string
		want          []string
	}{
		{"ip4", "web", []string{"172.18.0.2"}}, // the first network that has one
		{"ip4", "WeB", []string{"172.18.0.2"}},
		{"ip6", "web", []string{"fd01::2"}},
		{"ip", "v6", []string{"fd00::6"}},
		{"ip4", "db", []string{"172.19.0.3"}},
		{"ip4", "many", []string{"172.18.0.3", "172.18.0.4"}},
	} {
		got, err := r.LookupIP(t.Context(), c.network, c.name)
		var texts []string
		for _, ip := range got {
			texts = append(texts, ip.String())
		}
		slices.Sort(texts)
		if err != nil || !slices.Equal(texts, c.want) {
			t.Errorf("%s %s is %v, %v, want %v", c.network, c.name, texts, err, c.want)
		}
	}
	for ip, want := range map[string]string{"172.18.0.2": "web.front.", "fd00::6": "v6.front."} {
		names, err := r.LookupAddr(t.Context(), ip)
		if err != nil || !slices.Equal(names, []string{want}) {
			t.Errorf("%s is %v, %v", ip, names, err)
		}
	}

	m := ask(t, ns, "db.", dnsmessage.TypeAAAA)
	if m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 0 || !m.RecursionAvailable {
		t.Errorf("known name without such an address: %+v", m)
	}
	if m := ask(t, ns, "db.", dnsmessage.TypeMX); m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 0 {
		t.Errorf("known name, other type: %+v", m)
	}
	if m := ask(t, ns, "db.", dnsmessage.TypeA); m.Answers[0].Header.TTL != 600 {
		t.Errorf("time to live %d", m.Answers[0].Header.TTL)
	}
	if m := ask(t, ns, "unknown.", dnsmessage.TypeA); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("unknown name with nobody to ask: %v", m.RCode)
	}

	// Several addresses take turns.
	firsts := map[string]bool{}
	for range 100 {
		m := ask(t, ns, "many.", dnsmessage.TypeA)
		firsts[m.Answers[0].Body.GoString()] = true
	}
	if len(firsts) != 2 {
		t.Errorf("one address is always first: %v", firsts)
	}
}

func TestZonesAndConfigurationAreReplacedWhileServing(t *testing.T) {
	ns := newNamespace(t)
	path := zone(t, dns.Zone{})
	s := serve(t, sandbox.DNSConfig{NetNS: ns, Zones: []string{path}})
	if m := ask(t, ns, "late.", dnsmessage.TypeA); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("before: %v", m.RCode)
	}
	if err := dns.WriteZone(path, dns.Zone{Records: map[string][]netip.Addr{"late": addrs("172.18.0.9")}}); err != nil {
		t.Fatal(err)
	}
	if m := ask(t, ns, "late.", dnsmessage.TypeA); len(m.Answers) != 1 {
		t.Errorf("after the zone was written: %+v", m)
	}
	if err := s.Reconfigure(sandbox.DNSConfig{NetNS: ns, Options: []string{"ndots:1"}}); err != nil {
		t.Fatal(err)
	}
	if m := ask(t, ns, "late.", dnsmessage.TypeA); m.RCode != dnsmessage.RCodeNameError {
		t.Errorf("after the zone was taken away: %v", m.RCode)
	}
	if err := s.Reconfigure(sandbox.DNSConfig{NetNS: ns + "x"}); err == nil {
		t.Error("moved to another namespace")
	}
}

func TestForwards(t *testing.T) {
	ns := newNamespace(t)
	inside := newUpstream(t, ns, "127.0.0.1", withA("192.0.2.1"))
	host := newUpstream(t, "", "127.0.0.1", withA("192.0.2.2"))
	missing := newUpstream(t, ns, "127.0.0.1", withCode(dnsmessage.RCodeNameError))
	failing := newUpstream(t, ns, "127.0.0.1", withCode(dnsmessage.RCodeServerFailure))
	mute := newUpstream(t, ns, "127.0.0.1", silent)

	for _, c := range []struct {
		name      string
		upstreams []sandbox.Upstream
		code      dnsmessage.RCode
		address   string
	}{
		{"inside", []sandbox.Upstream{{Addr: inside.addr}}, 0, "192.0.2.1"},
		{"on the host", []sandbox.Upstream{{Addr: host.addr, Host: true}}, 0, "192.0.2.2"},
		{"host's address is not reached from inside", []sandbox.Upstream{{Addr: host.addr}}, dnsmessage.RCodeServerFailure, ""},
		{"no such name is final", []sandbox.Upstream{{Addr: missing.addr}, {Addr: inside.addr}}, dnsmessage.RCodeNameError, ""},
		{"failure goes on", []sandbox.Upstream{{Addr: failing.addr}, {Addr: inside.addr}}, 0, "192.0.2.1"},
		{"unreachable goes on", []sandbox.Upstream{{Addr: "203.0.113.1"}, {Addr: inside.addr}}, 0, "192.0.2.1"},
		{"silence goes on", []sandbox.Upstream{{Addr: mute.addr}, {Addr: inside.addr}}, 0, "192.0.2.1"},
		{"last failure is told", []sandbox.Upstream{{Addr: failing.addr}}, dnsmessage.RCodeServerFailure, ""},
		{"we are not asked ourselves", []sandbox.Upstream{{Addr: "127.0.0.11"}}, dnsmessage.RCodeServerFailure, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Each server takes the rules of the one before over.
			serve(t, sandbox.DNSConfig{NetNS: ns, Upstreams: c.upstreams})
			m := ask(t, ns, "example.com.", dnsmessage.TypeA)
			if m.RCode != c.code {
				t.Fatalf("code %v, want %v", m.RCode, c.code)
			}
			if c.address != "" && (len(m.Answers) != 1 || netip.AddrFrom4(m.Answers[0].Body.(*dnsmessage.AResource).A).String() != c.address) {
				t.Errorf("answers %v, want %s", m.Answers, c.address)
			}
		})
	}
	if _, err := dns.Serve(t.Context(), sandbox.DNSConfig{NetNS: ns, Upstreams: []sandbox.Upstream{{Addr: "nonsense"}}}); err == nil {
		t.Error("nonsense as an address")
	}
}

func TestTruncationLeadsToTCP(t *testing.T) {
	ns := newNamespace(t)
	many := map[string][]netip.Addr{}
	for i := range 200 {
		many["big"] = append(many["big"], netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	up := newUpstream(t, ns, "127.0.0.1", func(q dnsmessage.Message, tcp bool) *dnsmessage.Message {
		if !tcp {
			q.Truncated = true
			return &q
		}
		for range 200 {
			q = *withA("192.0.2.7")(q, tcp)
		}
		return &q
	})
	serve(t, sandbox.DNSConfig{NetNS: ns, Zones: []string{zone(t, dns.Zone{Records: many})}, Upstreams: []sandbox.Upstream{{Addr: up.addr}}})

	m := ask(t, ns, "big.", dnsmessage.TypeA)
	if !m.Truncated || len(m.Answers) == 0 || len(m.Answers) > 30 {
		t.Errorf("512 bytes: truncated %v, %d answers", m.Truncated, len(m.Answers))
	}
	m = exchange(t, ns, question(t, 1, "big.", dnsmessage.TypeA, 4096))
	if m.Truncated || len(m.Answers) != 200 || len(m.Additionals) != 1 {
		t.Errorf("4096 bytes: truncated %v, %d answers, %d additional", m.Truncated, len(m.Answers), len(m.Additionals))
	}
	for _, name := range []string{"big", "far.example.com"} {
		ips, err := resolver(ns).LookupIP(t.Context(), "ip4", name)
		if err != nil || len(ips) != 200 {
			t.Errorf("%s: %d addresses, %v", name, len(ips), err)
		}
	}
	if up.tcp.Load() == 0 {
		t.Error("the upstream was not asked over TCP")
	}
}

// A container may run a name server of its own on port 53 of all addresses.
func TestPort53StaysFree(t *testing.T) {
	ns := newNamespace(t)
	serve(t, sandbox.DNSConfig{NetNS: ns, Zones: []string{zone(t, dns.Zone{Records: map[string][]netip.Addr{"web": addrs("172.18.0.2")}})}})
	err := netns.Do(ns, func() error {
		for _, addr := range []string{"0.0.0.0:53", "[::]:53"} {
			c, err := net.ListenPacket("udp", addr)
			if err != nil {
				return err
			}
			defer c.Close()
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return err
			}
			defer l.Close()
			if m := ask(t, ns, "web.", dnsmessage.TypeA); len(m.Answers) != 1 {
				return fmt.Errorf("beside %s: %+v", addr, m)
			}
			c.Close()
			l.Close()
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A program that knows nothing of us resolves names through its resolv.conf.
func TestAProgramResolves(t *testing.T) {
	ns := newNamespace(t)
	serve(t, sandbox.DNSConfig{NetNS: ns, Zones: []string{zone(t, dns.Zone{
		Records: map[string][]netip.Addr{"web": addrs("172.18.0.2")},
		Reverse: map[string]string{"172.18.0.2": "web.front"},
	})}})
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.11\noptions ndots:0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"hosts web": "172.18.0.2", "hosts WEB": "172.18.0.2", "hosts 172.18.0.2": "web.front",
	} {
		cmd := exec.Command("nsenter", "--net="+ns, "unshare", "--mount", "sh", "-ec",
			"mount --bind "+conf+" /etc/resolv.conf; getent "+query)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("getent %s: %v: %s", query, err, out)
		}
	}
}

func TestALoopEnds(t *testing.T) {
	ns := newNamespace(t)
	// A forwarder in the container that asks us what we ask it.
	var asked atomic.Int32
	loop := newUpstream(t, ns, "127.0.0.1", func(q dnsmessage.Message, _ bool) *dnsmessage.Message {
		if asked.Add(1) > 1000 {
			return nil
		}
		q.Response = false
		raw, _ := q.Pack()
		for range 2 {
			if c, err := dialIn(ns, "udp", "127.0.0.11:53"); err == nil {
				c.Write(raw)
				c.Close()
			}
		}
		return nil
	})
	serve(t, sandbox.DNSConfig{NetNS: ns, Upstreams: []sandbox.Upstream{{Addr: loop.addr}}})
	m := ask(t, ns, "example.com.", dnsmessage.TypeA)
	if m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("code %v", m.RCode)
	}
	if n := asked.Load(); n > 600 {
		t.Errorf("asked %d times", n)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	ns := newNamespace(t)
	mute := newUpstream(t, ns, "127.0.0.1", silent)
	before := runtime.NumGoroutine()
	s, err := dns.Serve(t.Context(), sandbox.DNSConfig{NetNS: ns, Upstreams: []sandbox.Upstream{{Addr: mute.addr}}})
	if err != nil {
		t.Fatal(err)
	}
	waitGoroutines(t, before+2) // one for each socket
	udp, err := dialIn(ns, "udp", "127.0.0.11:53")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	udp.Write(question(t, 1, "example.com.", dnsmessage.TypeA, 0))
	tcp, err := dialIn(ns, "tcp", "127.0.0.11:53")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	for mute.asked.Load() == 0 {
		runtime.Gosched()
	}
	start := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("closing took %v", took)
	}
	waitGoroutines(t, before)
	if _, err := tcp.Read(make([]byte, 1)); err == nil {
		t.Error("TCP connection lives on")
	}
}

// waitGoroutines waits until there are at most n: one that has reported its end may take a moment to be gone.
func waitGoroutines(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > n; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, want at most %d", runtime.NumGoroutine(), n)
		}
	}
}

func TestErrors(t *testing.T) {
	if _, err := dns.Serve(t.Context(), sandbox.DNSConfig{NetNS: "/does/not/exist"}); err == nil {
		t.Error("no namespace")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dns.Serve(ctx, sandbox.DNSConfig{NetNS: newNamespace(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	ns := newNamespace(t)
	serve(t, sandbox.DNSConfig{NetNS: ns})
	for _, c := range []struct {
		what string
		raw  []byte
		want dnsmessage.RCode
	}{
		{"status request", []byte("\x00\x01\x10\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01"), dnsmessage.RCodeNotImplemented},
		{"no question", []byte("\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), dnsmessage.RCodeFormatError},
		{"name cut off", []byte("\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09web"), dnsmessage.RCodeFormatError},
		{"other class", []byte("\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x03"), dnsmessage.RCodeServerFailure},
	} {
		if m := exchange(t, ns, c.raw); m.RCode != c.want {
			t.Errorf("%s: %v, want %v", c.what, m.RCode, c.want)
		}
	}
}

func BenchmarkServe(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		ns := newNamespace(b)
		b.StartTimer()
		s, err := dns.Serve(b.Context(), sandbox.DNSConfig{NetNS: ns})
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
		b.StartTimer()
	}
}

func BenchmarkLookup(b *testing.B) {
	ns := newNamespace(b)
	serve(b, sandbox.DNSConfig{NetNS: ns, Zones: []string{zone(b, dns.Zone{Records: map[string][]netip.Addr{"web": addrs("172.18.0.2")}})}})
	benchmarkAsk(b, ns, "web.")
}

func BenchmarkForward(b *testing.B) {
	ns := newNamespace(b)
	up := newUpstream(b, ns, "127.0.0.1", withA("192.0.2.1"))
	serve(b, sandbox.DNSConfig{NetNS: ns, Upstreams: []sandbox.Upstream{{Addr: up.addr}}})
	benchmarkAsk(b, ns, "example.com.")
}

func benchmarkAsk(b *testing.B, ns, name string) {
	c, err := dialIn(ns, "udp", "127.0.0.11:53")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	message := question(b, 1, name, dnsmessage.TypeA, 0)
	buf := make([]byte, 4096)
	for b.Loop() {
		c.Write(message)
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
