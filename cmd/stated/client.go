package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"stated.dev/stated/api/types"
	"stated.dev/stated/daemon"
)

// client speaks to a daemon.
type client struct {
	http *http.Client
	addr string
}

// newClient chooses the daemon: -H, STATED_HOST, DOCKER_HOST, the default socket.
func newClient(cmd *cobra.Command) (*client, error) {
	flag, err := cmd.Flags().GetString("host")
	if err != nil {
		return nil, err
	}
	addr := cmp.Or(flag, os.Getenv("STATED_HOST"), os.Getenv("DOCKER_HOST"), daemon.DefaultSocket)
	scheme, rest, ok := strings.Cut(addr, "://")
	if !ok || (scheme != "unix" && scheme != "tcp") {
		return nil, fmt.Errorf("daemon address %q is not unix://PATH or tcp://HOST:PORT", addr)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, scheme, rest)
	}
	return &client{addr: addr, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}, nil
}

// get reads a JSON answer into v.
func (c *client) get(ctx context.Context, path string, v any) error {
	return c.do(ctx, http.MethodGet, path, nil, v)
}

// do sends a request with a body, which may be nil, and reads a JSON answer into v.
func (c *client) do(ctx context.Context, method, path string, body io.Reader, v any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(v)
}

// send returns an answer that says that all is well; any other is an error. The caller closes its body.
func (c *client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://stated"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("cannot reach the daemon at %s: %w", c.addr, err)
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var failure struct{ Message string }
	if json.Unmarshal(text, &failure) == nil && failure.Message != "" {
		return nil, fmt.Errorf("the daemon answers: %s", failure.Message)
	}
	return nil, fmt.Errorf("the daemon answers %s", resp.Status)
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), version)
			return err
		},
	}
}

func infoCommand() *cobra.Command {
	return &cobra.Command{
		Use: "info", Short: "Print what the daemon says of itself, as JSON", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			var info map[string]any
			if err := c.get(cmd.Context(), "/info", &info); err != nil {
				return err
			}
			enc := json.NewEncoder(cmd.OutOrStdout())
			enc.SetIndent("", "  ")
			return enc.Encode(info)
		},
	}
}

func phasesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "phases", Short: "List the phases of the daemon's start and how long each took", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			var phases []types.Phase
			if err := c.get(cmd.Context(), "/stated/phases", &phases); err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "PHASE\tSTATE\tTOOK\tERROR")
			for _, p := range phases {
				took := time.Duration(p.Took * float64(time.Second)).Round(10 * time.Microsecond)
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", p.Name, p.State, took, p.Error)
			}
			return w.Flush()
		},
	}
}
