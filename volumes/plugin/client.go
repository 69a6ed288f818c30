package plugin

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// contentType names the version of the protocol: Docker's plug-in protocol 1.2.
	contentType = "application/vnd.docker.plugins.v1.2+json"
	// maxAnswer bounds an answer in bytes. A list of 10,000 volumes takes two million.
	maxAnswer = 16 << 20
	// unreadable bounds how much of an answer that is no JSON is shown.
	unreadable = 256
)

// errOtherKind says that a plug-in answers, and keeps no volumes.
var errOtherKind = errors.New("it is no VolumeDriver")

// client calls one plug-in. It makes a connection for each call: a plug-in may be restarted between two.
type client struct {
	name     string
	base     string
	http     *http.Client
	timeouts Timeouts
	hurry    context.Context // from its end on calls have little time left
	shun     *atomic.Int64
	lost     atomic.Bool // the last call found nobody: the address may not be its address any more
}

func newClient(name string, addr address, timeouts Timeouts, hurry context.Context, shun *atomic.Int64) (*client, error) {
	var dialer net.Dialer
	transport := &http.Transport{
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, addr.network, addr.addr)
		},
	}
	c := &client{name: name, base: "http://plugin.localhost", timeouts: timeouts, hurry: hurry, shun: shun}
	if addr.network == "tcp" {
		c.base = "http://" + addr.addr
	}
	if addr.tls != nil {
		config, err := addr.tls.config()
		if err != nil {
			return nil, err
		}
		if config.ServerName, _, err = net.SplitHostPort(addr.addr); err != nil {
			return nil, err
		}
		c.base = "https://" + addr.addr
		transport.TLSClientConfig = config
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{} // HTTP/1 only
	}
	c.http = &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// refusal is a plug-in's "no": it was reached, understood the call and did not do it.
type refusal struct {
	call   string
	status int
	text   string
}

func (e *refusal) Error() string {
	if e.status == http.StatusOK {
		return e.text
	}
	return e.call + ": " + e.text
}

// asRefusal returns err as the plug-in's refusal, or nil when the plug-in did not answer.
func asRefusal(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	return nil
}

// An answer is decoded from JSON.
type answer interface{ complaint() string }

// done is the answer of calls that return nothing, and part of all others.
type done struct{ Err string }

func (d *done) complaint() string { return d.Err }

// call posts a request and decodes the answer. It marks the plug-in as silent when the time limit ends the call, and
// as lost when it could not be reached.
func (c *client) call(ctx context.Context, method string, limit time.Duration, request any, into answer) error {
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(c.hurry, func() {
		rest := time.NewTimer(c.timeouts.Hurry)
		defer rest.Stop()
		select {
		case <-rest.C:
			cancel()
		case <-bounded.Done():
		}
	})()
	began := time.Now()
	status, data, err := c.post(bounded, method, body)
	switch {
	case err == nil:
		c.lost.Store(false)
		c.shun.Store(0)
		return decode(method, status, data, into)
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s of plug-in %s: %w", method, c.name, ctx.Err())
	case bounded.Err() != nil:
		c.shun.Store(time.Now().Add(c.timeouts.Silence).UnixNano())
		return fmt.Errorf("%s: plug-in %s has not answered for %v: %w", method, c.name,
			time.Since(began).Round(time.Millisecond), bounded.Err())
	}
	c.lost.Store(true)
	return fmt.Errorf("%s: plug-in %s cannot be reached: %w", method, c.name, err)
}

func (c *client) post(ctx context.Context, method string, body []byte) (status int, data []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+"/"+method, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Accept", contentType)
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	data, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	return resp.StatusCode, data, err
}

// decode turns an answer's body into its value, or into the error that it tells.
func decode(method string, status int, data []byte, into answer) error {
	if len(data) > maxAnswer {
		return fmt.Errorf("%s: the plug-in's answer is longer than %d bytes", method, maxAnswer)
	}
	data = bytes.TrimSpace(data)
	if status != http.StatusOK {
		var d done
		if err := json.Unmarshal(data, &d); err != nil || d.Err == "" {
			d.Err = fmt.Sprintf("HTTP status %d: %s", status, strings.ToValidUTF8(string(data[:min(len(data), unreadable)]), "?"))
		}
		return &refusal{call: method, status: status, text: d.Err}
	}
	if _, nothing := into.(*done); nothing && len(data) == 0 {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber() // a status is shown as the plug-in wrote it
	err := dec.Decode(into)
	if err == nil && dec.More() {
		err = errors.New("there is more after its end")
	}
	if err != nil {
		return fmt.Errorf("%s: the plug-in's answer cannot be read: %w", method, err)
	}
	if text := into.complaint(); text != "" {
		return &refusal{call: method, status: status, text: text}
	}
	return nil
}

// handshake checks that it is a volume plug-in.
func (c *client) handshake(ctx context.Context) error {
	var manifest struct {
		done
		Implements []string
	}
	if err := c.call(ctx, "Plugin.Activate", c.timeouts.Other, struct{}{}, &manifest); err != nil {
		return err
	}
	if !slices.Contains(manifest.Implements, "VolumeDriver") {
		return errOtherKind
	}
	return nil
}

// scope asks for the scope of the plug-in's volumes. One that refuses to tell, or tells anything but "global", has
// volumes of this host.
func (c *client) scope(ctx context.Context) (string, error) {
	var reply struct {
		done
		Capabilities struct{ Scope string }
	}
	err := c.call(ctx, "VolumeDriver.Capabilities", c.timeouts.Other, struct{}{}, &reply)
	if err != nil && asRefusal(err) == nil {
		return "", err
	}
	if strings.EqualFold(reply.Capabilities.Scope, "global") {
		return "global", nil
	}
	return "local", nil
}
