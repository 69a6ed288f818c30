package kvstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"stated.dev/stated/kvstore"
)

// fakeLog commits in memory, to any number of replicas, and can lie.
type fakeLog struct {
	mu       sync.Mutex
	replicas []*kvstore.Replica
	commands [][]byte

	// lie says what becomes of the n-th proposal, from 1 on.
	lie     func(n int) fate
	n       int
	leading bool
	changed chan struct{}
}

type fate struct {
	delay  time.Duration
	drop   bool  // not committed
	repeat bool  // committed twice
	fail   bool  // an error is returned whether committed or not
	refuse error // instead of all that
}

var errAmbiguous = errors.New("leadership was lost")

func newLog(leading bool, replicas ...*kvstore.Replica) *fakeLog {
	l := &fakeLog{replicas: replicas, leading: leading, changed: make(chan struct{})}
	for _, r := range replicas {
		r.Attach(l)
	}
	return l
}

func (l *fakeLog) Propose(ctx context.Context, command []byte) (any, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	var f fate
	if l.lie != nil {
		f = l.lie(l.n)
	}
	if f.delay > 0 {
		l.mu.Unlock()
		time.Sleep(f.delay) // in a bubble: no test waits for it
		l.mu.Lock()
	}
	if f.refuse != nil {
		return nil, f.refuse
	}
	var result any
	for range map[bool]int{false: 1, true: 2}[f.repeat] {
		if f.drop {
			break
		}
		l.commands = append(l.commands, command)
		for i, r := range l.replicas {
			if answer := r.Apply(command); i == 0 {
				result = answer
			}
		}
	}
	if f.drop || f.fail {
		return nil, errAmbiguous
	}
	return result, ctx.Err()
}

func (l *fakeLog) Leading() (bool, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leading, l.changed
}

func (l *fakeLog) lead(leading bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leading = leading
	close(l.changed)
	l.changed = make(chan struct{})
}

// refuse makes the log refuse all proposals with an error, or none.
func (l *fakeLog) refuse(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lie = func(int) fate { return fate{refuse: err} }
}

func (l *fakeLog) committed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.commands)
}

func (l *fakeLog) ReadIndex(ctx context.Context) error { return ctx.Err() }

func newReplica(client uint64, now func() time.Time, log io.Writer) *kvstore.Replica {
	return kvstore.NewReplica(newStore(), kvstore.ReplicaOptions{Client: client, Now: now, Logger: slog.New(slog.NewTextHandler(log, nil))})
}

func seconds(n int) *time.Duration {
	d := time.Duration(n) * time.Second
	return &d
}

// run starts the replica's own work and returns what ends it.
func run(t *testing.T, r *kvstore.Replica) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	}
}

// TestLyingLog drops, repeats, delays and fails proposals, and counts what came of them.
func TestLyingLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newReplica(1, time.Now, t.Output()), newReplica(2, time.Now, t.Output())
		l := newLog(true, a, b)
		l.lie = func(n int) fate {
			return [...]fate{{}, {drop: true}, {repeat: true}, {fail: true}, {fail: true, repeat: true}, {delay: time.Second}, {delay: 3 * time.Second, fail: true}}[n*5%7]
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		seen := make(map[string]bool)
		for writer := range 8 {
			wg.Go(func() {
				for i := range 25 {
					e, err := a.Do(t.Context(), kvstore.Command{Op: kvstore.OpCreate, Path: "/1/q", Unique: true, Value: fmt.Sprintf("%d.%d", writer, i)})
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					if seen[e.Node.Key] {
						t.Errorf("two commands had the result %s", e.Node.Key)
					}
					seen[e.Node.Key] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if got := a.Store().Index(); got != 200 {
			t.Errorf("200 commands made %d changes", got)
		}
		if dump(t, a.Store()) != dump(t, b.Store()) {
			t.Error("the replicas differ")
		}
		// An error of the store is a result as any other, and is remembered.
		first := true
		l.lie = func(int) fate { f := fate{fail: first, repeat: true}; first = false; return f }
		var e *kvstore.Error
		if _, err := a.Do(t.Context(), kvstore.Command{Op: kvstore.OpUpdate, Path: "/1/none"}); !errors.As(err, &e) || e.Code != kvstore.CodeKeyNotFound {
			t.Errorf("got %v", err)
		}
		if n := a.Store().Stats().UpdateFail; n != 1 {
			t.Errorf("the command failed %d times", n)
		}
	})
}

func TestProposalThatNeverSucceeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(1, time.Now, t.Output())
		l := newLog(true, r)
		l.lie = func(int) fate { return fate{drop: true} }
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := r.Do(ctx, set("/1/a", "v"))
		var e *kvstore.Error
		if !errors.As(err, &e) || e.Code != kvstore.CodeRaftInternal || e.Cause != errAmbiguous.Error() {
			t.Errorf("got %v", err)
		}
		if _, err := r.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: strings.Repeat("/a", 5000)}); err == nil {
			t.Error("a command beyond the limits was proposed")
		}
	})
}

