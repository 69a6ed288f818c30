package logs_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"stated.dev/stated/daemon/logs"
)

// start is the time of the first record; record n is written n seconds later.
var start = time.Date(2026, 3, 1, 12, 0, 0, 5, time.UTC)

func at(n int) time.Time { return start.Add(time.Duration(n) * time.Second) }

func options(t testing.TB, driver string) logs.Options {
	t.Helper()
	return logs.Options{Driver: driver, Path: filepath.Join(t.TempDir(), "logs", "c.log"), MaxFiles: 1}
}

// drivers runs a test for both formats.
func drivers(t *testing.T, test func(t *testing.T, o logs.Options)) {
	for _, driver := range []string{logs.JSONFile, logs.Local} {
		t.Run(driver, func(t *testing.T) { test(t, options(t, driver)) })
	}
}

func newWriter(t testing.TB, o logs.Options) *logs.Writer {
	t.Helper()
	w, err := logs.NewWriter(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func line(n int) string { return fmt.Sprintf("line %d\n", n) }

// write writes the records from (inclusive) to (exclusive) and flushes.
func write(t testing.TB, w *logs.Writer, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := w.Write("stdout", at(n), []byte(line(n))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, o logs.Options, req logs.ReadRequest) *logs.Reader {
	t.Helper()
	r, err := logs.Open(o, req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func read(t testing.TB, o logs.Options, req logs.ReadRequest) (lines []string) {
	t.Helper()
	r := open(t, o, req)
	for {
		rec, err := r.Next(t.Context())
		if err == io.EOF {
			return lines
		}
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, string(rec.Line))
	}
}

func all(t testing.TB, o logs.Options) []string {
	t.Helper()
	return read(t, o, logs.ReadRequest{Tail: -1})
}

func want(from, to int) (lines []string) {
	for n := from; n < to; n++ {
		lines = append(lines, line(n))
	}
	return lines
}

func check(t testing.TB, what string, got, want []string) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	if len(got) > 8 || len(want) > 8 {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Errorf("%s: %d records, want %d; they differ at %d: %.3q, want %.3q",
			what, len(got), len(want), i, got[i:min(i+3, len(got))], want[i:min(i+3, len(want))])
		return
	}
	t.Errorf("%s: %q, want %q", what, got, want)
}

func TestJSONFileIsDockers(t *testing.T) {
	o := options(t, logs.JSONFile)
	o.Attrs = map[string]string{"b": "<2>", "a": "1"}
	w := newWriter(t, o)
	when := time.Date(2026, 3, 1, 12, 0, 0, 120000000, time.FixedZone("", 3600))
	for _, text := range []string{"plain\n", "no newline", "<a href=\"x\">&\\\t\r\x00\x1f\x7f\n", "h\u00e9 \u2028\u2029 \U0001F600 \xff\xc3\n", ""} {
		if err := w.Write("stderr", when, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	tail := `"stream":"stderr","attrs":{"a":"1","b":"\u003c2\u003e"},"time":"2026-03-01T11:00:00.12Z"}` + "\n"
	wantText := `{"log":"plain\n",` + tail +
		`{"log":"no newline",` + tail +
		`{"log":"\u003ca href=\"x\"\u003e\u0026\\\u0009\r\u0000\u001f` + "\x7f" + `\n",` + tail +
		`{"log":"` + "h\u00e9 " + `\u2028\u2029` + " \U0001F600 " + `\ufffd\ufffd\n",` + tail +
		`{` + tail
	if string(got) != wantText {
		t.Errorf("got\n%s\nwant\n%s", got, wantText)
	}
	if info, err := os.Stat(o.Path); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	check(t, "read again", all(t, o), []string{
		"plain\n", "no newline", "<a href=\"x\">&\\\t\r\x00\x1f\x7f\n", "h\u00e9 \u2028\u2029 \U0001F600 \ufffd\ufffd\n", "",
	})
}

// The bytes are those of a record that the format's description gives, written out by hand.
func TestLocalIsDockers(t *testing.T) {
	o := options(t, logs.Local)
	o.Attrs = map[string]string{"k": "v"}
	w := newWriter(t, o)
	if err := w.Write("stdout", time.Unix(0, 300), []byte("hi\n")); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	message := "\x0a\x06stdout" + "\x10\xac\x02" + "\x1a\x02hi" + "\x32\x06\x0a\x01k\x12\x01v"
	length := string([]byte{0, 0, 0, byte(len(message))})
	if string(got) != length+message+length {
		t.Errorf("got  %q\nwant %q", got, length+message+length)
	}
}

func TestRecordsComeBack(t *testing.T) {
	drivers(t, func(t *testing.T, o logs.Options) {
		o.Attrs = map[string]string{"label": "value", "env": "with \"quotes\""}
		w := newWriter(t, o)
		type part struct{ stream, line string }
		parts := []part{
			{"stdout", "whole\n"}, {"stdout", "first part,"}, {"stderr", "between\n"}, {"stdout", "second,"}, {"stdout", "last\n"},
			{"stdout", "\n"}, {"stderr", strings.Repeat("x", 16<<10) + "\n"}, {"stdout", "never ended"},
		}
		for i, p := range parts {
			if err := w.Write(p.stream, at(i), []byte(p.line)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		r := open(t, o, logs.ReadRequest{Tail: -1})
		for i, p := range parts {
			rec, err := r.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if rec.Stream != p.stream || string(rec.Line) != p.line || !rec.Time.Equal(at(i)) {
				t.Errorf("record %d: %+v", i, rec)
			}
			if len(rec.Attrs) != 2 || rec.Attrs["env"] != "with \"quotes\"" {
				t.Errorf("attributes %v", rec.Attrs)
			}
		}
		if _, err := r.Next(t.Context()); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	})
}

func files(t testing.TB, o logs.Options) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(o.Path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestRotation(t *testing.T) {
	drivers(t, func(t *testing.T, o logs.Options) {
		for _, c := range []struct {
			maxFiles int
			compress bool
			want     []string
		}{
			{1, false, []string{"c.log"}},
			{3, false, []string{"c.log", "c.log.1", "c.log.2"}},
			{3, true, []string{"c.log", "c.log.1.gz", "c.log.2.gz"}},
		} {
			o := o
			o.Path = filepath.Join(t.TempDir(), "c.log")
			o.MaxSize, o.MaxFiles, o.Compress = 1000, c.maxFiles, c.compress
			w := newWriter(t, o)
			write(t, w, 0, 200)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if got := files(t, o); !slices.Equal(got, c.want) {
				t.Errorf("%+v: files %v", c, got)
			}
			got := all(t, o)
			check(t, "what is kept is the end", got, want(200-len(got), 200))
			for _, name := range c.want {
				size := contentSize(t, filepath.Join(filepath.Dir(o.Path), name))
				if name != "c.log" && (size < 1000 || size > 1100) {
					t.Errorf("%s has %d bytes", name, size)
				}
			}
		}
	})
}

func contentSize(t testing.TB, name string) int64 {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(name, ".gz") {
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		// Docker leaves files out by this when it is asked for newer records.
		var extra struct {
			LastTime time.Time `json:"lastTime"`
		}
		if err := json.Unmarshal(z.Extra, &extra); err != nil || !extra.LastTime.After(start) || extra.LastTime.After(at(200)) {
			t.Errorf("%s: extra field %s, %v", name, z.Extra, err)
		}
		r = z
	}
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAppendsAfterAnEarlierWriter(t *testing.T) {
	drivers(t, func(t *testing.T, o logs.Options) {
		o.MaxSize, o.MaxFiles = 1000, 100
		for i := range 10 {
			w := newWriter(t, o)
			write(t, w, 10*i, 10*i+10)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		check(t, "ten writers", all(t, o), want(0, 100))
		if n := len(files(t, o)); n < 4 {
			t.Errorf("only %d files: the size of the earlier writers does not count", n)
		}
	})
}

func TestATornRecordIsCutOff(t *testing.T) {
	drivers(t, func(t *testing.T, o logs.Options) {
		w := newWriter(t, o)
		write(t, w, 0, 3)
		w.Close()
		whole, err := os.ReadFile(o.Path)
		if err != nil {
			t.Fatal(err)
		}
		for cut := len(whole) - 1; cut > 0; cut-- {
			if err := os.WriteFile(o.Path, whole[:cut], 0o640); err != nil {
				t.Fatal(err)
			}
			before := len(all(t, o)) // a reader passes it over even before it is repaired
			w := newWriter(t, o)
			write(t, w, 7, 8)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			check(t, fmt.Sprintf("cut at %d of %d", cut, len(whole)), all(t, o), append(want(0, before), line(7)))
		}
		// What a power cut can leave: the length was there before the data.
		if err := os.WriteFile(o.Path, append(slices.Clone(whole), make([]byte, 5000)...), 0o640); err != nil {
			t.Fatal(err)
		}
		w = newWriter(t, o)
		write(t, w, 3, 4)
		check(t, "zeroes at the end", all(t, o), want(0, 4))
	})
}

func TestDamageIsPassedOver(t *testing.T) {
	o := options(t, logs.JSONFile)
	w := newWriter(t, o)
	write(t, w, 0, 2)
	f, err := os.OpenFile(o.Path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("garbage\n\x00\x00\x00\n{\"log\":\"x\"}\n")
	f.Close()
	write(t, w, 2, 4)
	check(t, "around the damage", all(t, o), want(0, 4))
}

func TestTail(t *testing.T) {
	drivers(t, func(t *testing.T, o logs.Options) {
		for _, compress := range []bool{false, true} {
			o := o
			o.Path = filepath.Join(t.TempDir(), "c.log")
			o.MaxSize, o.MaxFiles, o.Compress = 1500, 50, compress
			w := newWriter(t, o)
			write(t, w, 0, 100)
			w.Close()
			for _, n := range []int{-1, 0, 1, 2, 15, 16, 17, 40, 99, 100, 101, 1000} {
				from := max(100-n, 0)
				if n < 0 {
					from = 0
				}
				check(t, fmt.Sprintf("tail %d, compressed %v", n, compress), read(t, o, logs.ReadRequest{Tail: n}), want(from, 100))
			}
		}
		check(t, "no files", read(t, logs.Options{Driver: o.Driver, Path: "/does/not/exist"}, logs.ReadRequest{Tail: 10}), nil)
	})
}

func TestTailOfLargeFiles(t *testing.T) {
	drivers(t, func(t *testing.T, o logs.Options) {
		w := newWriter(t, o)
		long := strings.Repeat("y", 20000) + "\n"
		for range 10 {
			if err := w.Write("stdout", start, []byte(long)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{1, 3, 9, 10, 11} {
			got := read(t, o, logs.ReadRequest{Tail: n})
			if len(got) != min(n, 10) || got[0] != long {
				t.Errorf("tail %d: %d records", n, len(got))
			}
		}
	})
}

func TestSinceAndUntil(t *testing.T) {
	drivers(t, func(t *testing.T, o logs.Options) {
		o.MaxSize, o.MaxFiles, o.Compress = 1500, 50, true
		w := newWriter(t, o)
		write(t, w, 0, 100)
		w.Close()
		check(t, "since", read(t, o, logs.ReadRequest{Tail: -1, Since: at(60)}), want(60, 100))
		check(t, "until", read(t, o, logs.ReadRequest{Tail: -1, Until: at(60)}), want(0, 61))
		check(t, "both", read(t, o, logs.ReadRequest{Tail: -1, Since: at(50), Until: at(52)}), want(50, 53))
		check(t, "among the last", read(t, o, logs.ReadRequest{Tail: 10, Since: at(50), Until: at(95)}), want(90, 96))
		check(t, "none", read(t, o, logs.ReadRequest{Tail: -1, Since: at(1000)}), nil)
	})
}

func next(t testing.TB, r *logs.Reader) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	rec, err := r.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return string(rec.Line)
}

func TestFollow(t *testing.T) {
	drivers(t, func(t *testing.T, o logs.Options) {
		n, err := logs.NewNotifier()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		done := make(chan struct{})
		early := open(t, o, logs.ReadRequest{Tail: -1, Follow: true, Done: done}) // before there is a file, or its directory
		w := newWriter(t, o)
		write(t, w, 0, 3)
		r := open(t, o, logs.ReadRequest{Tail: 1, Follow: true, Done: done, Notifier: n})
		none := open(t, o, logs.ReadRequest{Tail: 0, Follow: true, Done: done, Notifier: n})
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if rec, err := none.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nothing yet: %+v, %v", rec, err)
		}
		write(t, w, 3, 5)
		for i := range 5 {
			if got := next(t, early); got != line(i) {
				t.Errorf("early: %q, want %q", got, line(i))
			}
		}
		for i := 2; i < 5; i++ {
			if got := next(t, r); got != line(i) {
				t.Errorf("tail 1: %q, want %q", got, line(i))
			}
		}
		for i := 3; i < 5; i++ {
			if got := next(t, none); got != line(i) {
				t.Errorf("tail 0: %q, want %q", got, line(i))
			}
		}
		// What was written before the end is read after it.
		write(t, w, 5, 6)
		w.Close()
		close(done)
		for _, r := range []*logs.Reader{early, r, none} {
			if got := next(t, r); got != line(5) {
				t.Errorf("last: %q", got)
			}
			if _, err := r.Next(t.Context()); err != io.EOF {
				t.Errorf("after the end: %v", err)
			}
		}
	})
}

func TestFollowEndsWithUntil(t *testing.T) {
	o := options(t, logs.JSONFile)
	w := newWriter(t, o)
	r := open(t, o, logs.ReadRequest{Tail: -1, Follow: true, Until: time.Now().Add(50 * time.Millisecond)})
	if err := w.Write("stdout", time.Now(), []byte("now\n")); err != nil {
		t.Fatal(err)
	}
	w.Flush()
	if got := next(t, r); got != "now\n" {
		t.Errorf("got %q", got)
	}
	if _, err := r.Next(t.Context()); err != io.EOF {
		t.Errorf("got %v, want EOF", err)
	}
}

func TestFollowSurvivesAnEmptiedFile(t *testing.T) {
	o := options(t, logs.JSONFile)
	w := newWriter(t, o)
	write(t, w, 0, 5)
	r := open(t, o, logs.ReadRequest{Tail: -1, Follow: true})
	for i := range 5 {
		if got := next(t, r); got != line(i) {
			t.Fatalf("got %q", got)
		}
	}
	if err := os.Truncate(o.Path, 0); err != nil {
		t.Fatal(err)
	}
	write(t, w, 5, 6)
	if got := next(t, r); got != line(5) {
		t.Errorf("got %q", got)
	}
}

// Followers that are faster, slower, early and late see every record once, through any number of rotations.
func TestFollowersSeeEachRecordOnce(t *testing.T) {
	const count = 3000
	for _, compress := range []bool{false, true} {
		drivers(t, func(t *testing.T, o logs.Options) {
			o.MaxSize, o.MaxFiles, o.Compress = 4000, 1000, compress
			if compress {
				o.MaxSize = 15000
			}
			w := newWriter(t, o)
			notifier, err := logs.NewNotifier()
			if err != nil {
				t.Fatal(err)
			}
			defer notifier.Close()
			done := make(chan struct{})
			written := make([]chan struct{}, count/500) // each is closed when 400 records after n*500 are there
			for i := range written {
				written[i] = make(chan struct{})
			}
			var followers sync.WaitGroup
			for i := range 6 {
				req := logs.ReadRequest{Tail: -1, Follow: true, Done: done}
				if i%2 == 0 {
					req.Notifier = notifier
				}
				r := open(t, o, req)
				followers.Go(func() {
					for n := 0; ; n++ {
						rec, err := r.Next(t.Context())
						if err == io.EOF && n == count {
							return
						}
						if err != nil || string(rec.Line) != line(n) {
							t.Errorf("follower %d at record %d: %q, %v", i, n, rec.Line, err)
							return
						}
						if i >= 4 && n%500 == 0 && n < count {
							<-written[n/500] // fall behind by several files
						}
					}
				})
			}
			for n := range count {
				if err := w.Write("stdout", at(n), []byte(line(n))); err != nil {
					t.Fatal(err)
				}
				if n%7 == 0 {
					if err := w.Flush(); err != nil {
						t.Fatal(err)
					}
				}
				if n%500 == 400 {
					close(written[n/500])
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			close(done)
			followers.Wait()
			if n := len(files(t, o)); n < 5 {
				t.Errorf("only %d files", n)
			}
		})
	}
}

// A follower that keeps up sees everything, even when old files are dropped at once.
func TestAFollowerThatKeepsUp(t *testing.T) {
	drivers(t, func(t *testing.T, o logs.Options) {
		for _, compress := range []bool{false, true} {
			for _, maxFiles := range []int{1, 2, 3} {
				o := o
				o.Path = filepath.Join(t.TempDir(), "c.log")
				o.MaxSize, o.MaxFiles, o.Compress = 300, maxFiles, compress
				w := newWriter(t, o)
				r := open(t, o, logs.ReadRequest{Tail: -1, Follow: true})
				for n := range 200 {
					write(t, w, n, n+1)
					if got := next(t, r); got != line(n) {
						t.Fatalf("%d files, compressed %v: record %d is %q", maxFiles, compress, n, got)
					}
				}
			}
		}
	})
}

func TestAFullDiskLosesNothingThatWasTaken(t *testing.T) {
	drivers(t, func(t *testing.T, o logs.Options) {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
		o.Path = filepath.Join(dir, o.Driver)
		w := newWriter(t, o)
		var taken []string
		refused := 0
		for n := 0; refused < 10; n++ {
			text := fmt.Sprintf("%d %s\n", n, strings.Repeat("z", 500))
			if err := w.Write("stdout", at(n), []byte(text)); err != nil {
				if !errors.Is(err, unix.ENOSPC) {
					t.Fatal(err)
				}
				refused++
				continue
			}
			taken = append(taken, text)
		}
		if err := w.Flush(); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("flush: %v", err)
		}
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		check(t, "after there is room", all(t, o), taken)
	})
}

func TestNone(t *testing.T) {
	w := newWriter(t, logs.Options{Driver: logs.None})
	write(t, w, 0, 3)
	_, err := logs.Open(logs.Options{Driver: logs.None}, logs.ReadRequest{})
	if err == nil || err.Error() != "configured logging driver does not support reading" {
		t.Errorf("got %v", err)
	}
}

func TestWriteAfterClose(t *testing.T) {
	w := newWriter(t, options(t, logs.JSONFile))
	w.Close()
	if err := w.Write("stdout", start, []byte("x\n")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, driver := range []string{logs.JSONFile, logs.Local} {
		b.Run(driver, func(b *testing.B) {
			o := options(b, driver)
			o.MaxSize, o.MaxFiles = 10<<20, 3
			w := newWriter(b, o)
			text := []byte("2026-03-01 12:00:00 GET /index.html?a=1&b=2 200 \"Mozilla/5.0\" 12 ms\n")
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if err := w.Write("stdout", time.Now(), text); err != nil {
					b.Fatal(err)
				}
			}
			w.Flush()
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, driver := range []string{logs.JSONFile, logs.Local} {
		b.Run(driver, func(b *testing.B) {
			o := options(b, driver)
			w := newWriter(b, o)
			const count = 100_000
			text := []byte("2026-03-01 12:00:00 GET /index.html?a=1&b=2 200 \"Mozilla/5.0\" 12 ms\n")
			for range count {
				w.Write("stdout", start, text)
			}
			w.Flush()
			b.SetBytes(int64(len(text)))
			var r *logs.Reader
			for b.Loop() {
				if r != nil {
					if _, err := r.Next(b.Context()); err == nil {
						continue
					}
					r.Close()
				}
				var err error
				if r, err = logs.Open(o, logs.ReadRequest{Tail: -1}); err != nil {
					b.Fatal(err)
				}
			}
			r.Close()
		})
	}
}
