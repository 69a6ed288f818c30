package shimapi

import (
	"bufio"
	"bytes"
	"os"
	"strings"
	"testing"
)

func TestStartTime(t *testing.T) {
	got, err := parseStartTime([]byte("42 (a) b (c) S " + strings.Repeat("7 ", 18) + "12345 9\n"))
	if got != 12345 || err != nil {
		t.Fatalf("got %d, %v", got, err)
	}
	for _, bad := range []string{"", "42", "42 (x", "42 (x) S 1 2 3"} {
		if _, err := parseStartTime([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	self, err := Self("v")
	if err != nil || self.Pid != os.Getpid() || self.StartTime == 0 || self.BootID == "" {
		t.Fatalf("self %+v, %v", self, err)
	}
}

func TestPackets(t *testing.T) {
	data := AppendPacket(nil, PacketData, []byte("hello"))
	data = AppendPacket(data, PacketEnd, nil)
	r, buf := bytes.NewReader(data), make([]byte, MaxPacket)
	kind, payload, err := ReadPacket(r, buf)
	if kind != PacketData || string(payload) != "hello" || err != nil {
		t.Fatalf("%d %q %v", kind, payload, err)
	}
	kind, payload, err = ReadPacket(r, buf)
	if kind != PacketEnd || len(payload) != 0 || err != nil {
		t.Fatalf("%d %q %v", kind, payload, err)
	}
}

// FuzzReadPacket checks that no input is taken for more than it is.
func FuzzReadPacket(f *testing.F) {
	f.Add(AppendPacket(nil, PacketData, []byte("x")))
	f.Add([]byte{0, 0xff, 0xff, 0xff, 0xff})
	buf := make([]byte, MaxPacket)
	f.Fuzz(func(t *testing.T, data []byte) {
		kind, payload, err := ReadPacket(bytes.NewReader(data), buf)
		if err != nil {
			return
		}
		if again := AppendPacket(nil, kind, payload); !bytes.HasPrefix(data, again) {
			t.Fatalf("%q was read as %d %q", data, kind, payload)
		}
	})
}

// FuzzReadLine checks that a first line is refused or understood, without a crash.
func FuzzReadLine(f *testing.F) {
	f.Add([]byte(`{"Exec":"a","Stdin":true}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var h Hello
		_ = ReadLine(bufio.NewReaderSize(bytes.NewReader(data), 8<<10), &h)
	})
}

func FuzzStartTime(f *testing.F) {
	f.Add([]byte("1 (init) S 0 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 3 9\n"))
	f.Fuzz(func(t *testing.T, data []byte) { _, _ = parseStartTime(data) })
}
