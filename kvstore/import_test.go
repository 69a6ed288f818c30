package kvstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/kvstore"
)

func save(t *testing.T, s *kvstore.Store) []byte {
	t.Helper()
	document, err := s.Save()
	if err != nil {
		t.Fatal(err)
	}
	return document
}

// importOf is a request whose pieces are so small that there are many.
func importOf(document []byte) kvstore.ImportRequest {
	return kvstore.ImportRequest{Document: document, Keep: "/0", Piece: 64}
}

func value(t *testing.T, s *kvstore.Store, path string) string {
	t.Helper()
	e, err := s.Get(path, kvstore.GetRequest{})
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s@%d/%d", e.Node.Value, e.Node.CreatedIndex, e.Node.ModifiedIndex)
}

// TestImport brings the tree of another store to two hosts.
func TestImport(t *testing.T) {
	from := newStore()
	do(t, from, set("/0/members/old", "x"), set("/1/a", "1"), set("/1/a", "2"), mkdir("/1/empty"),
		kvstore.Command{Op: kvstore.OpSet, Path: "/1/t", Value: "v", Expire: noon.Add(time.Hour)}, set("/2/users/root", "hash"),
		kvstore.Command{Op: kvstore.OpDelete, Path: "/1/a"}, set("/1/b", "3"))
	a, b := newReplica(1, func() time.Time { return noon }, t.Output()), newReplica(2, func() time.Time { return noon }, t.Output())
	newLog(true, a, b)
	if _, err := a.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: "/0/members/own", Value: "y", TTL: seconds(7200)}); err != nil {
		t.Fatal(err)
	}
	watcher, err := b.Store().Watch("/1", kvstore.WatchRequest{Recursive: true, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	done, err := a.Import(t.Context(), importOf(save(t, from)))
	if err != nil {
		t.Fatal(err)
	}
	if done != (kvstore.Imported{Keys: 3, Directories: 3, Index: 8}) {
		t.Errorf("it says %+v", done)
	}
	if dump(t, a.Store()) != dump(t, b.Store()) {
		t.Error("the hosts differ")
	}
	for path, want := range map[string]string{
		"/1/b": "3@8/8", "/1/t": "v@5/5", "/2/users/root": "hash@6/6", "/0/members/own": "y@1/1",
		"/0/members/old": "Key not found (/0/members/old)", "/1/a": "Key not found (/1/a)",
	} {
		if got := value(t, b.Store(), path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	e, err := watcher.Next(t.Context())
	if e != nil {
		t.Error("the watcher had an event")
	}
	if refused := new(kvstore.Error); !errors.As(err, &refused) || refused.Code != kvstore.CodeWatcherCleared {
		t.Errorf("the watcher ended with %v", err)
	}
	// The history and the times to live came along.
	past, err := b.Store().Watch("/1/a", kvstore.WatchRequest{Since: 3})
	if err != nil {
		t.Fatal(err)
	}
	if e := next(t, past); e.Index() != 3 || e.Node.Value != "2" {
		t.Errorf("the history gave %s", wire(t, e))
	}
	if at, ok := b.Store().NextExpiry(); !ok || !at.Equal(noon.Add(time.Hour)) {
		t.Errorf("the next key expires at %v", at)
	}
	do2 := func(c kvstore.Command) {
		t.Helper()
		if _, err := a.Do(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
	do2(set("/1/new", "9"))
	if got := value(t, b.Store(), "/1/new"); got != "9@9/9" {
		t.Errorf("the next key is %s", got)
	}
	// There and back again.
	empty := newReplica(3, func() time.Time { return noon }, t.Output())
	newLog(true, empty)
	if _, err := empty.Import(t.Context(), kvstore.ImportRequest{Document: save(t, a.Store())}); err != nil {
		t.Fatal(err)
	}
	if dump(t, empty.Store()) != dump(t, a.Store()) {
		t.Error("a round trip changes the store")
	}
}

// TestImportOverKeys needs to be asked for, and never lets the index go back.
func TestImportOverKeys(t *testing.T) {
	from := newStore()
	do(t, from, set("/1/a", "new"))
	r := newReplica(1, func() time.Time { return noon }, t.Output())
	l := newLog(true, r)
	for i := range 5 {
		if _, err := r.Do(t.Context(), set("/1/old", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	q := importOf(save(t, from))
	before := l.committed()
	if _, err := r.Import(t.Context(), q); !errors.Is(err, kvstore.ErrHasKeys) || l.committed() != before {
		t.Errorf("import over keys: %v, %d commands", err, l.committed()-before)
	}
	q.Replace = true
	done, err := r.Import(t.Context(), q)
	if err != nil || done.Index != 7 || r.Store().Index() != 7 {
		t.Fatalf("%+v, %v: index %d", done, err, r.Store().Index())
	}
	if got := value(t, r.Store(), "/1/a"); got != "new@1/1" {
		t.Errorf("the key is %s", got)
	}
	if got := value(t, r.Store(), "/1/old"); !strings.HasPrefix(got, "Key not found") {
		t.Errorf("the old key is %s", got)
	}
	// Who had seen everything, and who had not, learns that more was changed than can be told.
	for _, since := range []uint64{1, 5, 6} {
		_, err := r.Store().Watch("/1", kvstore.WatchRequest{Recursive: true, Since: since})
		if refused := new(kvstore.Error); !errors.As(err, &refused) || refused.Code != kvstore.CodeHistoryCleared {
			t.Errorf("a watch from %d: %v", since, err)
		}
	}
	w, err := r.Store().Watch("/1", kvstore.WatchRequest{Recursive: true, Since: 8})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Do(t.Context(), set("/1/b", "x")); err != nil {
		t.Fatal(err)
	}
	if e := next(t, w); e.Index() != 8 {
		t.Errorf("the next event is %s", wire(t, e))
	}
	checkSound(t, r.Store())
}

// TestImportThatStops leaves the tree alone; its pieces are in snapshots, until another import begins.
func TestImportThatStops(t *testing.T) {
	from := newStore()
	do(t, from, set("/1/a", strings.Repeat("v", 500)))
	document := save(t, from)
	// What each command of an import is.
	whole := newReplica(1, func() time.Time { return noon }, t.Output())
	l := newLog(true, whole)
	if _, err := whole.Import(t.Context(), importOf(document)); err != nil {
		t.Fatal(err)
	}
	if len(l.commands) < 8 {
		t.Fatalf("%d commands", len(l.commands))
	}
	for stop := range l.commands {
		a := newReplica(2, func() time.Time { return noon }, t.Output())
		for _, command := range l.commands[:stop] {
			a.Apply(command)
		}
		if a.Store().Index() != 0 {
			t.Fatalf("after %d pieces the index is %d", stop, a.Store().Index())
		}
		var stream bytes.Buffer
		if _, err := a.Snapshot().WriteTo(&stream); err != nil {
			t.Fatal(err)
		}
		b := newReplica(3, func() time.Time { return noon }, t.Output())
		if err := b.Restore(&stream); err != nil {
			t.Fatal(err)
		}
		for _, command := range l.commands[stop:] {
			b.Apply(command)
		}
		if dump(t, b.Store()) != dump(t, whole.Store()) {
			t.Errorf("an import that went on in another host after %d pieces is another one", stop)
		}
		// Another import drops the first one, whose pieces come too late then.
		newLog(true, a)
		other := newStore()
		do(t, other, set("/1/other", "v"))
		if _, err := a.Import(t.Context(), importOf(save(t, other))); err != nil {
			t.Fatal(err)
		}
		want := dump(t, a.Store())
		for _, command := range l.commands[max(stop, 1):] {
			if a.Apply(command).(*kvstore.Result).Err == nil {
				t.Error("a piece of an import that was dropped is taken")
			}
		}
		if dump(t, a.Store()) != want {
			t.Error("an import that was dropped changes the tree")
		}
	}
}

// TestImportThroughALyingLog is carried out once.
func TestImportThroughALyingLog(t *testing.T) {
	from := newStore()
	do(t, from, set("/1/a", strings.Repeat("v", 500)))
	a, b := newReplica(1, func() time.Time { return noon }, t.Output()), newReplica(2, func() time.Time { return noon }, t.Output())
	l := newLog(true, a, b)
	l.lie = func(n int) fate {
		return [...]fate{{}, {drop: true}, {repeat: true}, {fail: true}, {fail: true, repeat: true}}[n%5]
	}
	if _, err := a.Import(t.Context(), importOf(save(t, from))); err != nil {
		t.Fatal(err)
	}
	if dump(t, a.Store()) != dump(t, b.Store()) || a.Store().Index() != 1 {
		t.Error("the hosts differ")
	}
	// One that is given up leaves nothing.
	ctx, cancel := context.WithCancel(t.Context())
	c := newReplica(3, func() time.Time { return noon }, t.Output())
	l = newLog(true, c)
	l.lie = func(n int) fate {
		if n == 4 {
			cancel()
		}
		return fate{}
	}
	if _, err := c.Import(ctx, importOf(save(t, from))); err == nil {
		t.Error("an import whose caller is gone succeeds")
	}
	if c.Store().Index() != 0 {
		t.Errorf("index %d", c.Store().Index())
	}
	var given, none bytes.Buffer
	if _, err := c.Snapshot().WriteTo(&given); err != nil {
		t.Fatal(err)
	}
	if _, err := newReplica(3, nil, t.Output()).Snapshot().WriteTo(&none); err != nil {
		t.Fatal(err)
	}
	if given.Len() > none.Len()+100 {
		t.Errorf("%d bytes of the import are left", given.Len()-none.Len())
	}
}

// TestHostileDocuments are refused before anything is proposed.
func TestHostileDocuments(t *testing.T) {
	node := func(children string) string {
		return `{"Root":{"Children":{` + children + `}},"CurrentIndex":9}`
	}
	deep := strings.Repeat(`"a":{"Children":{`, 5000) + strings.Repeat(`}}`, 5000)
	for name, document := range map[string]string{
		"empty":                  ``,
		"no JSON":                `Root`,
		"no root":                `{}`,
		"null":                   `null`,
		"a list":                 `[]`,
		"cut":                    node(`"1":{"Children":{}}`)[:20],
		"more behind it":         node(``) + `{}`,
		"a file as the keys":     node(`"1":{"Value":"v"}`),
		"a file as the members":  node(`"0":{"Value":"v"}`),
		"a name with a slash":    node(`"1":{"Children":{"a/b":{"Value":"v"}}}`),
		"a name of dots":         node(`"1":{"Children":{"..":{"Value":"v"}}}`),
		"a null child":           node(`"1":{"Children":{"a":null}}`),
		"too deep":               node(deep),
		"an index of the future": node(`"1":{"Children":{"a":{"Value":"v","CreatedIndex":1,"ModifiedIndex":10}}}`),
		"an index without room":  `{"Root":{"Children":{}},"CurrentIndex":18446744073709551615}`,
		"a broken history":       `{"Root":{"Children":{}},"CurrentIndex":9,"WatcherHub":{"EventHistory":{"Queue":{"Events":[],"Size":3,"Capacity":9}}}}`,
	} {
		r := newReplica(1, func() time.Time { return noon }, t.Output())
		l := newLog(true, r)
		_, err := r.Import(t.Context(), importOf([]byte(document)))
		if !errors.Is(err, kvstore.ErrDocument) || !errdefs.IsInvalidArgument(err) || l.committed() != 0 {
			t.Errorf("%s: %v, %d commands", name, err, l.committed())
		}
	}
}

// TestImportOfEtcd takes a document that an etcd saved.
func TestImportOfEtcd(t *testing.T) {
	document, err := os.ReadFile("testdata/etcd-3.5.json")
	if err != nil {
		t.Fatal(err)
	}
	r := newReplica(1, func() time.Time { return noon }, t.Output())
	newLog(true, r)
	if _, err := r.Import(t.Context(), kvstore.ImportRequest{Document: document}); err != nil {
		t.Fatal(err)
	}
	want := newStore()
	if err := want.Recovery(document); err != nil {
		t.Fatal(err)
	}
	if dump(t, r.Store()) != dump(t, want) {
		t.Error("the import differs from a recovery")
	}
}
