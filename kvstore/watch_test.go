package kvstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"stated.dev/stated/kvstore"
)

// next waits for the watcher's next event.
func next(t *testing.T, w *kvstore.Watcher) *kvstore.Event {
	t.Helper()
	e, err := w.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// come returns the events that have come, and the error after them if the watcher has ended.
func come(w *kvstore.Watcher) (events []*kvstore.Event, ended error) {
	for {
		e, err := w.Poll()
		if e == nil {
			return events, err
		}
		events = append(events, e)
	}
}

// TestWatchersOfDifferentSpeeds lets each watcher see every event in order, until it has all or is told that it was too slow.
func TestWatchersOfDifferentSpeeds(t *testing.T) {
	const last, readers, buffer = 3000, 60, 20
	s := kvstore.New(kvstore.Options{WatchBuffer: buffer, Namespaces: []string{"/1"}})
	stop, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var cut atomic.Uint64
	// For some the writer waits whenever it has filled half a buffer, so those must see everything.
	pace, paced := make(chan struct{}), 0
	for i := range readers {
		r := kvstore.WatchRequest{Stream: true, Recursive: i%3 == 0}
		first := uint64(1)
		if i%10 >= 8 { // begins in the future
			r.Since = 500 + uint64(i%2)
			first = r.Since
		}
		w, err := s.Watch("/1/a", r)
		if err != nil {
			t.Fatal(err)
		}
		isPaced := i%4 == 0 && first == 1
		if isPaced {
			paced++
		}
		wg.Go(func() {
			defer w.Close()
			random := rand.New(rand.NewPCG(uint64(i), 1))
			for want := first; want <= last; want++ {
				for range random.IntN(1 + 5*(i%7)) {
					runtime.Gosched()
				}
				e, err := w.Next(t.Context())
				switch {
				case errors.Is(err, kvstore.ErrSlowWatcher) && !isPaced:
					cut.Add(1)
					return
				case err != nil:
					t.Errorf("watcher %d: %v", i, err)
					cancel()
					return
				case e.Index() != want:
					t.Errorf("watcher %d: event %d, want %d", i, e.Index(), want)
					cancel()
					return
				}
				if isPaced && want%(buffer/2) == 0 {
					select {
					case pace <- struct{}{}:
					case <-stop.Done():
						return
					}
				}
			}
			if e, err := w.Poll(); e != nil || err != nil {
				t.Errorf("watcher %d: after the last event: %v, %v", i, e, err)
			}
		})
	}
	// Watchers that come and go, and those that leave while they wait.
	for i := range 4 {
		wg.Go(func() {
			for stop.Err() == nil {
				w, err := s.Watch("/1/a", kvstore.WatchRequest{Stream: i < 2, Recursive: i%2 == 0})
				if err != nil {
					t.Error(err)
					return
				}
				for want := w.StartIndex() + 1; want < w.StartIndex()+10; want++ {
					e, err := w.Next(stop)
					if err != nil {
						if errors.Is(err, kvstore.ErrSlowWatcher) {
							cut.Add(1)
						}
						break
					}
					if e.Index() != want {
						t.Errorf("event %d, want %d", e.Index(), want)
					}
				}
				w.Close()
			}
		})
	}
	for i := range last {
		do(t, s, set("/1/a", fmt.Sprint(i)))
		if (i+1)%(buffer/2) != 0 {
			continue
		}
		for range paced {
			select {
			case <-pace:
			case <-stop.Done():
				t.FailNow()
			}
		}
	}
	cancel()
	wg.Wait()
	if st := s.Stats(); st.Watchers != 0 || st.CutWatchers < cut.Load() {
		t.Errorf("%d watchers are left; %d were cut, and %d were told so", st.Watchers, st.CutWatchers, cut.Load())
	}
	if n := s.WatchedPaths(); n != 0 {
		t.Errorf("the feeds of %d paths are left", n)
	}
	t.Logf("%d watchers were too slow", cut.Load())
}

// TestNextWakes ends the wait of a blocked Next in each way there is, and leaves neither goroutine nor feed.
func TestNextWakes(t *testing.T) {
	restored := kvstore.New(kvstore.Options{})
	var back strings.Builder
	if _, err := restored.Snapshot().WriteTo(&back); err != nil {
		t.Fatal(err)
	}
	cleared := func(err error) bool {
		var e *kvstore.Error
		return errors.As(err, &e) && e.Code == kvstore.CodeWatcherCleared
	}
	for name, c := range map[string]struct {
		wake  func(s *kvstore.Store, w *kvstore.Watcher, cancel func())
		event bool
		is    func(err error) bool
	}{
		"an event": {func(s *kvstore.Store, _ *kvstore.Watcher, _ func()) { do(t, s, set("/1/a", "2")) }, true, func(err error) bool { return err == nil }},
		"Close":    {func(_ *kvstore.Store, w *kvstore.Watcher, _ func()) { w.Close() }, false, func(err error) bool { return err == kvstore.ErrWatchEnded }},
		"ctx":      {func(_ *kvstore.Store, _ *kvstore.Watcher, cancel func()) { cancel() }, false, func(err error) bool { return err == context.Canceled }},
		"a restore": {func(s *kvstore.Store, _ *kvstore.Watcher, _ func()) {
			if err := s.Restore(strings.NewReader(back.String())); err != nil {
				t.Error(err)
			}
		}, false, cleared},
	} {
		for _, stream := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/stream=%v", name, stream), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newStore()
					do(t, s, set("/1/a", "1"))
					r := kvstore.WatchRequest{Stream: stream}
					w, err := s.Watch("/1/a", r)
					if err != nil {
						t.Fatal(err)
					}
					other, err := s.Watch("/1/a", r) // of the same feed
					if err != nil {
						t.Fatal(err)
					}
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					woken, alsoWoken := false, false
					go func() {
						e, err := w.Next(ctx)
						if woken = true; (e != nil) != c.event || !c.is(err) {
							t.Errorf("%v, %v", e, err)
						}
					}()
					go func() {
						// The end of the test's own context closes nothing but this.
						if _, err := other.Next(t.Context()); err != nil && err != kvstore.ErrWatchEnded && !cleared(err) {
							t.Error(err)
						}
						alsoWoken = true
					}()
					synctest.Wait()
					if woken || alsoWoken {
						t.Fatal("Next did not wait")
					}
					c.wake(s, w, cancel)
					synctest.Wait()
					if forAll := name == "an event" || name == "a restore"; !woken || alsoWoken != forAll {
						t.Errorf("woken: %v, and the other watcher: %v", woken, alsoWoken)
					}
					w.Close()
					other.Close()
					synctest.Wait()
					if !alsoWoken || s.WatchedPaths() != 0 || s.Stats().Watchers != 0 {
						t.Errorf("the other watcher has ended: %v; the feeds of %d paths, %d watchers are left", alsoWoken, s.WatchedPaths(), s.Stats().Watchers)
					}
				})
			})
		}
	}
}

