package events_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	types "github.com/moby/moby/api/types/events"

	"stated.dev/stated/internal/events"
	"stated.dev/stated/internal/filters"
)

type legacy struct {
	Status, ID, From string
	types.Message
}

func decode(t *testing.T, b []byte) (messages []legacy) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	for {
		var m struct {
			Status string `json:"status"`
			ID     string `json:"id"`
			From   string `json:"from"`
			types.Message
		}
		err := d.Decode(&m)
		if err == io.EOF {
			return messages
		}
		if err != nil {
			t.Fatalf("decode %q: %v", b, err)
		}
		messages = append(messages, legacy{m.Status, m.ID, m.From, m.Message})
	}
}

// past reads what a subscription up to now yields.
func past(t *testing.T, bus *events.Bus, args filters.Args) []legacy {
	t.Helper()
	s, err := bus.Subscribe(t.Context(), events.SubscribeRequest{Until: time.Now(), Filters: args})
	if err != nil {
		t.Fatal(err)
	}
	var all []legacy
	for {
		b, err := s.Next(t.Context())
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, decode(t, b)...)
	}
}

func TestEncodingIsDockers(t *testing.T) {
	bus := events.New()
	s, err := bus.Subscribe(t.Context(), events.SubscribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		typ  types.Type
		want string
	}{
		{types.ContainerEventType, `{"status":"start","id":"abc","from":"alpine","Type":"container","Action":"start","Actor":{"ID":"abc","Attributes":{"image":"alpine","name":"n"}},"scope":"local","time":`},
		{types.ImageEventType, `{"status":"start","id":"abc","Type":"image","Action":"start","Actor":{"ID":"abc","Attributes":{"image":"alpine","name":"n"}},"scope":"local","time":`},
		{types.NetworkEventType, `{"Type":"network","Action":"start","Actor":{"ID":"abc","Attributes":{"image":"alpine","name":"n"}},"scope":"local","time":`},
		{types.NodeEventType, `{"Type":"node","Action":"start","Actor":{"ID":"abc","Attributes":{"image":"alpine","name":"n"}},"scope":"swarm","time":`},
	} {
		bus.Publish(c.typ, types.ActionStart, "abc", map[string]string{"name": "n", "image": "alpine"})
		b, err := s.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(b), c.want) || !bytes.HasSuffix(b, []byte("}\n")) {
			t.Errorf("got  %s\nwant %s…", b, c.want)
		}
		m := decode(t, b)[0]
		if m.Time != m.TimeNano/1e9 || m.Time == 0 {
			t.Errorf("time %d, timeNano %d", m.Time, m.TimeNano)
		}
	}
}

func TestTimesIncreaseStrictly(t *testing.T) {
	bus := events.New()
	var publishers sync.WaitGroup
	for range 4 {
		publishers.Go(func() {
			for range 400 {
				bus.Publish(types.VolumeEventType, types.ActionCreate, "v", nil)
			}
		})
	}
	publishers.Wait()
	last := int64(0)
	all := past(t, bus, nil)
	if len(all) != 1600 {
		t.Fatalf("%d events, want 1600", len(all))
	}
	for _, m := range all {
		if m.TimeNano <= last {
			t.Fatalf("time %d after %d", m.TimeNano, last)
		}
		last = m.TimeNano
	}
}

