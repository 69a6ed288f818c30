package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/cluster/store"
)

// fakeLog commits in memory, to any number of stores, and can hold proposals, fail and repeat.
type fakeLog struct {
	mu       sync.Mutex
	stores   []*store.Store
	commands [][]byte
	index    uint64

	outside bool             // this host is no member
	arrived chan []byte      // when it is there, is told of each proposal
	leave   chan struct{}    // when it is there, a proposal waits for it
	fail    func(n int) fate // of the n-th proposal
	n       int
}

type fate struct {
	drop   bool  // is not committed
	repeat bool  // is committed twice
	err    error // is returned all the same
}

func attach(stores ...*store.Store) *fakeLog {
	l := &fakeLog{stores: stores}
	for _, s := range stores {
		s.Attach(l)
	}
	return l
}

func (l *fakeLog) Propose(ctx context.Context, command []byte) (any, error) {
	if l.arrived != nil {
		l.arrived <- command
	}
	if l.leave != nil {
		select {
		case <-l.leave:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	f := fate{}
	if l.fail != nil {
		f = l.fail(l.n)
	}
	var answer any
	if !f.drop {
		answer = l.commit(command)
	}
	if f.repeat {
		answer = l.commit(command)
	}
	return answer, f.err
}

func (l *fakeLog) commit(command []byte) (answer any) {
	l.index++
	l.commands = append(l.commands, command)
	for i, s := range l.stores {
		if a := s.Apply(l.index, command); i == 0 {
			answer = a
		}
	}
	return answer
}

func (l *fakeLog) Version() (uint64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index, !l.outside
}

func newStore(t testing.TB, o ...store.Options) *store.Store {
	var options store.Options
	if len(o) > 0 {
		options = o[0]
	}
	s := store.New(options)
	t.Cleanup(s.Close)
	return s
}

// must makes changes that have to succeed.
func must(t testing.TB, s *store.Store, cb func(*store.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), cb); err != nil {
		t.Fatal(err)
	}
}

func node(id, name string) *objects.Node {
	return &objects.Node{Header: objects.Header{ID: id}, Description: &swarm.NodeDescription{Hostname: name}}
}

func getNode(s *store.Store, id string) (n *objects.Node) {
	s.View(func(tx *store.ReadTx) { n = store.Nodes.Get(tx, id) })
	return n
}

func config(id, name string) *objects.Config {
	return &objects.Config{Header: objects.Header{ID: id}, Spec: objects.ConfigSpec{Annotations: objects.Annotations{Name: name}}}
}

// dump is all that a store has, with the names of the tables.
func dump(t testing.TB, s *store.Store) (all []string) {
	t.Helper()
	s.View(func(tx *store.ReadTx) { all = dumpTx(t, tx) })
	return all
}

func dumpTx(t testing.TB, tx *store.ReadTx) (all []string) {
	t.Helper()
	for _, k := range kinds {
		list, err := k.find(tx, store.All())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range list {
			b, err := objects.Append(nil, o)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, k.kind.String()+" "+string(b))
		}
	}
	return all
}

// told collects events until the commit of a version, or of any when it is 0.
func told(t testing.TB, w *store.Watcher, until uint64) (list []store.Event) {
	t.Helper()
	for e := range w.Events() {
		list = append(list, e)
		if e.Action == store.Commit && (until == 0 || e.Version == until) {
			return list
		}
	}
	t.Fatalf("the watcher ended after %d events: %v", len(list), w.Err())
	return nil
}

func describe(list []store.Event) (s []string) {
	for _, e := range list {
		switch e.Action {
		case store.Commit:
			s = append(s, fmt.Sprint("commit ", e.Version))
		case store.Update:
			old := "nothing"
			if e.Old != nil {
				old = e.Old.Name()
			}
			s = append(s, fmt.Sprintf("update %s %s %s from %s", e.Kind, e.Object.Head().ID, e.Object.Name(), old))
		default:
			s = append(s, fmt.Sprintf("%s %s %s %s", map[store.Action]string{store.Create: "create", store.Delete: "delete"}[e.Action], e.Kind, e.Object.Head().ID, e.Object.Name()))
		}
	}
	return s
}

