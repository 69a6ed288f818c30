package main

import (
	"context"
	"io"

	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"

	"stated.dev/stated/kvstore"
)

// mine is stated's tree.
type mine struct{ *kvstore.Store }

var ours = side{
	empty: func() tree { return mine{kvstore.New(kvstore.Options{Namespaces: []string{"/0", "/1"}})} },
	recover: func(r io.Reader) (tree, error) {
		s := kvstore.New(kvstore.Options{Namespaces: []string{"/0", "/1"}})
		return mine{s}, s.Restore(r)
	},
	recoverDocument: func(saved []byte) (tree, error) {
		s := kvstore.New(kvstore.Options{Namespaces: []string{"/0", "/1"}})
		return mine{s}, s.Recovery(saved)
	},
}

func (m mine) set(path, value string) error {
	_, err := m.Do(kvstore.Command{Op: kvstore.OpSet, Path: path, Value: value})
	return err
}

func (m mine) compareAndSwap(path, before, value string) error {
	_, err := m.Do(kvstore.Command{Op: kvstore.OpCompareAndSwap, Path: path, PrevValue: before, Value: value})
	return err
}

func (m mine) get(path string) error {
	_, err := m.Get(path, kvstore.GetRequest{})
	return err
}

func (m mine) watch(path string) (func(), error) {
	w, err := m.Watch(path, kvstore.WatchRequest{Stream: true})
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	return func() {
		if _, err := w.Next(ctx); err != nil {
			panic(err) // 200 sets, each of which every watcher sees at once, outrun nobody
		}
	}, nil
}

func (m mine) save(w io.Writer) error {
	_, err := m.Snapshot().WriteTo(w)
	return err
}

func (m mine) saveDocument() ([]byte, error) { return m.Save() }

func (m mine) clone() any { return m.Clone() }

// etcd's tree.
type etcd struct{ v2store.Store }

func recoverEtcd(saved []byte) (tree, error) {
	s := v2store.New("/0", "/1")
	return etcd{s}, s.Recovery(saved)
}

var theirs = side{
	empty: func() tree { return etcd{v2store.New("/0", "/1")} },
	recover: func(r io.Reader) (tree, error) {
		document, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		return recoverEtcd(document)
	},
	recoverDocument: recoverEtcd,
}

func (e etcd) set(path, value string) error {
	_, err := e.Set(path, false, value, v2store.TTLOptionSet{})
	return err
}

func (e etcd) compareAndSwap(path, before, value string) error {
	_, err := e.CompareAndSwap(path, before, 0, value, v2store.TTLOptionSet{})
	return err
}

func (e etcd) get(path string) error {
	_, err := e.Get(path, false, false)
	return err
}

func (e etcd) watch(path string) (func(), error) {
	w, err := e.Watch(path, false, true, 0)
	if err != nil {
		return nil, err
	}
	events := w.EventChan()
	return func() { <-events }, nil
}

// save makes the document as a whole, as etcd does.
func (e etcd) save(w io.Writer) error {
	document, err := e.Save()
	if err == nil {
		_, err = w.Write(document)
	}
	return err
}

func (e etcd) saveDocument() ([]byte, error) { return e.Save() }

func (e etcd) clone() any { return e.Clone() }
