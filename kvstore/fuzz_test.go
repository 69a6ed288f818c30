package kvstore_test

import (
	"bytes"
	"path"
	"strings"
	"testing"
	"time"

	"stated.dev/stated/kvstore"
)

func FuzzDecodeCommand(f *testing.F) {
	f.Add(kvstore.Command{Op: kvstore.OpSet, Path: "/1/a", Value: "v", Expire: noon, Time: noon, Client: 1, Sequence: 2, Acked: 2}.Append(nil))
	f.Add(kvstore.Command{Op: kvstore.OpCreate, Path: "q", Unique: true, Dir: true, Estimate: true}.Append(nil))
	f.Add(kvstore.Command{Op: kvstore.OpCompareAndDelete, PrevIndex: 1 << 40, PrevValue: "x"}.Append(nil))
	f.Add(kvstore.Command{Op: kvstore.OpExpire, Time: noon, Refresh: true, Recursive: true}.Append(nil))
	f.Add(kvstore.Command{Op: kvstore.OpImport, Path: "/0", Piece: kvstore.Piece{Import: 1, Number: 0, Count: 1, Data: "stkv", Replace: true}}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := newReplica(1, func() time.Time { return noon }, t.Output())
		r.Apply(kvstore.Command{Op: kvstore.OpSet, Path: "/1/a/b", Value: "v", Expire: noon}.Append(nil))
		r.Apply(b)
		c, err := kvstore.DecodeCommand(b)
		if err != nil {
			return
		}
		again, err := kvstore.DecodeCommand(c.Append(nil))
		if err != nil {
			t.Fatalf("%+v cannot be decoded: %v", c, err)
		}
		if c.Expire.Before(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) || c.Expire.Year() > 9998 {
			c.Expire, again.Expire = time.Time{}, time.Time{} // such are not kept
		}
		if again != c {
			t.Errorf("got %+v, want %+v", again, c)
		}
	})
}

func FuzzRecovery(f *testing.F) {
	s := newStore()
	for _, c := range []kvstore.Command{set("/1/a", "v"), mkdir("/1/d"), {Op: kvstore.OpSet, Path: "/1/t", Expire: noon}} {
		if _, err := s.Do(c); err != nil {
			f.Fatal(err)
		}
	}
	document, err := kvstore.New(kvstore.Options{HistoryEvents: 2}).Save()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(document)
	f.Add([]byte(`{"Root":{"Children":{"a":{"Value":"v","CreatedIndex":5,"ModifiedIndex":3,"ExpireTime":"2030-01-01T00:00:00+07:00"},"b":{"Children":{}}}},"CurrentIndex":9}`))
	f.Add([]byte(`{"Root":{"Children":{}},"WatcherHub":{"EventHistory":{"Queue":{"Events":[{"action":"set","node":{"key":"/a","modifiedIndex":1}}],"Size":1,"Front":0,"Back":0,"Capacity":1}}},"CurrentIndex":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newStore()
		if s.Recovery(b) == nil {
			checkSound(t, s)
		}
		r := newReplica(1, func() time.Time { return noon }, t.Output())
		newLog(true, r)
		if _, err := r.Import(t.Context(), kvstore.ImportRequest{Document: b, Keep: "/0"}); err == nil {
			checkSound(t, r.Store())
		}
	})
}

// checkSound saves a store and works on it.
func checkSound(t *testing.T, s *kvstore.Store) {
	t.Helper()
	if _, err := s.Save(); err != nil {
		t.Error(err)
	}
	var stream bytes.Buffer
	if _, err := s.Snapshot().WriteTo(&stream); err != nil {
		t.Fatal(err)
	}
	other := newStore()
	if err := other.Restore(&stream); err != nil {
		t.Errorf("its own snapshot cannot be restored: %v", err)
	}
	if dump(t, s) != dump(t, other) {
		t.Error("its own snapshot differs")
	}
	for _, c := range []kvstore.Command{{Op: kvstore.OpExpire, Time: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}, set("/1/a/b", "v"), {Op: kvstore.OpDelete, Path: "/a", Recursive: true}} {
		s.Do(c) //nolint:errcheck // it may fail, but not panic
	}
}

func FuzzRestore(f *testing.F) {
	r := newReplica(7, func() time.Time { return noon }, bytes.NewBuffer(nil))
	for i, c := range []kvstore.Command{set("/1/a", "v"), mkdir("/1/d"), {Op: kvstore.OpSet, Path: "/1/t", Expire: noon}, {Op: kvstore.OpUpdate, Path: "/x"}} {
		c.Client, c.Sequence, c.Time = 1, uint64(i), noon
		r.Apply(c.Append(nil))
	}
	r.Apply(kvstore.Command{Op: kvstore.OpImport, Piece: kvstore.Piece{Import: 5, Count: 2, Data: "stkv"}}.Append(nil))
	for _, write := range []func(*bytes.Buffer) (int64, error){
		func(b *bytes.Buffer) (int64, error) { return r.Store().Snapshot().WriteTo(b) },
		func(b *bytes.Buffer) (int64, error) { return r.Snapshot().WriteTo(b) },
	} {
		var b bytes.Buffer
		if _, err := write(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// Checksums would stop nearly every input at the door, so what comes is given right ones.
		b = kvstore.Rechecksum(b)
		s := newStore()
		if s.Restore(bytes.NewReader(b)) == nil {
			checkSound(t, s)
		}
		r := newReplica(1, func() time.Time { return noon }, t.Output())
		if r.Restore(bytes.NewReader(b)) == nil {
			checkSound(t, r.Store())
		}
	})
}

func FuzzPath(f *testing.F) {
	for _, p := range []string{"", "/", "a", "/a/", "//a", "/a/../b", "/a/./b", "/..", "/a/.b", "/a/b.", "/\x00", "/a//"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p string) {
		want := path.Clean(path.Join("/", p))
		s := kvstore.New(kvstore.Options{})
		e, err := s.Do(set(p, "v"))
		if want == "/" || strings.Count(want, "/") > 4096 {
			if err == nil {
				t.Errorf("%q was set", p)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if e.Node.Key != want {
			t.Errorf("the key of %q is %q, want %q", p, e.Node.Key, want)
		}
		if got, err := s.Get(want, kvstore.GetRequest{}); err != nil || got.Node.Value != "v" {
			t.Errorf("%q: %v, %v", want, got, err)
		}
	})
}
