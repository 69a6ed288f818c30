package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"stated.dev/stated/api/router/keys"
	"stated.dev/stated/api/server"
	"stated.dev/stated/api/types"
	"stated.dev/stated/kvstore"
	kvhttp "stated.dev/stated/kvstore/http"
	"stated.dev/stated/kvstore/http/servetest"
)

// tree is what the daemon makes of a key tree for the API.
type tree struct{ *servetest.Server }

func (s tree) ExportKeys(ctx context.Context) ([]byte, error) { return kvhttp.Export(ctx, s.Tree) }

func (s tree) ImportKeys(ctx context.Context, req keys.ImportRequest) (types.KeyImport, error) {
	done, err := kvhttp.Import(ctx, s.Tree, kvhttp.ImportRequest{Document: req.Document, Replace: req.Replace})
	return types.KeyImport{Keys: done.Keys, Directories: done.Directories, Index: done.Index}, err
}

// startTree starts the API of a daemon that has nothing but a key tree.
func startTree(t *testing.T) (s *servetest.Server, host string) {
	s = servetest.Start(t, kvhttp.Options{PasswordCost: 4})
	api := server.New(server.Options{})
	api.Handle(keys.Routes(tree{s}))
	api.Mount(kvhttp.OnDaemonSocket, s.Handler)
	listener := httptest.NewServer(api)
	t.Cleanup(listener.Close)
	return s, "tcp://" + listener.Listener.Addr().String()
}

// outcome is what a command printed and its exit code.
type outcome struct {
	out, err string
	code     int
}

func command(ctx context.Context, host, in string, args ...string) outcome {
	var out, err bytes.Buffer
	cmd := rootCommand()
	cmd.SetArgs(append([]string{"-H", host, "kv"}, args...))
	cmd.SetIn(strings.NewReader(in))
	cmd.SetOut(&out)
	cmd.SetErr(&err)
	failure, code := cmd.ExecuteContext(ctx), 0
	var exit exitError
	switch {
	case errors.As(failure, &exit):
		code = int(exit)
	case failure != nil:
		code = 1
		err.WriteString(failure.Error())
	}
	return outcome{out.String(), err.String(), code}
}