// TestRefusedProposal: what the log has certainly not taken is answered with the reason, not asked for again; what it may
// take in a moment is asked for again.
func TestRefusedProposal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(1, time.Now, t.Output())
		l := newLog(true, r)
		full := fmt.Errorf("no space: %w", kvstore.ErrLogRefused)
		l.lie = func(n int) fate { return fate{refuse: [...]error{errAmbiguous, errAmbiguous, full}[n-1]} }
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := r.Do(ctx, set("/1/a", "v"))
		var e *kvstore.Error
		if !errors.As(err, &e) || e.Code != kvstore.CodeRaftInternal || e.Cause != full.Error() || ctx.Err() != nil {
			t.Errorf("got %v, and the context %v", err, ctx.Err())
		}
		if l.n != 3 {
			t.Errorf("%d proposals were made, want two and the one that was refused", l.n)
		}
		l.lie = nil
		if _, err := r.Do(ctx, set("/1/a", "v")); err != nil {
			t.Errorf("with room again: %v", err)
		}
	})
}

// TestExpiryThatIsRefused: keys stay as long as the log refuses their removal, which is logged once each time it begins.
func TestExpiryThatIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		r := newReplica(1, time.Now, &log)
		l := newLog(true, r)
		stop := run(t, r)
		for n := 1; n <= 2; n++ {
			c := set("/1/a", "v")
			c.TTL = seconds(1)
			if _, err := r.Do(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			l.refuse(fmt.Errorf("no space: %w", kvstore.ErrLogRefused))
			time.Sleep(time.Minute) // in a bubble: no test waits for it
			if _, err := r.Store().Get("/1/a", kvstore.GetRequest{}); err != nil {
				t.Errorf("a key went that could not be removed: %v", err)
			}
			l.refuse(nil)
			time.Sleep(time.Second)
			if _, err := r.Store().Get("/1/a", kvstore.GetRequest{}); err == nil {
				t.Error("the key is still there when the log takes commands again")
			}
			if got := strings.Count(log.String(), "no space"); got != n {
				t.Errorf("the failure was logged %d times, want %d:\n%s", got, n, log.String())
			}
		}
		stop()
	})
}

// TestLateRepeat applies a command once more after its client has given up on it.
func TestLateRepeat(t *testing.T) {
	r := newReplica(1, time.Now, t.Output())
	l := newLog(true, r)
	for range 3 {
		if _, err := r.Do(t.Context(), set("/1/a", "v")); err != nil {
			t.Fatal(err)
		}
	}
	late := r.Apply(l.commands[0]).(*kvstore.Result)
	if late.Err == nil || r.Store().Index() != 3 {
		t.Errorf("the late repeat gave %+v, index %d", late, r.Store().Index())
	}
	if result := r.Apply([]byte("no command")).(*kvstore.Result); result.Err == nil {
		t.Error("bytes that are no command were applied")
	}
}

