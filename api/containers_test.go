package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/server"
	"stated.dev/stated/api/types"
	"stated.dev/stated/internal/filters"
)

// call sends a request to the container routes without a connection.
func call(f *fakeContainers, method, path, body string) *httptest.ResponseRecorder {
	s := server.New(server.Options{})
	s.Handle(containers.Routes(f))
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, r)
	return rec
}

// create posts a create request and returns what the backend got.
func create(t *testing.T, path, body string) (got containers.CreateRequest, rec *httptest.ResponseRecorder) {
	t.Helper()
	f := &fakeContainers{create: func(req containers.CreateRequest) (container.CreateResponse, error) {
		got = req
		return container.CreateResponse{ID: "new"}, nil
	}}
	rec = call(f, "POST", path, body)
	return got, rec
}

func TestCreateBody(t *testing.T) {
	got, rec := create(t, "/containers/create?name=web&platform=linux/arm64", `{
		"Image": "alpine", "Cmd": "true", "Entrypoint": ["/bin/sh", "-c"], "Unknown": {"x": 1}, "Labels": {"a": "b"},
		"HostConfig": {"Binds": ["/a:/b"], "NetworkMode": "default", "PidsLimit": -1,
			"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}},
		"NetworkingConfig": {"EndpointsConfig": {"default": {"Aliases": ["x"]}, "other": null}}}`)
	if rec.Code != 201 || rec.Body.String() != `{"Id":"new","Warnings":[]}`+"\n" {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	c, hc := got.Config, got.HostConfig
	if got.Name != "web" || got.Platform == nil || got.Platform.Architecture != "arm64" {
		t.Errorf("query: %+v", got)
	}
	if c.Image != "alpine" || !reflect.DeepEqual(c.Cmd, []string{"true"}) || !reflect.DeepEqual(c.Entrypoint, []string{"/bin/sh", "-c"}) || c.Labels["a"] != "b" {
		t.Errorf("config: %+v", c)
	}
	if hc.NetworkMode != "bridge" || hc.PidsLimit != nil || len(hc.Binds) != 1 || len(hc.PortBindings) != 1 {
		t.Errorf("host config: %+v", hc)
	}
	if e := got.Networking.EndpointsConfig; len(e) != 2 || e["bridge"].Aliases[0] != "x" || e["other"] == nil {
		t.Errorf("networking: %+v", e)
	}
	if got, rec := create(t, "/containers/create", `{"Image":"x"}`); rec.Code != 201 || got.HostConfig == nil || got.Networking == nil || got.Networking.EndpointsConfig == nil {
		t.Errorf("%d %+v", rec.Code, got)
	}
}

func TestCreateRefused(t *testing.T) {
	for _, c := range []struct{ path, body, message string }{
		{"", "", "unsupported Content-Type header (): must be 'application/json'"},
		{"", " ", "invalid JSON: got EOF while reading request body"},
		{"", "{", "invalid JSON: unexpected EOF"},
		{"", "{}", "config cannot be empty in order to create a container"},
		{"", "null", "config cannot be empty in order to create a container"},
		{"", `{"HostConfig":{}}`, "config cannot be empty in order to create a container"},
		{"", `{"Image":"x"}{}`, "unexpected content after JSON"},
		{"", `{"Image":"x","HostConfig":{"Mounts":[{"Type":"bind","VolumeOptions":{}}]}}`, `VolumeOptions must not be specified on mount type "bind"`},
		{"", `{"Image":"x","HostConfig":{"Mounts":[{"Type":"tmpfs","BindOptions":{}}]}}`, `BindOptions must not be specified on mount type "tmpfs"`},
		{"", `{"Image":"x","HostConfig":{"Mounts":[{"Type":"bind","TmpfsOptions":{}}]}}`, `TmpfsOptions must not be specified on mount type "bind"`},
		{"/v1.43", `{"Image":"x","NetworkingConfig":{"EndpointsConfig":{"b":{},"a":{}}}}`, "Container cannot be created with multiple network endpoints: a, b"},
		{"/v1.44", `{"Image":"x","HostConfig":{"Mounts":[{"Type":"volume","VolumeOptions":{"Subpath":"s"}}]}}`, "VolumeOptions.Subpath needs API v1.45 or newer"},
		{"/v1.47", `{"Image":"x","HostConfig":{"Mounts":[{"Type":"image"}]}}`, `Mount type "Image" needs API v1.48 or newer`},
		{"/v1.43", `{"Image":"x","MacAddress":"02:00:00:00:00:01","HostConfig":{"NetworkMode":"host"}}`, "conflicting options: mac-address and the network mode"},
		{"", `{"Image":"x","MacAddress":"nonsense"}`, "invalid MAC address: nonsense"},
		{"", `{"Image":"x","MacAddress":"02:00:00:00:00:01","NetworkingConfig":{"EndpointsConfig":{"bridge":{"MacAddress":"02:00:00:00:00:02"}}}}`,
			"the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty"},
		{"", `{"Image":"x","HostConfig":{"Sysctls":{"net.ipv4.conf.eth0.forwarding":"1"}}}`,
			`interface specific sysctl setting "net.ipv4.conf.eth0.forwarding" must be supplied using driver option 'com.docker.network.endpoint.sysctls'`},
		{"/v1.47", `{"Image":"x","HostConfig":{"Sysctls":{"net.ipv4.conf.eth1.forwarding":"1"}}}`,
			"unable to determine network endpoint for sysctl net.ipv4.conf.eth1.forwarding, use driver option 'com.docker.network.endpoint.sysctls' to set per-interface sysctls"},
	} {
		_, rec := create(t, c.path+"/containers/create", c.body)
		var e types.ErrorResponse
		if err := json.Unmarshal(rec.Body.Bytes(), &e); err != nil || rec.Code != 400 || e.Message != c.message {
			t.Errorf("%s %s:\n %d %s, want %q", c.path, c.body, rec.Code, rec.Body, c.message)
		}
	}
	if _, rec := create(t, "/containers/create?platform=a/b/c/d/e", `{"Image":"x"}`); rec.Code != 400 {
		t.Errorf("platform: %d %s", rec.Code, rec.Body)
	}
}

// TestCreateVersions checks what an older version drops or moves.
func TestCreateVersions(t *testing.T) {
	const body = `{"Image":"x","Healthcheck":{"StartInterval":5},"MacAddress":"02:00:00:00:00:01",
		"HostConfig":{"AutoRemove":true,"ConsoleSize":[1,2],"Annotations":{"a":"b"},
			"Sysctls":{"net.ipv4.conf.eth0.forwarding":"1","kernel.shmmax":"2"},
			"Mounts":[{"Type":"bind","BindOptions":{"NonRecursive":true,"CreateMountpoint":true},"VolumeOptions":{}}]},
		"NetworkingConfig":{"EndpointsConfig":{"net":{"GwPriority":5}}}}`
	got, rec := create(t, "/v1.24/containers/create", body)
	if rec.Code != 201 || !strings.Contains(rec.Body.String(), "Migrated sysctl") {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	hc := got.HostConfig
	endpoint := got.Networking.EndpointsConfig["net"] // the only one, whatever the network mode
	if hc.AutoRemove || hc.ConsoleSize != [2]uint{} || hc.Annotations != nil || hc.IpcMode != "shareable" || got.Config.Healthcheck.StartInterval != 0 {
		t.Errorf("%+v", hc)
	}
	if m := hc.Mounts[0]; m.BindOptions.NonRecursive || m.BindOptions.CreateMountpoint || m.VolumeOptions != nil {
		t.Errorf("%+v", m)
	}
	if endpoint.GwPriority != 0 || endpoint.MacAddress.String() != "02:00:00:00:00:01" ||
		endpoint.DriverOpts["com.docker.network.endpoint.sysctls"] != "net.ipv4.conf.IFNAME.forwarding=1" {
		t.Errorf("%+v", endpoint)
	}
	if _, left := hc.Sysctls["net.ipv4.conf.eth0.forwarding"]; left || hc.Sysctls["kernel.shmmax"] != "2" {
		t.Errorf("%v", hc.Sysctls)
	}

	got, rec = create(t, "/containers/create", `{"Image":"x","MacAddress":"02:00:00:00:00:01"}`)
	if rec.Code != 201 || !strings.Contains(rec.Body.String(), "MacAddress field is now deprecated") || got.Config.MacAddress != "" ||
		!reflect.DeepEqual(got.Networking.EndpointsConfig["bridge"].MacAddress, network.HardwareAddr{2, 0, 0, 0, 0, 1}) {
		t.Errorf("%s %+v", rec.Body, got.Networking.EndpointsConfig["bridge"])
	}
	if _, rec = create(t, "/containers/create", `{"Image":"x","HostConfig":{"VolumeDriver":"d","Mounts":[{"Type":"volume"}]}}`); !strings.Contains(rec.Body.String(), "volume-driver configuration is ignored") {
		t.Errorf("%s", rec.Body)
	}
}

func TestList(t *testing.T) {
	var got containers.ListRequest
	var items []json.RawMessage
	f := &fakeContainers{list: func(req containers.ListRequest) ([]json.RawMessage, error) { got = req; return items, nil }}
	if rec := call(f, "GET", "/containers/json", ""); rec.Body.String() != "[]\n" || rec.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%q", rec.Body)
	}
	items = []json.RawMessage{[]byte(`{"Id":"1"}`), []byte(`{"Id":"2"}`)}
	rec := call(f, "GET", `/containers/json?all=1&limit=7&size=true&before=b&filters={"label":{"a=b":true}}`, "")
	if rec.Body.String() != `[{"Id":"1"},{"Id":"2"}]`+"\n" || rec.Header().Get("Content-Length") != "24" {
		t.Errorf("%q %v", rec.Body, rec.Header())
	}
	want := containers.ListRequest{All: true, Limit: 7, Size: true, Filters: filters.Args{"label": {"a=b"}, "before": {"b"}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	for _, q := range []string{"limit=x", "filters=[1"} {
		if rec := call(f, "GET", "/containers/json?"+q, ""); rec.Code != 400 {
			t.Errorf("%s: %d", q, rec.Code)
		}
	}
}

func TestLifeCycleRoutes(t *testing.T) {
	var said string
	f := &fakeContainers{
		start: func(ref string) error { said = "start " + ref; return nil },
		stop: func(ref string, req containers.StopRequest) error {
			said = "stop " + ref + " " + req.Signal
			if req.Timeout != nil {
				said += fmt.Sprint(*req.Timeout)
			}
			return types.ErrNotModified
		},
		kill: func(ref, signal string) error {
			said = "kill " + signal
			return errdefs.ErrConflict.WithMessage("container " + ref + " is not running")
		},
		remove: func(_ string, req containers.RemoveRequest) error { said = fmt.Sprintf("%+v", req); return nil },
		resize: func(width, height int) error { said = fmt.Sprint(width, "x", height); return nil },
		prune: func(args filters.Args) (container.PruneReport, error) {
			return container.PruneReport{SpaceReclaimed: 5}, args.Validate("until")
		},
		update: func(req container.UpdateConfig) (container.UpdateResponse, error) {
			said = fmt.Sprint(req.Memory, *req.PidsLimit)
			return container.UpdateResponse{}, nil
		},
		changes: func() ([]container.FilesystemChange, error) { return nil, nil },
		execCreate: func(req container.ExecCreateRequest) (string, error) {
			said = fmt.Sprint(req.Cmd)
			return "abc", nil
		},
		execInspect: func() (container.ExecInspectResponse, error) {
			return container.ExecInspectResponse{}, errdefs.ErrNotFound.WithMessage("No such exec instance: e")
		},
	}
	for _, c := range []struct {
		method, path, body string
		status             int
		answer, said       string
	}{
		{"POST", "/containers/web/start", "", 204, "", "start web"},
		{"POST", "/containers/web/start", "{}", 204, "", "start web"},
		{"POST", "/containers/web/start", `{"Binds":["/:/"]}`, 400, `{"message":"starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24"}`, ""},
		{"POST", "/containers/web/stop?t=-1&signal=HUP", "", 304, "", "stop web HUP-1"},
		{"POST", "/v1.41/containers/web/stop?signal=HUP", "", 304, "", "stop web "},
		{"POST", "/containers/web/stop?t=soon", "", 400, `{"message":"invalid value for t: \"soon\" is not a number"}`, ""},
		{"POST", "/containers/web/kill?signal=TERM", "", 409, `{"message":"cannot kill container: web: container web is not running"}`, "kill TERM"},
		{"POST", "/containers/web/rename", "", 400, `{"message":"Neither old nor new names may be empty"}`, ""},
		{"DELETE", "/containers/web?v=1&force=True&link=none", "", 204, "", "{Volumes:true Force:true Link:false}"},
		{"POST", "/containers/web/resize?w=80&h=24", "", 200, "", "80x24"},
		{"POST", "/containers/web/resize?w=80&h=x", "", 400, `{"message":"invalid resize height \"x\": invalid syntax"}`, ""},
		{"POST", "/containers/web/resize?h=1", "", 400, `{"message":"invalid resize width \"\": invalid syntax"}`, ""},
		{"POST", "/containers/prune", "", 200, `{"ContainersDeleted":null,"SpaceReclaimed":5}`, ""},
		{"POST", `/containers/prune?filters={"foo":["x"]}`, "", 400, `{"message":"invalid filter 'foo'"}`, ""},
		{"POST", "/containers/web/update", `{"Memory":5,"PidsLimit":-1}`, 200, `{"Warnings":null}`, "5 0"},
		{"GET", "/containers/web/changes", "", 200, `null`, ""},
		{"POST", "/containers/web/exec", `{"Cmd":["a"]}`, 201, `{"Id":"abc"}`, "[a]"},
		{"POST", "/containers/web/exec", `{}`, 400, `{"message":"No exec command specified"}`, ""},
		{"GET", "/exec/e/json", "", 404, `{"message":"No such exec instance: e"}`, ""},
		{"PUT", "/containers/web/archive?path=/", "", 501, `{"message":"copying files into a container is not built yet in stated"}`, ""},
	} {
		said = ""
		rec := call(f, c.method, c.path, c.body)
		if rec.Code != c.status || strings.TrimSpace(rec.Body.String()) != c.answer || said != c.said {
			t.Errorf("%s %s %s: %d %q, said %q", c.method, c.path, c.body, rec.Code, rec.Body, said)
		}
	}
	rec := httptest.NewRecorder()
	s := server.New(server.Options{})
	s.Handle(containers.Routes(f))
	r := httptest.NewRequest("POST", "/containers/create", strings.NewReader("x"))
	r.Header.Set("Content-Type", "text/plain")
	if s.ServeHTTP(rec, r); rec.Code != http.StatusBadRequest || !strings.Contains(rec.Body.String(), "unsupported Content-Type header (text/plain): must be 'application/json'") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}
