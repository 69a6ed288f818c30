package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"stated.dev/stated/cluster/objects"
	"stated.dev/stated/cluster/store"
)

const benchNodes = 100000

func benchName(i int) string { return fmt.Sprintf("name-%06d", i) }

func benchNode(i int) *objects.Node { return node(fmt.Sprintf("id-%06d", i), benchName(i)) }

// fillNodes makes nodes in batches.
func fillNodes(b *testing.B, s *store.Store, n int) {
	b.Helper()
	if err := s.Batch(b.Context(), func(batch *store.Batching) error {
		for i := range n {
			if err := batch.Update(func(tx *store.Tx) error { return store.Nodes.Create(tx, benchNode(i)) }); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCreateInBatches has one of 100,000 nodes as its operation.
func BenchmarkCreateInBatches(b *testing.B) {
	b.ReportAllocs()
	for n := 0; n < b.N; n += benchNodes {
		fillNodes(b, store.New(store.Options{}), min(benchNodes, b.N-n))
	}
}

func BenchmarkOneTransaction(b *testing.B) {
	for _, what := range []string{"create", "update"} {
		b.Run(what, func(b *testing.B) {
			b.ReportAllocs()
			s := store.New(store.Options{})
			if what == "update" {
				fillNodes(b, s, benchNodes)
			}
			b.ResetTimer()
			if err := s.Update(b.Context(), func(tx *store.Tx) (err error) {
				for i := range b.N {
					if what == "create" {
						err = store.Nodes.Create(tx, benchNode(i))
					} else {
						err = store.Nodes.Update(tx, benchNode(i%benchNodes))
					}
					if err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkOwnTransaction has a transaction for each change.
func BenchmarkOwnTransaction(b *testing.B) {
	b.Run("update node", func(b *testing.B) {
		b.ReportAllocs()
		s := store.New(store.Options{})
		fillNodes(b, s, benchNodes)
		for i := 0; b.Loop(); i++ {
			if err := s.Update(b.Context(), func(tx *store.Tx) error { return store.Nodes.Update(tx, benchNode(i%benchNodes)) }); err != nil {
				b.Fatal(err)
			}
		}
	})
	s := fillTasks(b)
	b.Run("create task", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if err := s.Update(b.Context(), func(tx *store.Tx) error {
				t := benchTask(i)
				t.ID = objects.NewID()
				return store.Tasks.Create(tx, t)
			}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("update task", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if err := s.Update(b.Context(), func(tx *store.Tx) error { return store.Tasks.Update(tx, benchTask(i%benchNodes)) }); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	s := store.New(store.Options{})
	fillNodes(b, s, benchNodes)
	names := make([]string, 1024)
	ids := make([]string, 1024)
	for i := range names {
		names[i], ids[i] = benchName(i*97), benchNode(i*97).ID
	}
	s.View(func(tx *store.ReadTx) {
		b.Run("get", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if store.Nodes.Get(tx, ids[i%1024]) == nil {
					b.Fatal("nothing")
				}
			}
		})
		b.Run("find by name", func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if list, err := store.Nodes.Find(tx, store.ByName(names[i%1024])); len(list) != 1 || err != nil {
					b.Fatal(list, err)
				}
			}
		})
		b.Run("find an absent name", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if list, err := store.Nodes.Find(tx, store.ByName("name-999999")); len(list) != 0 || err != nil {
					b.Fatal(list, err)
				}
			}
		})
		b.Run("find all of 100000", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if list, err := store.Nodes.Find(tx, store.All()); len(list) != benchNodes || err != nil {
					b.Fatal(len(list), err)
				}
			}
		})
	})
	b.Run("view and get", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			s.View(func(tx *store.ReadTx) {
				if store.Nodes.Get(tx, ids[i%1024]) == nil {
					b.Fatal("nothing")
				}
			})
		}
	})
}

// benchTask is one of a service with 100 tasks, on one of 100 nodes.
func benchTask(i int) *objects.Task {
	return &objects.Task{
		Header:             objects.Header{ID: fmt.Sprintf("task-%020d", i)},
		ServiceAnnotations: objects.Annotations{Name: fmt.Sprintf("service-%d", i/100), Labels: map[string]string{"stack": "web"}},
		Spec: objects.TaskSpec{TaskSpec: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{Image: "docker.io/library/nginx:1.29", Labels: map[string]string{"a": "b"}, Env: []string{"A=1", "B=2"}},
			Networks:      []swarm.NetworkAttachmentConfig{{Target: fmt.Sprintf("network-%d", i%10)}},
		}},
		ServiceID: fmt.Sprintf("service-%020d", i/100), Slot: uint64(i%100 + 1), NodeID: fmt.Sprintf("node-%020d", i%100),
		Status:       objects.TaskStatus{Timestamp: someDay, State: objects.TaskRunning, Message: "started", Container: &swarm.ContainerStatus{ContainerID: "0123456789012345678901234567890123456789012345678901234567890123", PID: 1234}},
		DesiredState: objects.TaskRunning,
	}
}

func fillTasks(b *testing.B) *store.Store {
	b.Helper()
	s := store.New(store.Options{})
	if err := s.Update(b.Context(), func(tx *store.Tx) (err error) {
		for i := range benchNodes {
			err = errors.Join(err, store.Tasks.Create(tx, benchTask(i)))
		}
		return err
	}); err != nil {
		b.Fatal(err)
	}
	return s
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkTasks has 100,000 tasks: what they take, how they are found, written and restored.
func BenchmarkTasks(b *testing.B) {
	before := heap()
	s := fillTasks(b)
	perTask := float64(heap()-before) / benchNodes
	s.View(func(tx *store.ReadTx) {
		for name, c := range map[string]struct {
			by   store.By
			want int
		}{"by service (100)": {store.ByServiceID(fmt.Sprintf("service-%020d", 7)), 100}, "by node (1000)": {store.ByNodeID(fmt.Sprintf("node-%020d", 7)), 1000}} {
			b.Run(name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if list, err := store.Tasks.Find(tx, c.by); len(list) != c.want || err != nil {
						b.Fatal(len(list), err)
					}
				}
			})
		}
	})
	var out bytes.Buffer
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			out.Reset()
			if _, err := s.Snapshot().WriteTo(&out); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(out.Len())/benchNodes, "B/task")
	})
	runtime.KeepAlive(s)
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			if err := store.New(store.Options{}).Restore(bytes.NewReader(out.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(perTask, "heap-B/task")
	})
	b.Run("snapshot", func(b *testing.B) {
		for b.Loop() {
			s.Snapshot()
		}
	})
}

// BenchmarkRealLog has one voter on a disk.
func BenchmarkRealLog(b *testing.B) {
	for _, writers := range []int{1, 8} {
		b.Run(fmt.Sprint(writers, " writers"), func(b *testing.B) {
			m, end := openLog(b, b.TempDir())
			defer end()
			began := time.Now()
			b.ResetTimer()
			work := make(chan int)
			done := make(chan error, writers)
			for range writers {
				go func() {
					var err error
					for range work {
						n := node(objects.NewID(), "n")
						err = errors.Join(err, m.Update(context.Background(), func(tx *store.Tx) error { return store.Nodes.Create(tx, n) }))
					}
					done <- err
				}()
			}
			for i := range b.N {
				work <- i
			}
			close(work)
			for range writers {
				if err := <-done; err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "updates/s")
		})
	}
}