func TestExpiryIsProposedOnTheGrid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newReplica(1, time.Now, t.Output()), newReplica(2, time.Now, t.Output())
		l := newLog(true, a, b)
		defer run(t, a)()
		start := time.Now() // a whole second, in a bubble
		w, err := b.Store().Watch("/1", kvstore.WatchRequest{Recursive: true, Stream: true})
		if err != nil {
			t.Fatal(err)
		}
		ttl := 1700 * time.Millisecond
		for _, key := range []string{"/1/a", "/1/b"} {
			if _, err := a.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: key, TTL: &ttl}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: "/1/c", TTL: seconds(3600)}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			next(t, w)
		}
		for _, want := range []struct {
			key   string
			after time.Duration
		}{{"/1/a", 2 * time.Second}, {"/1/b", 2 * time.Second}, {"/1/c", time.Hour}} {
			e := next(t, w)
			if e.Action != kvstore.ActionExpire || e.Node.Key != want.key || time.Since(start) != want.after {
				t.Errorf("after %v: %s, want %s after %v", time.Since(start), wire(t, e), want.key, want.after)
			}
		}
		// An idle store proposes nothing: three sets, and one expiry for each due moment.
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if n := l.committed(); n != 5 {
			t.Errorf("%d commands, want 5", n)
		}
	})
}

func TestOnlyTheLeaderProposesExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(1, time.Now, t.Output())
		l := newLog(false, r)
		stop := run(t, r)
		if _, err := r.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: "/1/a", TTL: seconds(1)}); err != nil {
			t.Fatal(err)
		}
		if !r.Store().Time().IsZero() {
			t.Error("a follower's time moved the store's clock")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := l.committed(); n != 1 {
			t.Errorf("%d commands, want 1", n)
		}
		// A proposal that fails is made again at the next point of the grid.
		fails := 3
		l.lie = func(int) fate { fails--; return fate{drop: fails >= 0} }
		l.lead(true)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if _, err := r.Get(t.Context(), "/1/a", kvstore.GetRequest{}); err == nil {
			t.Error("the key is still there")
		}
		if n := l.committed(); n != 2 {
			t.Errorf("%d commands, want 2", n)
		}
		stop()
	})
}

func TestClockThatJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var offset time.Duration
		var mu sync.Mutex
		jump := func(d time.Duration) { mu.Lock(); offset += d; mu.Unlock() }
		var log bytes.Buffer
		r := newReplica(1, func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(offset) }, &log)
		newLog(true, r)
		defer run(t, r)()
		put := func(ttl int) *kvstore.Event {
			e, err := r.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: "/1/a", TTL: seconds(ttl)})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		alive := func() bool { _, err := r.Store().Get("/1/a", kvstore.GetRequest{}); return err == nil }

		put(60)
		jump(-time.Hour) // neither keeps the key for an hour nor lets it go early
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if !alive() {
			t.Error("after a jump back the key expired early")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if alive() {
			t.Error("after a jump back the key outlived its time")
		}

		before := put(60)
		jump(time.Hour) // where it was
		jump(time.Hour)
		after := put(60)
		if d := after.Node.Expiration.Sub(before.Node.Expiration); d != 0 {
			t.Errorf("a jump forward moved the clock by %v at once", d)
		}
		synctest.Wait()
		if n := strings.Count(log.String(), "ahead of the key store"); n != 1 {
			t.Errorf("the jump was logged %d times: %s", n, log.String())
		}
		time.Sleep(30 * time.Second) // 45 by a clock that catches up
		synctest.Wait()
		if !alive() {
			t.Error("a jump forward hurried the key")
		}
		time.Sleep(3 * time.Hour)
		synctest.Wait()
		wall := time.Now().Add(time.Hour)
		if e := put(0); e.Node.Expiration.Sub(wall) < -time.Second || e.Node.Expiration.Sub(wall) > time.Second {
			t.Errorf("the clock has not caught up: %v, the wall's is %v", e.Node.Expiration, wall)
		}
	})
}

