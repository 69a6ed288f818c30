package network_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	api "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	bolt "go.etcd.io/bbolt"

	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network"
	"stated.dev/stated/network/netns"
	"stated.dev/stated/network/netns/netnstest"
	"stated.dev/stated/network/sandbox"
)

func TestMain(m *testing.M) {
	netnstest.Enter()
	if os.Getenv(crashEnv) != "" {
		crashChild()
	}
	os.Exit(m.Run())
}

// recorder keeps the events.
type recorder struct {
	mu   sync.Mutex
	list []string
}

func (r *recorder) Publish(typ events.Type, action events.Action, _ string, attrs map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, fmt.Sprintf("%s %s %s %s", typ, action, attrs["name"], attrs["container"]))
}

// holder gives out the ports it is asked for, or counts up from 40000. Neighbours share a number, as in the shim.
type holder struct {
	mu   sync.Mutex
	next uint16
	held map[string][]sandbox.Port
	fail error
}

func (h *holder) HoldPorts(_ context.Context, endpointID string, ports []sandbox.Port) ([]sandbox.Port, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail != nil {
		return nil, h.fail
	}
	if h.held == nil {
		h.held = map[string][]sandbox.Port{}
	}
	if h.held[endpointID] != nil {
		return nil, fmt.Errorf("ports of endpoint %s are held already", endpointID)
	}
	out := slices.Clone(ports)
	for i := range out {
		switch {
		case ports[i].HostPort != 0:
		case i > 0 && ports[i-1].HostPort == 0 && ports[i-1].ContainerPort == ports[i].ContainerPort:
			out[i].HostPort = out[i-1].HostPort
		default:
			h.next++
			out[i].HostPort = 40000 + h.next
		}
		out[i].HostPortEnd = out[i].HostPort
	}
	h.held[endpointID] = out
	return out, nil
}

func (h *holder) ReleasePorts(_ context.Context, endpointID string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.held, endpointID)
	return nil
}

// zoneFiles keeps the zones in memory.
type zoneFiles struct {
	mu    sync.Mutex
	files map[string]network.Zone
}

func (z *zoneFiles) WriteZone(path string, zone network.Zone) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.files == nil {
		z.files = map[string]network.Zone{}
	}
	z.files[path] = zone
	return nil
}

func (z *zoneFiles) RemoveZone(path string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	delete(z.files, path)
	return nil
}

// machine is a controller's surroundings, which outlive it.
type machine struct {
	dir    string
	events *recorder
	zones  *zoneFiles
	opts   network.Options
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{dir: t.TempDir(), events: &recorder{}, zones: &zoneFiles{}}
	conf := filepath.Join(m.dir, "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.1\nnameserver 192.0.2.53\nsearch example.org\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.opts = network.Options{
		DataDir: filepath.Join(m.dir, "files"), ExecRoot: filepath.Join(m.dir, "run"), EngineID: ids.New(),
		Events: m.events, Zones: m.zones, ResolvConf: conf,
	}
	t.Cleanup(func() { m.wipe(t) })
	return m
}

// wipe removes what a controller left in the kernel, so that tests do not meet.
func (m *machine) wipe(t testing.TB) {
	paths, _ := netns.List(filepath.Join(m.opts.ExecRoot, "netns"))
	for _, p := range paths {
		if err := netns.Remove(p); err != nil {
			t.Error(err)
		}
	}
	links, err := netns.Dump(netlink.LinkList)
	if err != nil {
		t.Error(err)
	}
	for _, l := range links {
		if n := l.Attrs().Name; strings.HasPrefix(n, "br-") || strings.HasPrefix(n, "veth") || n == "docker0" {
			_ = netlink.LinkDel(l) // a veth may have gone with its namespace
		}
	}
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Errorf("nft flush ruleset: %v: %s", err, out)
	}
}

// start opens a controller and restores nothing but what active names.
func (m *machine) start(t testing.TB, active map[string]string) (*network.Controller, map[string]*sandbox.Sandbox) {
	t.Helper()
	ctx := context.Background()
	c, err := network.Open(ctx, m.opts)
	if err != nil {
		t.Fatal(err)
	}
	live, err := c.Restore(ctx, active, nil)
	if err != nil {
		_ = c.Close()
		t.Fatal(err)
	}
	return c, live
}

