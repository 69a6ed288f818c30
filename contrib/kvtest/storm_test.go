package kvtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"stated.dev/stated/internal/testenv/scratch"
)

// event is one that the watcher saw.
type event struct {
	answer
	at time.Time
}

// watcher reads all events below a key by one stream after the other, each from the event on that follows the last one.
type watcher struct {
	h       *host
	key     string
	end     context.CancelFunc
	done    chan struct{}
	streams atomic.Int64

	mu     sync.Mutex // guards what follows
	events []event    // without a gap
	next   uint64
	moved  chan struct{}
	err    error
}

// watch begins with the event of an index.
func (h *host) watch(key string, index uint64) *watcher {
	ctx, end := context.WithCancel(context.Background())
	w := &watcher{h: h, key: key, end: end, done: make(chan struct{}), next: index, moved: make(chan struct{})}
	go func() {
		defer close(w.done)
		for ctx.Err() == nil && w.failure() == nil {
			w.stream(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond): // the daemon may be gone just now
			}
		}
	}()
	h.Cleanup(w.stop)
	return w
}

func (w *watcher) stop() {
	w.end()
	<-w.done
}

func (w *watcher) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *watcher) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
		close(w.moved)
		w.moved = make(chan struct{})
	}
}

// stream reads events until the stream ends, as it does with the daemon.
func (w *watcher) stream(ctx context.Context) {
	w.mu.Lock()
	next := w.next
	w.mu.Unlock()
	q := form("wait", "true", "stream", "true", "recursive", "true", "waitIndex", strconv.FormatUint(next, 10))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.h.listen+"/v2/keys"+w.key+"?"+q.Encode(), nil)
	if err != nil {
		w.fail("%w", err)
		return
	}
	resp, err := w.h.http.Do(req)
	if err != nil {
		return // the daemon is gone
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		w.fail("a watch from index %d on: %s", next, resp.Status)
		return
	}
	w.streams.Add(1)
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return // what is no whole line comes again
		}
		e := event{at: time.Now()}
		if err := json.Unmarshal(line, &e.answer); err != nil || e.Node == nil {
			w.fail("the event %.200q: %w", line, err)
			return
		}
		e.Node.shorten()
		e.PrevNode.shorten()
		w.mu.Lock()
		want := w.next
		if e.Node.ModifiedIndex == want {
			w.events = append(w.events, e)
			w.next++
			close(w.moved)
			w.moved = make(chan struct{})
		}
		w.mu.Unlock()
		if e.Node.ModifiedIndex != want {
			w.fail("the watcher saw index %d when it was the turn of %d: %s", e.Node.ModifiedIndex, want, line)
			return
		}
	}
}

// short stands for a value, which may be long. The clients' values differ at their beginning.
func short(value string) string { return fmt.Sprintf("%.20s/%d", value, len(value)) }

func (n *node) shorten() {
	if n != nil && n.Value != nil {
		value := short(*n.Value)
		n.Value = &value
	}
}

// reach waits until the watcher has seen an index, or will see no more.
func (w *watcher) reach(index uint64) {
	for {
		w.mu.Lock()
		seen, moved, err := w.next > index, w.moved, w.err
		w.mu.Unlock()
		if seen || err != nil {
			return
		}
		<-moved
	}
}

// storm is a crowd of clients that write and take down what they were answered.
type storm struct {
	h       *host
	w       *watcher
	stop    chan struct{}
	clients sync.WaitGroup
	highest atomic.Uint64 // of the indexes of all answers so far
	ended   atomic.Int64  // requests without an answer
	done    atomic.Int64  // acknowledged writes

	mu      sync.Mutex // guards what follows
	acked   map[uint64]written
	sent    map[string]bool // values of requests, by their text
	wrong   []string
	expires map[string]time.Time // by value: not earlier than then
}

// written is an acknowledged write.
type written struct{ action, key, value string }

