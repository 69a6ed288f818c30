package datastore_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/docker/libkv/store"

	"stated.dev/stated/network/datastore"
	"stated.dev/stated/network/datastore/boltdb"
)

type object struct {
	datastore.Meta
	name, value string
	skip        bool
}

func (o *object) Key() []string              { return []string{"object", o.name} }
func (o *object) KeyPrefix() []string        { return []string{"object"} }
func (o *object) Value() ([]byte, error)     { return []byte(o.value), nil }
func (o *object) SetValue(data []byte) error { o.value = string(data); return nil }
func (o *object) Skip() bool                 { return o.skip }

func open(t *testing.T, path string) *datastore.Store {
	t.Helper()
	kv, err := boltdb.Open(context.Background(), boltdb.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	s, err := datastore.Open(context.Background(), kv, datastore.ScopeLocal, datastore.Keyspace{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAtomicObjects(t *testing.T) {
	ctx := context.Background()
	for _, skip := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "kv.db")
		s := open(t, path)
		a := &object{name: "a", value: "1", skip: skip}
		if err := s.PutObjectAtomic(ctx, a); err != nil || !a.Exists() {
			t.Fatalf("create: %v", err)
		}
		if err := s.PutObjectAtomic(ctx, &object{name: "a", value: "x", skip: skip}); !errors.Is(err, store.ErrKeyModified) {
			t.Errorf("create again: %v", err)
		}
		stale := *a
		a.value = "2"
		if err := s.PutObjectAtomic(ctx, a); err != nil {
			t.Errorf("update: %v", err)
		}
		if err := s.PutObjectAtomic(ctx, &stale); !errors.Is(err, store.ErrKeyModified) {
			t.Errorf("stale update: %v", err)
		}
		if err := s.DeleteObjectAtomic(ctx, &stale); !errors.Is(err, store.ErrKeyModified) {
			t.Errorf("stale delete: %v", err)
		}
		got := &object{name: "a"}
		if err := s.GetObject(ctx, got); err != nil || got.value != "2" || got.Index() != a.Index() {
			t.Errorf("get: %+v, %v", got, err)
		}
		pairs, err := s.List(ctx, "object")
		if err != nil || len(pairs) != 1 {
			t.Fatalf("list: %v, %v", pairs, err)
		}
		pairs[0].Value[0] = 'X' // what a caller does to its copy is its own affair
		if err := s.GetObject(ctx, got); err != nil || got.value != "2" {
			t.Errorf("the cache is not isolated: %q, %v", got.value, err)
		}
		s.Close()
		s = open(t, path)
		if err := s.GetObject(ctx, &object{name: "a"}); errors.Is(err, store.ErrKeyNotFound) != skip {
			t.Errorf("after reopening, skip %v: %v", skip, err)
		}
		if !skip {
			if err := s.DeleteObjectAtomic(ctx, a); err != nil {
				t.Errorf("delete: %v", err)
			}
		}
		s.Close()
	}
}

func TestRefusals(t *testing.T) {
	ctx := context.Background()
	s := open(t, filepath.Join(t.TempDir(), "kv.db"))
	defer s.Close()
	if err := s.PutObjectAtomic(ctx, nil); err == nil || err.Error() != "invalid KV Object: nil" {
		t.Errorf("nil: %v", err)
	}
	if _, err := datastore.Open(ctx, nil, "swarm", datastore.Keyspace{}); err == nil || err.Error() != "unexpected scope swarm without configuration passed" {
		t.Errorf("scope: %v", err)
	}
}

func TestKeys(t *testing.T) {
	plain, prefixed := datastore.Keyspace{}, datastore.Keyspace{Prefix: "/my/prefix/"}
	for _, c := range []struct {
		ks   datastore.Keyspace
		want string
	}{{plain, "docker/network/v1.0/endpoint/n/e/"}, {prefixed, "my/prefix/docker/network/v1.0/endpoint/n/e/"}} {
		if got := c.ks.Key("endpoint", "n", "e"); got != c.want {
			t.Errorf("got %s, want %s", got, c.want)
		}
		if parts, err := c.ks.Parse(c.want); err != nil || len(parts) != 3 || parts[2] != "e" {
			t.Errorf("parse %s: %v, %v", c.want, parts, err)
		}
	}
	if _, err := prefixed.Parse("docker/network/v1.0/x/"); err == nil || err.Error() != "invalid Key : docker/network/v1.0/x/" {
		t.Errorf("foreign key: %v", err)
	}
}
