package system_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"

	apisystem "stated.dev/stated/api/router/system"
	"stated.dev/stated/daemon/runtime/sysinfo"
	"stated.dev/stated/daemon/system"
)

type services struct {
	err    error // of every service
	layers int64
}

func (s services) Counts(context.Context) (system.Counts, error) {
	return system.Counts{Running: 1, Paused: 2, Stopped: 3}, s.err
}
func (s services) Drivers(context.Context) ([]string, error)   { return []string{"local"}, s.err }
func (s services) FirewallBackend() string                     { return "nftables" }
func (s services) Name() string                                { return "overlay2" }
func (s services) Status(context.Context) ([][2]string, error) { return [][2]string{{"a", "b"}}, s.err }
func (s services) Subscribers() int                            { return 4 }
func (s services) Events(context.Context, apisystem.EventsRequest) (apisystem.EventStream, error) {
	return nil, s.err
}
func (s services) Usage(context.Context) ([]json.RawMessage, error) {
	return []json.RawMessage{[]byte(`{}`)}, s.err
}

type images struct{ services }

func (i images) Count(context.Context) (int, error) { return 7, i.err }
func (i images) Usage(context.Context) ([]json.RawMessage, int64, error) {
	return []json.RawMessage{[]byte(`{}`)}, i.layers, i.err
}

func options(s services) system.Options {
	return system.Options{
		ID: "id", Version: "1.2.3", Root: "/var/lib/stated", LogDriver: "json-file", LogDrivers: []string{"json-file", "local"},
		CgroupDriver: "cgroupfs", SeccompProfile: "builtin", LiveRestore: true,
		Host:       sysinfo.Info{Hierarchy: sysinfo.HierarchyHybrid, MemoryLimit: true, CPUCfs: true, Seccomp: true, CgroupNamespaces: true},
		HTTPProxy:  "http://user:secret@proxy:3128",
		Containers: s, Images: images{s}, Volumes: s, Networks: s, Graph: s, Events: s,
	}
}

// script makes an executable that prints text.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tool")
	body := fmt.Sprintf("#!/bin/sh\necho x >> %s.calls\nif [ \"$1\" = features ]; then echo '{ \"ociVersionMin\": \"1\" }'; else printf '%s'; fi\n", path, text)
	if err := os.WriteFile(path, []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func calls(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path + ".calls")
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(data), "\n")
}

