package ca_test

import (
	"context"
	"crypto/x509"
	"errors"
	"sync"
	"testing"
	"time"

	"stated.dev/stated/cluster/ca"
)

// clock stands still until it is told to go on.
type clock struct {
	mu      sync.Mutex
	now     time.Time
	waiting chan time.Duration // what somebody waits for; the test answers by advance
	fire    chan time.Time
}

func newClock() *clock {
	return &clock{now: epoch, waiting: make(chan time.Duration), fire: make(chan time.Time)}
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) After(d time.Duration) <-chan time.Time {
	c.waiting <- d
	return c.fire
}

func (c *clock) set(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

// pass lets time pass up to a moment, in the steps that the waiter asks for, and returns once it waits beyond that.
func (c *clock) pass(until time.Time) {
	for d := range c.waiting {
		next := c.Now().Add(d)
		if next.After(until) {
			go func() { c.waiting <- d }() // it waits still
			return
		}
		c.set(next)
		c.fire <- next
	}
}

func TestRenewAt(t *testing.T) {
	root := newRoot()
	for _, life := range []time.Duration{ca.MinLife, ca.DefaultLife} {
		cert := sign(root, worker("n"), life, epoch).chain()[0]
		for jitter, want := range map[float64]time.Duration{0: life / 2, 0.5: life * 65 / 100, 1: life * 8 / 10} {
			if got := ca.RenewAt(cert, jitter).Sub(epoch); (got - want).Abs() > time.Millisecond {
				t.Errorf("life %v, jitter %v: after %v", life, jitter, got)
			}
		}
	}
	short := &x509.Certificate{NotBefore: epoch, NotAfter: epoch.Add(time.Hour)} // not backdated
	if got := ca.RenewAt(short, 0).Sub(epoch); got != 30*time.Minute {
		t.Errorf("after %v", got)
	}
}

// renewing is a host under a renewer.
type renewing struct {
	clock  *clock
	mu     sync.Mutex
	cert   *x509.Certificate
	times  []time.Duration // of attempts
	fails  error           // what renewals come to
	stuck  bool            // they change nothing
	behind time.Duration   // the signer's clock
	failed []error
	nexts  []time.Duration
}

func (r *renewing) current() *x509.Certificate {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cert
}

func (r *renewing) do(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func start(t *testing.T, life time.Duration) (*renewing, *ca.Renewer, context.CancelFunc) {
	root := newRoot()
	r := &renewing{clock: newClock(), cert: sign(root, worker("n"), life, epoch).chain()[0]}
	renewer := ca.NewRenewer(ca.Renewal{
		Clock: r.clock, Jitter: func() float64 { return 0 }, Current: r.current,
		Renew: func(context.Context) error {
			now := r.clock.Now()
			next := sign(root, worker("n"), life, now.Add(-r.behind)).chain()[0]
			r.do(func() {
				r.times = append(r.times, now.Sub(epoch))
				if r.fails == nil && !r.stuck {
					r.cert = next
				}
			})
			return r.fails
		},
		Failed: func(err error, next time.Time) {
			r.failed, r.nexts = append(r.failed, err), append(r.nexts, next.Sub(r.clock.Now()))
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- renewer.Run(ctx) }()
	stop := func() {
		cancel()
		for {
			select {
			case <-r.clock.waiting: // let go; the answer does not matter
				continue
			case err := <-ended:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("ended with %v", err)
				}
				return
			}
		}
	}
	return r, renewer, stop
}

func TestRenewer(t *testing.T) {
	r, _, stop := start(t, 10*time.Hour)
	r.clock.pass(epoch.Add(16 * time.Hour))
	stop()
	want := []time.Duration{5 * time.Hour, 10 * time.Hour, 15 * time.Hour}
	if len(r.times) != 3 || r.times[0] != want[0] || r.times[1] != want[1] || r.times[2] != want[2] || r.failed != nil {
		t.Errorf("renewed at %v, failed %v", r.times, r.failed)
	}
}

func TestRenewerTriesAgain(t *testing.T) {
	for name, fault := range map[string]func(*renewing){
		"fails":           func(r *renewing) { r.fails = errors.New("no manager answers") },
		"changes nothing": func(r *renewing) { r.stuck = true },
	} {
		t.Run(name, func(t *testing.T) {
			r, _, stop := start(t, 10*time.Hour)
			r.do(func() { fault(r) })
			r.clock.pass(epoch.Add(12 * time.Hour)) // beyond its end
			attempts := len(r.times)
			r.do(func() { r.fails, r.stuck = nil, false })
			r.clock.pass(epoch.Add(13 * time.Hour))
			stop()
			if attempts < 10 || attempts > 60 {
				t.Errorf("%d attempts in 7 hours", attempts)
			}
			if r.nexts[0] != time.Second/2 {
				t.Errorf("the first wait is %v", r.nexts[0])
			}
			for i, d := range r.nexts {
				if d > 33*time.Minute/2 || i > 0 && d < r.nexts[i-1] { // half of a twentieth of 11 hours, as jitter has it
					t.Errorf("wait %d is %v", i, d)
				}
			}
			if len(r.failed) != attempts || len(r.times) != attempts+1 {
				t.Errorf("%d failures, %d attempts, %d in all", len(r.failed), attempts, len(r.times))
			}
		})
	}
}

// TestRenewerSignerBehind: a signer that gives certificates which are due at once is not asked without a pause.
func TestRenewerSignerBehind(t *testing.T) {
	r, _, stop := start(t, 10*time.Hour)
	r.behind = 6 * time.Hour
	r.clock.pass(epoch.Add(5*time.Hour + 10*time.Second))
	stop()
	if len(r.times) < 10 || len(r.times) > 12 {
		t.Errorf("renewed %d times", len(r.times))
	}
}

func TestRenewNow(t *testing.T) {
	r, renewer, stop := start(t, 10*time.Hour)
	<-r.clock.waiting
	renewer.RenewNow()
	renewer.RenewNow() // at worst it renews twice
	<-r.clock.waiting
	r.do(func() {
		if len(r.times) == 0 || r.times[0] != 0 {
			t.Errorf("renewed at %v", r.times)
		}
	})
	stop()
}

func TestRenewedByOther(t *testing.T) {
	r, _, stop := start(t, 10*time.Hour)
	r.clock.pass(epoch.Add(2 * time.Hour))
	next := sign(newRoot(), worker("n"), 10*time.Hour, r.clock.Now()).chain()[0]
	r.do(func() { r.cert = next })
	r.clock.pass(epoch.Add(6*time.Hour + 30*time.Minute))
	r.do(func() {
		if len(r.times) != 0 {
			t.Errorf("renewed at %v", r.times)
		}
	})
	r.clock.pass(epoch.Add(8 * time.Hour))
	r.do(func() {
		if len(r.times) != 1 || r.times[0] != 7*time.Hour {
			t.Errorf("renewed at %v", r.times)
		}
	})
	stop()
}
