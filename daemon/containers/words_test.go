package containers

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"stated.dev/stated/api/types"
	"stated.dev/stated/network/sandbox"
	"stated.dev/stated/volumes/mountpoint"
)

func TestParsePS(t *testing.T) {
	out := "UID  PID PPID CMD\nroot   1    0 /sbin/init splash\nroot  42    1 sleep 10 20\nuser 43 1 x\n"
	got, err := parsePS([]byte(out), []int{42, 43})
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{{"root", "42", "1", "sleep 10 20"}, {"user", "43", "1", "x"}}
	if !slices.Equal(got.Titles, []string{"UID", "PID", "PPID", "CMD"}) || len(got.Processes) != 2 ||
		!slices.Equal(got.Processes[0], want[0]) || !slices.Equal(got.Processes[1], want[1]) {
		t.Errorf("%+v", got)
	}
	if _, err := parsePS([]byte("UID CMD\nroot x\n"), []int{1}); err == nil || err.Error() != "Couldn't find PID field in ps output" {
		t.Errorf("without the column PID: %v", err)
	}
	if _, err := parsePS([]byte("PID\nx\n"), []int{1}); err == nil {
		t.Error("a pid that is no number is accepted")
	}
}

func FuzzParsePS(f *testing.F) {
	f.Add([]byte("UID PID CMD\nroot 1 a b\n"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, out []byte) {
		got, err := parsePS(out, []int{1})
		if err != nil {
			return
		}
		for _, p := range got.Processes {
			if len(p) > len(got.Titles) {
				t.Errorf("%q has more fields than %q", p, got.Titles)
			}
		}
	})
}

func TestParseNetDev(t *testing.T) {
	got := parseNetDev(strings.NewReader(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    1296      16    1    2    0     0          0         0      506       9    3    4    0     0       0          0
`))
	want := container.NetworkStats{RxBytes: 1296, RxPackets: 16, RxErrors: 1, RxDropped: 2, TxBytes: 506, TxPackets: 9, TxErrors: 3, TxDropped: 4}
	if len(got) != 1 || got["eth0"] != want {
		t.Errorf("%+v", got)
	}
}

func TestHostsFile(t *testing.T) {
	r := &Record{Config: &types.ContainerConfig{}, HostConfig: &container.HostConfig{NetworkMode: "net"}}
	r.Config.Hostname, r.Config.Domainname = "box", "example"
	r.HostConfig.ExtraHosts = []string{"a:1.2.3.4", "b=::1", "six:[fe80::2]", "gw:host-gateway", "broken"}
	sb := &sandbox.Sandbox{Endpoints: map[string]*sandbox.Endpoint{
		"net":   {IPAddress: netip.MustParseAddr("10.0.0.2"), Gateway: netip.MustParseAddr("10.0.0.1"), GlobalIPv6Address: netip.MustParseAddr("fd00::2")},
		"other": {IPAddress: netip.MustParseAddr("10.1.0.2")},
	}}
	text := string(hostsFile(r, sb))
	_, after, found := strings.Cut(text, "ff02::2\tip6-allrouters\n")
	want := "1.2.3.4\ta\n::1\tb\nfe80::2\tsix\n10.0.0.1\tgw\n10.0.0.2\tbox.example box\nfd00::2\tbox.example box\n10.1.0.2\tbox.example box\n"
	if !found || after != want || !strings.HasPrefix(text, "127.0.0.1\tlocalhost\n") {
		t.Errorf("%s\nwant at its end\n%s", text, want)
	}
}

// TestResolvConf keeps a file that the user edited, and replaces one that is as it was written.
func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	read := func() string {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for _, step := range []struct{ edit, write, want string }{
		{"", "nameserver 1\n", "nameserver 1\n"},
		{"", "nameserver 2\n", "nameserver 2\n"},
		{"nameserver mine\n", "nameserver 3\n", "nameserver mine\n"},
		{"", "nameserver 4\n", "nameserver mine\n"},
	} {
		if step.edit != "" {
			if err := os.WriteFile(path, []byte(step.edit), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := writeResolvConf(path, []byte(step.write), func(path string, text []byte) error { return os.WriteFile(path, text, 0o644) }); err != nil {
			t.Fatal(err)
		}
		if got := read(); got != step.want {
			t.Errorf("after writing %q it holds %q, want %q", step.write, got, step.want)
		}
	}
}

func TestListWords(t *testing.T) {
	for _, c := range []struct {
		name, want string
		fits       bool
	}{
		{"web1", "web", true}, {"web1", "/web", true}, {"web1", "^web", true}, {"web1", "^/web1$", true}, {"web1", "eb1$", true},
		{"web1", "^eb", false}, {"web1", "web$", false}, {"web1", "WEB", false},
	} {
		if got := matchName(c.name, c.want); got != c.fits {
			t.Errorf("name %s, filter %s: %v", c.name, c.want, got)
		}
	}
	r := &Record{Config: &types.ContainerConfig{}, HostConfig: &container.HostConfig{}, NetworkSettings: &NetworkSettings{}}
	r.Config.ExposedPorts = network.PortSet{network.MustParsePort("80/tcp"): {}}
	r.HostConfig.PortBindings = network.PortMap{
		network.MustParsePort("80/tcp"): {{HostPort: "8080"}, {HostPort: "9000-9002"}}, network.MustParsePort("53/udp"): {{HostPort: ""}},
	}
	for want, fits := range map[string]bool{"8080": true, "8080/tcp": true, "8080/udp": false, "80": false, "9001": true, "8000-8100": true, "9003": false} {
		if got := hasPort(hostPortsOf(r), want); got != fits {
			t.Errorf("publish=%s: %v", want, got)
		}
	}
	r.MountPoints = map[string]*mountpoint.MountPoint{"/data": {Name: "vol", Destination: "/data"}, "/etc/x": {Source: "/host/x", Destination: "/etc/x"}}
	for want, fits := range map[string]bool{"vol": true, "/data": true, "/data/": true, "/host/x": true, "/host": false, "vo": false} {
		if got := hasVolume(r.MountPoints, want); got != fits {
			t.Errorf("volume=%s: %v", want, got)
		}
	}
	r.NetworkSettings.set("net", &EndpointSettings{EndpointSettings: network.EndpointSettings{NetworkID: testID}})
	for want, fits := range map[string]bool{"net": true, testID: true, "0123": true, "ne": false} {
		if got := hasNetwork(r, want); got != fits {
			t.Errorf("network=%s: %v", want, got)
		}
	}
	if got := commandText("sh", []string{"-c", "echo a b"}); got != "sh -c 'echo a b'" {
		t.Error(got)
	}
}

func TestHostPorts(t *testing.T) {
	for text, want := range map[string][2]uint16{"": {}, "80": {80, 80}, "80-90": {80, 90}} {
		if first, last, err := hostPorts(text); err != nil || [2]uint16{first, last} != want {
			t.Errorf("%q: %d-%d, %v", text, first, last, err)
		}
	}
	for _, text := range []string{"x", "90-80", "70000", "1-2-3", "-"} {
		if _, _, err := hostPorts(text); err == nil {
			t.Errorf("%q is accepted", text)
		}
	}
}
