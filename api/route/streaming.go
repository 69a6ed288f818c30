package route

import (
	"context"
	"net/http"
	"sync"
)

type closingKey struct{}

// WithClosing returns ctx carrying closing, which ends when the server begins to shut down.
func WithClosing(ctx, closing context.Context) context.Context {
	return context.WithValue(ctx, closingKey{}, closing)
}

// Streaming returns the context of an answer that has no end of its own (events, followed logs, attach). It ends with
// the request's, and already when the server begins to shut down; other requests are then given time to finish.
func Streaming(r *http.Request) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(r.Context())
	closing, ok := r.Context().Value(closingKey{}).(context.Context)
	if !ok {
		return ctx, cancel
	}
	stop := context.AfterFunc(closing, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// FlushHeader sends the header of an answer whose body may be long in coming.
func FlushHeader(w http.ResponseWriter, status int) error {
	w.WriteHeader(status)
	return http.NewResponseController(w).Flush()
}

// batchLimit is how many bytes a Batch holds for a client that does not read.
const batchLimit = 256 << 10

// A Batch writes a streamed body. What is written is sent at once when the connection is free, and together with all
// that came since when it is not, so that records flow promptly and many ready ones cost one flush.
type Batch struct {
	w    http.ResponseWriter
	ctl  *http.ResponseController
	done chan struct{} // closed when the sender has ended

	mu      sync.Mutex // guards the fields below; never held over a write to w
	changed sync.Cond  // on mu: pending, closed or err changed
	pending []byte
	closed  bool
	err     error
}

// NewBatch starts a batch on w, which nobody else may use until Close has returned.
func NewBatch(w http.ResponseWriter) *Batch {
	b := &Batch{w: w, ctl: http.NewResponseController(w), done: make(chan struct{})}
	b.changed.L = &b.mu
	go b.send()
	return b
}

// Write appends one record. It waits while the client is batchLimit behind, and fails once a write to the client has
// failed. The record may be reused when it returns.
func (b *Batch) Write(record []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.pending) >= batchLimit && b.err == nil {
		b.changed.Wait()
	}
	if b.err != nil {
		return 0, b.err
	}
	b.pending = append(b.pending, record...)
	b.changed.Broadcast()
	return len(record), nil
}

// Close sends what is left and returns the first error of a write.
func (b *Batch) Close() error {
	b.mu.Lock()
	b.closed = true
	b.changed.Broadcast()
	b.mu.Unlock()
	<-b.done
	return b.err
}

func (b *Batch) send() {
	defer close(b.done)
	var out []byte
	for {
		b.mu.Lock()
		for len(b.pending) == 0 && !b.closed {
			b.changed.Wait()
		}
		if len(b.pending) == 0 {
			b.mu.Unlock()
			return
		}
		out, b.pending = b.pending, out[:0]
		b.changed.Broadcast()
		b.mu.Unlock()

		_, err := b.w.Write(out)
		if err == nil {
			err = b.ctl.Flush()
		}
		if err != nil {
			b.mu.Lock()
			b.err, b.pending, b.closed = err, nil, true
			b.changed.Broadcast()
			b.mu.Unlock()
			return
		}
	}
}
