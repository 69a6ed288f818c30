// Command quickstart packs the hello program into an image, runs a container of it through the daemon at a unix
// socket, asks it for its page, and tells the user how to go on. It needs no registry and no docker command.
//
//	quickstart SOCKET HELLO_BINARY
//	quickstart -stop SOCKET          removes every container of the daemon
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

const (
	image = "hello"
	name  = "hello"
	port  = "8080"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: quickstart SOCKET HELLO_BINARY | quickstart -stop SOCKET")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if os.Args[1] == "-stop" {
		err = removeAll(ctx, newClient(os.Args[2]))
	} else {
		err = run(ctx, newClient(os.Args[1]), os.Args[1], os.Args[2])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func newClient(socket string) *client {
	return &client{http: &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}}
}

// removeAll removes every container, running or not.
func removeAll(ctx context.Context, c *client) error {
	answer, err := c.do(ctx, http.MethodGet, "/containers/json?all=1", "", nil)
	if err != nil {
		return err
	}
	var list []struct{ Id string }
	if err := json.Unmarshal(answer, &list); err != nil {
		return err
	}
	for _, container := range list {
		if _, err := c.do(ctx, http.MethodDelete, "/containers/"+container.Id+"?force=1&v=1", "", nil); err != nil {
			return err
		}
	}
	return nil
}

func run(ctx context.Context, c *client, socket, binary string) error {
	layer, err := pack(binary)
	if err != nil {
		return err
	}
	changes := url.Values{"fromSrc": {"-"}, "repo": {image}, "tag": {"latest"},
		"changes": {`CMD ["/hello"]`, "EXPOSE 80", "VOLUME /data"}}
	if _, err := c.do(ctx, http.MethodPost, "/images/create?"+changes.Encode(), "application/x-tar", layer); err != nil {
		return fmt.Errorf("import the image: %w", err)
	}
	if _, err := c.do(ctx, http.MethodDelete, "/containers/"+name+"?force=1", "", nil); err == nil {
		fmt.Println("removed the container hello of an earlier run")
	}
	create := map[string]any{"Image": image, "HostConfig": map[string]any{
		"Binds":         []string{"hello-data:/data"},
		"PortBindings":  map[string]any{"80/tcp": []any{map[string]string{"HostPort": port}}},
		"RestartPolicy": map[string]string{"Name": "unless-stopped"},
	}}
	body, err := json.Marshal(create)
	if err != nil {
		return err
	}
	if _, err := c.do(ctx, http.MethodPost, "/containers/create?name="+name, "application/json", bytes.NewReader(body)); err != nil {
		return fmt.Errorf("create the container: %w", err)
	}
	if _, err := c.do(ctx, http.MethodPost, "/containers/"+name+"/start", "", nil); err != nil {
		return fmt.Errorf("start the container: %w", err)
	}
	page, err := visit(ctx, "http://127.0.0.1:"+port+"/")
	if err != nil {
		return fmt.Errorf("ask the container for its page: %w", err)
	}
	fmt.Printf(`
The first container runs and answers on port %[1]s:

    $ curl http://127.0.0.1:%[1]s/
    %[2]s
Go on with the docker command, if you have one:

    export DOCKER_HOST=unix://%[3]s
    docker ps
    docker logs -f hello
    docker restart hello

"make stop" ends the daemon and its containers and removes what they left in this directory.
`, port, page, socket)
	return nil
}

// visit asks until the server in the container listens.
func visit(ctx context.Context, url string) (string, error) {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			return string(text), err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// pack makes a layer of the program and the directories it needs.
func pack(binary string) (io.Reader, error) {
	program, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, dir := range []string{"data/", "tmp/", "etc/"} {
		if err := tw.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	if err := tw.WriteHeader(&tar.Header{Name: "hello", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, err
	}
	if _, err := tw.Write(program); err != nil {
		return nil, err
	}
	return &buf, tw.Close()
}

type client struct{ http *http.Client }

func (c *client) do(ctx context.Context, method, path, contentType string, body io.Reader) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://stated"+path, body)
	if err != nil {
		return nil, err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, bytes.TrimSpace(answer))
	}
	return answer, err
}
