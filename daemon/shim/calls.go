package shim

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/ttrpc"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// maxKept bounds the results that nobody has acknowledged.
const maxKept = 128

// calls carries out requests apart from the connection they came by. A request with a key is carried out once.
type calls struct {
	mu    sync.Mutex // guards what is below; never held while a request is carried out
	byKey map[string]*call
	order []string // keys in the order they came
	wg    sync.WaitGroup
}

type call struct {
	done chan struct{} // closed when resp and err are set
	resp any
	err  error
}

// do runs fn with a context of its own that ends after limit, and returns its result, or ctx's error when the caller
// goes first. A second request with the same key gets the result of the first.
func (c *calls) do(ctx context.Context, limit time.Duration, fn func(context.Context) (any, error)) (any, error) {
	md, _ := ttrpc.GetMetadata(ctx)
	key := ""
	if v, ok := md.Get(shimapi.MetaKey); ok {
		key = v[0]
	}
	acks, _ := md.Get(shimapi.MetaAck)
	made, fresh := c.take(key, acks)
	if fresh {
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		c.wg.Go(func() {
			defer cancel()
			made.resp, made.err = fn(own)
			close(made.done)
		})
	}
	select {
	case <-made.done:
		return made.resp, made.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *calls) take(key string, acks []string) (_ *call, fresh bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range acks {
		if old := c.byKey[k]; old != nil && old.isDone() {
			delete(c.byKey, k)
		}
	}
	if key == "" {
		return &call{done: make(chan struct{})}, true
	}
	if old := c.byKey[key]; old != nil {
		return old, false
	}
	made := &call{done: make(chan struct{})}
	if c.byKey == nil {
		c.byKey = map[string]*call{}
	}
	c.byKey[key] = made
	c.order = append(c.order, key)
	c.trimLocked()
	return made, true
}

// trimLocked drops acknowledged keys from the order, and the oldest results beyond the bound. What is still being
// carried out is kept.
func (c *calls) trimLocked() {
	if len(c.order) <= maxKept {
		return
	}
	excess := len(c.byKey) - maxKept/2
	kept := c.order[:0]
	for _, k := range c.order {
		one, ok := c.byKey[k]
		switch {
		case !ok:
		case excess > 0 && one.isDone():
			delete(c.byKey, k)
			excess--
		default:
			kept = append(kept, k)
		}
	}
	c.order = kept
}

func (c *call) isDone() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// wait returns when nothing is being carried out any more.
func (c *calls) wait() { c.wg.Wait() }
