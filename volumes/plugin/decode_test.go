package plugin

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for _, c := range []struct {
		text string
		want address // zero: refused
	}{
		{"unix:///run/x.sock", address{network: "unix", addr: "/run/x.sock"}},
		{"tcp://host:80", address{network: "tcp", addr: "host:80"}},
		{"tcp://[::1]:80/", address{network: "tcp", addr: "[::1]:80"}},
		{text: ""}, {text: "/run/x.sock"}, {text: "unix://x.sock"}, {text: "unix://run/x.sock"}, {text: "unix:"},
		{text: "tcp://host"}, {text: "tcp://:80"}, {text: "tcp://host:"}, {text: "tcp://host:80/path"}, {text: "tcp://u@host:80"},
		{text: "tcp://host:80?q"}, {text: "http://host:80"}, {text: "unix:///a\x00b"}, {text: "unix:///a%00b"},
	} {
		got, err := parseSpec([]byte(" " + c.text + "\n"))
		if got != c.want || (err == nil) != (c.want != address{}) {
			t.Errorf("%q: %+v, %v", c.text, got, err)
		}
	}
}

func FuzzSpec(f *testing.F) {
	f.Add([]byte("unix:///run/x.sock\n"))
	f.Add([]byte("tcp://[::1]:80"))
	f.Add([]byte(`{"Name":"x","Addr":"tcp://host:80","TLSConfig":{"InsecureSkipVerify":true,"CAFile":"/ca","CertFile":"/c","KeyFile":"/k"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, kind := range specKinds {
			addr, err := kind.parse(data)
			switch {
			case err != nil && addr.network != "":
				t.Errorf("%s: both %+v and %v", kind.suffix, addr, err)
			case err != nil:
			case addr.network == "unix" && filepath.IsAbs(addr.addr) && addr.tls == nil:
			case addr.network == "tcp" && addr.addr != "":
			default:
				t.Errorf("%s: %+v", kind.suffix, addr)
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{`{}`, `null`, ``, `{"Err":"no"}`, `{"Volumes":[null,{"Name":"a"}]}`, `{"Implements":["VolumeDriver"]}`,
		`{"Volume":{"Name":"a","Mountpoint":"/a","CreatedAt":"2020-01-02T03:04:05Z","Status":{"n":1e999,"m":12345678901234567890}}}`} {
		f.Add(http.StatusOK, []byte(s))
		f.Add(http.StatusInternalServerError, []byte(s))
	}
	f.Fuzz(func(t *testing.T, status int, data []byte) {
		var get getReply
		if err := decode("Get", status, data, &get); err == nil && get.Volume != nil {
			if status != http.StatusOK || get.Err != "" {
				t.Errorf("status %d, %q: no error", status, get.Err)
			}
			info := get.Volume.info("name")
			if _, err := json.Marshal(info.Status); err != nil { // the store relies on it
				t.Errorf("%q: %v", data, err)
			}
			if _, err := json.Marshal(info.CreatedAt); err != nil {
				t.Errorf("%q: %v", data, err)
			}
		}
		var list listReply
		if err := decode("List", status, data, &list); err == nil {
			seen := map[string]bool{}
			for _, info := range list.infos() {
				if info.Name == "" || seen[info.Name] {
					t.Errorf("%q: volume %q", data, info.Name)
				}
				seen[info.Name] = true
			}
		}
		var d done
		if err := decode("Remove", status, data, &d); err != nil && err.Error() == "" {
			t.Errorf("%q: an error without words", data)
		}
	})
}
