package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// client speaks the Engine API to one daemon.
type client struct{ http *http.Client }

func newClient(socket string) *client {
	return &client{http: &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 128,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

// call sends a request with an optional JSON body and reads the answer into out, if given.
func (c *client) call(method, path string, body, out any) error {
	var r io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r = bytes.NewReader(data)
	}
	return c.send(method, path, "application/json", r, out)
}

// get returns an answer as it came.
func (c *client) get(path string) ([]byte, error) { return c.do(http.MethodGet, path, "", nil) }

func (c *client) send(method, path, contentType string, body io.Reader, out any) error {
	answer, err := c.do(method, path, contentType, body)
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(answer, out)
}

func (c *client) do(method, path, contentType string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequest(method, "http://d/v1.51"+path, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(answer))
	}
	return answer, nil
}

// ready waits until the daemon answers a ping.
func (c *client) ready(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		err := c.call(http.MethodGet, "/_ping", nil, nil)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the daemon does not answer: %w", err)
		}
		time.Sleep(time.Millisecond)
	}
}

type object map[string]any

func (c *client) create(name string, spec object) (string, error) {
	var answer struct{ ID string }
	path := "/containers/create"
	if name != "" {
		path += "?name=" + name
	}
	err := c.call(http.MethodPost, path, spec, &answer)
	return answer.ID, err
}

func (c *client) start(id string) error {
	return c.call(http.MethodPost, "/containers/"+id+"/start", nil, nil)
}

func (c *client) wait(id string) error {
	return c.call(http.MethodPost, "/containers/"+id+"/wait", nil, nil)
}

func (c *client) remove(id string) error {
	return c.call(http.MethodDelete, "/containers/"+id+"?force=1&v=1", nil, nil)
}
