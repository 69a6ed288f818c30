package kvstore_test

import (
	"bytes"
	"os"
	"testing"
	"time"

	"stated.dev/stated/kvstore"
)

// TestDocumentOfEtcd reads a document that the v2 store of etcd 3.5.21 saved, and writes it again byte for byte.
func TestDocumentOfEtcd(t *testing.T) {
	document, err := os.ReadFile("testdata/etcd-3.5.json")
	if err != nil {
		t.Fatal(err)
	}
	s := newStore()
	if err := s.Recovery(document); err != nil {
		t.Fatal(err)
	}
	again, err := s.Save()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, document) {
		t.Errorf("\n got %s\nwant %s", again, document)
	}
	// Keys that are overdue stay until a command says how late it is.
	if at, ok := s.NextExpiry(); !ok || at.Year() != 2036 {
		t.Errorf("the next key expires at %v, %v", at, ok)
	}
	do(t, s, kvstore.Command{Op: kvstore.OpExpire, Time: time.Date(2036, 6, 1, 0, 0, 0, 0, time.UTC)})
	if _, err := s.Get("/1/dir/sub/k", kvstore.GetRequest{}); err == nil || s.Index() != 8 {
		t.Errorf("the directory did not expire with its subtree: index %d", s.Index())
	}
	w, err := s.Watch("/1/f", kvstore.WatchRequest{Since: 2})
	if err != nil {
		t.Fatal(err)
	}
	if e := next(t, w); e.Action != kvstore.ActionDelete || e.Index() != 2 {
		t.Errorf("the history gave %s", wire(t, e))
	}
}
