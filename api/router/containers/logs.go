package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"stated.dev/stated/api/route"
)

func (h handlers) logs(w http.ResponseWriter, r *http.Request) (err error) {
	req, err := logsRequest(r)
	if err != nil {
		return err
	}
	ctx, cancel := route.Streaming(r)
	defer cancel()
	records, multiplexed, err := h.b.Logs(ctx, ref(r), req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, records.Close()) }()
	w.Header().Set("Content-Type", route.StreamType(ctx, multiplexed))
	if err := route.FlushHeader(w, http.StatusOK); err != nil {
		return err
	}
	out := route.NewBatch(w)
	defer func() { _ = out.Close() }() // it fails when the client is gone
	return copyRecords(ctx, out, records, recordFormat{req: req, multiplexed: multiplexed})
}

// copyRecords writes records until there are no more or ctx ends. What goes wrong with the records is told in band.
func copyRecords(ctx context.Context, out io.Writer, records LogStream, f recordFormat) error {
	var buf []byte
	for {
		record, err := records.Next(ctx)
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) || ctx.Err() != nil:
			return nil
		default:
			record = LogRecord{Stream: "stderr", Time: time.Now(), Line: fmt.Appendf(nil, "Error grabbing logs: %v\n", err)}
			if _, writeErr := out.Write(f.appendFrame(buf[:0], record, record.Line)); writeErr != nil {
				return writeErr
			}
			return nil
		}
		if (record.Stream == "stdout" && !f.req.Stdout) || (record.Stream == "stderr" && !f.req.Stderr) {
			continue
		}
		buf = f.append(buf[:0], record)
		if _, err := out.Write(buf); err != nil {
			return nil // the client is gone
		}
	}
}

func logsRequest(r *http.Request) (LogsRequest, error) {
	req := LogsRequest{
		Follow:     route.Bool(r, "follow"),
		Stdout:     route.Bool(r, "stdout"),
		Stderr:     route.Bool(r, "stderr"),
		Timestamps: route.Bool(r, "timestamps"),
		Details:    route.Bool(r, "details"),
		Tail:       -1,
	}
	if !req.Stdout && !req.Stderr {
		return req, errdefs.ErrInvalidArgument.WithMessage("Bad parameters: you must choose at least one stream")
	}
	var err error
	if req.Since, err = route.Time(r, "since"); err != nil {
		return req, err
	}
	if r.URL.Query().Get("until") != "0" { // clients send it for no end
		if req.Until, err = route.Time(r, "until"); err != nil {
			return req, err
		}
	}
	// Anything but a number ("all") asks for everything.
	if n, err := strconv.Atoi(r.URL.Query().Get("tail")); err == nil {
		req.Tail = max(n, -1)
	}
	return req, nil
}

// stampLayout is RFC 3339 with all nine digits, so that columns stand under each other.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00"

// recordFormat says how a log record is written to a client.
type recordFormat struct {
	req         LogsRequest
	multiplexed bool
}

// append appends a record as the client wants it: time and details stand before the line, inside the frame.
func (f recordFormat) append(dst []byte, record LogRecord) []byte {
	start := len(dst)
	if f.multiplexed {
		dst = route.AppendFrameHeader(dst, streamNumber(record.Stream), 0)
	}
	body := len(dst)
	if f.req.Timestamps {
		dst = append(record.Time.UTC().AppendFormat(dst, stampLayout), ' ')
	}
	if f.req.Details {
		dst = append(appendDetails(dst, record.Attrs), ' ')
	}
	dst = append(dst, record.Line...)
	if f.multiplexed {
		route.AppendFrameHeader(dst[:start], streamNumber(record.Stream), len(dst)-body)
	}
	return dst
}

// appendFrame appends text as one frame of the record's stream, or bare.
func (f recordFormat) appendFrame(dst []byte, record LogRecord, text []byte) []byte {
	if f.multiplexed {
		dst = route.AppendFrameHeader(dst, streamNumber(record.Stream), len(text))
	}
	return append(dst, text...)
}

func streamNumber(name string) byte {
	if name == "stderr" {
		return route.StreamStderr
	}
	return route.StreamStdout
}

// appendDetails appends a record's attributes as "key=value,key=value", escaped and sorted by key.
func appendDetails(dst []byte, attrs map[string]string) []byte {
	for i, key := range slices.Sorted(maps.Keys(attrs)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, url.QueryEscape(key)...)
		dst = append(dst, '=')
		dst = append(dst, url.QueryEscape(attrs[key])...)
	}
	return dst
}
