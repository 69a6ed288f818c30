package api_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
	mobysystem "github.com/moby/moby/api/types/system"

	"stated.dev/stated/api/router/debug"
	"stated.dev/stated/api/router/system"
	"stated.dev/stated/api/router/unbuilt"
	"stated.dev/stated/api/server"
	"stated.dev/stated/api/types"
)

func callSystem(f *fakeSystem, method, path, body string) *httptest.ResponseRecorder {
	s := server.New(server.Options{})
	s.Handle(system.Routes(f))
	s.Handle(unbuilt.Routes())
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, r)
	return rec
}

func TestPing(t *testing.T) {
	for _, c := range []struct{ method, path, body, length string }{
		{"GET", "/_ping", "OK", ""}, {"HEAD", "/_ping", "", "0"}, {"GET", "/v1.24/_ping", "OK", ""},
	} {
		rec := callSystem(&fakeSystem{}, c.method, c.path, "")
		if rec.Code != 200 || rec.Body.String() != c.body {
			t.Errorf("%s %s: %d %q", c.method, c.path, rec.Code, rec.Body)
		}
		for name, want := range map[string]string{
			"Api-Version": "1.51", "Ostype": "linux", "Docker-Experimental": "false", "Builder-Version": "1", "Swarm": "inactive",
			"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache",
			"Content-Type": "text/plain; charset=utf-8", "Content-Length": c.length,
		} {
			if got := rec.Header().Get(name); got != want {
				t.Errorf("%s %s: %s is %q, want %q", c.method, c.path, name, got, want)
			}
		}
	}
}

// TestInfoVersions checks the fields that come and go with the version.
func TestInfoVersions(t *testing.T) {
	f := &fakeSystem{info: types.Info{
		KernelMemory: true,
		Info: mobysystem.Info{
			RuncCommit:      mobysystem.Commit{ID: "v1"},
			SecurityOptions: []string{"name=seccomp,profile=builtin", "name=cgroupns"},
			RegistryConfig:  &registry.ServiceConfig{IndexConfigs: map[string]*registry.IndexInfo{}},
			FirewallBackend: &mobysystem.FirewallInfo{Driver: "nftables"},
			Containerd:      &mobysystem.ContainerdInfo{Address: "/c"},
			Runtimes:        map[string]mobysystem.RuntimeWithStatus{"runc": {Runtime: mobysystem.Runtime{Path: "runc"}, Status: map[string]string{"f": "1"}}},
		},
	}}
	for _, c := range []struct {
		version        string
		with, withouts []string
	}{
		{"1.51", []string{`"RuncCommit":{"ID":"v1"}`, `"FirewallBackend"`, `"Containerd":{`, `"status"`, `"RegistryConfig":{"InsecureRegistryCIDRs":null`},
			[]string{"BridgeNf", "Expected", "KernelMemory", "AllowNondistributable", "DiscoveredDevices"}},
		{"1.49", []string{`"BridgeNfIptables":false`, `"BridgeNfIp6tables":false`, `"FirewallBackend"`}, []string{"Expected"}},
		{"1.48", []string{`"RuncCommit":{"ID":"v1","Expected":"v1"}`}, []string{"FirewallBackend"}},
		{"1.46", []string{`"AllowNondistributableArtifactsCIDRs":null`, `"AllowNondistributableArtifactsHostnames":null`, `"Containerd":{`}, nil},
		{"1.45", nil, []string{`"Containerd":{`}},
		{"1.43", []string{`"Runtimes":{"runc":{"path":"runc"}}`}, nil},
		{"1.41", []string{`"KernelMemory":true`}, nil},
		{"1.24", []string{`"SecurityOptions":["seccomp","cgroupns"]`}, nil},
	} {
		body := callSystem(f, "GET", "/v"+c.version+"/info", "").Body.String()
		for _, want := range c.with {
			if !strings.Contains(body, want) {
				t.Errorf("%s lacks %s: %s", c.version, want, body)
			}
		}
		for _, not := range c.withouts {
			if strings.Contains(body, not) {
				t.Errorf("%s has %s: %s", c.version, not, body)
			}
		}
	}
}

