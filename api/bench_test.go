package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"stated.dev/stated/api/route"
	"stated.dev/stated/api/router/containers"
	"stated.dev/stated/api/server"
	"stated.dev/stated/api/types"
)

type phases []types.Phase

func (p phases) Phases(context.Context) []types.Phase { return p }

// benchmark sends GET requests one after the other over one connection.
func benchmark(b *testing.B, path string, routes []route.Route) {
	b.Helper()
	s := server.New(server.Options{})
	s.Handle(routes)
	ls, err := server.Listen(b.Context(), server.ListenOptions{Addr: "unix://" + filepath.Join(b.TempDir(), "s")})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(context.Background(), ls[0]) }()
	conn, err := net.Dial("unix", ls[0].Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	r := bufio.NewReaderSize(conn, 1<<16)
	req := []byte("GET " + path + " HTTP/1.1\r\nHost: d\r\n\r\n")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(req); err != nil {
			b.Fatal(err)
		}
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, res.Body)
		if err != nil || res.StatusCode != 200 {
			b.Fatal(res.Status, err)
		}
		b.SetBytes(n)
		_ = res.Body.Close()
	}
	_ = conn.Close()
	if err := s.Shutdown(context.Background()); err != nil {
		b.Error(err)
	}
	<-done
}

func BenchmarkList1000(b *testing.B) {
	items := make([]json.RawMessage, 1000)
	for i := range items {
		items[i] = []byte(`{"Id":"` + strings.Repeat("x", 1000) + `"}`)
	}
	benchmark(b, "/containers/json", containers.Routes(&fakeContainers{
		list: func(containers.ListRequest) ([]json.RawMessage, error) { return items, nil },
	}))
}

func BenchmarkLogs(b *testing.B) {
	benchmark(b, "/containers/x/logs?stdout=1&timestamps=1", containers.Routes(&fakeContainers{
		logs: func(string, containers.LogsRequest) (containers.LogStream, bool, error) {
			records := make([]containers.LogRecord, 10000)
			for i := range records {
				records[i] = record("stdout", "a line of output of usual length, more or less, as processes write it\n")
			}
			return &fakeLogs{records: records}, true, nil
		},
	}))
}
