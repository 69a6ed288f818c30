package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	mobysystem "github.com/moby/moby/api/types/system"

	"stated.dev/stated/api/route"
	"stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/router/system"
	"stated.dev/stated/api/server"
	"stated.dev/stated/api/types"
	"stated.dev/stated/internal/filters"
)

// fakeContainers answers with what a test puts into it; what the test does not put panics.
type fakeContainers struct {
	containers.Backend
	create      func(containers.CreateRequest) (container.CreateResponse, error)
	list        func(containers.ListRequest) ([]json.RawMessage, error)
	inspect     func(ref string) (json.RawMessage, error)
	start       func(ref string) error
	stop        func(ref string, req containers.StopRequest) error
	kill        func(ref, signal string) error
	remove      func(ref string, req containers.RemoveRequest) error
	prune       func(filters.Args) (container.PruneReport, error)
	update      func(container.UpdateConfig) (container.UpdateResponse, error)
	wait        func(ctx context.Context, condition container.WaitCondition) (<-chan container.WaitResponse, error)
	stats       func(ctx context.Context, req containers.StatsRequest, emit func(json.RawMessage) error) error
	logs        func(ref string, req containers.LogsRequest) (containers.LogStream, bool, error)
	changes     func() ([]container.FilesystemChange, error)
	export      func() (io.ReadCloser, error)
	attach      func(ref string, req containers.AttachRequest) (containers.Stream, bool, error)
	resize      func(width, height int) error
	execCreate  func(container.ExecCreateRequest) (string, error)
	execStart   func(container.ExecStartRequest) (containers.Stream, bool, error)
	execInspect func() (container.ExecInspectResponse, error)
}

func (f *fakeContainers) Create(_ context.Context, req containers.CreateRequest) (container.CreateResponse, error) {
	return f.create(req)
}
func (f *fakeContainers) List(_ context.Context, req containers.ListRequest) ([]json.RawMessage, error) {
	return f.list(req)
}
func (f *fakeContainers) Inspect(_ context.Context, ref string, _ bool) (json.RawMessage, error) {
	return f.inspect(ref)
}
func (f *fakeContainers) Start(_ context.Context, ref string, _ containers.StartRequest) error {
	return f.start(ref)
}
func (f *fakeContainers) Stop(_ context.Context, ref string, req containers.StopRequest) error {
	return f.stop(ref, req)
}
func (f *fakeContainers) Kill(_ context.Context, ref, signal string) error {
	return f.kill(ref, signal)
}
func (f *fakeContainers) Remove(_ context.Context, ref string, req containers.RemoveRequest) error {
	return f.remove(ref, req)
}
func (f *fakeContainers) Prune(_ context.Context, args filters.Args) (container.PruneReport, error) {
	return f.prune(args)
}
func (f *fakeContainers) Update(_ context.Context, _ string, req container.UpdateConfig) (container.UpdateResponse, error) {
	return f.update(req)
}
func (f *fakeContainers) Wait(ctx context.Context, _ string, c container.WaitCondition) (<-chan container.WaitResponse, error) {
	return f.wait(ctx, c)
}
func (f *fakeContainers) Stats(ctx context.Context, _ string, req containers.StatsRequest, emit func(json.RawMessage) error) error {
	return f.stats(ctx, req, emit)
}
func (f *fakeContainers) Logs(_ context.Context, ref string, req containers.LogsRequest) (containers.LogStream, bool, error) {
	return f.logs(ref, req)
}
func (f *fakeContainers) Changes(context.Context, string) ([]container.FilesystemChange, error) {
	return f.changes()
}
func (f *fakeContainers) Export(context.Context, string) (io.ReadCloser, error) { return f.export() }
func (f *fakeContainers) Attach(_ context.Context, ref string, req containers.AttachRequest) (containers.Stream, bool, error) {
	return f.attach(ref, req)
}
func (f *fakeContainers) Resize(_ context.Context, _ string, width, height int) error {
	return f.resize(width, height)
}
func (f *fakeContainers) ExecCreate(_ context.Context, _ string, req container.ExecCreateRequest) (string, error) {
	return f.execCreate(req)
}
func (f *fakeContainers) ExecStart(_ context.Context, _ string, req container.ExecStartRequest) (containers.Stream, bool, error) {
	return f.execStart(req)
}
func (f *fakeContainers) ExecInspect(context.Context, string) (container.ExecInspectResponse, error) {
	return f.execInspect()
}

type fakeSystem struct {
	info      types.Info
	version   mobysystem.VersionResponse
	diskUsage func(system.DiskUsageKinds) (types.DiskUsage, error)
	events    func(system.EventsRequest) (system.EventStream, error)
}

