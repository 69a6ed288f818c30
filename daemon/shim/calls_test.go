package shim

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"stated.dev/stated/daemon/runtime/shimapi"
)

func keyed(ctx context.Context, key string, acks ...string) context.Context {
	md := ttrpc.MD{}
	md.Set(shimapi.MetaKey, key)
	if len(acks) > 0 {
		md.Set(shimapi.MetaAck, acks...)
	}
	return ttrpc.WithMetadata(ctx, md)
}

func TestCallOutlivesCaller(t *testing.T) {
	var c calls
	ctx, cancel := context.WithCancel(keyed(t.Context(), "k"))
	begun, goOn := make(chan struct{}), make(chan struct{})
	first := make(chan error)
	times := 0
	work := func(ctx context.Context) (any, error) {
		times++
		close(begun)
		<-goOn
		return "result", ctx.Err()
	}
	go func() {
		_, err := c.do(ctx, time.Minute, work)
		first <- err
	}()
	<-begun
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Fatalf("the caller got %v", err)
	}
	close(goOn)
	for range 2 {
		got, err := c.do(keyed(t.Context(), "k"), time.Minute, work)
		if got != "result" || err != nil {
			t.Fatalf("a repetition got %v, %v", got, err)
		}
	}
	if times != 1 {
		t.Fatalf("carried out %d times", times)
	}
	got, _ := c.do(keyed(t.Context(), "k", "k"), time.Minute, func(context.Context) (any, error) { return "new", nil })
	if got != "new" {
		t.Fatalf("after the acknowledgement: %v", got)
	}
	c.wait()
}

func TestCallsAreBounded(t *testing.T) {
	var c calls
	for i := range 10 * maxKept {
		_, _ = c.do(keyed(t.Context(), strconv.Itoa(i)), time.Minute, func(context.Context) (any, error) { return i, nil })
	}
	if len(c.byKey) > maxKept+1 || len(c.order) > maxKept+1 {
		t.Fatalf("%d results and %d keys are kept", len(c.byKey), len(c.order))
	}
	last := strconv.Itoa(10*maxKept - 1)
	got, _ := c.do(keyed(t.Context(), last), time.Minute, func(context.Context) (any, error) { return -1, nil })
	if got != 10*maxKept-1 {
		t.Fatalf("the newest result is gone: %v", got)
	}
}

func TestCallHasALimit(t *testing.T) {
	var c calls
	_, err := c.do(t.Context(), time.Millisecond, func(ctx context.Context) (any, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}
