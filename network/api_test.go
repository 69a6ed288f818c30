package network_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/network"
	bolt "go.etcd.io/bbolt"

	"stated.dev/stated/internal/filters"
	"stated.dev/stated/internal/ids"
	"stated.dev/stated/network"
	"stated.dev/stated/network/sandbox"
)

func pool(subnet string) *api.IPAM {
	return &api.IPAM{Config: []api.IPAMConfig{{Subnet: netip.MustParsePrefix(subnet)}}}
}

// Requests are refused in Docker's words and classes.
func TestRefusals(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	c := run(t, m)
	create(t, c, api.CreateRequest{Name: "one", IPAM: pool("10.5.0.0/16"), Options: map[string]string{"com.docker.network.bridge.name": "br-mine"}})
	create(t, c, api.CreateRequest{Name: "auto"})
	create(t, c, api.CreateRequest{Name: "config", ConfigOnly: true})
	create(t, c, api.CreateRequest{Name: "user", ConfigFrom: &api.ConfigReference{Network: "config"}})
	v4off := false
	denied, invalid := errdefs.IsPermissionDenied, errdefs.IsInvalidArgument
	for _, x := range []struct {
		req   api.CreateRequest
		class func(error) bool
		text  string
	}{
		{api.CreateRequest{}, invalid, "invalid name: name is empty"},
		{api.CreateRequest{Name: "one"}, errdefs.IsConflict, "network with name one already exists"},
		{api.CreateRequest{Name: "bridge"}, denied, "operation is not permitted on predefined bridge network "},
		{api.CreateRequest{Name: "x", Driver: "nosuch"}, errdefs.IsNotFound, `plugin "nosuch" not found`},
		{api.CreateRequest{Name: "x", Driver: "host"}, denied, `only one instance of "host" network is allowed`},
		{api.CreateRequest{Name: "x", Driver: "macvlan"}, errdefs.IsNotImplemented, "networks of the driver macvlan are not served by this daemon yet"},
		{api.CreateRequest{Name: "x", IPAM: pool("10.5.7.0/24")}, denied, "invalid pool request: Pool overlaps with other one on this address space"},
		{api.CreateRequest{Name: "x", IPAM: pool("10.6.7.1/24")}, invalid, "invalid network config:\ninvalid subnet 10.6.7.1/24: it should be 10.6.7.0/24"},
		{api.CreateRequest{Name: "x", IPAM: &api.IPAM{Config: []api.IPAMConfig{{Subnet: netip.MustParsePrefix("10.6.0.0/24"), Gateway: netip.MustParseAddr("10.7.0.1")}}}}, invalid,
			"invalid network config:\ninvalid gateway 10.7.0.1: parent subnet 10.6.0.0/24 doesn't contain this address"},
		{api.CreateRequest{Name: "x", EnableIPv4: &v4off}, invalid, "IPv4 or IPv6 must be enabled"},
		{api.CreateRequest{Name: "x", Options: map[string]string{"com.docker.network.bridge.enable_icc": "perhaps"}}, invalid,
			`failed to parse com.docker.network.bridge.enable_icc value: perhaps (strconv.ParseBool: parsing "perhaps": invalid syntax)`},
		{api.CreateRequest{Name: "x", Options: map[string]string{"com.docker.network.bridge.name": "br-mine"}}, denied, "networks have same bridge name"},
		{api.CreateRequest{Name: "x", Options: map[string]string{"com.docker.network.bridge.name": "../../etc"}}, invalid, `invalid bridge name "../../etc"`},
	} {
		_, _, err := c.Create(ctx, x.req)
		if err == nil || !x.class(err) || !strings.HasSuffix(err.Error(), x.text) {
			t.Errorf("%+v: %v", x.req, err)
		}
	}
	if err := c.Remove(ctx, "config"); err == nil || err.Error() != `configuration network "config" is in use` {
		t.Errorf("remove a configuration in use: %v", err)
	}
	if err := c.Remove(ctx, "nowhere"); !errdefs.IsNotFound(err) || err.Error() != "network nowhere not found" {
		t.Errorf("remove: %v", err)
	}
	for text, join := range map[string]sandbox.JoinRequest{
		"user specified IP address is supported on user defined networks only":                                 {Network: "bridge", IPv4: netip.MustParseAddr("172.17.0.9")},
		"user specified IP address is supported only when connecting to networks with user configured subnets": {Network: "auto", IPv4: netip.MustParseAddr("172.18.0.9")},
		"no configured subnet or ip-range contain the IP address 10.99.0.1":                                    {Network: "one", IPv4: netip.MustParseAddr("10.99.0.1")},
		"Address already in use": {Network: "one", IPv4: netip.MustParseAddr("10.5.0.1")},
	} {
		if _, err := c.Attach(ctx, sandbox.Request{ContainerID: ids.New()}, []sandbox.JoinRequest{join}); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %s", err, text)
		}
	}
	if n := len(c.Problems()); n != 0 {
		t.Errorf("refusals count as problems: %v", c.Problems())
	}
}