// lag is how many events the clients may be ahead of the watcher: the history has the last thousand.
const lag = 300

func (s *storm) complain(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wrong) < 10 {
		s.wrong = append(s.wrong, fmt.Sprintf(format, args...))
	}
}

// ask makes a request. ok is false when there was no answer.
func (s *storm) ask(method, key string, parameters url.Values) (a answer, ok bool) {
	before := s.highest.Load()
	if value := parameters.Get("value"); value != "" {
		s.mu.Lock()
		s.sent[short(value)] = true
		if ttl, err := strconv.Atoi(parameters.Get("ttl")); err == nil {
			s.expires[short(value)] = time.Now().Add(time.Duration(ttl) * time.Second)
		}
		s.mu.Unlock()
	}
	a, err := s.h.request(method, key, parameters)
	if err != nil {
		if !errors.Is(err, errNotSent) {
			s.ended.Add(1)
		}
		select {
		case <-time.After(5 * time.Millisecond): // the daemon is starting
		case <-s.stop:
		}
		return a, false
	}
	if a.Index < before {
		s.complain("%s %s was answered with index %d after somebody had been answered with %d", method, key, a.Index, before)
	}
	for highest := s.highest.Load(); highest < a.Index && !s.highest.CompareAndSwap(highest, a.Index); highest = s.highest.Load() {
	}
	switch a.ErrorCode {
	case 0:
		if method == http.MethodGet {
			break
		}
		if a.Node.ModifiedIndex <= before {
			s.complain("%s %s got index %d, which had been reached before: %d", method, key, a.Node.ModifiedIndex, before)
		}
		s.done.Add(1)
		a.Node.shorten()
		s.mu.Lock()
		was, used := s.acked[a.Node.ModifiedIndex]
		s.acked[a.Node.ModifiedIndex] = written{a.Action, a.Node.Key, a.Node.value()}
		s.mu.Unlock()
		if used {
			s.complain("index %d was given to %v and to %v", a.Node.ModifiedIndex, was, a.Node)
		}
		if a.Node.ModifiedIndex > lag {
			s.w.reach(a.Node.ModifiedIndex - lag)
		}
	case 100, 101, 105:
	default:
		s.complain("%s %s was answered with %d: %d %s (%s)", method, key, a.Status, a.ErrorCode, a.Message, a.Cause)
	}
	return a, true
}

// client writes until the storm is over. Of the numbered clients the first one writes long values, so that the log grows and
// snapshots are taken.
func (s *storm) client(number int) {
	filler := ""
	if number == 0 {
		filler = strings.Repeat("x", 64<<10)
	}
	random := rand.New(rand.NewPCG(uint64(number), 1))
	for n := 0; ; n++ {
		select {
		case <-s.stop:
			return
		default:
		}
		value := fmt.Sprintf("%d.%d.%s", number, n, filler)
		key := fmt.Sprintf("/storm/%d/%d", number, random.IntN(4))
		switch random.IntN(10) {
		case 0, 1, 2:
			s.ask(http.MethodPut, key, form("value", value))
		case 3, 4:
			s.ask(http.MethodPost, "/storm/queue", form("value", fmt.Sprintf("%d.%d.", number, n)))
		case 5, 6:
			if a, ok := s.ask(http.MethodGet, "/storm/shared", form("quorum", "true")); ok && a.Node != nil {
				s.ask(http.MethodPut, "/storm/shared", form("value", value, "prevIndex", strconv.FormatUint(a.Node.ModifiedIndex, 10)))
			} else if ok {
				s.ask(http.MethodPut, "/storm/shared", form("value", value, "prevExist", "false"))
			}
		case 7:
			s.ask(http.MethodDelete, key, nil)
		case 8:
			s.ask(http.MethodPut, key, form("value", value, "ttl", "3600"))
		case 9:
			s.ask(http.MethodPut, fmt.Sprintf("/storm/short/%d", number), form("value", value, "ttl", "1"))
		}
	}
}

