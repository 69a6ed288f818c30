package dns

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

func TestZoneRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zone")
	err := WriteZone(path, Zone{
		Records: map[string][]netip.Addr{
			"Web":      addrs("172.18.0.3", "172.18.0.2", "172.18.0.2"),
			"web.net.": addrs("172.18.0.2", "fd00::2"),
			"bad name": addrs("172.18.0.9"),
			"":         addrs("172.18.0.9"),
			"empty":    nil,
		},
		Reverse: map[string]string{"172.18.0.2": "web.net", "fd00::2": "web.net", "nonsense": "x"},
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadZone(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Zone{
		Records: map[string][]netip.Addr{
			"web":     addrs("172.18.0.2", "172.18.0.3"),
			"web.net": addrs("172.18.0.2", "fd00::2"),
		},
		Reverse: map[string]string{"172.18.0.2": "web.net", "fd00::2": "web.net"},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("zone differs (-want +got):\n%s", diff)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) != 1 {
		t.Errorf("litter: %v", left)
	}
	if _, err := ReadZone(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing zone: %v", err)
	}
}

// Searching the file in place finds what is in it, whatever its size.
func TestSearchAgreesWithTheZone(t *testing.T) {
	for _, names := range []int{0, 1, 2, 50, 1000, 5000} {
		z := Zone{Records: map[string][]netip.Addr{}, Reverse: map[string]string{}}
		for i := range names {
			a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
			name := fmt.Sprintf("c%d", i)
			z.Records[name] = []netip.Addr{a}
			z.Records[name+"-alias"] = []netip.Addr{a, addr(fmt.Sprintf("fd00::%x", i))}
			z.Records["all"] = append(z.Records["all"], a)
			z.Reverse[a.String()] = name
		}
		path := filepath.Join(t.TempDir(), "zone")
		if err := WriteZone(path, z); err != nil {
			t.Fatal(err)
		}
		f := &zoneFile{path: path}
		defer f.close()
		for name, want := range z.Records {
			got, known := f.addrs(name)
			slices.SortFunc(got, netip.Addr.Compare)
			slices.SortFunc(want, netip.Addr.Compare)
			if !known || !slices.Equal(got, want) {
				t.Fatalf("%d names: %s is %v, want %v", names, name, got, want)
			}
		}
		for _, name := range []string{"", "a", "c", "c0-", "c00", "zzz", "all-", "\x7f"} {
			if got, known := f.addrs(name); known {
				t.Errorf("%d names: %q is %v", names, name, got)
			}
		}
		for text, want := range z.Reverse {
			if got := f.name(addr(text)); got != want {
				t.Fatalf("%d names: %s is %q, want %q", names, text, got, want)
			}
		}
	}
}

func TestAReplacedZoneCountsAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zone")
	f := &zoneFile{path: path}
	defer f.close()
	if _, known := f.addrs("web"); known {
		t.Error("no zone yet")
	}
	for i := range 300 {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		if err := WriteZone(path, Zone{Records: map[string][]netip.Addr{"web": {a}}}); err != nil {
			t.Fatal(err)
		}
		if got, _ := f.addrs("web"); len(got) != 1 || got[0] != a {
			t.Fatalf("got %v, want %v", got, a)
		}
	}
	os.WriteFile(path, []byte("something else"), 0o644)
	if got, known := f.addrs("web"); known {
		t.Errorf("from something else: %v", got)
	}
	os.Remove(path)
	if got, known := f.addrs("web"); known {
		t.Errorf("after removal: %v", got)
	}
}

func FuzzParseZone(f *testing.F) {
	f.Add([]byte(zoneHeader))
	f.Add([]byte(zoneHeader + "a web 172.18.0.2\na web 172.18.0.3\np 172.18.0.2 web\n"))
	f.Add([]byte(zoneHeader + "a web fd00::2\np fd00::2 web\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		z, err := parseZone(data)
		if err == nil {
			if again := z.encode(); !bytes.Equal(again, data) {
				t.Fatalf("read %q, would write %q", data, again)
			}
		}
		// A search must end and stay within the file, whatever the file holds.
		path := filepath.Join(dir, "zone")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		file := &zoneFile{path: path}
		defer file.close()
		for name, want := range z.Records {
			if got, _ := file.addrs(name); len(got) != len(want) {
				t.Fatalf("%q is %v, want %v", name, got, want)
			}
		}
		file.addrs("web")
		file.name(addr("172.18.0.2"))
	})
}

func FuzzQuery(f *testing.F) {
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x00\x00\x01\x00\x01"))
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x03web\x00\x00\x1c\x00\x01\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00"))
	path := filepath.Join(f.TempDir(), "zone")
	if err := WriteZone(path, Zone{
		Records: map[string][]netip.Addr{"web": addrs("172.18.0.2", "fd00::2")},
		Reverse: map[string]string{"172.18.0.2": "web"},
	}); err != nil {
		f.Fatal(err)
	}
	cfg := &config{zones: []*zoneFile{{path: path}}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, ok := parseQuery(raw)
		if !ok {
			return
		}
		reply := cfg.answer(q)
		if reply == nil {
			reply = q.fail()
		}
		if len(reply) < headerSize || len(reply) > max(q.limit, minMessage) || !bytes.Equal(reply[:2], raw[:2]) || reply[2]&0x80 == 0 {
			t.Fatalf("query %x, reply %x", raw, reply)
		}
		if q.end > len(raw) {
			t.Fatalf("question of %x ends at %d", raw, q.end)
		}
	})
}

func BenchmarkSearch(b *testing.B) {
	z := Zone{Records: map[string][]netip.Addr{}}
	for i := range 3000 {
		z.Records[fmt.Sprintf("container-%d", i)] = addrs("10.0.0.1")
	}
	path := filepath.Join(b.TempDir(), "zone")
	if err := WriteZone(path, z); err != nil {
		b.Fatal(err)
	}
	f := &zoneFile{path: path}
	defer f.close()
	for b.Loop() {
		if _, known := f.addrs("container-1500"); !known {
			b.Fatal("not found")
		}
	}
}
