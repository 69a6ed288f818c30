package containers

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"stated.dev/stated/api/route"
)

// FuzzCreateBody reads bodies of create requests as clients of all versions might send them. Whatever comes is
// refused or makes a request in which nothing is nil that the backend relies on.
func FuzzCreateBody(f *testing.F) {
	for _, body := range []string{
		`{}`, `null`, `[]`, `{"Image":"x"}`, `{"Cmd":"a"}`, `{"Cmd":["a"],"Entrypoint":null,"Shell":["sh"]}`,
		`{"Image":"x","MacAddress":"02:00:00:00:00:01","HostConfig":{"NetworkMode":"net"},"NetworkingConfig":{"EndpointsConfig":{"net":null}}}`,
		`{"Image":"x","HostConfig":{"Sysctls":{"net.ipv4.conf.eth0.forwarding":"1"},"NetworkMode":"container:x"}}`,
		`{"Image":"x","Healthcheck":{"Test":["CMD"],"StartInterval":1},"HostConfig":{"Mounts":[{"Type":"bind","BindOptions":{}},{"Type":"volume","VolumeOptions":{"Subpath":"s"}}],"PidsLimit":0}}`,
		`{"Image":"x","ExposedPorts":{"80/tcp":{}},"HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":"1-2"}]},"Dns":["8.8.8.8"]}}`,
	} {
		for _, version := range []uint8{24, 29, 43, 51} {
			f.Add(body, version)
		}
	}
	f.Fuzz(func(t *testing.T, text string, minor uint8) {
		r := httptest.NewRequest("POST", "/", strings.NewReader(text))
		r.Header.Set("Content-Type", "application/json")
		var body createBody
		if route.Decode(r, &body) != nil {
			return
		}
		req, err := body.request()
		if err != nil {
			return
		}
		version := fmt.Sprintf("1.%d", 24+minor%28)
		if _, err := adapt(&req, version); err != nil {
			return
		}
		if req.Config == nil || req.HostConfig == nil || req.Networking == nil || req.Networking.EndpointsConfig == nil {
			t.Fatalf("%s: %+v", text, req)
		}
		for name, endpoint := range req.Networking.EndpointsConfig {
			if endpoint == nil {
				t.Fatalf("%s: endpoint %q is nil", text, name)
			}
		}
		if req.HostConfig.NetworkMode == "" || req.HostConfig.NetworkMode.IsDefault() {
			t.Fatalf("%s: network mode %q", text, req.HostConfig.NetworkMode)
		}
	})
}