func run(t testing.TB, m *machine) *network.Controller {
	t.Helper()
	c, _ := m.start(t, nil)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func create(t testing.TB, c *network.Controller, req api.CreateRequest) string {
	t.Helper()
	id, _, err := c.Create(context.Background(), req)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func attach(t testing.TB, c *network.Controller, name string, joins ...sandbox.JoinRequest) *sandbox.Sandbox {
	t.Helper()
	for i := range joins {
		joins[i].Name = name
		joins[i].DNSNames = append([]string{name}, joins[i].DNSNames...)
	}
	sb, err := c.Attach(context.Background(), sandbox.Request{ContainerID: ids.New()}, joins)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func release(t testing.TB, c *network.Controller, sb *sandbox.Sandbox) {
	t.Helper()
	if err := c.Release(context.Background(), sb.ID); err != nil {
		t.Fatal(err)
	}
}

// serve listens in a namespace and answers each connection with the peer's address.
func serve(t testing.TB, ns, addr string) {
	t.Helper()
	var l net.Listener
	err := netns.Do(ns, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			_, _ = fmt.Fprint(conn, host)
			_ = conn.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
}

// ask connects from a namespace ("" is the host) and returns the answer.
func ask(ns, addr string) (string, error) {
	var answer string
	dial := func() error {
		conn, err := net.DialTimeout("tcp", addr, 700*time.Millisecond)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		buf := make([]byte, 64)
		n, err := conn.Read(buf)
		answer = string(buf[:n])
		return err
	}
	if ns == "" {
		return answer, dial()
	}
	err := netns.Do(ns, dial)
	return answer, err
}

// outside makes a namespace beyond the host: the host is 198.51.100.1 there, the namespace 198.51.100.2.
func outside(t testing.TB) string {
	t.Helper()
	ns := filepath.Join(t.TempDir(), "outside")
	if err := netns.Create(ns, nil); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`set -e
ip link add out0 type veth peer name in0 netns %[1]s
ip addr add 198.51.100.1/24 dev out0
ip link set out0 up
nsenter --net=%[1]s ip addr add 198.51.100.2/24 dev in0
nsenter --net=%[1]s ip link set in0 up
nsenter --net=%[1]s ip route add default via 198.51.100.1`, ns)
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		_ = netns.Remove(ns)
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if l, err := netlink.LinkByName("out0"); err == nil {
			_ = netlink.LinkDel(l)
		}
		_ = netns.Remove(ns)
	})
	return ns
}

// state is what a controller holds in the kernel and in its file.
func state(t testing.TB, m *machine) string {
	t.Helper()
	var lines []string
	links, err := netns.Dump(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		lines = append(lines, "link "+l.Attrs().Name)
	}
	paths, _ := netns.List(filepath.Join(m.opts.ExecRoot, "netns"))
	for _, p := range paths {
		if filepath.Base(p) != "default" { // the host's own, bound on first use
			lines = append(lines, "netns "+p)
		}
	}
	sort.Strings(lines)
	out, err := exec.Command("nft", "-s", "list", "table", "inet", "stated-"+m.opts.EngineID[:8]).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.Join(lines, "\n") + "\n" + string(out)
}

// keys reads the file's keys and values; the file must be closed.
func keys(t testing.TB, m *machine) map[string]string {
	t.Helper()
	db, err := bolt.Open(filepath.Join(m.opts.DataDir, "local-kv.db"), 0o600, &bolt.Options{Timeout: time.Second, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	all := map[string]string{}
	err = db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("libnetwork"))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			all[strings.TrimPrefix(string(k), "docker/network/v1.0/")] = string(v[8:])
			return nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestDefaultNetworks(t *testing.T) {
	m := newMachine(t)
	c := run(t, m)
	list, err := c.List(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range list {
		names = append(names, n.Name)
	}
	if fmt.Sprint(names) != "[bridge host none]" {
		t.Fatalf("networks %v", names)
	}
	br, err := c.Inspect(context.Background(), "bridge", network.InspectRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := br.IPAM.Config[0]; got.Subnet.String() != "172.17.0.0/16" || got.Gateway.String() != "172.17.0.1" || br.Options["com.docker.network.bridge.name"] != "docker0" {
		t.Errorf("bridge: %+v", br)
	}
	i, err := net.InterfaceByName("docker0")
	if err != nil {
		t.Fatal(err)
	}
	addrs, _ := i.Addrs()
	if len(addrs) == 0 || addrs[0].String() != "172.17.0.1/16" {
		t.Errorf("docker0 has %v", addrs)
	}
	if got := m.events.list; len(got) != 3 || got[0] != "network create none " || got[1] != "network create host " {
		t.Errorf("events %q", got)
	}
	for _, name := range []string{"bridge", "host", "none"} {
		if err := c.Remove(context.Background(), name); err == nil || err.Error() != name+" is a pre-defined network and cannot be removed" {
			t.Errorf("remove %s: %v", name, err)
		}
	}
}

func TestConnectivity(t *testing.T) {
	m := newMachine(t)
	c := run(t, m)
	create(t, c, api.CreateRequest{Name: "one"})
	create(t, c, api.CreateRequest{Name: "two"})
	a := attach(t, c, "a", sandbox.JoinRequest{Network: "one"})
	b := attach(t, c, "b", sandbox.JoinRequest{Network: "one"})
	other := attach(t, c, "other", sandbox.JoinRequest{Network: "two"})
	ip := a.Endpoints["one"].IPAddress.String()
	serve(t, a.Key, ip+":80")
	if got, err := ask(b.Key, ip+":80"); err != nil || got != b.Endpoints["one"].IPAddress.String() {
		t.Errorf("neighbour: %q, %v", got, err)
	}
	if got, err := ask("", ip+":80"); err != nil || got != a.Endpoints["one"].Gateway.String() {
		t.Errorf("host: %q, %v", got, err)
	}
	if _, err := ask(other.Key, ip+":80"); err == nil {
		t.Error("another network reaches the container")
	}
	if name := a.Endpoints["one"].InterfaceName; name != "eth0" {
		t.Errorf("interface %q", name)
	}
}

// A container that comes back with its addresses has another MAC. Whoever talked to it before reaches it at once.
func TestAddressMoves(t *testing.T) {
	m := newMachine(t)
	c := run(t, m)
	v6 := true
	subnets := []api.IPAMConfig{{Subnet: netip.MustParsePrefix("10.9.0.0/24")}, {Subnet: netip.MustParsePrefix("fd12:3456::/64")}}
	create(t, c, api.CreateRequest{Name: "one", EnableIPv6: &v6, IPAM: &api.IPAM{Config: subnets}})
	client := attach(t, c, "client", sandbox.JoinRequest{Network: "one"})
	join := sandbox.JoinRequest{Network: "one", IPv4: netip.MustParseAddr("10.9.0.77"), IPv6: netip.MustParseAddr("fd12:3456::77")}
	addrs := []string{"10.9.0.77:80", "[fd12:3456::77]:80"}
	for i := range 10 {
		server := attach(t, c, "server", join)
		for _, addr := range addrs {
			serve(t, server.Key, addr)
			for _, from := range []string{client.Key, ""} {
				if _, err := ask(from, addr); err != nil {
					t.Errorf("start %d: from %q: %v", i, from, err)
				}
			}
		}
		release(t, c, server)
	}
}

func TestPublishedPorts(t *testing.T) {
	m := newMachine(t)
	c := run(t, m)
	far := outside(t)
	create(t, c, api.CreateRequest{Name: "one"})
	create(t, c, api.CreateRequest{Name: "two"})
	h := &holder{}
	a := attach(t, c, "a", sandbox.JoinRequest{Network: "one", Holder: h, Exposed: []string{"80/tcp"}, Ports: []sandbox.Port{
		{Proto: "tcp", HostPort: 8080, ContainerPort: 80}, {Proto: "tcp", HostIP: "127.0.0.1", HostPort: 8081, ContainerPort: 80}}})
	b := attach(t, c, "b", sandbox.JoinRequest{Network: "one"})
	other := attach(t, c, "other", sandbox.JoinRequest{Network: "two"})
	ep := a.Endpoints["one"]
	ip := ep.IPAddress.String()
	serve(t, a.Key, ip+":80")
	serve(t, a.Key, ip+":81")

	if len(ep.Ports) != 3 || ep.Ports[0].HostPort != 8080 || ep.Ports[0].HostIP != "0.0.0.0" || ep.Ports[1].HostIP != "::" {
		t.Errorf("ports %+v", ep.Ports)
	}
	if got, err := ask(far, "198.51.100.1:8080"); err != nil || got != "198.51.100.2" {
		t.Errorf("from outside: %q, %v", got, err)
	}
	if _, err := ask("", "198.51.100.1:8080"); err != nil {
		t.Errorf("from the host: %v", err)
	}
	for who, ns := range map[string]string{"neighbour": b.Key, "itself": a.Key, "other network": other.Key} {
		if _, err := ask(ns, "198.51.100.1:8080"); err != nil {
			t.Errorf("%s through the published port: %v", who, err)
		}
	}
	for _, port := range []string{":80", ":81"} {
		if _, err := ask(far, ip+port); err == nil {
			t.Errorf("the container's port %s is reached directly from outside", port)
		}
	}
	if _, err := ask(far, "198.51.100.1:8081"); err == nil {
		t.Error("a port published on loopback is reached from outside")
	}
	// Outgoing connections take the host's address.
	serve(t, far, "198.51.100.2:90")
	if got, err := ask(a.Key, "198.51.100.2:90"); err != nil || got != "198.51.100.1" {
		t.Errorf("masquerade: %q, %v", got, err)
	}
	release(t, c, a)
	if len(h.held) != 0 {
		t.Errorf("still held: %v", h.held)
	}
	if _, err := ask(far, "198.51.100.1:8080"); err == nil {
		t.Error("the port is open after the container has gone")
	}
}

func TestInternalAndICC(t *testing.T) {
	m := newMachine(t)
	c := run(t, m)
	far := outside(t)
	serve(t, far, "198.51.100.2:90")
	create(t, c, api.CreateRequest{Name: "inner", Internal: true})
	create(t, c, api.CreateRequest{Name: "apart", Options: map[string]string{"com.docker.network.bridge.enable_icc": "false"}})
	a := attach(t, c, "a", sandbox.JoinRequest{Network: "inner"})
	b := attach(t, c, "b", sandbox.JoinRequest{Network: "inner"})
	if a.Endpoints["inner"].Gateway.IsValid() {
		t.Error("an internal network has a gateway")
	}
	ip := a.Endpoints["inner"].IPAddress.String()
	serve(t, a.Key, ip+":80")
	if _, err := ask(b.Key, ip+":80"); err != nil {
		t.Errorf("within the internal network: %v", err)
	}
	if _, err := ask(b.Key, "198.51.100.2:90"); err == nil {
		t.Error("the internal network reaches the outside")
	}
	x := attach(t, c, "x", sandbox.JoinRequest{Network: "apart"})
	y := attach(t, c, "y", sandbox.JoinRequest{Network: "apart"})
	ip = x.Endpoints["apart"].IPAddress.String()
	serve(t, x.Key, ip+":80")
	if _, err := ask(y.Key, ip+":80"); err == nil {
		t.Error("containers talk though ICC is off")
	}
	if _, err := ask(y.Key, "198.51.100.2:90"); err != nil {
		t.Errorf("without ICC the outside is not reached: %v", err)
	}
}

func TestNothingLeaks(t *testing.T) {
	m := newMachine(t)
	c := run(t, m)
	before := state(t, m)
	h := &holder{}
	create(t, c, api.CreateRequest{Name: "one"})
	create(t, c, api.CreateRequest{Name: "two"})
	for range 3 {
		sb := attach(t, c, "a",
			sandbox.JoinRequest{Network: "one", Holder: h, Ports: []sandbox.Port{{Proto: "udp", HostPort: 53, ContainerPort: 53}}},
			sandbox.JoinRequest{Network: "two"})
		release(t, c, sb)
		release(t, c, sb)
	}
	for _, n := range []string{"one", "two"} {
		if err := c.Remove(context.Background(), n); err != nil {
			t.Fatal(err)
		}
	}
	if after := state(t, m); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	got := strings.Join(m.events.list[3:6], ",")
	if !strings.HasPrefix(got, "network create one ,network create two ,network connect one ") {
		t.Errorf("events %q", m.events.list)
	}
	if len(m.zones.files) != 0 {
		t.Errorf("zone files stay: %v", m.zones.files)
	}
}

func TestJoinAndLeave(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	c := run(t, m)
	create(t, c, api.CreateRequest{Name: "one"})
	create(t, c, api.CreateRequest{Name: "two", IPAM: &api.IPAM{Config: []api.IPAMConfig{{Subnet: netip.MustParsePrefix("10.9.0.0/24")}}}})
	a := attach(t, c, "a", sandbox.JoinRequest{Network: "one"})
	ep, err := c.Join(ctx, sandbox.JoinRequest{SandboxID: a.ID, Network: "two", Name: "a", DNSNames: []string{"a"}, IPv4: netip.MustParseAddr("10.9.0.77"), MAC: "02:11:22:33:44:55", Priority: 5})
	if err != nil {
		t.Fatal(err)
	}
	if ep.InterfaceName != "eth1" || ep.IPAddress.String() != "10.9.0.77" || ep.MAC != "02:11:22:33:44:55" {
		t.Errorf("endpoint %+v", ep)
	}
	if gw := defaultRoute(t, a.Key); gw != "10.9.0.1" {
		t.Errorf("default route by %s", gw)
	}
	err = c.Remove(ctx, "two")
	want := fmt.Sprintf("error while removing network: network two has active endpoints (name:\"a\" id:%q)", ids.Short(ep.ID))
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	in, err := c.Inspect(ctx, "two", network.InspectRequest{})
	if err != nil || len(in.Containers) != 1 {
		t.Fatalf("%+v, %v", in.Containers, err)
	}
	if err := c.Leave(ctx, a.ID, "two"); err != nil {
		t.Fatal(err)
	}
	if gw := defaultRoute(t, a.Key); gw != a.Endpoints["one"].Gateway.String() {
		t.Errorf("default route by %s after leaving", gw)
	}
	// The same address can be had at once.
	b := attach(t, c, "b", sandbox.JoinRequest{Network: "two", IPv4: netip.MustParseAddr("10.9.0.77")})
	release(t, c, b)
	b = attach(t, c, "b", sandbox.JoinRequest{Network: "two", IPv4: netip.MustParseAddr("10.9.0.77")})
	release(t, c, b)
	if err := c.Remove(ctx, "two"); err != nil {
		t.Error(err)
	}
	if err := c.Leave(ctx, a.ID, "two"); err == nil {
		t.Error("left twice")
	}
}

func defaultRoute(t *testing.T, ns string) (gw string) {
	t.Helper()
	err := netns.Do(ns, func() error {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
		for _, r := range routes {
			if r.Gw != nil {
				gw = r.Gw.String()
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return gw
}

func TestFailedAttachLeavesNothing(t *testing.T) {
	m := newMachine(t)
	c := run(t, m)
	create(t, c, api.CreateRequest{Name: "one"})
	before := state(t, m)
	h := &holder{fail: fmt.Errorf("port is taken")}
	_, err := c.Attach(context.Background(), sandbox.Request{ContainerID: ids.New()},
		[]sandbox.JoinRequest{{Network: "one", Holder: h, Ports: []sandbox.Port{{HostPort: 1, ContainerPort: 1}}}})
	if err == nil || !strings.Contains(err.Error(), "port is taken") {
		t.Fatalf("got %v", err)
	}
	if _, err := c.Attach(context.Background(), sandbox.Request{ContainerID: ids.New()}, []sandbox.JoinRequest{{Network: "one"}, {Network: "nowhere"}}); err == nil {
		t.Fatal("joined a network that does not exist")
	}
	if after := state(t, m); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	if err := c.Remove(context.Background(), "one"); err != nil {
		t.Error(err)
	}
}

func TestHostAndNone(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	c := run(t, m)
	h, err := c.Attach(ctx, sandbox.Request{ContainerID: ids.New(), Host: true}, []sandbox.JoinRequest{{Network: "host", Name: "h"}})
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Base(h.Key) != "default" || !netns.Exists(h.Key) {
		t.Errorf("key %s", h.Key)
	}
	n, err := c.Attach(ctx, sandbox.Request{ContainerID: ids.New(), Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "7"}}, []sandbox.JoinRequest{{Network: "none", Name: "n"}})
	if err != nil {
		t.Fatal(err)
	}
	err = netns.Do(n.Key, func() error {
		got, err := os.ReadFile("/proc/thread-self/../../sys/net/ipv4/ip_unprivileged_port_start")
		if err == nil && strings.TrimSpace(string(got)) != "7" {
			t.Errorf("sysctl is %s", got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, sb := range []*sandbox.Sandbox{h, n} {
		r, err := c.Resolver(ctx, sb.ID)
		if err != nil || r.Embedded {
			t.Errorf("%+v, %v", r, err)
		}
		release(t, c, sb)
	}
}

func TestResolver(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	c := run(t, m)
	id := create(t, c, api.CreateRequest{Name: "one"})
	legacy := attach(t, c, "l", sandbox.JoinRequest{Network: "bridge"})
	r, err := c.Resolver(ctx, legacy.ID)
	if err != nil || r.Embedded || !strings.HasSuffix(string(r.ResolvConf), "\nnameserver 192.0.2.53\nsearch example.org\n") {
		t.Errorf("default bridge: %q, %v", r.ResolvConf, err)
	}
	own := attach(t, c, "Web", sandbox.JoinRequest{Network: "one", DNSNames: []string{"alias"}})
	r, err = c.Resolver(ctx, own.ID)
	if err != nil || !r.Embedded || !strings.Contains(string(r.ResolvConf), "\nnameserver 127.0.0.11\nsearch example.org\noptions ndots:0\n") {
		t.Errorf("own network: %q, %v", r.ResolvConf, err)
	}
	want := []sandbox.Upstream{{Addr: "127.0.0.1", Host: true}, {Addr: "192.0.2.53", Host: true}}
	zone := filepath.Join(m.opts.ExecRoot, "dns", id)
	if fmt.Sprint(r.Config.Upstreams) != fmt.Sprint(want) || fmt.Sprint(r.Config.Zones) != fmt.Sprint([]string{zone}) {
		t.Errorf("config %+v", r.Config)
	}
	z := m.zones.files[zone]
	ip := own.Endpoints["one"].IPAddress
	for _, name := range []string{"web", "alias", "web.one"} {
		if fmt.Sprint(z.Records[name]) != fmt.Sprint([]netip.Addr{ip}) {
			t.Errorf("%s is %v", name, z.Records[name])
		}
	}
	if z.Reverse[ip.String()] != "web.one" {
		t.Errorf("reverse %v", z.Reverse)
	}
	release(t, c, own)
	if got := m.zones.files[zone]; len(got.Records) != 0 {
		t.Errorf("names stay: %v", got)
	}
}

// What a daemon left is taken up by the next one: the running container keeps everything, the other goes.
func TestRestore(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	far := outside(t)
	c, _ := m.start(t, nil)
	create(t, c, api.CreateRequest{Name: "one"})
	h := &holder{}
	join := func(port uint16) sandbox.JoinRequest {
		return sandbox.JoinRequest{Network: "one", Holder: h, Ports: []sandbox.Port{{Proto: "tcp", HostPort: port, ContainerPort: 80}}}
	}
	stays := attach(t, c, "stays", join(8080))
	base := state(t, m)
	goes := attach(t, c, "goes", join(8081))
	in, err := c.Inspect(ctx, "one", network.InspectRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var container string
	for id, e := range in.Containers {
		if e.Name == "stays" {
			container = id
		}
	}
	ip := stays.Endpoints["one"].IPAddress.String()
	serve(t, stays.Key, ip+":80")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := ask(far, "198.51.100.1:8080"); err != nil {
		t.Errorf("without a daemon: %v", err)
	}
	c, live := m.start(t, map[string]string{stays.ID: container})
	got := live[stays.ID]
	if got == nil || len(live) != 1 {
		t.Fatalf("live %v", live)
	}
	was, is := *stays.Endpoints["one"], *got.Endpoints["one"]
	if a, b := fmt.Sprintf("%+v", was), fmt.Sprintf("%+v", is); a != b || got.Key != stays.Key {
		t.Errorf("before %s\nafter  %s", a, b)
	}
	if after := state(t, m); after != base {
		t.Errorf("want:\n%s\ngot:\n%s", base, after)
	}
	if netns.Exists(goes.Key) {
		t.Error("the stale namespace is there")
	}
	if _, err := ask(far, "198.51.100.1:8080"); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	if _, err := c.Join(ctx, sandbox.JoinRequest{SandboxID: stays.ID, Network: "bridge", Name: "stays"}); err != nil {
		t.Errorf("join after restart: %v", err)
	}
	release(t, c, got)
	if err := c.Remove(ctx, "one"); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for k := range keys(t, m) {
		if strings.HasPrefix(k, "endpoint/") || strings.HasPrefix(k, "sandbox/") || strings.HasPrefix(k, "bridge-endpoint/") {
			t.Errorf("key %s stays", k)
		}
	}
}

// A reboot takes namespaces, interfaces and rules: networks come back.
func TestReboot(t *testing.T) {
	m := newMachine(t)
	c, _ := m.start(t, nil)
	create(t, c, api.CreateRequest{Name: "one"})
	base := state(t, m)
	attach(t, c, "a", sandbox.JoinRequest{Network: "one"})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	m.wipe(t)
	c, _ = m.start(t, nil)
	defer c.Close()
	if after := state(t, m); after != base {
		t.Errorf("want:\n%s\ngot:\n%s", base, after)
	}
	sb := attach(t, c, "a", sandbox.JoinRequest{Network: "one"})
	release(t, c, sb)
}

// The documents are those of Docker 28.5, key for key.
func TestDocuments(t *testing.T) {
	m := newMachine(t)
	c, _ := m.start(t, nil)
	id := create(t, c, api.CreateRequest{Name: "specnet", Labels: map[string]string{"l": "1"},
		IPAM: &api.IPAM{Options: map[string]string{}, Config: []api.IPAMConfig{{Subnet: netip.MustParsePrefix("172.31.5.0/24")}}}, Options: map[string]string{"com.docker.network.bridge.name": "br-spec"}})
	h := &holder{}
	sb, err := c.Attach(context.Background(), sandbox.Request{ContainerID: ids.New()}, []sandbox.JoinRequest{{
		Network: "specnet", Name: "name", DNSNames: []string{"name", "alias", "C12"}, Holder: h, Exposed: []string{"80/tcp"}, MAC: "76:6f:61:1a:04:76",
		Ports: []sandbox.Port{{Proto: "tcp", HostIP: "127.0.0.1", HostPort: 18080, ContainerPort: 80}}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	all := keys(t, m)
	e := sb.Endpoints["specnet"].ID
	same := func(key, want string) {
		t.Helper()
		var a, b any
		if err := json.Unmarshal([]byte(all[key]), &a); err != nil {
			t.Errorf("%s: %v", key, err)
			return
		}
		if err := json.Unmarshal([]byte(want), &b); err != nil {
			t.Fatal(err)
		}
		if m, ok := a.(map[string]any); ok {
			for _, drop := range []string{"created"} {
				delete(m, drop)
			}
			if g, ok := m["generic"].(map[string]any); ok {
				delete(g, "com.docker.network.endpoint.macaddress")
			}
		}
		got, _ := json.MarshalIndent(a, "", " ")
		ref, _ := json.MarshalIndent(b, "", " ")
		if string(got) != string(ref) {
			t.Errorf("%s:\n%s\nwant:\n%s", key, got, ref)
		}
	}
	fill := strings.NewReplacer("<N>", id, "<E>", e, "<S>", sb.ID, "<V>", "veth"+e[7:14])
	same("endpoint_count/"+id+"/", `{"Count":0}`)
	same("network/"+id+"/", fill.Replace(`{"addrSpace":"LocalDefault","attachable":false,"configFrom":"","configOnly":false,"enableIPv4":true,"enableIPv6":false,"generic":{"com.docker.network.enable_ipv4":true,"com.docker.network.enable_ipv6":false,"com.docker.network.generic":{"com.docker.network.bridge.name":"br-spec"}},"id":"<N>","inDelete":false,"ingress":false,"internal":false,"ipamOptions":{},"ipamType":"default","ipamV4Config":"[{\"PreferredPool\":\"172.31.5.0/24\",\"SubPool\":\"\",\"Gateway\":\"\",\"AuxAddresses\":null}]","ipamV4Info":"[{\"IPAMData\":\"{\\\"AddressSpace\\\":\\\"LocalDefault\\\",\\\"Gateway\\\":\\\"172.31.5.1/24\\\",\\\"Pool\\\":\\\"172.31.5.0/24\\\"}\",\"PoolID\":\"LocalDefault/172.31.5.0/24\"}]","labels":{"l":"1"},"loadBalancerIP":"","loadBalancerMode":"NAT","name":"specnet","networkType":"bridge","persist":true,"scope":"local","skipGwAllocIPv4":false,"skipGwAllocIPv6":false}`))
	same("endpoint/"+id+"/"+e+"/", fill.Replace(`{"disableIPv6":false,"disableResolution":false,"dnsNames":["name","alias","C12"],"ep_iface":{"addr":"172.31.5.2/24","createdInContainer":true,"dstName":"","dstPrefix":"eth","mac":"76:6f:61:1a:04:76","routes":null,"srcName":"<V>","v4PoolID":"LocalDefault/172.31.5.0/24","v6PoolID":""},"exposed_ports":[{"Proto":6,"Port":80}],"generic":{"com.docker.network.endpoint.exposedports":[{"Proto":6,"Port":80}],"com.docker.network.portmap":[{"Proto":6,"IP":"","Port":80,"HostIP":"127.0.0.1","HostPort":18080,"HostPortEnd":18080}]},"id":"<E>","ingressPorts":[],"joinInfo":{"StaticRoutes":null,"disableGatewayService":false,"gw":"172.31.5.1"},"loadBalancer":false,"name":"name","sandbox":"<S>","svcAliases":[],"svcID":"","svcName":"","virtualIP":"<nil>"}`))
	same("bridge/"+id+"/", fill.Replace(`{"AddressIPv4":"172.31.5.1/24","BridgeIfaceCreator":1,"BridgeName":"br-spec","ContainerIfacePrefix":"","DefaultBindingIP":"<nil>","DefaultBridge":false,"DefaultGatewayIPv4":"<nil>","DefaultGatewayIPv6":"<nil>","EnableICC":true,"EnableIPMasquerade":true,"EnableIPv4":true,"EnableIPv6":false,"GwModeIPv4":"","GwModeIPv6":"","HostIP":"<nil>","HostIPv6":"<nil>","ID":"<N>","InhibitIPv4":false,"Internal":false,"Mtu":0,"TrustedHostInterfaces":""}`))
	same("bridge-endpoint/"+e+"/", fill.Replace(`{"Addr":"172.31.5.2/24","ContainerConfig":null,"ExternalConnConfig":{"PortBindings":[{"Proto":6,"IP":"","Port":80,"HostIP":"127.0.0.1","HostPort":18080,"HostPortEnd":18080}],"ExposedPorts":[{"Proto":6,"Port":80}],"NoProxy6To4":false},"MacAddress":"76:6f:61:1a:04:76","PortMapping":[{"Proto":6,"IP":"172.31.5.2","Port":80,"HostIP":"127.0.0.1","HostPort":18080,"HostPortEnd":18080}],"SrcName":"<V>","id":"<E>","nid":"<N>"}`))
	box := all["sandbox/"+sb.ID+"/"]
	if !strings.HasPrefix(box, `{"ID":"`+sb.ID+`","Cid":"`) || !strings.HasSuffix(box, fill.Replace(`"Eps":[{"Eid":"<E>","Nid":"<N>"}],"EpPriority":{"<E>":0},"ExtDNS2":[{"IPStr":"127.0.0.1","HostLoopback":true},{"IPStr":"192.0.2.53","HostLoopback":true}]}`)) {
		t.Errorf("sandbox %s", box)
	}
	host := ""
	for k, v := range all {
		if strings.HasPrefix(k, "network/") && strings.Contains(v, `"name":"host"`) {
			host = v
		}
	}
	for _, want := range []string{`"addrSpace":""`, `"generic":{"com.docker.network.generic":{}}`, `"labels":null`, `"ipamOptions":null`} {
		if !strings.Contains(host, want) || strings.Contains(host, "ipamV4") {
			t.Errorf("host network %s lacks %s", host, want)
		}
	}
}
