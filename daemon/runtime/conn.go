package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"stated.dev/stated/daemon/runtime/shimapi"
)

// errShimGone says that the process beside the container has ended.
var errShimGone = fmt.Errorf("shim is gone: %w", errdefs.ErrUnavailable)

// redialPause is the time between two tries to reach a shim that lives but does not accept.
const redialPause = 5 * time.Millisecond

// conn speaks to one shim. It connects when it is first used and again when the connection breaks.
type conn struct {
	r   *Shims
	dir string

	mu     sync.Mutex // guards what is below; held over a dial, which is local
	client *ttrpc.Client
	acks   []string // keys whose results have arrived, to be told with the next call
	closed bool
}

func (r *Shims) newConn(dir string) *conn {
	c := &conn{r: r, dir: dir}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = struct{}{}
	return c
}

// close ends the connection for good.
func (c *conn) close() {
	c.mu.Lock()
	c.closed = true
	if c.client != nil {
		_ = c.client.Close() // calls in flight fail by it
		c.client = nil
	}
	c.mu.Unlock()
	c.r.mu.Lock()
	delete(c.r.conns, c)
	c.r.mu.Unlock()
}

// call makes a request of the task API or of the shim's own. With a key it may be repeated after a broken connection;
// a request that changes something must have one.
func (c *conn) call(ctx context.Context, service, method, key string, req, resp proto.Message) error {
	for {
		client, acks, err := c.get(ctx)
		if err != nil {
			return err
		}
		md := ttrpc.MD{}
		if key != "" {
			md.Set(shimapi.MetaKey, key)
		}
		if len(acks) > 0 {
			md.Set(shimapi.MetaAck, acks...)
		}
		err = client.Call(ttrpc.WithMetadata(ctx, md), service, method, req, resp)
		switch {
		case errors.Is(err, ttrpc.ErrClosed), isBroken(err):
			c.drop(client, acks)
			continue // get says when the shim is gone
		case ctx.Err() != nil && err != nil:
			return ctx.Err()
		}
		if key != "" {
			c.mu.Lock()
			c.acks = append(c.acks, key)
			c.mu.Unlock()
		}
		if err != nil {
			return errgrpc.ToNative(err)
		}
		return nil
	}
}

// isBroken knows the errors of a connection that breaks under a request, for which ttrpc has no value.
func isBroken(err error) bool {
	return err != nil && (errors.Is(err, os.ErrClosed) || strings.Contains(err.Error(), "broken pipe") ||
		strings.Contains(err.Error(), "connection reset"))
}

// ask makes a request of the shim's own service.
func (c *conn) ask(ctx context.Context, method, key string, req, resp any) error {
	data, err := json.Marshal(req)
	if err != nil {
		return err
	}
	var out wrapperspb.BytesValue
	if err := c.call(ctx, shimapi.Service, method, key, wrapperspb.Bytes(data), &out); err != nil {
		return err
	}
	if err := json.Unmarshal(out.Value, resp); err != nil {
		return fmt.Errorf("decode the shim's answer to %s: %w", method, err)
	}
	return nil
}

// get returns a connection, and the acknowledgements to send with the next request. While the shim lives it tries
// until ctx ends.
func (c *conn) get(ctx context.Context) (*ttrpc.Client, []string, error) {
	for {
		client, acks, err := c.tryGet(ctx)
		if err == nil {
			return client, acks, nil
		}
		if !isLocked(c.dir) {
			return nil, nil, errShimGone
		}
		if errors.Is(err, errdefs.ErrUnavailable) {
			return nil, nil, err
		}
		select {
		case <-time.After(redialPause):
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

func (c *conn) tryGet(ctx context.Context) (*ttrpc.Client, []string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, fmt.Errorf("connection was closed: %w", errdefs.ErrUnavailable)
	}
	if c.client == nil {
		sock, err := shimapi.Dial(ctx, c.dir, shimapi.TaskSocket)
		if err != nil {
			return nil, nil, err
		}
		c.client = ttrpc.NewClient(sock)
	}
	acks := c.acks
	c.acks = nil
	return c.client, acks, nil
}

// drop forgets a broken connection. The acknowledgements it may have carried are sent again.
func (c *conn) drop(client *ttrpc.Client, acks []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acks = append(c.acks, acks...)
	if c.client == client {
		_ = client.Close() // broken already
		c.client = nil
	}
}
