// Package events distributes what happened in the daemon to the clients of GET /events.
//
// An event is encoded once, when it is published, and kept in a list that all subscriptions walk at their own pace:
// publishing never waits for a reader, and a reader misses nothing unless it falls so far behind that it is cut off.
// The newest events stay for those who ask for the past.
//
// The package knows nothing of what the events are about and keeps nothing across a restart. One mutex guards the
// ends of the list; what is in the list is never changed, only linked to its successor under the mutex.
package events

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/filters"
)

const (
	// Kept is the number of past events that can be asked for. Docker keeps 256.
	Kept = 2048
	// MaxBehind is about the number of events a subscription may be behind before it is cut off, so that a reader who
	// hangs does not keep all events in memory.
	MaxBehind = 1 << 14
	// cutEvery is the number of events after which those who are too far behind are looked for.
	cutEvery = 1 << 8
	// maxCoalesced is the size from which Next returns what it has gathered.
	maxCoalesced = 64 << 10
)

// The scopes of an event.
const (
	ScopeLocal = "local"
	ScopeSwarm = "swarm"
)

// ErrBehind ends a subscription whose reader was too slow.
var ErrBehind = fmt.Errorf("events were read too slowly: %w", errdefs.ErrUnavailable)

// event is one element of the list.
type event struct {
	events.Message
	seq     uint64
	encoded []byte // with its newline
	next    *event // guarded by Bus.mu
}

// Bus is a list of events and those who read it.
type Bus struct {
	mu     sync.Mutex // guards all below, event.next and Subscription.last; held for a few assignments only
	before *event     // the element in front of the oldest that is kept
	newest *event
	nano   int64         // timestamp of newest
	wake   chan struct{} // closed by the next event; nil when nobody waits
	subs   map[*Subscription]struct{}
	closed bool
}

// New returns an empty bus.
func New() *Bus {
	start := &event{} // never shown to anybody
	return &Bus{before: start, newest: start, subs: map[*Subscription]struct{}{}}
}

// Publish records an event about the object with this id. The attributes are not to be changed afterwards. Config,
// node, secret and service events belong to the swarm, all others are local.
func (b *Bus) Publish(typ events.Type, action events.Action, id string, attrs map[string]string) {
	scope := ScopeLocal
	switch typ {
	case events.ConfigEventType, events.NodeEventType, events.SecretEventType, events.ServiceEventType:
		scope = ScopeSwarm
	}
	b.PublishScoped(scope, typ, action, id, attrs)
}

// PublishScoped is Publish with a scope of the caller's choice.
func (b *Bus) PublishScoped(scope string, typ events.Type, action events.Action, id string, attrs map[string]string) {
	if attrs == nil {
		attrs = map[string]string{}
	}
	e := &event{Message: events.Message{
		Type: typ, Action: action, Actor: events.Actor{ID: id, Attributes: attrs}, Scope: scope,
	}}
	body := encodeActor(e.Message) // outside of the mutex: all but the time is known

	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	// Two events never have one time: it is what a client gives to go on where it stopped.
	b.nano = max(time.Now().UnixNano(), b.nano+1)
	e.TimeNano, e.Time = b.nano, b.nano/int64(time.Second)
	e.encoded = appendTime(body, e.Time, e.TimeNano)
	e.seq = b.newest.seq + 1
	b.newest.next = e
	b.newest = e
	if e.seq-b.before.seq > Kept {
		b.before = b.before.next
	}
	if e.seq%cutEvery == 0 {
		for s := range b.subs {
			if s.last != nil && e.seq-s.last.seq > MaxBehind {
				s.last = nil // what only it still held is free
			}
		}
	}
	b.wakeLocked()
}

// wakeLocked wakes those who wait for the next event.
func (b *Bus) wakeLocked() {
	if b.wake != nil {
		close(b.wake)
		b.wake = nil
	}
}

// Close ends all subscriptions once they have read what was published.
func (b *Bus) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.wakeLocked()
	return nil
}

