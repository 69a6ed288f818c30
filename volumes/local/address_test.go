package local_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"stated.dev/stated/volumes/local"
)

func TestAddresses(t *testing.T) {
	hosts := map[string]netip.Addr{
		"nas":         netip.MustParseAddr("192.0.2.7"),
		"nas.example": netip.MustParseAddr("192.0.2.8"),
		"six":         netip.MustParseAddr("2001:db8::6"),
		"a":           netip.MustParseAddr("192.0.2.9"),
		"user":        netip.MustParseAddr("192.0.2.10"),
	}
	resolve := func(_ context.Context, host string) (netip.Addr, error) {
		if addr, ok := hosts[host]; ok {
			return addr, nil
		}
		return netip.Addr{}, errors.New("no such host: " + host)
	}
	const unresolved = "error resolving passed in network volume address: no such host: "
	for _, tt := range []struct {
		kind, device, o   string
		wantDevice, wantO string
		err               string
	}{
		{"nfs", ":/srv", "addr=nas,rw", ":/srv", "addr=192.0.2.7,rw", ""},
		{"nfs", ":/srv", "rw,vers=4,addr=nas.example,soft", ":/srv", "rw,vers=4,addr=192.0.2.8,soft", ""},
		{"nfs4", ":/srv", "addr=nas", ":/srv", "addr=192.0.2.7", ""},
		{"nfs", ":/srv", "addr=six", ":/srv", "addr=2001:db8::6", ""},
		{"nfs", ":/srv", "addr=192.0.2.1", ":/srv", "addr=192.0.2.1", ""},
		{"nfs", ":/srv", "addr=2001:db8::1", ":/srv", "addr=2001:db8::1", ""},
		{"nfs", ":/srv", "mountaddr=nas,clientaddr=nas,addr=nas", ":/srv", "mountaddr=nas,clientaddr=nas,addr=192.0.2.7", ""},
		{"nfs", ":/srv", "addr=,rw", ":/srv", "addr=,rw", ""},
		{"nfs", ":/srv", "addr=a", ":/srv", "addr=192.0.2.9", ""},
		{"nfs", "nas:/srv", "rw", "nas:/srv", "rw", ""},
		{"nfs", ":/srv", "addr=gone", "", "", unresolved + "gone"},
		{"cifs", "//nas/share", "username=u,password=p", "//192.0.2.7/share", "username=u,password=p", ""},
		{"cifs", "//nas/share a+b%20c/nas", "", "//192.0.2.7/share a+b%20c/nas", "", ""},
		{"cifs", "//192.0.2.1/share", "", "//192.0.2.1/share", "", ""},
		{"cifs", "smb://a/a", "", "smb://192.0.2.9/a", "", ""},
		{"cifs", "cifs://user@user/user", "", "cifs://user@192.0.2.10/user", "", ""},
		{"cifs", "//[2001:db8::1]/share", "", "//[2001:db8::1]/share", "", ""},
		{"cifs", "//nas/share", "addr=nas.example,port=1445", "//nas/share", "addr=192.0.2.8,port=1445", ""},
		{"cifs", "//nas/share", "addr=192.0.2.1", "//nas/share", "addr=192.0.2.1", ""},
		{"cifs", "//gone/share", "", "", "", unresolved + "gone"},
		{"cifs", "//nas/%zz", "", "", "", `error parsing mount device url: parse "//nas/%zz": invalid URL escape "%zz"`},
		{"tmpfs", "tmpfs", "addr=nas", "tmpfs", "addr=nas", ""},
		{"none", "/nas", "bind", "/nas", "bind", ""},
	} {
		device, opts, err := local.Source(t.Context(), map[string]string{"type": tt.kind, "device": tt.device, "o": tt.o}, resolve)
		if device != tt.wantDevice || opts != tt.wantO || text(err) != tt.err {
			t.Errorf("%s %q %q: %q, %q, %v", tt.kind, tt.device, tt.o, device, opts, err)
		}
	}
}

// The address may change while the volume lives: each mount asks for it. What cannot be resolved is not mounted.
func TestAddressIsLookedUpByEachMount(t *testing.T) {
	asked := 0
	d := local.New(local.Options{Dir: newRoot(t), Resolve: func(context.Context, string) (netip.Addr, error) {
		asked++
		return netip.Addr{}, errors.New("the name server is away")
	}})
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	data := create(t, d, "vol", map[string]string{"type": "cifs", "device": "//nas/share", "o": "username=u,password=secret"}).Mountpoint
	if asked != 0 {
		t.Error("asked by the creation")
	}
	for range 2 {
		_, err := d.Mount(t.Context(), "vol", "a")
		if text(err) != "error resolving passed in network volume address: the name server is away" {
			t.Error(err)
		}
	}
	if asked != 2 || mounted(t, data) {
		t.Errorf("asked %d times, mounted: %v", asked, mounted(t, data))
	}
	if _, err := d.PrepareRemove(t.Context(), "vol"); err != nil {
		t.Error(err)
	}
}

// Without a Resolver the system's is asked.
func TestSystemResolver(t *testing.T) {
	d := newDriver(t, newRoot(t))
	create(t, d, "vol", map[string]string{"type": "nfs", "device": ":/srv", "o": "addr=name.invalid"})
	_, err := d.Mount(t.Context(), "vol", "a")
	if err == nil || !errors.As(err, new(interface{ Timeout() bool })) {
		t.Errorf("%v, want what the resolver says", err)
	}
}
