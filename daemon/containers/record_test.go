package containers

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

const testID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// TestRecordRoundTrip reads documents as dockerd writes them and writes them again: fields that are not known here
// stay, and null stays apart from empty.
func TestRecordRoundTrip(t *testing.T) {
	config := `{"StreamConfig":{},"State":{"Running":false,"Paused":false,"Restarting":false,"OOMKilled":false,"Dead":false,"Pid":0,"ExitCode":3,` +
		`"Error":"","StartedAt":"2025-01-02T03:04:05.000000006Z","FinishedAt":"0001-01-01T00:00:00Z","Health":null},"ID":"` + testID + `",` +
		`"Created":"2025-01-02T03:04:05.6Z","Managed":false,"Path":"sh","Args":[],"Config":{"Hostname":"h","Env":[],"Cmd":null,"Entrypoint":null,"OnBuild":null,"Labels":{}},` +
		`"Image":"sha256:x","ImageManifest":null,"NetworkSettings":{"Networks":{"bridge":{"IPAMConfig":null,"Aliases":[],"MacAddress":""}},"Ports":null},` +
		`"Name":"/n","Driver":"overlay2","OS":"linux","MountPoints":{},"NewField":{"a":[1,2]},"AnotherOne":"x"}`
	host := `{"Binds":null,"CapAdd":null,"CapDrop":[],"NetworkMode":"bridge","RestartPolicy":{"Name":"no","MaximumRetryCount":0},"FutureLimit":7}`
	r, err := decodeRecord(testID, []byte(config), []byte(host))
	if err != nil {
		t.Fatal(err)
	}
	first, firstHost, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	contains(t, first, `"NewField":{"a":[1,2]}`, `"AnotherOne":"x"`, `"Args":[]`, `"Cmd":null`, `"Env":[]`, `"Aliases":[]`, `"Labels":{}`,
		`"IPAMConfig":null`, `"StartedAt":"2025-01-02T03:04:05.000000006Z"`, `"Health":null`)
	contains(t, firstHost, `"FutureLimit":7`, `"Binds":null`, `"CapDrop":[]`, `"CapAdd":null`)

	again, err := decodeRecord(testID, first, firstHost)
	if err != nil {
		t.Fatal(err)
	}
	second, secondHost, err := again.encode()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) || !bytes.Equal(firstHost, secondHost) {
		t.Errorf("the second writing differs:\n%s\n%s", first, second)
	}
	if !json.Valid(second) || !json.Valid(secondHost) {
		t.Error("what was written is no JSON")
	}
}

func contains(t *testing.T, doc []byte, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !bytes.Contains(doc, []byte(p)) {
			t.Errorf("%s is missing in %s", p, doc)
		}
	}
}

func TestDecodeRecordRefuses(t *testing.T) {
	for name, c := range map[string]struct{ config, host, want string }{
		"no JSON":             {`{"ID":`, `{}`, "read config.v2.json"},
		"another container's": {`{"ID":"other"}`, `{}`, "is stored at"},
		"a broken hostconfig": {`{"ID":"` + testID + `"}`, `[]`, "read hostconfig.json"},
	} {
		if _, err := decodeRecord(testID, []byte(c.config), []byte(c.host)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// TestDecodeRecordMigrates brings older forms to the present one.
func TestDecodeRecordMigrates(t *testing.T) {
	r, err := decodeRecord(testID, []byte(`{"ID":"`+testID+`","State":{"RemovalInProgress":true},"NetworkSettings":{"Networks":{"default":{"NetworkID":"n"}}},"MountPoints":{"/a":null,"/b":{}}}`),
		[]byte(`{"NetworkMode":"default"}`))
	if err != nil {
		t.Fatal(err)
	}
	if !r.State.Dead || r.State.RemovalInProgress {
		t.Errorf("state %+v", r.State)
	}
	if r.HostConfig.NetworkMode != "bridge" || r.NetworkSettings.Networks["bridge"] == nil || r.NetworkSettings.Networks["default"] != nil {
		t.Errorf("network mode %s, networks %v", r.HostConfig.NetworkMode, r.NetworkSettings.Networks)
	}
	if r.HostConfig.RestartPolicy.Name != "no" {
		t.Errorf("restart policy %+v", r.HostConfig.RestartPolicy)
	}
	if len(r.MountPoints) != 1 || r.MountPoints["/b"].Destination != "/b" {
		t.Errorf("mount points %v", r.MountPoints)
	}
}

// FuzzDecodeRecord feeds any two documents: they are refused, or written so that they can be read again.
func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(`{"ID":"`+testID+`","State":{}}`), []byte(`{"NetworkMode":"default"}`))
	f.Add([]byte(`{"ID":"`+testID+`","Config":null,"NetworkSettings":{"Networks":{"x":null}},"x":1}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, config, host []byte) {
		r, err := decodeRecord(testID, config, host)
		if err != nil {
			return
		}
		_ = r.clone()
		_ = inspect(r)
		c, h, err := r.encode()
		if err != nil {
			t.Skip(err) // a date that JSON cannot hold
		}
		if _, err := decodeRecord(testID, c, h); err != nil {
			t.Errorf("%s and %s were written as\n%s and %s: %v", config, host, c, h, err)
		}
	})
}