var errAsked = errors.New("as asked")

// kindCase has what the tests of all tables need of one.
type kindCase struct {
	kind   objects.Kind
	free   bool // two may have one name
	make   func(id, name, value string, number int) objects.Object
	by     map[string]store.By // each selects what was made with the value x and the number 1
	create func(*store.Tx, objects.Object) error
	update func(*store.Tx, objects.Object) error
	remove func(*store.Tx, string) error
	get    func(store.Reader, string) objects.Object
	find   func(store.Reader, store.By) ([]objects.Object, error)
}

func kindOf[T objects.Object](k objects.Kind, table store.Table[T], make func(id, name, value string, number int) T, by map[string]store.By) kindCase {
	return kindCase{
		kind:   k,
		make:   func(id, name, value string, number int) objects.Object { return make(id, name, value, number) },
		by:     by,
		create: func(tx *store.Tx, o objects.Object) error { return table.Create(tx, o.(T)) },
		update: func(tx *store.Tx, o objects.Object) error { return table.Update(tx, o.(T)) },
		remove: table.Delete,
		get: func(r store.Reader, id string) objects.Object {
			if list := table.GetAll(r, id); len(list) == 1 && any(list[0]) == any(table.Get(r, id)) {
				return list[0]
			}
			return nil
		},
		find: func(r store.Reader, by store.By) (list []objects.Object, err error) {
			found, err := table.Find(r, by)
			for _, o := range found {
				list = append(list, o)
			}
			return list, err
		},
	}
}

func header(id string) objects.Header { return objects.Header{ID: id} }

func notes(name, value string) objects.Annotations {
	return objects.Annotations{Name: name, Labels: map[string]string{"l": value}, Indices: []objects.Index{{Key: "other", Value: "o"}, {Key: "key", Value: value}}}
}

func container(value string) swarm.TaskSpec {
	return swarm.TaskSpec{
		Networks: []swarm.NetworkAttachmentConfig{{Target: "n0"}, {Target: value}},
		ContainerSpec: &swarm.ContainerSpec{
			Secrets: []*swarm.SecretReference{{SecretID: value}, {SecretID: "s0"}},
			Configs: []*swarm.ConfigReference{{ConfigID: value}},
		}}
}

// selectors has one selector of each sort, for what was made with the value x and the number 1.
func selectors() map[string]store.By {
	return map[string]store.By{
		"none": {}, "role": store.ByRole(1), "membership": store.ByMembership(1), "runtime": store.ByRuntime("container"),
		"desired": store.ByDesiredState(1), "state": store.ByTaskState(1), "node": store.ByNodeID("x"), "service": store.ByServiceID("x"),
		"slot": store.BySlot("x", 1), "network": store.ByReferencedNetworkID("x"), "secret": store.ByReferencedSecretID("x"),
		"config": store.ByReferencedConfigID("x"), "attachment": store.ByVolumeAttachment("x"), "group": store.ByVolumeGroup("x"),
		"driver": store.ByDriver("x"), "kind": store.ByKind("x"), "custom": store.ByCustom("", "key", "x"),
		"custom prefix": store.ByCustomPrefix("", "key", "x"), "name": store.ByName("First"), "name prefix": store.ByNamePrefix("FIR"), "id prefix": store.ByIDPrefix("a"),
	}
}

func only(names ...string) map[string]store.By {
	all, some := selectors(), map[string]store.By{}
	for _, n := range append(names, "custom", "custom prefix", "name", "id prefix") {
		some[n] = all[n]
	}
	return some
}

