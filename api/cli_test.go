package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/swarm"
	mobysystem "github.com/moby/moby/api/types/system"

	"stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/router/system"
	"stated.dev/stated/api/router/unbuilt"
	"stated.dev/stated/api/server"
	"stated.dev/stated/api/types"
	"stated.dev/stated/internal/testenv/scratch"
)

// cli runs the docker command line against d.
func (d *daemon) cli(stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	d.t.Helper()
	path := scratch.Docker(d.t)
	ctx, cancel := context.WithTimeout(d.t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.socket, "DOCKER_CONFIG="+d.t.TempDir(), "DOCKER_CONTEXT=")
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &errOut
	err := cmd.Run()
	if ctx.Err() != nil {
		d.t.Fatalf("docker %v did not end: %s%s", args, &out, &errOut)
	}
	if cmd.ProcessState == nil {
		d.t.Fatalf("docker %v: %v", args, err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func TestCLIVersionAndInfo(t *testing.T) {
	f := &fakeSystem{
		version: mobysystem.VersionResponse{
			Platform: mobysystem.PlatformInfo{Name: "stated"}, Version: "1.2.3", APIVersion: "1.51", MinAPIVersion: "1.24",
			Components: []mobysystem.ComponentVersion{{Name: "Engine", Version: "1.2.3", Details: map[string]string{"ApiVersion": "1.51", "MinAPIVersion": "1.24"}}},
		},
		info: types.Info{Info: mobysystem.Info{
			Containers: 3, ContainersRunning: 1, Driver: "overlay2", DriverStatus: [][2]string{{"Backing Filesystem", "extfs"}},
			ServerVersion: "1.2.3", OSType: "linux", OperatingSystem: "Testix", FirewallBackend: &mobysystem.FirewallInfo{Driver: "nftables"},
			Swarm: swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}, SecurityOptions: []string{"name=seccomp,profile=builtin"}, Warnings: []string{"WARNING: No swap limit support"},
		}},
	}
	d := startServer(t, server.Options{}, system.Routes(f), unbuilt.Routes())
	out, errOut, code := d.cli(nil, "version", "--format", "{{.Server.Version}} {{.Server.APIVersion}} {{.Client.APIVersion}}")
	if code != 0 || !strings.HasPrefix(out, "1.2.3 1.51 1.") {
		t.Errorf("version: %d %s%s", code, out, errOut)
	}
	out, errOut, code = d.cli(nil, "info")
	for _, want := range []string{"Containers: 3", "Storage Driver: overlay2", "Backing Filesystem: extfs", "Operating System: Testix", "seccomp", "OSType: linux", "Swarm: inactive"} {
		if !strings.Contains(out, want) {
			t.Errorf("info lacks %q:\n%s%s", want, out, errOut)
		}
	}
	if code != 0 || !strings.Contains(errOut, "WARNING: No swap limit support") {
		t.Errorf("info: %d %s", code, errOut)
	}
	if out, errOut, code := d.cli(nil, "plugin", "ls", "-q"); code != 0 || out != "" {
		t.Errorf("plugin ls: %d %s%s", code, out, errOut)
	}
	if _, errOut, code := d.cli(nil, "node", "ls"); code == 0 || !strings.Contains(errOut, "node list is not built yet in stated") {
		t.Errorf("node ls: %d %s", code, errOut)
	}
}

func TestCLIPsAndLogs(t *testing.T) {
	summary, err := json.Marshal(container.Summary{ID: strings.Repeat("ab", 32), Names: []string{"/web"}, Image: "alpine", Command: "sleep", State: "running", Status: "Up"})
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeContainers{
		list: func(containers.ListRequest) ([]json.RawMessage, error) { return []json.RawMessage{summary}, nil },
		inspect: func(string) (json.RawMessage, error) {
			return []byte(`{"Id":"abab","Name":"/web","Config":{"Tty":false},"State":{"Running":true,"Status":"running"},"HostConfig":{}}`), nil
		},
		logs: func(string, containers.LogsRequest) (containers.LogStream, bool, error) {
			return &fakeLogs{records: []containers.LogRecord{record("stdout", "out\n"), record("stderr", "err\n")}}, true, nil
		},
	}
	d := startServer(t, server.Options{}, containers.Routes(f), system.Routes(&fakeSystem{}))
	if out, errOut, code := d.cli(nil, "ps", "--format", "{{.ID}} {{.Names}}"); out != "abababababab web\n" || code != 0 {
		t.Errorf("ps: %d %s%s", code, out, errOut)
	}
	if out, errOut, code := d.cli(nil, "logs", "web"); out != "out\n" || errOut != "err\n" || code != 0 {
		t.Errorf("logs: %d %q %q", code, out, errOut)
	}
	if out, errOut, code := d.cli(nil, "logs", "-t", "web"); !strings.HasPrefix(out, "2024-02-03T03:05:06.000007000Z out") || code != 0 {
		t.Errorf("logs -t: %d %q %q", code, out, errOut)
	}
}

func TestCLIEvents(t *testing.T) {
	events := fakeEvents(make(chan string, 1))
	events <- `{"status":"start","id":"abc","from":"alpine","Type":"container","Action":"start","Actor":{"ID":"abc","Attributes":{"name":"web"}},"scope":"local","time":1,"timeNano":1000000000}`
	close(events)
	d := startServer(t, server.Options{}, system.Routes(&fakeSystem{events: func(system.EventsRequest) (system.EventStream, error) { return events, nil }}))
	if out, errOut, code := d.cli(nil, "events", "--format", "{{.Type}} {{.Action}} {{.Actor.ID}}"); out != "container start abc\n" || code != 0 {
		t.Errorf("events: %d %q %q", code, out, errOut)
	}
}

// TestCLIAttach is attach as `docker run -i` does it: input through a pipe, output after its end, exit code by wait.
func TestCLIAttach(t *testing.T) {
	p := newProcess()
	f := attachTo(p, true)
	f.inspect = func(string) (json.RawMessage, error) {
		return []byte(`{"Id":"abab","Name":"/web","Config":{"Tty":false,"OpenStdin":true},"State":{"Running":true,"Status":"running"},"HostConfig":{}}`), nil
	}
	f.wait = func(context.Context, container.WaitCondition) (<-chan container.WaitResponse, error) {
		c := make(chan container.WaitResponse, 1)
		c <- container.WaitResponse{StatusCode: 7}
		return c, nil
	}
	d := startServer(t, server.Options{}, containers.Routes(f), system.Routes(&fakeSystem{}))
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		in, _ := io.ReadAll(p.in)
		_, _ = p.outW.Write(append([]byte{1, 0, 0, 0, 0, 0, 0, byte(len(in))}, in...))
		_, _ = p.outW.Write([]byte("\x02\x00\x00\x00\x00\x00\x00\x04err\n"))
		_ = p.outW.Close()
	}()
	out, errOut, code := d.cli(strings.NewReader("hello\n"), "attach", "web")
	<-echoed
	if out != "hello\n" || errOut != "err\n" || code != 7 {
		t.Errorf("attach: %d %q %q", code, out, errOut)
	}
}

func TestCLIExec(t *testing.T) {
	p := newProcess()
	code := 3
	f := &fakeContainers{
		inspect: func(string) (json.RawMessage, error) {
			return []byte(`{"Id":"abab","Name":"/web","Config":{},"State":{"Running":true},"HostConfig":{}}`), nil
		},
		execCreate: func(container.ExecCreateRequest) (string, error) { return "e", nil },
		execStart:  func(container.ExecStartRequest) (containers.Stream, bool, error) { return p, true, nil },
		execInspect: func() (container.ExecInspectResponse, error) {
			return container.ExecInspectResponse{ID: "e", ExitCode: &code}, nil
		},
	}
	d := startServer(t, server.Options{}, containers.Routes(f), system.Routes(&fakeSystem{}))
	go func() {
		_, _ = p.outW.Write([]byte("\x01\x00\x00\x00\x00\x00\x00\x03hi\n"))
		_ = p.outW.Close()
	}()
	if out, errOut, got := d.cli(nil, "exec", "web", "echo", "hi"); out != "hi\n" || got != 3 {
		t.Errorf("exec: %d %q %q", got, out, errOut)
	}
}
