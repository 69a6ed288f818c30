package kvhttp_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"stated.dev/stated/kvstore"
	kvhttp "stated.dev/stated/kvstore/http"
	"stated.dev/stated/kvstore/http/keystest"
)

// BenchmarkHTTP measures requests over the loopback address, the client included, beside the original. Only reads can be
// compared: changes go to a log here that keeps nothing.
func BenchmarkHTTP(b *testing.B) {
	b.Run("stated", func(b *testing.B) { requests(b, serve(b, kvhttp.Options{}).URL) })
	b.Run("etcd", func(b *testing.B) { requests(b, keystest.Etcd(b)) })
}

func requests(b *testing.B, url string) {
	for _, c := range []struct{ name, method, query string }{{"get", "GET", ""}, {"quorum get", "GET", "?quorum=true"}, {"put", "PUT", ""}} {
		for _, clients := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/clients=%d", c.name, clients), func(b *testing.B) {
				client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
				var next atomic.Int64
				var work sync.WaitGroup
				request := func(method, query string) {
					var body io.Reader
					if method == "PUT" {
						body = strings.NewReader("value=" + strings.Repeat("x", 128))
					}
					req, err := http.NewRequest(method, url+"/v2/keys/bench/key"+query, body)
					if err != nil {
						b.Error(err)
						return
					}
					req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
					resp, err := client.Do(req)
					if err != nil {
						b.Error(err)
						return
					}
					if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode >= 300 {
						b.Errorf("%s: %v", resp.Status, err)
					}
					resp.Body.Close()
				}
				request("PUT", "")
				b.ResetTimer()
				for range clients {
					work.Go(func() {
						for next.Add(1) <= int64(b.N) {
							request(c.method, c.query)
						}
					})
				}
				work.Wait()
			})
		}
	}
}

// BenchmarkHandler measures the handler alone.
func BenchmarkHandler(b *testing.B) {
	s := serve(b, kvhttp.Options{})
	if _, err := s.Tree.Do(b.Context(), kvstore.Command{Op: kvstore.OpSet, Path: "/1/f", Value: strings.Repeat("x", 128)}); err != nil {
		b.Fatal(err)
	}
	for name, query := range map[string]string{"get": "", "get with parameters": "?recursive=true&sorted=false&quorum=false"} {
		b.Run(name, func(b *testing.B) {
			r, err := http.NewRequest("GET", "http://x/v2/keys/f"+query, nil)
			if err != nil {
				b.Fatal(err)
			}
			w := &discard{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				s.Handler.ServeHTTP(w, r)
			}
		})
	}
}

type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}