// TestKillStorm kills the daemon again and again while clients write, and then holds the tree and the events against what
// the clients were answered.
func TestKillStorm(t *testing.T) {
	kills, alive := 10, 250*time.Millisecond
	if long() {
		kills, alive = 200, time.Second
	}
	h := startedHost(t)
	first := h.must(http.MethodPut, "/storm/first", "value", "first").Node.ModifiedIndex
	s := &storm{h: h, w: h.watch("/", first), stop: make(chan struct{}), acked: map[uint64]written{first: {"set", "/storm/first", short("first")}},
		sent: map[string]bool{short("first"): true}, expires: map[string]time.Time{}}
	for number := range 8 {
		s.clients.Go(func() { s.client(number) })
	}
	for range kills {
		// Until it has served some, and then at any moment.
		before := s.done.Load()
		scratch.Eventually(t, 30*time.Second, "writes go on after a kill", func() bool { return s.done.Load() > before || s.w.failure() != nil })
		time.Sleep(rand.N(alive))
		h.restart()
	}
	before := s.done.Load()
	scratch.Eventually(t, 30*time.Second, "writes go on after the last kill", func() bool { return s.done.Load() > before+100 || s.w.failure() != nil })
	close(s.stop)
	s.clients.Wait()
	scratch.Eventually(t, 30*time.Second, "keys expire", func() bool { return len(h.tree("/storm/short")) == 0 })
	last := h.must(http.MethodPut, "/storm/last", "value", "last").Node.ModifiedIndex
	s.w.reach(last)
	s.w.stop()
	t.Logf("%d kills, %d acknowledged writes, %d requests without an answer, %d events by %d streams", kills, s.done.Load(), s.ended.Load(), len(s.w.events), s.w.streams.Load())
	s.check(last)
}

// check holds the events, which came without a gap, against what clients were answered, and the tree against both.
func (s *storm) check(last uint64) {
	t := s.h.T
	s.sent[short("last")], s.acked[last] = true, written{"set", "/storm/last", short("last")}
	if s.w.err != nil {
		t.Error(s.w.err)
	}
	for _, w := range s.wrong {
		t.Error(w)
	}
	state, taken := map[string]string{}, map[string]uint64{}
	for _, e := range s.w.events {
		n := e.Node
		got := written{e.Action, n.Key, n.value()}
		if want, ok := s.acked[n.ModifiedIndex]; ok && got != want {
			t.Errorf("index %d was acknowledged as %v, and is %v", n.ModifiedIndex, want, got)
		}
		delete(s.acked, n.ModifiedIndex)
		switch e.Action {
		case "delete":
			delete(state, n.Key)
		case "expire":
			delete(state, n.Key)
			if due := s.expires[e.PrevNode.value()]; due.IsZero() || e.at.Before(due) {
				t.Errorf("%s expired at %v, which was due at %v", n.Key, e.at, due)
			}
		default:
			state[n.Key] = n.value()
			if !s.sent[n.value()] {
				t.Errorf("index %d has a value that nobody sent: %q", n.ModifiedIndex, n.value())
			}
			if was, ok := taken[n.value()]; ok {
				t.Errorf("one request made index %d and %d", was, n.ModifiedIndex)
			}
			taken[n.value()] = n.ModifiedIndex
		}
	}
	if len(s.acked) > 0 {
		t.Errorf("%d acknowledged writes are not among the events, the first with index %d", len(s.acked), slices.Min(slices.Collect(maps.Keys(s.acked))))
	}
	for _, when := range []string{"at the end", "after one more restart"} {
		tree := s.h.tree("/storm")
		for key, value := range tree {
			tree[key] = short(value)
		}
		if !maps.Equal(tree, state) {
			t.Errorf("%s the tree has %d keys, the events make %d, and they differ", when, len(tree), len(state))
		}
		s.h.restart()
	}
}