func TestListAndPrune(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	c := run(t, m)
	create(t, c, api.CreateRequest{Name: "web-a", Labels: map[string]string{"team": "x"}})
	id := create(t, c, api.CreateRequest{Name: "web-b"})
	sb := attach(t, c, "c", sandbox.JoinRequest{Network: "web-b"})
	for text, want := range map[string]string{
		`{}`:                         "bridge host none web-a web-b",
		`{"name":["web"]}`:           "web-a web-b",
		`{"name":["^web-a$"]}`:       "web-a",
		`{"id":["` + id[:12] + `"]}`: "web-b",
		`{"label":["team=x"]}`:       "web-a",
		`{"driver":["null"]}`:        "none",
		`{"type":["builtin"]}`:       "bridge host none",
		`{"type":["custom"]}`:        "web-a web-b",
		`{"dangling":["true"]}`:      "web-a",
		`{"scope":["swarm"]}`:        "",
		`{"driver":{"host":true}}`:   "host",
	} {
		f, err := filters.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		list, err := c.List(ctx, f)
		var names []string
		for _, n := range list {
			names = append(names, n.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != want || list == nil {
			t.Errorf("%s: %q, %v; want %q", text, got, err, want)
		}
	}
	if _, err := c.List(ctx, filters.Args{"foo": {"x"}}); err == nil || err.Error() != "invalid filter 'foo'" {
		t.Errorf("unknown filter: %v", err)
	}
	if in, err := c.Inspect(ctx, id[:8], network.InspectRequest{}); err != nil || in.Name != "web-b" || len(in.Containers) != 1 {
		t.Errorf("by prefix: %+v, %v", in, err)
	}
	if _, err := c.Prune(ctx, filters.Args{"until": {"1h"}}); err != nil {
		t.Error(err)
	}
	deleted, err := c.Prune(ctx, nil)
	if err != nil || fmt.Sprint(deleted) != "[web-a]" {
		t.Errorf("pruned %v, %v", deleted, err)
	}
	release(t, c, sb)
	if deleted, err := c.Prune(ctx, nil); err != nil || fmt.Sprint(deleted) != "[web-b]" {
		t.Errorf("pruned %v, %v", deleted, err)
	}
}

func TestIPv6(t *testing.T) {
	m := newMachine(t)
	c := run(t, m)
	v4, v6 := false, true
	create(t, c, api.CreateRequest{Name: "six", EnableIPv4: &v4, EnableIPv6: &v6})
	create(t, c, api.CreateRequest{Name: "both", EnableIPv6: &v6, IPAM: pool("fd12:3456::/64")})
	a := attach(t, c, "a", sandbox.JoinRequest{Network: "six"})
	b := attach(t, c, "b", sandbox.JoinRequest{Network: "six"})
	ep := a.Endpoints["six"]
	if ep.IPAddress.IsValid() || ep.GlobalIPv6PrefixLen != 64 || !ep.IPv6Gateway.IsValid() {
		t.Errorf("%+v", ep)
	}
	addr := "[" + ep.GlobalIPv6Address.String() + "]:80"
	serve(t, a.Key, addr)
	if got, err := ask(b.Key, addr); err != nil || got != b.Endpoints["six"].GlobalIPv6Address.String() {
		t.Errorf("neighbour: %q, %v", got, err)
	}
	if _, err := ask("", addr); err != nil {
		t.Errorf("host: %v", err)
	}
	two := attach(t, c, "c", sandbox.JoinRequest{Network: "both", IPv6: netip.MustParseAddr("fd12:3456::99")}).Endpoints["both"]
	if !two.IPAddress.IsValid() || two.GlobalIPv6Address.String() != "fd12:3456::99" {
		t.Errorf("%+v", two)
	}
}

// A start never fails because of what is stored: broken values go to quarantine, dangling references are dropped,
// and what is not known is left alone.
func TestBrokenStore(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	c, _ := m.start(t, nil)
	id := create(t, c, api.CreateRequest{Name: "good"})
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	put := map[string]string{
		"network/broken/":                    `{"id":`,
		"network/strange/":                   `{"id":"strange","name":"strange","networkType":"overlay","scope":"global","persist":true}`,
		"endpoint/gone/e1/":                  `{"id":"e1","name":"x"}`,
		"endpoint/" + id + "/e2/":            `{"id":"e2","name":"stale","sandbox":"nobody","ep_iface":{"addr":"172.18.0.9/16","v4PoolID":"LocalDefault/172.18.0.0/16"}}`,
		"sandbox/s1/":                        `{"ID":"s1","Cid":"c","Eps":[{"Eid":"nope","Nid":"gone"}]}`,
		"sandbox/s2/":                        `[]`,
		"bridge-endpoint/e9/":                `{"id":"e9"}`,
		"endpoint_count/gone/":               `{"Count":3}`,
		"windows/w/":                         `{"anything":1}`,
		"ipam/default/config/GlobalDefault/": `{"Subnets":{}}`,
	}
	db, err := bolt.Open(filepath.Join(m.opts.DataDir, "local-kv.db"), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		for k, v := range put {
			if err := tx.Bucket([]byte("libnetwork")).Put([]byte("docker/network/v1.0/"+k), append(binary.LittleEndian.AppendUint64(nil, 900), v...)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	c, _ = m.start(t, nil)
	if len(c.Problems()) < 6 {
		t.Errorf("problems: %v", c.Problems())
	}
	if _, err := c.Attach(ctx, sandbox.Request{ContainerID: ids.New()}, []sandbox.JoinRequest{{Network: "strange"}}); !errdefs.IsUnavailable(err) {
		t.Errorf("join of a network nobody serves: %v", err)
	}
	if err := c.Remove(ctx, "good"); err != nil {
		t.Errorf("a stale endpoint blocks the network: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	all := keys(t, m)
	for _, k := range []string{"windows/w/", "ipam/default/config/GlobalDefault/", "network/strange/"} {
		if all[k] == "" {
			t.Errorf("%s was deleted", k)
		}
	}
	for _, k := range []string{"network/broken/", "endpoint/gone/e1/", "endpoint/" + id + "/e2/", "sandbox/s1/", "sandbox/s2/", "bridge-endpoint/e9/", "endpoint_count/gone/"} {
		if all[k] != "" {
			t.Errorf("%s stays", k)
		}
	}
	c, _ = m.start(t, nil)
	defer c.Close()
	if p := c.Problems(); len(p) != 1 { // the network that nobody serves
		t.Errorf("problems after the repair: %v", p)
	}
}

// Two daemons side by side touch nothing of each other.
func TestTwoDaemons(t *testing.T) {
	ctx := context.Background()
	first, second := newMachine(t), newMachine(t)
	a := run(t, first)
	held := state(t, first)

	c, err := network.Open(ctx, second.opts)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Restore(ctx, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "--bridge") || !strings.Contains(err.Error(), "--bip") {
		t.Errorf("the other daemon's bridge: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	second.opts.DefaultBridge = network.DefaultBridge{Name: "br-second", BIP: netip.MustParsePrefix("172.17.0.1/16")}
	if c, err = network.Open(ctx, second.opts); err != nil {
		t.Fatal(err)
	}
	_, err = c.Restore(ctx, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "subnet 172.17.0.0/16 is in use by interface docker0") || !strings.Contains(err.Error(), "--bip") {
		t.Errorf("the other daemon's subnet: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	second.opts.DefaultBridge.BIP = netip.Prefix{}
	b := run(t, second)
	if in, err := b.Inspect(ctx, "bridge", network.InspectRequest{}); err != nil || in.IPAM.Config[0].Subnet.String() == "172.17.0.0/16" {
		t.Errorf("%+v, %v", in.IPAM, err)
	}
	sb := attach(t, b, "c", sandbox.JoinRequest{Network: "bridge"})
	release(t, b, sb)
	if err := b.Destroy(ctx); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("ip", "link", "del", "br-second").CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if got := state(t, first); got != held {
		t.Errorf("want:\n%s\ngot:\n%s", held, got)
	}
	sb = attach(t, a, "c", sandbox.JoinRequest{Network: "bridge"})
	release(t, a, sb)
}

// The default bridge follows the configuration as long as nothing uses it.
func TestDefaultBridgeChanges(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	c, _ := m.start(t, nil)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	m.opts.DefaultBridge = network.DefaultBridge{BIP: netip.MustParsePrefix("10.44.0.1/24"), MTU: 1400, NoICC: true}
	c, _ = m.start(t, nil)
	in, err := c.Inspect(ctx, "bridge", network.InspectRequest{})
	if err != nil || in.IPAM.Config[0].Gateway.String() != "10.44.0.1" || in.Options["com.docker.network.driver.mtu"] != "1400" {
		t.Errorf("%+v, %v", in, err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	m.opts.DefaultBridge = network.DefaultBridge{Name: "none"}
	c, _ = m.start(t, nil)
	defer c.Close()
	if _, err := c.Inspect(ctx, "bridge", network.InspectRequest{}); !errdefs.IsNotFound(err) {
		t.Errorf("there is a default bridge: %v", err)
	}
}