var kinds = []kindCase{
	kindOf(objects.KindNode, store.Nodes, func(id, name, v string, n int) *objects.Node {
		return &objects.Node{Header: header(id), Description: &swarm.NodeDescription{Hostname: name}, Role: objects.NodeRole(n),
			Spec: objects.NodeSpec{Annotations: notes("", v), Membership: objects.Membership(n)}}
	}, only("role", "membership", "name prefix")),
	kindOf(objects.KindService, store.Services, func(id, name, v string, n int) *objects.Service {
		s := &objects.Service{Header: header(id), Spec: objects.ServiceSpec{Annotations: notes(name, v), Task: objects.TaskSpec{TaskSpec: container(v)}}}
		if n != 1 {
			s.Spec.Task.ContainerSpec = nil
			s.Spec.Task.Generic = &objects.GenericSpec{Kind: "Container2"}
		}
		return s
	}, only("runtime", "network", "secret", "config", "name prefix")),
	kindOf(objects.KindTask, store.Tasks, func(id, name, v string, n int) *objects.Task {
		t := &objects.Task{Header: header(id), Annotations: notes(name, v), Spec: objects.TaskSpec{TaskSpec: container(v)}, ServiceID: v, NodeID: v,
			Slot: uint64(n), DesiredState: objects.TaskState(n), Status: objects.TaskStatus{State: objects.TaskState(n)},
			Volumes: []swarm.VolumeAttachment{{ID: "v0"}, {ID: v}}}
		if n != 1 {
			t.Spec.NetworkAttachmentSpec = &swarm.NetworkAttachmentSpec{}
		}
		return t
	}, only("runtime", "desired", "state", "node", "service", "slot", "network", "secret", "config", "attachment", "name prefix")),
	kindOf(objects.KindNetwork, store.Networks, func(id, name, v string, n int) *objects.Network {
		return &objects.Network{Header: header(id), Spec: objects.NetworkSpec{Annotations: notes(name, v)}}
	}, only("name prefix")),
	kindOf(objects.KindCluster, store.Clusters, func(id, name, v string, n int) *objects.Cluster {
		return &objects.Cluster{Header: header(id), Spec: objects.ClusterSpec{Annotations: notes(name, v)}}
	}, only("name prefix")),
	kindOf(objects.KindSecret, store.Secrets, func(id, name, v string, n int) *objects.Secret {
		return &objects.Secret{Header: header(id), Spec: objects.SecretSpec{Annotations: notes(name, v), Data: []byte(v)}}
	}, only("name prefix")),
	kindOf(objects.KindConfig, store.Configs, func(id, name, v string, n int) *objects.Config {
		return &objects.Config{Header: header(id), Spec: objects.ConfigSpec{Annotations: notes(name, v), Data: []byte(v)}}
	}, only("name prefix")),
	kindOf(objects.KindVolume, store.Volumes, func(id, name, v string, n int) *objects.Volume {
		o := &objects.Volume{Header: header(id), Spec: objects.VolumeSpec{Annotations: notes(name, v), Driver: &swarm.Driver{Name: v}}}
		o.Spec.Group = v
		return o
	}, only("group", "driver", "name prefix")),
	kindOf(objects.KindExtension, store.Extensions, func(id, name, v string, n int) *objects.Extension {
		return &objects.Extension{Header: header(id), Annotations: notes(name, v)}
	}, only()),
	kindOf(objects.KindResource, store.Resources, func(id, name, v string, n int) *objects.Resource {
		return &objects.Resource{Header: header(id), Annotations: notes(name, v), Type: v}
	}, map[string]store.By{"kind": store.ByKind("x"), "custom": store.ByCustom("x", "key", "x"), "custom prefix": store.ByCustomPrefix("x", "key", "x"),
		"name": store.ByName("First"), "name prefix": store.ByNamePrefix("fiR"), "id prefix": store.ByIDPrefix("a")}),
}

func init() {
	for i := range kinds {
		kinds[i].free = kinds[i].kind == objects.KindNode || kinds[i].kind == objects.KindTask
	}
}

// extensions are what resources with the values x and xy need.
func extensions(t testing.TB, s *store.Store) {
	t.Helper()
	must(t, s, func(tx *store.Tx) error {
		return errors.Join(store.Extensions.Create(tx, &objects.Extension{Header: header("ext1"), Annotations: objects.Annotations{Name: "x"}}),
			store.Extensions.Create(tx, &objects.Extension{Header: header("ext2"), Annotations: objects.Annotations{Name: "xy"}}))
	})
}

var someDay = time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
