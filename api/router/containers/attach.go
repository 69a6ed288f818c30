package containers

import (
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/term"

	"stated.dev/stated/api/route"
)

func (h handlers) attach(w http.ResponseWriter, r *http.Request) error {
	req, err := attachRequest(r)
	if err != nil {
		return err
	}
	req.Stdin, req.Stdout, req.Stderr = route.Bool(r, "stdin"), route.Bool(r, "stdout"), route.Bool(r, "stderr")

	ctx, cancel := route.Streaming(r)
	defer cancel()
	stream, multiplexed, err := h.b.Attach(ctx, ref(r), req)
	if err != nil {
		return err
	}
	conn, err := route.Hijack(w, r, route.StreamType(ctx, multiplexed))
	if err != nil {
		_ = stream.Close() // the connection's error says more
		return err
	}
	conn.Join(ctx, stream, route.JoinOptions{Stdin: req.Stdin, Multiplexed: multiplexed})
	return nil
}

func attachRequest(r *http.Request) (AttachRequest, error) {
	req := AttachRequest{
		Logs:       route.Bool(r, "logs"),
		Stream:     route.Bool(r, "stream"),
		DetachKeys: r.URL.Query().Get("detachKeys"),
	}
	if req.DetachKeys != "" {
		if _, err := term.ToBytes(req.DetachKeys); err != nil {
			return req, errdefs.ErrInvalidArgument.WithMessage("Invalid detach keys (" + req.DetachKeys + ") provided")
		}
	}
	return req, nil
}
