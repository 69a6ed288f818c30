package api_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/gorilla/websocket"
	"github.com/moby/moby/api/types/container"

	"stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/router/system"
	"stated.dev/stated/api/server"
)

const upgradeHeader = "Connection: Upgrade\r\nUpgrade: tcp\r\n"

func serveContainers(t *testing.T, f *fakeContainers) *daemon {
	return startServer(t, server.Options{}, containers.Routes(f))
}

func attachTo(p *process, multiplexed bool) *fakeContainers {
	return &fakeContainers{attach: func(string, containers.AttachRequest) (containers.Stream, bool, error) {
		return p, multiplexed, nil
	}}
}

func request(t *testing.T, conn net.Conn, text string) *bufio.Reader {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return bufio.NewReader(conn)
}

func TestHijackHeader(t *testing.T) {
	for _, c := range []struct {
		name, path, headers string
		multiplexed         bool
		want                string
	}{
		{"upgrade", "", upgradeHeader, true, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"},
		{"upgrade of a terminal", "", upgradeHeader, false, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"},
		{"upgrade of an old client", "/v1.41", upgradeHeader, true, "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"},
		{"no upgrade", "", "", true, "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newProcess()
			d := serveContainers(t, attachTo(p, c.multiplexed))
			r := request(t, d.dial(), "POST "+c.path+"/containers/x/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: d\r\n"+c.headers+"\r\n")
			if got := readHeader(t, r); got != c.want {
				t.Fatalf("header is %q, want %q", got, c.want)
			}
			_, _ = p.outW.Write([]byte("bye"))
			_ = p.outW.Close()
			if rest, err := io.ReadAll(r); string(rest) != "bye" || err != nil {
				t.Fatalf("output is %q, %v", rest, err)
			}
		})
	}
}

// TestHijackKeepsInputReadAhead sends the first input with the request, as eager clients do.
func TestHijackKeepsInputReadAhead(t *testing.T) {
	p := newProcess()
	d := serveContainers(t, attachTo(p, true))
	conn := d.dial()
	early := strings.Repeat("early ", 3000)
	r := request(t, conn, "POST /containers/x/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: d\r\n"+upgradeHeader+"\r\n"+early)
	readHeader(t, r)
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(p.in); string(got) != early || err != nil {
		t.Fatalf("stdin got %d bytes, want %d: %v", len(got), len(early), err)
	}
	_ = p.outW.Close()
}

func TestHalfCloseEndsInputNotOutput(t *testing.T) {
	p := newProcess()
	d := serveContainers(t, attachTo(p, false))
	conn := d.dial()
	r := request(t, conn, "POST /containers/x/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n"+upgradeHeader+"\r\n")
	readHeader(t, r)
	_, _ = io.WriteString(conn, "input")
	_ = conn.CloseWrite()
	if got, err := io.ReadAll(p.in); string(got) != "input" || err != nil {
		t.Fatalf("stdin is %q, %v", got, err)
	}
	for i := range 3 {
		line := fmt.Sprintf("line %d\n", i)
		_, _ = io.WriteString(p.outW, line)
		if got, err := r.ReadString('\n'); got != line || err != nil {
			t.Fatalf("output after half-close is %q, %v", got, err)
		}
	}
	_ = p.outW.Close()
	if rest, err := io.ReadAll(r); len(rest) != 0 || err != nil {
		t.Fatalf("end of output is %q, %v", rest, err)
	}
}

// TestClientGone closes the client's end of an attachment that has no output to fail on.
func TestClientGone(t *testing.T) {
	for _, halfFirst := range []bool{false, true} {
		p := newProcess()
		d := serveContainers(t, attachTo(p, true))
		conn := d.dial()
		r := request(t, conn, "POST /containers/x/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: d\r\n"+upgradeHeader+"\r\n")
		readHeader(t, r)
		if halfFirst {
			_ = conn.CloseWrite()
			select {
			case <-p.closedC:
				t.Fatal("a half-close ended the attachment")
			case <-time.After(50 * time.Millisecond): // nothing is to happen
			}
		}
		_ = conn.Close()
		select {
		case <-p.closedC:
		case <-time.After(5 * time.Second):
			t.Fatalf("stream is not closed after the client went (half first: %v)", halfFirst)
		}
	}
}

// TestUnreadInput ends the output while the client still sends: it must see the end, not a reset.
func TestUnreadInput(t *testing.T) {
	p := newProcess()
	d := serveContainers(t, attachTo(p, false))
	conn := d.dial()
	r := request(t, conn, "POST /containers/x/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n"+upgradeHeader+"\r\n")
	readHeader(t, r)
	writer := make(chan struct{})
	go func() {
		defer close(writer)
		for {
			if _, err := conn.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}()
	_, _ = io.WriteString(p.outW, "done")
	_ = p.outW.Close()
	if got, err := io.ReadAll(r); string(got) != "done" || err != nil {
		t.Errorf("output is %q, %v", got, err)
	}
	_ = conn.Close()
	<-writer
}

func TestStreamErrorInBand(t *testing.T) {
	for _, multiplexed := range []bool{true, false} {
		p := newProcess()
		d := serveContainers(t, attachTo(p, multiplexed))
		r := request(t, d.dial(), "POST /containers/x/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: d\r\n"+upgradeHeader+"\r\n")
		readHeader(t, r)
		_ = p.outW.CloseWithError(errors.New("shim is gone"))
		want := "shim is gone\r\n"
		if multiplexed {
			want = "\x03\x00\x00\x00\x00\x00\x00\x0eshim is gone\r\n"
		}
		if got, err := io.ReadAll(r); string(got) != want || err != nil {
			t.Errorf("multiplexed %v: got %q, %v", multiplexed, got, err)
		}
	}
}

func TestAttachErrorHasStatus(t *testing.T) {
	d := serveContainers(t, &fakeContainers{attach: func(ref string, _ containers.AttachRequest) (containers.Stream, bool, error) {
		return nil, false, errdefs.ErrNotFound.WithMessage("No such container: " + ref)
	}})
	res, body := d.do("POST", "/containers/x/attach", "")
	if res.StatusCode != 404 || body != `{"message":"No such container: x"}`+"\n" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if res, body := d.do("POST", "/containers/x/attach?detachKeys=nonsense", ""); res.StatusCode != 400 {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

// TestHijackManyBytes passes a lot through both ways at once.
func TestHijackManyBytes(t *testing.T) {
	p := newProcess()
	d := serveContainers(t, attachTo(p, false))
	conn := d.dial()
	r := request(t, conn, "POST /containers/x/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n"+upgradeHeader+"\r\n")
	readHeader(t, r)
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	go func() { // ends with the copy: the process echoes
		_, _ = io.Copy(p.outW, p.in)
		_ = p.outW.Close()
	}()
	go func() {
		_, _ = conn.Write(data)
		_ = conn.CloseWrite()
	}()
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil || n != int64(len(data)) || [32]byte(h.Sum(nil)) != sha256.Sum256(data) {
		t.Fatalf("echo differs: %d bytes of %d, %v", n, len(data), err)
	}
}

func TestExecStart(t *testing.T) {
	p := newProcess()
	var got container.ExecStartRequest
	f := &fakeContainers{execStart: func(req container.ExecStartRequest) (containers.Stream, bool, error) {
		got = req
		if req.Detach {
			return nil, false, nil
		}
		return p, !req.Tty, nil
	}}
	d := serveContainers(t, f)
	body := `{"Detach":false,"Tty":false,"ConsoleSize":[3,4]}`
	conn := d.dial()
	r := request(t, conn, fmt.Sprintf("POST /v1.51/exec/e/start HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%sstdin", len(body), upgradeHeader, body))
	if head := readHeader(t, r); !strings.HasPrefix(head, "HTTP/1.1 101 UPGRADED\r\n") {
		t.Fatalf("header %q", head)
	}
	_ = conn.CloseWrite()
	if in, _ := io.ReadAll(p.in); string(in) != "stdin" {
		t.Errorf("stdin %q", in)
	}
	_ = p.outW.Close()
	if got.ConsoleSize != nil {
		t.Error("a console size was passed without a terminal")
	}
	if res, body := d.do("POST", "/exec/e/start", `{"Detach":true}`); res.StatusCode != 200 || body != "" {
		t.Errorf("detached: %d %q", res.StatusCode, body)
	}

	// Before anything is tried errors have a status, after it they are in band.
	f.execStart = func(container.ExecStartRequest) (containers.Stream, bool, error) {
		return nil, false, errdefs.ErrConflict.WithMessage("container is not running")
	}
	if res, _ := d.do("POST", "/exec/e/start", `{}`); res.StatusCode != 409 {
		t.Errorf("conflict: %d", res.StatusCode)
	}
	f.execStart = func(container.ExecStartRequest) (containers.Stream, bool, error) {
		return nil, false, errdefs.ErrInvalidArgument.WithMessage("no such file")
	}
	r = request(t, d.dial(), "POST /exec/e/start HTTP/1.1\r\nHost: d\r\n"+upgradeHeader+"\r\n")
	if head := readHeader(t, r); !strings.HasPrefix(head, "HTTP/1.1 101 ") {
		t.Errorf("header %q", head)
	}
	if text, _ := io.ReadAll(r); string(text) != "\x01\x00\x00\x00\x00\x00\x00\x0eno such file\r\n" {
		t.Errorf("in band: %q", text)
	}
}

func TestWebsocketAttach(t *testing.T) {
	p := newProcess()
	d := serveContainers(t, attachTo(p, true))
	dialer := websocket.Dialer{NetDial: func(string, string) (net.Conn, error) { return net.Dial("unix", d.socket) }}
	ws, res, err := dialer.Dial("ws://d/containers/x/attach/ws?stream=1&stdin=1&stdout=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if res.StatusCode != 101 {
		t.Errorf("status %d", res.StatusCode)
	}
	go func() { _ = ws.WriteMessage(websocket.BinaryMessage, []byte("in")) }()
	in := make([]byte, 2)
	if _, err := io.ReadFull(p.in, in); err != nil || string(in) != "in" {
		t.Errorf("stdin %q, %v", in, err)
	}
	_, _ = io.WriteString(p.outW, "\x01\x00\x00\x00\x00\x00\x00\x03out")
	if kind, got, err := ws.ReadMessage(); kind != websocket.BinaryMessage || string(got) != "out" || err != nil {
		t.Errorf("message %d %q, %v", kind, got, err)
	}
	_ = p.outW.Close()
	if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("end: %v", err)
	}
}

// TestWaitSendsHeaderAtOnce would hang in Do if the header came with the body.
func TestWaitSendsHeaderAtOnce(t *testing.T) {
	ended := make(chan container.WaitResponse)
	var condition container.WaitCondition
	d := serveContainers(t, &fakeContainers{wait: func(_ context.Context, c container.WaitCondition) (<-chan container.WaitResponse, error) {
		condition = c
		return ended, nil
	}})
	res := d.open("POST", "/v1.51/containers/x/wait?condition=next-exit", "")
	if res.StatusCode != 200 || res.ContentLength != -1 || condition != container.WaitConditionNextExit {
		t.Errorf("%d, length %d, condition %q", res.StatusCode, res.ContentLength, condition)
	}
	ended <- container.WaitResponse{StatusCode: 42}
	if body, err := io.ReadAll(res.Body); string(body) != `{"StatusCode":42}`+"\n" || err != nil {
		t.Errorf("body %q, %v", body, err)
	}
	if res, body := d.do("POST", "/containers/x/wait?condition=dreams", ""); res.StatusCode != 400 || !strings.Contains(body, `invalid condition: \"dreams\"`) {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}

func record(stream, line string) containers.LogRecord {
	return containers.LogRecord{
		Stream: stream, Line: []byte(line),
		Time:  time.Date(2024, 2, 3, 4, 5, 6, 7000, time.FixedZone("", 3600)),
		Attrs: map[string]string{"b": "x y", "a": "1"},
	}
}

func TestLogs(t *testing.T) {
	var got containers.LogsRequest
	var stream *fakeLogs
	multiplexed := true
	d := serveContainers(t, &fakeContainers{logs: func(_ string, req containers.LogsRequest) (containers.LogStream, bool, error) {
		got = req
		stream = &fakeLogs{records: []containers.LogRecord{record("stdout", "one\n"), record("stderr", "two\n")}}
		return stream, multiplexed, nil
	}})
	for _, c := range []struct {
		query       string
		multiplexed bool
		kind, want  string
	}{
		{"stdout=1&stderr=1", true, "application/vnd.docker.multiplexed-stream", "\x01\x00\x00\x00\x00\x00\x00\x04one\n\x02\x00\x00\x00\x00\x00\x00\x04two\n"},
		{"stderr=1", true, "application/vnd.docker.multiplexed-stream", "\x02\x00\x00\x00\x00\x00\x00\x04two\n"},
		{"stdout=1&stderr=1", false, "application/vnd.docker.raw-stream", "one\ntwo\n"},
		{"stdout=1&timestamps=1", true, "application/vnd.docker.multiplexed-stream", "\x01\x00\x00\x00\x00\x00\x00\x232024-02-03T03:05:06.000007000Z one\n"},
		{"stdout=1&timestamps=1&details=1", false, "application/vnd.docker.raw-stream", "2024-02-03T03:05:06.000007000Z a=1,b=x+y one\n"},
	} {
		multiplexed = c.multiplexed
		res, body := d.do("GET", "/containers/x/logs?"+c.query, "")
		if res.StatusCode != 200 || res.Header.Get("Content-Type") != c.kind || body != c.want {
			t.Errorf("%s: %d %s %q, want %q", c.query, res.StatusCode, res.Header.Get("Content-Type"), body, c.want)
		}
		if !stream.closed {
			t.Errorf("%s: stream is not closed", c.query)
		}
	}
	if res, body := d.do("GET", "/containers/x/logs", ""); res.StatusCode != 400 || body != `{"message":"Bad parameters: you must choose at least one stream"}`+"\n" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	d.do("GET", "/containers/x/logs?stdout=1&follow=1&tail=5&since=1136073600.000000001&until=0", "")
	if !got.Follow || got.Tail != 5 || !got.Since.Equal(time.Unix(1136073600, 1)) || !got.Until.IsZero() {
		t.Errorf("request %+v", got)
	}
	d.do("GET", "/containers/x/logs?stdout=1&tail=all&since=10m", "")
	if ago := time.Since(got.Since); got.Tail != -1 || ago < 10*time.Minute || ago > 11*time.Minute {
		t.Errorf("request %+v", got)
	}
	if res, _ := d.do("GET", "/containers/x/logs?stdout=1&since=yesterday", ""); res.StatusCode != 400 {
		t.Errorf("since=yesterday: %d", res.StatusCode)
	}
}

// TestLogsFollow sees each record before the next is there, and an error in band.
func TestLogsFollow(t *testing.T) {
	stream := &fakeLogs{follow: make(chan containers.LogRecord), err: errors.New("disk is gone")}
	d := serveContainers(t, &fakeContainers{logs: func(string, containers.LogsRequest) (containers.LogStream, bool, error) {
		return stream, false, nil
	}})
	res := d.open("GET", "/containers/x/logs?stdout=1&stderr=1&follow=1", "")
	r := bufio.NewReader(res.Body)
	for i := range 3 {
		want := fmt.Sprintf("line %d\n", i)
		stream.follow <- record("stdout", want)
		if got, err := r.ReadString('\n'); got != want || err != nil {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	close(stream.follow)
	if rest, err := io.ReadAll(r); string(rest) != "Error grabbing logs: disk is gone\n" || err != nil {
		t.Errorf("end %q, %v", rest, err)
	}
}

// TestShutdownEndsStreams leaves streams open and expects the server to end them at once.
func TestShutdownEndsStreams(t *testing.T) {
	p := newProcess()
	f := attachTo(p, true)
	f.logs = func(string, containers.LogsRequest) (containers.LogStream, bool, error) {
		return &fakeLogs{follow: make(chan containers.LogRecord)}, true, nil
	}
	f.wait = func(context.Context, container.WaitCondition) (<-chan container.WaitResponse, error) {
		return make(chan container.WaitResponse), nil
	}
	f.stats = func(ctx context.Context, _ containers.StatsRequest, emit func(json.RawMessage) error) error {
		if err := emit([]byte(`{}`)); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	slow, finish := make(chan struct{}), make(chan struct{})
	f.start = func(string) error { close(slow); <-finish; return nil }
	s := &fakeSystem{events: func(system.EventsRequest) (system.EventStream, error) { return fakeEvents(make(chan string)), nil }}
	d := startServer(t, server.Options{}, containers.Routes(f), system.Routes(s))

	r := request(t, d.dial(), "POST /containers/x/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\n"+upgradeHeader+"\r\n")
	readHeader(t, r)
	d.open("GET", "/containers/x/logs?stdout=1&follow=1", "")
	d.open("GET", "/containers/x/stats", "")
	d.open("POST", "/containers/x/wait", "")
	d.open("GET", "/events", "")
	status := make(chan int, 1)
	go func() { res, _ := d.do("POST", "/containers/x/start", ""); status <- res.StatusCode }()
	<-slow

	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		done <- d.server.Shutdown(ctx)
	}()
	<-p.closedC // streams end although a request still runs
	select {
	case err := <-done:
		t.Fatalf("shutdown did not wait for a request: %v", err)
	case <-time.After(20 * time.Millisecond): // it is to wait
	}
	close(finish)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := <-status; got != http.StatusNoContent {
		t.Errorf("the request that ran during shutdown got %d", got)
	}
}

func TestStats(t *testing.T) {
	next := make(chan struct{})
	d := serveContainers(t, &fakeContainers{stats: func(_ context.Context, req containers.StatsRequest, emit func(json.RawMessage) error) error {
		if !req.Stream {
			return errors.Join(emit([]byte(fmt.Sprintf(`{"oneshot":%v}`, req.OneShot))))
		}
		for range 2 {
			if err := emit([]byte(`{"a":1}`)); err != nil {
				return err
			}
			<-next
		}
		return nil
	}})
	res := d.open("GET", "/containers/x/stats", "")
	r := bufio.NewReader(res.Body)
	for range 2 {
		if line, err := r.ReadString('\n'); line != "{\"a\":1}\n" || err != nil {
			t.Fatalf("%q %v", line, err)
		}
		next <- struct{}{}
	}
	if _, body := d.do("GET", "/containers/x/stats?stream=0&one-shot=1", ""); body != "{\"oneshot\":true}\n" {
		t.Errorf("%q", body)
	}
}

func TestExportBrokenOff(t *testing.T) {
	d := serveContainers(t, &fakeContainers{export: func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20)), errReader{})), nil
	}})
	res := d.open("GET", "/containers/x/export", "")
	if n, err := io.Copy(io.Discard, res.Body); err == nil {
		t.Errorf("a broken archive looked whole: %d bytes", n)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("layer is gone") }

func TestEvents(t *testing.T) {
	events := fakeEvents(make(chan string))
	var got system.EventsRequest
	d := startServer(t, server.Options{}, system.Routes(&fakeSystem{events: func(req system.EventsRequest) (system.EventStream, error) {
		got = req
		return events, nil
	}}))
	res := d.open("GET", `/events?since=1&until=2.5&filters={"type":["container"]}`, "")
	r := bufio.NewReader(res.Body)
	for _, e := range []string{`{"n":1}`, "{\"n\":2}\n"} {
		events <- e
		if line, err := r.ReadString('\n'); strings.TrimSpace(line) != strings.TrimSpace(e) || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
	}
	close(events)
	if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
	if !got.Since.Equal(time.Unix(1, 0)) || !got.Until.Equal(time.Unix(2, 5e8)) || got.Filters["type"][0] != "container" {
		t.Errorf("%+v", got)
	}
	events = fakeEvents(make(chan string, 1))
	events <- `{"Type":"image","Action":"create"}` + "\n" + `{"Type":"image","Action":"tag"}` + "\n"
	close(events)
	if _, body := d.do("GET", "/v1.45/events", ""); body != `{"Type":"image","Action":"tag"}`+"\n" {
		t.Errorf("events of an old client: %s", body)
	}
	if res, _ := d.do("GET", "/events?since=5&until=4", ""); res.StatusCode != 400 {
		t.Errorf("since after until: %d", res.StatusCode)
	}
}

// TestPanicsLeaveNothingBehind has backends panic in the midst of streams.
func TestPanicsLeaveNothingBehind(t *testing.T) {
	p := newProcess()
	f := &fakeContainers{
		attach: func(string, containers.AttachRequest) (containers.Stream, bool, error) {
			return panicking{p}, true, nil
		},
		logs: func(string, containers.LogsRequest) (containers.LogStream, bool, error) {
			return panickingLogs{}, true, nil
		},
	}
	d := serveContainers(t, f)
	conn := d.dial()
	r := request(t, conn, "POST /containers/x/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: d\r\n"+upgradeHeader+"\r\n")
	readHeader(t, r)
	if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
		t.Errorf("attach: %q, %v", rest, err)
	}
	res := d.open("GET", "/containers/x/logs?stdout=1", "")
	if rest, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("logs ended well: %q", rest)
	}
	// The clean-up of the test finds handlers that have not ended.
}

type panicking struct{ *process }

func (panicking) Read([]byte) (int, error) { panic("attach") }

type panickingLogs struct{}

func (panickingLogs) Next(context.Context) (containers.LogRecord, error) { panic("logs") }
func (panickingLogs) Close() error                                       { return nil }
