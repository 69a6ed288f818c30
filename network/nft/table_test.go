package nft_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"stated.dev/stated/network/netns/netnstest"
	"stated.dev/stated/network/nft"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func list(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("nft", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v: %s", err, out)
	}
	return string(out)
}

func elements() []nft.Element {
	all := nft.Bridge{Name: "br-a", ICC: true, Masq4: true, Masq6: true, TrustedIfs: []string{"wg0"}}.Elements()
	all = append(all, nft.Bridge{Name: "br-b", Internal: true}.Elements()...)
	to := netip.MustParseAddrPort("172.18.0.2:80")
	all = append(all, nft.Publish{Proto: 6, HostIP: netip.IPv4Unspecified(), HostPort: 8080, To: to}.Elements()...)
	all = append(all, nft.Publish{Proto: 17, HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 53, To: to}.Elements()...)
	all = append(all, nft.Publish{Proto: 6, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 99, To: to}.Elements()...)
	to6 := netip.MustParseAddrPort("[fd00::2]:80")
	all = append(all, nft.Publish{Proto: 6, HostIP: netip.IPv6Unspecified(), HostPort: 8080, To: to6}.Elements()...)
	all = append(all, nft.Publish{Proto: 6, HostIP: netip.MustParseAddr("2001:db8::1"), HostPort: 81, To: to6}.Elements()...)
	return append(append(all, nft.Open{Proto: 6, To: to}.Elements()...), nft.Open{Proto: 132, To: to6}.Elements()...)
}

func TestSyncUpdateDestroy(t *testing.T) {
	ctx := context.Background()
	table := nft.New("stated-test")
	if err := table.Sync(ctx, elements()); err != nil {
		t.Fatal(err)
	}
	first := list(t)
	for _, want := range []string{"tcp . 8080 : 172.18.0.2 . 80", "192.0.2.1 . udp . 53 : 172.18.0.2 . 80", `"br-b" comment "drop" : drop`, "fd00::2 . 80"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in\n%s", want, first)
		}
	}
	if strings.Contains(first, "99") {
		t.Error("a loopback port is redirected")
	}
	// A second process finds everything right and does nothing; so generations stay equal.
	before := generation(t)
	again := nft.New("stated-test")
	if err := again.Sync(ctx, elements()); err != nil {
		t.Fatal(err)
	}
	if after := generation(t); after != before {
		t.Errorf("a matching table was written: generation %d, then %d", before, after)
	}
	gone := elements()[:4]
	if err := again.Update(ctx, nil, gone); err != nil {
		t.Fatal(err)
	}
	if err := again.Update(ctx, nil, gone); err != nil {
		t.Fatalf("deleting twice: %v", err)
	}
	if err := again.Update(ctx, gone, nil); err != nil {
		t.Fatal(err)
	}
	if list(t) != first {
		t.Errorf("taking away and adding changed the table:\n%s", list(t))
	}
	// Somebody flushes the machine's rules: the next change brings everything back.
	if out, err := exec.Command("nft", "flush", "ruleset").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := again.Update(ctx, nil, gone); err != nil {
		t.Fatal(err)
	}
	if err := again.Update(ctx, gone, nil); err != nil {
		t.Fatal(err)
	}
	if list(t) != first {
		t.Errorf("after a flush:\n%s\nbefore:\n%s", list(t), first)
	}
	if err := again.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if left := list(t); strings.Contains(left, "stated-test") {
		t.Errorf("left:\n%s", left)
	}
}

func generation(t *testing.T) uint32 {
	t.Helper()
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddRawData(make([]byte, 4)) // struct nfgenmsg
	msgs, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil || len(msgs) == 0 {
		t.Fatalf("read generation: %v", err)
	}
	attrs, err := nl.ParseRouteAttr(msgs[0][4:])
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range attrs {
		if a.Attr.Type == unix.NFTA_GEN_ID {
			return binary.BigEndian.Uint32(a.Value)
		}
	}
	t.Fatal("no generation")
	return 0
}

func BenchmarkUpdate(b *testing.B) {
	ctx := context.Background()
	table := nft.New("stated-bench")
	if err := table.Sync(ctx, elements()); err != nil {
		b.Fatal(err)
	}
	defer table.Destroy(ctx)
	port := nft.Publish{Proto: 6, HostIP: netip.IPv4Unspecified(), HostPort: 9090, To: netip.MustParseAddrPort("172.18.0.9:80")}.Elements()
	for b.Loop() {
		if err := table.Update(ctx, port, nil); err != nil {
			b.Fatal(err)
		}
		if err := table.Update(ctx, nil, port); err != nil {
			b.Fatal(err)
		}
	}
}