func TestKeys(t *testing.T) {
	s, host := startTree(t)
	for _, c := range []struct {
		args, in string
		out      string
		err      string // a part of it
		code     int
	}{
		{args: "get /a", err: "/a: Key not found: \"stated kv ls -r\"", code: 4},
		{args: "set /a 1", out: "1\n"},
		{args: "set a 2", out: "2\n"},
		{args: "get //a/", out: "2\n"},
		{args: "get --quorum=false a", out: "2\n"},
		{args: "set a - --ttl 1h", in: "two\nlines\n", out: "two\nlines\n\n"},
		{args: "set a 3 --prev-value 2", err: "/a: Compare failed ([2 != two\nlines\n]): it has changed since", code: 4},
		{args: "set a 3 --prev-index 1", err: "/a: Compare failed", code: 4},
		{args: "set none 3 --prev-value 2", err: "/none: Key not found", code: 4},
		{args: "set a", err: "the value is missing", code: 1},
		{args: "set a 3 --ttl 1.5s", err: "--ttl 1.5s: it is a number of whole seconds", code: 1},
		{args: "set a 3 --ttl 0", err: "--ttl 0", code: 1},
		{args: "set a 3 --prev-index 0", err: "--prev-index 0", code: 1},
		{args: "mk a 4", err: "/a: Key already exists: \"stated kv set\" replaces", code: 4},
		{args: "mk b - --ttl 90", in: "", out: "\n"},
		{args: "set b 5", out: "5\n"},
		{args: "mk a/b 4", err: "/a/b: Not a directory (/a): a key cannot have keys below it", code: 4},
		{args: "mk --dir d"},
		{args: "mk --dir d", err: "/d: Key already exists", code: 4},
		{args: "set --dir d --ttl 100"},
		{args: "set --dir d2"},
		{args: "set --dir d x", err: "--dir", code: 1},
		{args: "set d 1", err: "/d: Not a file: it is a directory", code: 4},
		{args: "get d", err: "/d is a directory: list it with \"stated kv ls /d\"", code: 1},
		{args: "set /d/x 6", out: "6\n"},
		{args: "set /d/sub/y%2f&z 7", out: "7\n"},
		{args: "get /d/sub/y%2f&z", out: "7\n"},
		{args: "ls --sort", out: "/a\n/b\n/d/\n/d2/\n"},
		{args: "ls --sort -r", out: "/a\n/b\n/d/\n/d/sub/\n/d/sub/y%2f&z\n/d/x\n/d2/\n"},
		{args: "ls --sort d", out: "/d/sub/\n/d/x\n"},
		{args: "ls a", out: "/a\n"},
		{args: "ls d2"},
		{args: "ls none", err: "/none: Key not found", code: 4},
		{args: "rm d", err: "/d: Not a file", code: 4},
		{args: "rm --dir d", err: "/d: Directory not empty: \"stated kv rm -r\"", code: 4},
		{args: "rm -r d"},
		{args: "rm --dir d2"},
		{args: "rm b --prev-value 9", err: "/b: Compare failed ([9 != 5])", code: 4},
		{args: "rm b --prev-value 5"},
		{args: "rm /", err: "/: Root is read only: name a key below it", code: 4},
		{args: "rm -r a --prev-index 1", err: "recursive", code: 1},
		{args: "watch a --after-index 3", out: "[set] /a\n1\n"},
		{args: "--user x get a", err: "NAME:PASSWORD", code: 1},
	} {
		got := command(t.Context(), host, c.in, strings.Fields(c.args)...)
		if got.out != c.out || got.code != c.code || !strings.Contains(got.err, c.err) || c.err == "" && got.err != "" {
			t.Errorf("%s: exit code %d, printed %q and %q, want %d, %q and %q", c.args, got.code, got.out, got.err, c.code, c.out, c.err)
		}
	}
	if e, err := s.Tree.Store().Get("/1/a", kvstore.GetRequest{}); err != nil || e.Node.TTL == 0 {
		t.Errorf("the key with a time to live: %+v, %v", e, err)
	}
	first, second := command(t.Context(), host, "", "mk", "--in-order", "q", "1"), command(t.Context(), host, "", "mk", "--in-order", "q", "2")
	if first.code != 0 || !strings.HasPrefix(first.out, "/q/0") || second.out <= first.out {
		t.Errorf("keys in order: %+v, %+v", first, second)
	}
	if got := command(t.Context(), "tcp://127.0.0.1:1", "", "get", "a"); got.code != 1 || !strings.Contains(got.err, "cannot reach the daemon at tcp://127.0.0.1:1") {
		t.Errorf("no daemon: %+v", got)
	}
}

func TestKeysOfUsers(t *testing.T) {
	_, host := startTree(t)
	// etcdctl switches auth on over the same API; here a request by hand does.
	for _, r := range [][2]string{
		{"/v2/auth/users/root", `{"user":"root","password":"secret"}`}, {"/v2/auth/enable", ""}, {"/v2/auth/roles/guest", `{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}`},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "http://"+strings.TrimPrefix(host, "tcp://")+r[0], strings.NewReader(r[1]))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("root", "secret")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode >= 300 {
			t.Fatalf("%s: %s", r[0], resp.Status)
		}
	}
	if got := command(t.Context(), host, "", "set", "a", "1"); got.code != 4 || !strings.Contains(got.err, "--user NAME:PASSWORD") {
		t.Errorf("without a user: %+v", got)
	}
	if got := command(t.Context(), host, "", "--user", "root:secret", "set", "a", "1"); got.code != 0 {
		t.Errorf("root: %+v", got)
	}
	t.Setenv("STATED_KV_USER", "root:secret")
	if got := command(t.Context(), host, "", "get", "a"); got.out != "1\n" {
		t.Errorf("root, named by the environment: %+v", got)
	}
}

