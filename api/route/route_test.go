package route_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"stated.dev/stated/api/route"
)

func TestCompareVersions(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"1.24", "1.24", 0}, {"1.9", "1.24", -1}, {"1.100", "1.51", 1}, {"2.0", "1.51", 1}, {"1", "1.0", 0}} {
		if got := route.CompareVersions(c.a, c.b); (got < 0) != (c.want < 0) || (got > 0) != (c.want > 0) {
			t.Errorf("CompareVersions(%s, %s) = %d", c.a, c.b, got)
		}
	}
}

func TestBool(t *testing.T) {
	r := httptest.NewRequest("GET", "/?a=&b=0&c=No&d=FALSE&e=none&f=1&g=yes&h=x", nil)
	for name, want := range map[string]bool{"a": false, "b": false, "c": false, "d": false, "e": false, "f": true, "g": true, "h": true, "z": false} {
		if route.Bool(r, name) != want {
			t.Errorf("%s is not %v", name, want)
		}
	}
	if !route.BoolOr(r, "z", true) || route.BoolOr(r, "b", true) {
		t.Error("BoolOr")
	}
}

func TestParseTime(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 10, time.FixedZone("", 2*3600))
	for _, c := range []struct {
		text string
		want time.Time
	}{
		{"", time.Time{}},
		{"0", time.Unix(0, 0)},
		{"1136073600", time.Unix(1136073600, 0)},
		{"1136073600.000000001", time.Unix(1136073600, 1)},
		{"1136073600.5", time.Unix(1136073600, 5e8)},
		{"1136073600.1234567899", time.Unix(1136073600, 123456789)},
		{"10m", now.Add(-10 * time.Minute)},
		{"1h30m", now.Add(-90 * time.Minute)},
		{"-5s", now.Add(5 * time.Second)},
		{"2006-01-02T15:04:05Z", time.Date(2006, 1, 2, 15, 4, 5, 0, time.UTC)},
		{"2006-01-02T15:04:05.999999999+01:00", time.Date(2006, 1, 2, 14, 4, 5, 999999999, time.UTC)},
		{"2006-01-02T15:04:05", time.Date(2006, 1, 2, 15, 4, 5, 0, now.Location())},
		{"2006-01-02T15:04", time.Date(2006, 1, 2, 15, 4, 0, 0, now.Location())},
		{"2006-01-02T15:04Z", time.Date(2006, 1, 2, 15, 4, 0, 0, time.UTC)},
		{"2006-01-02T15", time.Date(2006, 1, 2, 15, 0, 0, 0, now.Location())},
		{"2006-01-02", time.Date(2006, 1, 2, 0, 0, 0, 0, now.Location())},
		{"2006-01-02-07:00", time.Date(2006, 1, 2, 7, 0, 0, 0, time.UTC)},
	} {
		if got, err := route.ParseTime(c.text, now); err != nil || !got.Equal(c.want) || got.IsZero() != c.want.IsZero() {
			t.Errorf("ParseTime(%q) = %v, %v; want %v", c.text, got, err, c.want)
		}
	}
	for _, text := range []string{"yesterday", "1.x", "1.-5", "2006-13-01", "10", "١"} {
		if text == "10" {
			continue // seconds
		}
		if got, err := route.ParseTime(text, now); err == nil {
			t.Errorf("ParseTime(%q) = %v", text, got)
		}
	}
}

func FuzzParseTime(f *testing.F) {
	for _, s := range []string{"", "1.5", "10m", "2006-01-02T15:04:05Z", "2006-01-02", "9223372036854775807.999999999", "-1.1"} {
		f.Add(s)
	}
	now := time.Unix(1e9, 0)
	f.Fuzz(func(t *testing.T, s string) {
		got, err := route.ParseTime(s, now)
		if err != nil && !got.IsZero() {
			t.Errorf("%q: a time and an error", s)
		}
		if again, err2 := route.ParseTime(s, now); !got.Equal(again) || (err == nil) != (err2 == nil) {
			t.Errorf("%q: %v and then %v", s, got, again)
		}
	})
}

func TestWriteRawList(t *testing.T) {
	for range 40 {
		items := make([]json.RawMessage, rand.IntN(12))
		want := []string{}
		for i := range items {
			text := strings.Repeat("x", rand.IntN(20)*rand.IntN(4000))
			items[i], _ = json.Marshal(text)
			want = append(want, text)
		}
		rec := httptest.NewRecorder()
		if err := route.WriteRawList(rec, items); err != nil {
			t.Fatal(err)
		}
		var got []string
		if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%d items: %v", len(items), err)
		}
		if rec.Header().Get("Content-Length") != fmt.Sprint(rec.Body.Len()) {
			t.Fatalf("length %s of %d", rec.Header().Get("Content-Length"), rec.Body.Len())
		}
	}
}

// slowWriter lets a test decide when a write to the client ends, and counts flushes.
type slowWriter struct {
	http.ResponseWriter
	release chan struct{}
	mu      sync.Mutex // guards the fields below
	got     strings.Builder
	flushes int
	err     error
}

func (w *slowWriter) Write(p []byte) (int, error) {
	<-w.release
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return 0, w.err
	}
	return w.got.Write(p)
}

func (w *slowWriter) FlushError() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.flushes++
	return nil
}

func TestBatchJoinsWhatIsReady(t *testing.T) {
	w := &slowWriter{ResponseWriter: httptest.NewRecorder(), release: make(chan struct{})}
	b := route.NewBatch(w)
	var want strings.Builder
	for i := range 1000 {
		line := fmt.Sprintf("line %d\n", i)
		want.WriteString(line)
		if _, err := io.WriteString(b, line); err != nil {
			t.Fatal(err)
		}
	}
	close(w.release)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if w.got.String() != want.String() {
		t.Error("what came is not what was written")
	}
	if w.flushes > 2 {
		t.Errorf("%d flushes for records that were all ready", w.flushes)
	}
}

func TestBatchStopsWithItsClient(t *testing.T) {
	gone := errors.New("gone")
	w := &slowWriter{ResponseWriter: httptest.NewRecorder(), release: make(chan struct{}), err: gone}
	b := route.NewBatch(w)
	time.AfterFunc(10*time.Millisecond, func() { close(w.release) })
	var err error
	for err == nil { // fills up and waits until the client's end is known
		_, err = b.Write(make([]byte, 10000))
	}
	if !errors.Is(err, gone) || !errors.Is(b.Close(), gone) {
		t.Errorf("%v", err)
	}
}

func TestStreamingEndsWhenServerCloses(t *testing.T) {
	closing, begin := context.WithCancel(context.Background())
	r := httptest.NewRequest("GET", "/", nil)
	r = r.WithContext(route.WithClosing(r.Context(), closing))
	ctx, cancel := route.Streaming(r)
	defer cancel()
	begin()
	<-ctx.Done()
	if r.Context().Err() != nil {
		t.Error("the request's own context ended too")
	}
}