func TestInfo(t *testing.T) {
	o := options(services{})
	runc := script(t, "runc version 1.5.2\\ncommit: v1.5.2-0-gabc\\nspec: 1.3.0\\n")
	o.Runtimes = map[string]system.Runtime{"runc": {Path: runc}, "io.containerd.runc.v2": {Path: runc}}
	o.DefaultRuntime = "runc"
	o.InitPath = script(t, "tini version 0.19.0 - git.de40ad0\\n")
	o.RegistryMirrors = []string{"https://mirror.example/"}
	o.InsecureRegistries = []string{"10.0.0.0/8", "reg.example:5000"}
	s, err := system.New(o)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Containers != 6 || info.ContainersPaused != 2 || info.Images != 7 || info.NEventsListener != 4 {
		t.Errorf("counts: %+v", info)
	}
	if info.Driver != "overlay2" || !reflect.DeepEqual(info.DriverStatus, [][2]string{{"a", "b"}}) || info.FirewallBackend.Driver != "nftables" {
		t.Errorf("drivers: %+v", info)
	}
	if info.RuncCommit.ID != "v1.5.2-0-gabc" || info.InitCommit.ID != "de40ad0" {
		t.Errorf("commits: %+v %+v", info.RuncCommit, info.InitCommit)
	}
	if got := info.Runtimes["runc"].Status["org.opencontainers.runtime-spec.features"]; got != `{"ociVersionMin":"1"}` || len(info.Runtimes) != 2 {
		t.Errorf("runtimes: %+v", info.Runtimes)
	}
	if !reflect.DeepEqual(info.SecurityOptions, []string{"name=seccomp,profile=builtin"}) {
		t.Errorf("security: %v", info.SecurityOptions)
	}
	if info.HTTPProxy != "http://xxxxx:xxxxx@proxy:3128" {
		t.Errorf("proxy: %s", info.HTTPProxy)
	}
	if info.CgroupVersion != "1" || !info.MemoryLimit || info.SwapLimit || !info.CPUCfsQuota {
		t.Errorf("limits: %+v", info)
	}
	if w := strings.Join(info.Warnings, "\n"); !strings.Contains(w, "WARNING: No swap limit support") || strings.Contains(w, "memory limit") {
		t.Errorf("warnings: %s", w)
	}
	if info.KernelVersion == "" || info.Architecture == "" || info.OperatingSystem == "" || info.MemTotal < 1<<20 || info.NCPU == 0 || info.NFd == 0 || info.Name == "" {
		t.Errorf("host: %+v", info)
	}
	if info.Labels == nil || info.CDISpecDirs == nil || info.Swarm.LocalNodeState != "inactive" {
		t.Errorf("empty lists: %+v", info)
	}
	c := info.Info.RegistryConfig
	if len(c.InsecureRegistryCIDRs) != 3 || c.IndexConfigs["reg.example:5000"].Secure || !c.IndexConfigs["docker.io"].Official || c.Mirrors[0] != "https://mirror.example/" {
		t.Errorf("registries: %+v", c)
	}

	// The binaries are asked once, until they are others.
	if _, err := s.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := calls(t, runc); n != 2 { // version and features
		t.Errorf("runtime was run %d times", n)
	}
	newer := script(t, "runc version 1.6.0\\ncommit: newer\\n")
	if err := os.Rename(newer, runc); err != nil {
		t.Fatal(err)
	}
	if info, err = s.Info(t.Context()); err != nil || info.RuncCommit.ID != "newer" {
		t.Errorf("after a change: %v %v", info.RuncCommit, err)
	}

	v, err := s.Version(t.Context())
	if err != nil || v.Version != "1.2.3" || v.APIVersion != "1.51" || v.MinAPIVersion != "1.24" {
		t.Errorf("%+v %v", v, err)
	}
	versions := map[string]string{}
	for _, c := range v.Components {
		versions[c.Name] = c.Version
	}
	if versions["Engine"] != "1.2.3" || versions["runc"] != "1.6.0" || versions["docker-init"] != "0.19.0" {
		t.Errorf("components: %v", versions)
	}
}

// TestInfoOfTheBroken asks when nothing works: there is an answer, and it says so.
func TestInfoOfTheBroken(t *testing.T) {
	o := options(services{err: errors.New("store is damaged")})
	o.Runtimes = map[string]system.Runtime{"runc": {Path: "/no/such/runc"}}
	o.DefaultRuntime = "runc"
	s, err := system.New(o)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.RuncCommit.ID != "N/A" || info.InitCommit.ID != "N/A" {
		t.Errorf("commits: %+v", info.RuncCommit)
	}
	w := strings.Join(info.Warnings, "\n")
	for _, want := range []string{"count containers: store is damaged", "count images: store is damaged", "storage driver: store is damaged", "default runtime runc does not answer"} {
		if !strings.Contains(w, want) {
			t.Errorf("warnings lack %q:\n%s", want, w)
		}
	}
	if _, err := s.DiskUsage(t.Context(), apisystem.DiskUsageKinds{Volumes: true}); err == nil || !strings.Contains(err.Error(), "measure disk usage of volumes: store is damaged") {
		t.Errorf("disk usage: %v", err)
	}
	if _, err := s.Login(t.Context(), registry.AuthConfig{}); !errdefs.IsNotImplemented(err) {
		t.Errorf("login: %v", err)
	}
}

func TestDiskUsage(t *testing.T) {
	s, err := system.New(options(services{layers: 9}))
	if err != nil {
		t.Fatal(err)
	}
	usage, err := s.DiskUsage(t.Context(), apisystem.DiskUsageKinds{Images: true, BuildCache: true})
	if err != nil || usage.LayersSize != 9 || len(usage.Images) != 1 || usage.Containers != nil || usage.BuildCache == nil {
		t.Errorf("%+v %v", usage, err)
	}
}

func TestBadRegistry(t *testing.T) {
	o := options(services{})
	o.InsecureRegistries = []string{"http://reg.example/"}
	if _, err := system.New(o); err == nil {
		t.Error("a URL was taken for a host")
	}
}

func BenchmarkInfo(b *testing.B) {
	s, err := system.New(options(services{}))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Info(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