// TestNewLeaderWithAnotherClock hands the lead to a host whose clock is a day ahead, and back.
func TestNewLeaderWithAnotherClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		a := newReplica(1, time.Now, t.Output())
		b := newReplica(2, func() time.Time { return time.Now().Add(24 * time.Hour) }, &log)
		l := newLog(true, a, b)
		put := func(r *kvstore.Replica) time.Time {
			e, err := r.Do(t.Context(), kvstore.Command{Op: kvstore.OpSet, Path: "/1/a", TTL: seconds(600)})
			if err != nil {
				t.Fatal(err)
			}
			return e.Node.Expiration
		}
		first := put(a)
		l.mu.Lock()
		l.replicas[0], l.replicas[1] = b, a
		l.mu.Unlock()
		time.Sleep(10 * time.Second)
		if d := put(b).Sub(first); d < 10*time.Second || d > 16*time.Second {
			t.Errorf("the new leader's clock is %v later after 10 s", d)
		}
		if !strings.Contains(log.String(), "ahead") {
			t.Error("the jump was not logged")
		}
	})
}

func TestReplicaSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, late := newReplica(1, time.Now, t.Output()), newReplica(2, time.Now, t.Output()), newReplica(3, time.Now, t.Output())
		l := newLog(true, a, b)
		for i := range 50 {
			if _, err := a.Do(t.Context(), kvstore.Command{Op: kvstore.OpCreate, Path: "/1/q", Unique: true, TTL: seconds(i)}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := a.Do(t.Context(), mkdir("/1/q")); err == nil {
			t.Fatal("the directory was made again")
		}
		last := l.commands[len(l.commands)-1]
		want := wire(t, a.Apply(last).(*kvstore.Result).Err)
		p := b.Snapshot()
		if p.Index() != 50 {
			t.Errorf("index %d", p.Index())
		}
		var stream bytes.Buffer
		if _, err := p.WriteTo(&stream); err != nil {
			t.Fatal(err)
		}
		p.Release()
		for _, at := range []int{0, 4, 7, 20, stream.Len() / 2, stream.Len() - 1} {
			if err := late.Restore(bytes.NewReader(stream.Bytes()[:at])); err == nil || late.Store().Index() != 0 {
				t.Errorf("a stream that was cut at %d was taken", at)
			}
		}
		if err := late.Restore(&stream); err != nil {
			t.Fatal(err)
		}
		// The restored machine knows results, too.
		if got := wire(t, late.Apply(last).(*kvstore.Result).Err); got != want || !strings.Contains(got, `"cause":"/1/q"`) {
			t.Errorf("a repeat gave %s, want %s", got, want)
		}
		if dump(t, late.Store()) != dump(t, a.Store()) {
			t.Error("the restored store differs")
		}
		at, _ := late.Store().NextExpiry()
		if want, _ := a.Store().NextExpiry(); !at.Equal(want) || !late.Store().Time().Equal(a.Store().Time()) {
			t.Error("the restored store's times differ")
		}
	})
}

// TestManyClients forgets clients that were silent for longest, alike on all hosts.
func TestManyClients(t *testing.T) {
	a, b := newReplica(1, time.Now, t.Output()), newReplica(2, time.Now, t.Output())
	for i := range uint64(600) {
		command := kvstore.Command{Op: kvstore.OpSet, Path: "/1/a", Time: noon, Client: 10 + i, Sequence: 1, Acked: 1}.Append(nil)
		a.Apply(command)
		b.Apply(command)
	}
	for i := range uint64(600) {
		command := kvstore.Command{Op: kvstore.OpSet, Path: "/1/a", Time: noon, Client: 609 - i, Sequence: 1, Acked: 1}.Append(nil)
		a.Apply(command)
		b.Apply(command)
	}
	if a.Store().Index() != b.Store().Index() || a.Store().Index() != 600+600-256 {
		t.Errorf("indexes %d and %d", a.Store().Index(), b.Store().Index())
	}
}
