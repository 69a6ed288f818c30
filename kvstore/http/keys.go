package kvhttp

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"stated.dev/stated/kvstore"
)

// serveKeys answers a request for the key at a path of the tree.
func (h *Handler) serveKeys(w http.ResponseWriter, r *http.Request, key string) {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodDelete:
	default:
		notAllowed(w, allowKeys)
		return
	}
	w.Header()["X-Etcd-Cluster-Id"] = h.clusterID
	h.bodyDeadline(w, r)
	q, bad := parseKeys(r, h.o.MaxBody)
	if bad != nil {
		h.writeKeyError(w, r, bad)
		return
	}
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if !h.auth.mayUseKey(r, key, access{writes: !reads, recursive: q.recursive}) {
		h.writeKeyError(w, r, kvstore.NewError(kvstore.CodeUnauthorized, "Insufficient credentials", 0))
		return
	}
	p := KeySpace + strings.TrimSuffix(key, "/")
	if q.wait && !q.quorum {
		h.watch(w, r, p, &q)
		return
	}
	event, err := h.keys(r, p, &q)
	if err != nil {
		h.writeKeyError(w, r, err)
		return
	}
	h.writeEvent(w, r, event, &q)
}

// keys carries out a request other than a watch.
func (h *Handler) keys(r *http.Request, p string, q *keysRequest) (*kvstore.Event, error) {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	get := kvstore.GetRequest{Recursive: q.recursive, Sorted: q.sorted}
	if reads && !q.quorum {
		found, err := h.tree.Store().Get(p, get)
		return found.Event(), err
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.o.RequestTimeout)
	defer cancel()
	if reads {
		found, err := h.tree.Get(ctx, p, get)
		return found.Event(), err
	}
	return h.tree.Do(ctx, q.command(r.Method, p))
}

// bodyDeadline bounds how long the client may take to send its body.
func (h *Handler) bodyDeadline(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength == 0 || r.Method != http.MethodPut && r.Method != http.MethodPost {
		return
	}
	// Without a connection, as behind some wrappers and in recorders, there is nobody to wait for either.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(h.o.WriteTimeout))
}

// buffers are those of answers. Large ones are not kept.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

const keptBuffer = 64 << 10

func putBuffer(b *[]byte, used []byte) {
	if cap(used) <= keptBuffer {
		*b = used[:0]
		buffers.Put(b)
	}
}

// writeEvent answers with what a request read or did.
func (h *Handler) writeEvent(w http.ResponseWriter, r *http.Request, event *kvstore.Event, q *keysRequest) {
	status := http.StatusOK
	if event.IsCreated() {
		status = http.StatusCreated
	}
	if q.noValue && event.Action != kvstore.ActionGet && event.Action != kvstore.ActionDelete && event.Action != kvstore.ActionCompareAndDelete {
		event = &kvstore.Event{Action: event.Action, EtcdIndex: event.EtcdIndex}
	}
	if event.Refresh {
		said := *event // the answer does not say so; the event that the history keeps does
		said.Refresh = false
		event = &said
	}
	buffer := buffers.Get().(*[]byte)
	body := event.AppendJSON((*buffer)[:0], KeySpace)
	body = append(body, '\n')
	index, term := h.log.Position()
	values := [...]string{strconv.FormatUint(event.EtcdIndex, 10), strconv.FormatUint(index, 10), strconv.FormatUint(term, 10), strconv.Itoa(len(body))}
	header := w.Header()
	header[contentTypeKey] = jsonType
	header["X-Etcd-Index"] = values[0:1:1]
	header["X-Raft-Index"] = values[1:2:2]
	header["X-Raft-Term"] = values[2:3:3]
	header["Content-Length"] = values[3:4:4]
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client is gone; net/http closes the connection
	}
	putBuffer(buffer, body)
}

// writeKeyError answers with an error of the API. Others are not expected from a Replica, and are told as its own failure.
func (h *Handler) writeKeyError(w http.ResponseWriter, r *http.Request, err error) {
	var e *kvstore.Error
	if !errors.As(err, &e) {
		e = kvstore.NewError(kvstore.CodeRaftInternal, err.Error(), 0)
	}
	if e.Code == kvstore.CodeRaftInternal {
		h.o.Logger.Warn("A request to the key tree failed", "method", r.Method, "path", r.URL.Path, "error", err)
	}
	h.writeError(w, r, e.StatusCode(), e)
}