// encodeActor encodes a message as Docker does, up to and without its time. Events of containers and images begin
// with the fields that they had before other things had events.
func encodeActor(m events.Message) []byte {
	var legacy struct {
		Status string `json:"status,omitempty"`
		ID     string `json:"id,omitempty"`
		From   string `json:"from,omitempty"`
		Type   events.Type
		Action events.Action
		Actor  events.Actor
		Scope  string `json:"scope,omitempty"`
	}
	legacy.Type, legacy.Action, legacy.Actor, legacy.Scope = m.Type, m.Action, m.Actor, m.Scope
	switch m.Type {
	case events.ContainerEventType:
		legacy.Status, legacy.ID, legacy.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
	case events.ImageEventType:
		legacy.Status, legacy.ID = string(m.Action), m.Actor.ID
	}
	b, err := json.Marshal(legacy)
	if err != nil {
		panic(err) // strings and a map of strings can always be encoded
	}
	return b
}

func appendTime(object []byte, seconds, nano int64) []byte {
	object = object[:len(object)-1]
	return fmt.Appendf(object, ",\"time\":%d,\"timeNano\":%d}\n", seconds, nano)
}

// SubscribeRequest says which events are wanted.
type SubscribeRequest struct {
	Since, Until time.Time // zero: from now on; without end
	Filters      filters.Args
}

// Subscription is one reader's place in the list. It is used by one goroutine.
type Subscription struct {
	bus   *Bus
	match *matcher
	since int64
	until time.Time
	past  int64 // events up to this time were there before the subscription
	buf   []byte

	last *event // the last one that was looked at; nil when the reader was cut off; guarded by Bus.mu
}

// Subscribe begins a subscription that is kept until ctx ends. With Since or Until the events that are kept and fit
// come first.
func (b *Bus) Subscribe(ctx context.Context, req SubscribeRequest) (*Subscription, error) {
	s := &Subscription{bus: b, match: newMatcher(req.Filters), until: req.Until}
	if !req.Since.IsZero() {
		s.since = req.Since.UnixNano()
	}
	b.mu.Lock()
	s.past = b.nano
	s.last = b.before
	if req.Since.IsZero() && req.Until.IsZero() {
		s.last = b.newest
	}
	b.subs[s] = struct{}{}
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs, s)
	})
	return s, nil
}

// Subscribers returns the number of subscriptions.
func (b *Bus) Subscribers() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs)
}

// Next returns one event or several, each a JSON object and a newline. It waits for at least one. The bytes are valid
// until the next call. It returns io.EOF after Until and when the bus was closed, and ErrBehind when the reader was
// too slow for its subscription to be kept.
func (s *Subscription) Next(ctx context.Context) ([]byte, error) {
	s.buf = s.buf[:0]
	var expired <-chan time.Time
	if !s.until.IsZero() {
		timer := time.NewTimer(time.Until(s.until))
		defer timer.Stop()
		expired = timer.C
	}
	for {
		batch, wake, err := s.take()
		if err != nil {
			return nil, err
		}
		for _, e := range batch {
			if s.wants(e) {
				s.buf = append(s.buf, e.encoded...)
			}
		}
		switch {
		case len(s.buf) >= maxCoalesced:
			return s.buf, nil
		case len(batch) > 0:
			continue
		case len(s.buf) > 0:
			return s.buf, nil
		case wake == nil, !s.until.IsZero() && !time.Now().Before(s.until):
			return nil, io.EOF
		}
		select {
		case <-wake:
		case <-expired:
			return nil, io.EOF
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take returns some of the events that are there. When there are none it returns a channel that the next one closes,
// or nil when there will be none.
func (s *Subscription) take() (batch []*event, wake <-chan struct{}, err error) {
	const most = 256 // so that the mutex is not held for long
	b := s.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.last == nil {
		return nil, nil, ErrBehind
	}
	for s.last.next != nil && len(batch) < most {
		s.last = s.last.next
		batch = append(batch, s.last)
	}
	if len(batch) > 0 || b.closed {
		return batch, nil, nil
	}
	if b.wake == nil {
		b.wake = make(chan struct{})
	}
	return nil, b.wake, nil
}

// wants reports whether an event fits. The times bound what was there before the subscription; what comes later ends
// with it.
func (s *Subscription) wants(e *event) bool {
	if e.TimeNano <= s.past {
		if e.TimeNano < s.since {
			return false
		}
		if !s.until.IsZero() && e.TimeNano > s.until.UnixNano() {
			return false
		}
	}
	return s.match.fits(&e.Message)
}