func TestDiskUsage(t *testing.T) {
	var got system.DiskUsageKinds
	f := &fakeSystem{diskUsage: func(k system.DiskUsageKinds) (types.DiskUsage, error) {
		got = k
		return types.DiskUsage{LayersSize: 5, Images: []json.RawMessage{[]byte(`{"Id":"x"}`)}}, nil
	}}
	for _, c := range []struct {
		path, body string
		kinds      system.DiskUsageKinds
	}{
		{"/system/df", `{"LayersSize":5,"Images":[{"Id":"x"}],"Containers":[],"Volumes":[],"BuildCache":[]}`, system.DiskUsageKinds{Containers: true, Images: true, Volumes: true, BuildCache: true}},
		{"/system/df?type=image&type=volume", `{"LayersSize":5,"Images":[{"Id":"x"}],"Containers":null,"Volumes":[],"BuildCache":null}`, system.DiskUsageKinds{Images: true, Volumes: true}},
		{"/v1.41/system/df?type=image", `{"LayersSize":5,"Images":[{"Id":"x"}],"Containers":[],"Volumes":[],"BuildCache":[],"BuilderSize":0}`, system.DiskUsageKinds{Containers: true, Images: true, Volumes: true, BuildCache: true}},
	} {
		if rec := callSystem(f, "GET", c.path, ""); strings.TrimSpace(rec.Body.String()) != c.body || got != c.kinds {
			t.Errorf("%s: %s %+v", c.path, rec.Body, got)
		}
	}
	if rec := callSystem(f, "GET", "/system/df?type=dreams", ""); rec.Code != 400 || !strings.Contains(rec.Body.String(), "unknown object type: dreams") {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestAuthAndUnbuilt(t *testing.T) {
	if rec := callSystem(&fakeSystem{}, "POST", "/auth", `{"username":"u"}`); rec.Code != 200 || rec.Body.String() != `{"IdentityToken":"token","Status":"Login Succeeded"}`+"\n" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if rec := callSystem(&fakeSystem{}, "GET", "/plugins", ""); rec.Code != 200 || rec.Body.String() != "[]\n" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if rec := callSystem(&fakeSystem{}, "POST", "/swarm/init", `{}`); rec.Code != http.StatusNotImplemented || rec.Body.String() != `{"message":"swarm init is not built yet in stated"}`+"\n" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	s := server.New(server.Options{Ready: func() (string, bool) { return "restore", false }})
	s.Handle(system.PhaseRoutes(phases{{Name: "volumes", State: types.PhaseOpen, Took: 0.5}, {Name: "restore", State: types.PhaseOpening}}))
	rec := httptest.NewRecorder()
	s.ServeHTTP(rec, httptest.NewRequest("GET", "/stated/phases", nil))
	if rec.Code != 200 || rec.Body.String() != `[{"Name":"volumes","State":"open","Took":0.5},{"Name":"restore","State":"opening","Took":0}]`+"\n" {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

func TestStatusOfWrappedError(t *testing.T) {
	f := &fakeSystem{diskUsage: func(system.DiskUsageKinds) (types.DiskUsage, error) {
		return types.DiskUsage{}, errdefs.ErrUnavailable.WithMessage("store is closed")
	}}
	if rec := callSystem(f, "GET", "/system/df", ""); rec.Code != 503 {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
}

// BenchmarkPing measures a ping over a kept connection, as a client sees it.
func BenchmarkPing(b *testing.B) {
	benchmark(b, "/_ping", system.Routes(&fakeSystem{}))
}

func TestDebugRoutes(t *testing.T) {
	s := server.New(server.Options{})
	s.Handle(debug.Routes())
	for path, want := range map[string]string{
		"/debug/pprof/": "goroutine", "/debug/pprof/goroutine?debug=1": "goroutine profile", "/v1.51/debug/pprof/cmdline": "test", "/debug/vars": "memstats",
	} {
		rec := httptest.NewRecorder()
		s.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		if rec.Code != 200 || !strings.Contains(rec.Body.String(), want) {
			t.Errorf("%s: %d %.100s", path, rec.Code, rec.Body)
		}
	}
}