// TestFeedsGoWithTheirWatchers closes watchers of all kinds in any order, some of which have ended before.
func TestFeedsGoWithTheirWatchers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		s := newStore()
		do(t, s, set("/1/a", "0"))
		var watchers []*kvstore.Watcher
		for range 40 {
			q := kvstore.WatchRequest{Stream: r.IntN(2) == 0, Recursive: r.IntN(2) == 0, Since: uint64(r.IntN(8))}
			w, err := s.Watch([]string{"/1/a", "/1"}[r.IntN(2)], q)
			if err != nil {
				t.Fatal(err)
			}
			watchers = append(watchers, w)
		}
		for len(watchers) > 0 {
			if r.IntN(10) == 0 {
				do(t, s, set("/1/a", "1"))
			}
			i := r.IntN(len(watchers))
			watchers[i].Close()
			watchers[i] = watchers[len(watchers)-1]
			watchers = watchers[:len(watchers)-1]
		}
		if n, left := s.WatchedPaths(), s.Stats().Watchers; n != 0 || left != 0 {
			t.Fatalf("the feeds of %d paths, %d watchers are left", n, left)
		}
	}
}

// TestWatchFromTheFuture is told nothing before its index, and is not cut for what does not concern it.
func TestWatchFromTheFuture(t *testing.T) {
	s := newStore()
	watch := func(stream bool) *kvstore.Watcher {
		w, err := s.Watch("/1/a", kvstore.WatchRequest{Stream: stream, Since: 500})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	once, stream := watch(false), watch(true)
	for range 499 {
		do(t, s, set("/1/a", "v"))
	}
	if n := s.Stats().Watchers; n != 2 {
		t.Errorf("%d watchers, want both", n)
	}
	do(t, s, set("/1/a", "v"), set("/1/a", "v"))
	if n := s.Stats().Watchers; n != 1 {
		t.Errorf("%d watchers, want one", n)
	}
	if events, err := come(once); len(events) != 1 || events[0].Index() != 500 || err != kvstore.ErrWatchEnded {
		t.Errorf("once: %s, %v", wire(t, events), err)
	}
	if events, err := come(stream); len(events) != 2 || events[0].Index() != 500 || err != nil {
		t.Errorf("stream: %s, %v", wire(t, events), err)
	}
}

// TestUnreadEventsOutliveTheFeed reads what came before a restore that the watcher cannot follow, and then why it ended.
func TestUnreadEventsOutliveTheFeed(t *testing.T) {
	s := newStore()
	old, err := s.Save()
	if err != nil {
		t.Fatal(err)
	}
	do(t, s, set("/1/a", "1"))
	w, err := s.Watch("/1/a", kvstore.WatchRequest{Stream: true, Since: 1})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 { // as many as are kept
		do(t, s, set("/1/a", "v"))
	}
	if err := s.Recovery(old); err != nil {
		t.Fatal(err)
	}
	events, ended := come(w)
	for i, e := range events {
		if e.Index() != uint64(i)+1 {
			t.Errorf("event %d is %d", i, e.Index())
		}
	}
	var cleared *kvstore.Error
	if len(events) != 101 || !errors.As(ended, &cleared) || cleared.Code != kvstore.CodeWatcherCleared {
		t.Errorf("%d events, then %v", len(events), ended)
	}
}

// TestReadEventsAreFreed keeps no event for watchers that have read it and wait for the next, and only so many for one that
// never reads.
func TestReadEventsAreFreed(t *testing.T) {
	alive := func(unread bool) int {
		s := kvstore.New(kvstore.Options{WatchBuffer: 10, HistoryEvents: 1})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		seen := make(chan struct{})
		for range 3 {
			w, err := s.Watch("/a", kvstore.WatchRequest{Stream: true})
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer w.Close()
				for {
					if _, err := w.Next(ctx); err != nil {
						return
					}
					seen <- struct{}{}
				}
			})
		}
		if unread {
			w, err := s.Watch("/a", kvstore.WatchRequest{Stream: true})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
		}
		const sets = 50
		freed := make(chan struct{}, sets)
		for range sets {
			e := do(t, s, set("/a", "v"))
			runtime.AddCleanup(e, func(struct{}) { freed <- struct{}{} }, struct{}{})
			for range 3 {
				<-seen
			}
		}
		n := sets
		for deadline := time.Now().Add(10 * time.Second); n > map[bool]int{false: 1, true: 12}[unread] && time.Now().Before(deadline); {
			runtime.GC()
			for len(freed) > 0 {
				<-freed
				n--
			}
			runtime.Gosched()
		}
		return n
	}
	if n := alive(false); n != 1 {
		t.Errorf("%d events are kept when all have read them, want the history's one", n)
	}
	// What is kept, and the one where the watcher stands.
	if n := alive(true); n > 12 {
		t.Errorf("%d events are kept for a watcher that never reads, want at most 12", n)
	}
}