// TestWatchForever goes on where it was when its stream ends.
func TestWatchForever(t *testing.T) {
	s, host := startTree(t)
	out, in := io.Pipe()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() {
		cmd := rootCommand()
		cmd.SetArgs([]string{"-H", host, "kv", "watch", "-r", "--forever", "/", "--after-index", "4"})
		cmd.SetOut(in)
		err := cmd.ExecuteContext(ctx)
		if err != nil {
			t.Error(err)
		}
		in.Close()
		done <- 0
	}()
	read := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(out, got); err != nil || string(got) != want {
			t.Errorf("printed %q, %v, want %q", got, err, want)
		}
	}
	set := func(key, value string) {
		t.Helper()
		if got := command(t.Context(), host, "", "set", key, value); got.code != 0 {
			t.Fatalf("%+v", got)
		}
	}
	if s.Tree.Store().Index() != 3 {
		t.Fatalf("index %d", s.Tree.Store().Index())
	}
	set("/unseen", "0")
	set("/a", "1")
	read("[set] /a\n1\n")
	s.Handler.Close() // ends all streams, and each new one at once
	set("/b", "2")
	read("[set] /b\n2\n")
	if got := command(t.Context(), host, "", "rm", "a"); got.code != 0 {
		t.Fatalf("%+v", got)
	}
	read("[delete] /a\n")
	stop()
	<-done
}

func TestExportAndImport(t *testing.T) {
	from, host := startTree(t)
	for _, args := range []string{"set /a 1", "set /d/b 2 --ttl 1000", "mk --dir /e", "rm /a"} {
		if got := command(t.Context(), host, "", strings.Fields(args)...); got.code != 0 {
			t.Fatalf("%s: %+v", args, got)
		}
	}
	file := filepath.Join(t.TempDir(), "keys.json")
	if got := command(t.Context(), host, "", "export", file); got != (outcome{}) {
		t.Fatalf("export: %+v", got)
	}
	if got := command(t.Context(), host, "", "export", file); got.code != 1 || !strings.Contains(got.err, "file exists") {
		t.Errorf("export over a file: %+v", got)
	}
	document, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := command(t.Context(), host, "", "export", "-"); !strings.HasPrefix(got.out, `{"Root":`) || len(got.out) != len(document) {
		t.Errorf("export to the standard output: %d bytes of %d", len(got.out), len(document))
	}
	to, other := startTree(t)
	if got := command(t.Context(), other, "", "import", file); got.out != "1 keys and 2 directories; the tree's index is 7\n" || got.code != 0 {
		t.Fatalf("import: %+v", got)
	}
	if got := command(t.Context(), other, "", "ls", "-r", "--sort"); got.out != "/d/\n/d/b\n/e/\n" {
		t.Errorf("imported: %+v", got)
	}
	if a, b := from.Tree.Store().Index(), to.Tree.Store().Index(); a != b {
		t.Errorf("indexes %d and %d", a, b)
	}
	if got := command(t.Context(), other, string(document), "import", "-"); got.code != 1 || !strings.Contains(got.err, "the tree has keys") {
		t.Errorf("import over keys: %+v", got)
	}
	if got := command(t.Context(), other, string(document), "import", "--replace", "-"); got.code != 0 {
		t.Errorf("import over keys that may go: %+v", got)
	}
	if got := command(t.Context(), other, "{}", "import", "--replace", "-"); got.code != 1 || !strings.Contains(got.err, "no document of a key store") {
		t.Errorf("import of nothing: %+v", got)
	}
	if got := command(t.Context(), other, "", "import", t.TempDir()); got.code != 1 || !strings.Contains(got.err, "no data directory of an etcd") {
		t.Errorf("import of an empty directory: %+v", got)
	}
}