func (f *fakeSystem) Info(context.Context) (types.Info, error) { return f.info, nil }
func (f *fakeSystem) Version(context.Context) (mobysystem.VersionResponse, error) {
	return f.version, nil
}
func (f *fakeSystem) SwarmStatus() string                                        { return "inactive" }
func (f *fakeSystem) Login(context.Context, registry.AuthConfig) (string, error) { return "token", nil }
func (f *fakeSystem) DiskUsage(_ context.Context, k system.DiskUsageKinds) (types.DiskUsage, error) {
	return f.diskUsage(k)
}
func (f *fakeSystem) Events(_ context.Context, req system.EventsRequest) (system.EventStream, error) {
	return f.events(req)
}

// fakeEvents yields what is sent to it, and ends when it is closed by the test.
type fakeEvents chan string

func (f fakeEvents) Next(ctx context.Context) ([]byte, error) {
	select {
	case e, ok := <-f:
		if !ok {
			return nil, io.EOF
		}
		return []byte(e), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
func (f fakeEvents) Close() error { return nil }

// fakeLogs yields its records, then err or, when it follows, what the test sends.
type fakeLogs struct {
	records []containers.LogRecord
	err     error
	follow  chan containers.LogRecord
	closed  bool
}

func (f *fakeLogs) Next(ctx context.Context) (containers.LogRecord, error) {
	if len(f.records) > 0 {
		r := f.records[0]
		f.records = f.records[1:]
		return r, nil
	}
	if f.follow != nil {
		select {
		case r, ok := <-f.follow:
			if ok {
				return r, nil
			}
		case <-ctx.Done():
			return containers.LogRecord{}, ctx.Err()
		}
	}
	if f.err != nil {
		return containers.LogRecord{}, f.err
	}
	return containers.LogRecord{}, io.EOF
}
func (f *fakeLogs) Close() error { f.closed = true; return nil }

// process is a fake of a process's streams: the test reads its stdin and writes its output.
type process struct {
	out     *io.PipeReader
	outW    *io.PipeWriter
	in      *io.PipeReader
	inW     *io.PipeWriter
	once    sync.Once
	closedC chan struct{}
}

func newProcess() *process {
	p := &process{closedC: make(chan struct{})}
	p.out, p.outW = io.Pipe()
	p.in, p.inW = io.Pipe()
	return p
}
func (p *process) Read(b []byte) (int, error)  { return p.out.Read(b) }
func (p *process) Write(b []byte) (int, error) { return p.inW.Write(b) }
func (p *process) CloseWrite() error           { return p.inW.Close() }
func (p *process) Close() error {
	p.once.Do(func() { close(p.closedC) })
	return fmt.Errorf("%v %v", p.out.CloseWithError(net.ErrClosed), p.inW.CloseWithError(io.ErrClosedPipe))
}

// daemon is a server on a unix socket.
type daemon struct {
	t      *testing.T
	server *server.Server
	socket string
}

func startServer(t *testing.T, o server.Options, routes ...[]route.Route) *daemon {
	t.Helper()
	dir, err := os.MkdirTemp("", "stated-api")
	if err != nil {
		t.Fatal(err)
	}
	o.Version = "1.2.3"
	d := &daemon{t: t, server: server.New(o), socket: filepath.Join(dir, "s.sock")}
	for _, r := range routes {
		d.server.Handle(r)
	}
	ls, err := server.Listen(t.Context(), server.ListenOptions{Addr: "unix://" + d.socket})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.server.Serve(context.Background(), ls[0]) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := d.server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(d.socket); !os.IsNotExist(err) {
			t.Errorf("socket is left: %v", err)
		}
		_ = os.RemoveAll(dir)
	})
	return d
}

// dial connects to the daemon; what does not come within ten seconds fails the test.
func (d *daemon) dial() *net.UnixConn {
	d.t.Helper()
	conn, err := net.Dial("unix", d.socket)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close() })
	return conn.(*net.UnixConn)
}

func (d *daemon) client() *http.Client {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.socket)
	}}
	d.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
}

// do sends a request and reads the whole answer.
func (d *daemon) do(method, path, body string) (*http.Response, string) {
	d.t.Helper()
	res := d.open(method, path, body)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, path, err)
	}
	return res, string(data)
}

// open sends a request and returns once the header of the answer is there.
func (d *daemon) open(method, path, body string) *http.Response {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, "http://d"+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := d.client().Do(req)
	if err != nil {
		d.t.Fatalf("%s %s: %v", method, path, err)
	}
	d.t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

// readHeader reads up to the empty line.
func readHeader(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("header %q: %v", head.String(), err)
		}
		head.WriteString(line)
		if line == "\r\n" {
			return head.String()
		}
	}
}