func TestSinceAndUntil(t *testing.T) {
	bus := events.New()
	for i := range events.Kept + 100 {
		bus.Publish(types.VolumeEventType, types.ActionCreate, fmt.Sprint(i), nil)
	}
	all := past(t, bus, nil)
	if len(all) != events.Kept || all[0].Actor.ID != "100" {
		t.Fatalf("%d events kept, first %s", len(all), all[0].Actor.ID)
	}
	// Both bounds belong to the range.
	s, err := bus.Subscribe(t.Context(), events.SubscribeRequest{
		Since: time.Unix(0, all[10].TimeNano), Until: time.Unix(0, all[12].TimeNano),
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := decode(t, b); len(got) != 3 || got[0].Actor.ID != "110" {
		t.Errorf("range has %d events: %s", len(got), b)
	}
	if _, err := s.Next(t.Context()); err != io.EOF {
		t.Errorf("after the range: %v, want EOF", err)
	}

	// With since only, the past is followed by what comes.
	s, err = bus.Subscribe(t.Context(), events.SubscribeRequest{Since: time.Unix(0, all[len(all)-1].TimeNano)})
	if err != nil {
		t.Fatal(err)
	}
	bus.Publish(types.VolumeEventType, types.ActionRemove, "x", nil)
	b, err = s.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := decode(t, b); len(got) != 2 || got[1].Action != types.ActionRemove {
		t.Errorf("got %s", b)
	}
}

func TestUntilInTheFutureEndsTheStream(t *testing.T) {
	bus := events.New()
	s, err := bus.Subscribe(t.Context(), events.SubscribeRequest{Until: time.Now().Add(50 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Next(t.Context()); err != io.EOF {
		t.Fatalf("got %v, want EOF", err)
	}
}

func TestCloseAndCancel(t *testing.T) {
	bus := events.New()
	s, err := bus.Subscribe(t.Context(), events.SubscribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	bus.Publish(types.DaemonEventType, types.ActionReload, "d", nil)
	bus.Close()
	if b, err := s.Next(t.Context()); err != nil || len(decode(t, b)) != 1 {
		t.Errorf("what was published before the end is lost: %q, %v", b, err)
	}
	if _, err := s.Next(t.Context()); err != io.EOF {
		t.Errorf("closed: %v, want EOF", err)
	}
}

func TestSubscribers(t *testing.T) {
	bus := events.New()
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := bus.Subscribe(ctx, events.SubscribeRequest{}); err != nil {
		t.Fatal(err)
	}
	if n := bus.Subscribers(); n != 1 {
		t.Errorf("%d subscribers, want 1", n)
	}
	cancel()
	for deadline := time.Now().Add(5 * time.Second); bus.Subscribers() != 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("the subscription outlives its context")
		}
	}
}

func TestHundredListenersLoseNothing(t *testing.T) {
	const listeners, count = 100, 2000
	bus := events.New()
	var ready, done sync.WaitGroup
	for range listeners {
		ready.Add(1)
		done.Go(func() {
			s, err := bus.Subscribe(t.Context(), events.SubscribeRequest{})
			ready.Done()
			if err != nil {
				t.Error(err)
				return
			}
			for next := 0; next < count; {
				b, err := s.Next(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				for line := range bytes.SplitAfterSeq(bytes.TrimSuffix(b, []byte("\n")), []byte("\n")) {
					if !bytes.Contains(line, fmt.Appendf(nil, `"ID":"e%d"`, next)) {
						t.Errorf("event %d missing, got %s", next, line)
						return
					}
					next++
				}
			}
		})
	}
	ready.Wait()
	for i := range count {
		bus.Publish(types.ContainerEventType, types.ActionStart, fmt.Sprintf("e%d", i), nil)
	}
	done.Wait()
}

func TestASlowListenerIsCutOff(t *testing.T) {
	bus := events.New()
	slow, err := bus.Subscribe(t.Context(), events.SubscribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 * events.MaxBehind {
		bus.Publish(types.VolumeEventType, types.ActionCreate, "v", nil)
	}
	if _, err := slow.Next(t.Context()); !errors.Is(err, events.ErrBehind) {
		t.Errorf("got %v, want %v", err, events.ErrBehind)
	}
}

func TestFilters(t *testing.T) {
	bus := events.New()
	c := func(action types.Action) {
		bus.Publish(types.ContainerEventType, action, "c0ffee", map[string]string{"name": "web", "image": "nginx:1.27", "tier": "front"})
	}
	c("create")
	c("start")
	c("exec_create: sh -c true")
	c("exec_start: sh -c true")
	c("health_status: healthy")
	bus.Publish(types.NetworkEventType, types.ActionConnect, "beef01", map[string]string{"name": "backend", "container": "c0ffee"})
	bus.Publish(types.ImageEventType, types.ActionPull, "nginx:1.27", map[string]string{"name": "nginx"})
	bus.Publish(types.VolumeEventType, types.ActionCreate, "data", map[string]string{"driver": "local"})
	bus.Publish(types.NodeEventType, types.ActionUpdate, "node1", nil)

	for _, tt := range []struct {
		name string
		args filters.Args
		want int
	}{
		{"none", nil, 9},
		{"empty", filters.Args{"type": nil}, 9},
		{"type", filters.Args{"type": {"container"}}, 5},
		{"types", filters.Args{"type": {"image", "volume"}}, 2},
		{"event", filters.Args{"event": {"create"}}, 2},
		{"event with text", filters.Args{"event": {"exec_start"}}, 1},
		{"whole event with text", filters.Args{"event": {"exec_start: sh -c true"}}, 1},
		{"event is not a prefix", filters.Args{"event": {"exec"}}, 0},
		{"health", filters.Args{"event": {"health_status"}}, 1},
		{"health state", filters.Args{"event": {"health_status: unhealthy"}}, 0},
		{"container name", filters.Args{"container": {"web"}}, 5},
		{"container id prefix", filters.Args{"container": {"c0f"}}, 5},
		{"two of one key are alternatives", filters.Args{"container": {"nope", "web"}}, 5},
		{"two keys are both needed", filters.Args{"container": {"web"}, "event": {"start"}}, 1},
		{"network", filters.Args{"network": {"backend"}}, 1},
		{"volume", filters.Args{"volume": {"data"}}, 1},
		{"image with tag", filters.Args{"image": {"nginx:1.27"}}, 6},
		{"image without tag", filters.Args{"image": {"nginx"}}, 6},
		{"other image", filters.Args{"image": {"redis"}}, 0},
		{"label", filters.Args{"label": {"tier"}}, 5},
		{"label with value", filters.Args{"label": {"tier=front"}}, 5},
		{"other label", filters.Args{"label": {"tier=back"}}, 0},
		{"scope", filters.Args{"scope": {"swarm"}}, 1},
		{"local scope", filters.Args{"scope": {"local"}}, 8},
	} {
		if got := past(t, bus, tt.args); len(got) != tt.want {
			t.Errorf("%s: %d events, want %d", tt.name, len(got), tt.want)
		}
	}

	if got := past(t, bus, filters.Args{"nope": {"x"}}); len(got) != len(past(t, bus, nil)) {
		t.Errorf("an unknown filter leaves %d events", len(got))
	}
}

func BenchmarkPublishTo100(b *testing.B) {
	bus := events.New()
	ctx, cancel := context.WithCancel(b.Context())
	var readers sync.WaitGroup
	for range 100 {
		s, err := bus.Subscribe(ctx, events.SubscribeRequest{})
		if err != nil {
			b.Fatal(err)
		}
		readers.Go(func() {
			for {
				if _, err := s.Next(ctx); err != nil {
					return
				}
			}
		})
	}
	attrs := map[string]string{"image": "alpine", "name": "web", "exitCode": "0"}
	for b.Loop() {
		bus.Publish(types.ContainerEventType, types.ActionDie, "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffee", attrs)
	}
	cancel()
	readers.Wait()
}