func (h *Handler) writeError(w http.ResponseWriter, r *http.Request, status int, e *kvstore.Error) {
	if rest, ok := strings.CutPrefix(e.Cause, KeySpace); ok && (rest == "" || rest[0] == '/') {
		outside := *e
		outside.Cause = rest
		e = &outside
	}
	body, encodeErr := e.MarshalJSON()
	if encodeErr != nil {
		http.Error(w, encodeErr.Error(), http.StatusInternalServerError)
		return
	}
	w.Header()["X-Etcd-Index"] = []string{strconv.FormatUint(e.Index, 10)}
	writeBody(w, r, status, jsonType, append(body, '\n'))
}

// watch answers with events until the client, the watcher or the handler ends.
func (h *Handler) watch(w http.ResponseWriter, r *http.Request, p string, q *keysRequest) {
	release, full := h.reserve(r)
	if full != "" {
		h.writeError(w, r, http.StatusServiceUnavailable, kvstore.NewError(kvstore.CodeRaftInternal, full, 0))
		return
	}
	defer release()
	watcher, err := h.tree.Store().Watch(p, kvstore.WatchRequest{Recursive: q.recursive, Stream: q.stream, Since: q.waitIndex})
	if err != nil {
		h.writeKeyError(w, r, err)
		return
	}
	defer watcher.Close()
	index, term := h.log.Position()
	header := w.Header()
	header[contentTypeKey] = jsonType
	header["X-Etcd-Index"] = []string{strconv.FormatUint(watcher.StartIndex(), 10)}
	header["X-Raft-Index"] = []string{strconv.FormatUint(index, 10)}
	header["X-Raft-Term"] = []string{strconv.FormatUint(term, 10)}
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	if out.Flush() != nil {
		return // the client is gone
	}
	if err := h.copyEvents(r.Context(), w, out, watcher, q.stream); err != nil {
		h.o.Logger.Info("A watch of the key tree was ended", "path", r.URL.Path, "client", r.RemoteAddr, "reason", err)
	}
}

// copyEvents writes each event on a line of its own. It returns why the watcher was ended, or nil when it was done or when
// nobody waits any more.
func (h *Handler) copyEvents(ctx context.Context, w http.ResponseWriter, out *http.ResponseController, watcher *kvstore.Watcher, stream bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(h.closing, cancel)()
	var buffer []byte
	for {
		event, err := watcher.Next(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(err, kvstore.ErrWatchEnded):
			return nil
		case err != nil:
			return err
		}
		buffer = buffer[:0]
		for event != nil {
			buffer = append(event.AppendJSON(buffer, KeySpace), '\n')
			if !stream || len(buffer) >= keptBuffer {
				break
			}
			// What has come meanwhile goes out with it. An error will be Next's as well.
			event, _ = watcher.Poll()
		}
		// A client that has stopped reading is cut by the deadline; the watcher, whose buffer is full, was cut before.
		if err := out.SetWriteDeadline(time.Now().Add(h.o.WriteTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return nil
		}
		if _, err := w.Write(buffer); err != nil {
			return nil // the client is gone
		}
		if out.Flush() != nil || !stream {
			return nil
		}
		if cap(buffer) > keptBuffer {
			buffer = nil
		}
	}
}

// reserve counts a watch, and returns what takes it back; or it says which limit is reached.
func (h *Handler) reserve(r *http.Request) (release func(), full string) {
	if h.watches.Add(1) > int64(h.o.MaxWatches) {
		h.watches.Add(-1)
		return nil, "this host has as many watches as it allows: " + strconv.Itoa(h.o.MaxWatches)
	}
	conn, shared := r.Context().Value(connKey{}).(*atomic.Int64)
	if shared && conn.Add(1) > int64(h.o.MaxConnWatches) {
		conn.Add(-1)
		h.watches.Add(-1)
		return nil, "this connection has as many watches as it may have: " + strconv.Itoa(h.o.MaxConnWatches)
	}
	return func() {
		h.watches.Add(-1)
		if shared {
			conn.Add(-1)
		}
	}, ""
}
