package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"stated.dev/stated/api/types"
	"stated.dev/stated/kvstore"
	"stated.dev/stated/kvstore/etcdfile"
)

// kvRefused is the exit code when the key tree has answered with an error, as etcdctl's is.
const kvRefused = 4

func kvCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "kv",
		Short: "Read, change and watch the keys of the key tree",
		Long: `Reads, changes and watches the keys of the key tree (docs/kv.md), over the daemon's socket.

Exit code 0 says that it was done, 4 that the key tree refused it, 1 anything else.`,
	}
	cmd.PersistentFlags().String("user", "", "NAME:PASSWORD, where auth is on (default: STATED_KV_USER)")
	cmd.AddCommand(kvGetCommand(), kvSetCommand(), kvMakeCommand(), kvRemoveCommand(), kvListCommand(), kvWatchCommand(), kvExportCommand(), kvImportCommand())
	return cmd
}

func kvGetCommand() *cobra.Command {
	var quorum bool
	cmd := &cobra.Command{
		Use: "get KEY", Short: "Print a key's value", Args: cobra.ExactArgs(1),
		RunE: kvRun(func(cmd *cobra.Command, c *kvClient, args []string) error {
			key := cleanKey(args[0])
			a, err := c.do(cmd.Context(), http.MethodGet, key, quorumQuery(quorum), nil)
			if err != nil {
				return err
			}
			if a.Node.Dir {
				return fmt.Errorf("%s is a directory: list it with \"stated kv ls %[1]s\"", key)
			}
			return printValue(cmd.OutOrStdout(), a.Node)
		}),
	}
	quorumFlag(cmd, &quorum)
	return cmd
}

func quorumFlag(cmd *cobra.Command, quorum *bool) {
	cmd.Flags().BoolVarP(quorum, "quorum", "q", true, "see every change that was acknowledged before; false reads this host's copy")
}

func quorumQuery(quorum bool) url.Values { return url.Values{"quorum": {strconv.FormatBool(quorum)}} }

// kvConditions are flags for changes that depend on what is there.
type kvConditions struct {
	value string
	index uint64
}

func (k *kvConditions) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&k.value, "prev-value", "", "only if the key has this value")
	cmd.Flags().Uint64Var(&k.index, "prev-index", 0, "only if the key was last changed at this index")
}

// add puts the conditions that were given among a request's parameters. An empty value and the index 0 cannot be asked
// for: the API takes them for no condition.
func (k *kvConditions) add(cmd *cobra.Command, form url.Values) error {
	if cmd.Flags().Changed("prev-value") {
		if k.value == "" {
			return errors.New("--prev-value cannot be empty: name the index of the last change with --prev-index instead")
		}
		form.Set("prevValue", k.value)
	}
	if cmd.Flags().Changed("prev-index") {
		if k.index == 0 {
			return errors.New("--prev-index 0: no key was ever changed at the index 0; \"stated kv mk\" makes a key only if there is none")
		}
		form.Set("prevIndex", strconv.FormatUint(k.index, 10))
	}
	return nil
}

func ttlFlag(cmd *cobra.Command, ttl *string) {
	cmd.Flags().StringVar(ttl, "ttl", "", "how long it lives, in whole seconds: 90, 90s or 1h; without it, for ever")
}

func addTTL(form url.Values, ttl string) error {
	if ttl == "" {
		return nil
	}
	seconds, err := strconv.ParseInt(ttl, 10, 64)
	if err != nil {
		var d time.Duration
		if d, err = time.ParseDuration(ttl); err == nil && d%time.Second == 0 {
			seconds = int64(d / time.Second)
		}
	}
	if err != nil || seconds <= 0 {
		return fmt.Errorf("--ttl %s: it is a number of whole seconds, from 1 on, as 90, 90s or 1h", ttl)
	}
	form.Set("ttl", strconv.FormatInt(seconds, 10))
	return nil
}

func kvSetCommand() *cobra.Command {
	var dir bool
	var ttl string
	var when kvConditions
	cmd := &cobra.Command{
		Use:   "set KEY VALUE|-",
		Short: "Give a key a value",
		Long: `Gives a key a value, whether it is there or not, and prints the value. "-" reads it from the standard input, as it is. Without
--ttl the key lives for ever, also when it had a time to live before.

With --dir it makes a directory, or gives one that is there another time to live.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: kvRun(func(cmd *cobra.Command, c *kvClient, args []string) error {
			key, form := cleanKey(args[0]), url.Values{}
			if err := errors.Join(addTTL(form, ttl), when.add(cmd, form)); err != nil {
				return err
			}
			if dir {
				if len(args) > 1 || len(form["prevValue"])+len(form["prevIndex"]) > 0 {
					return errors.New("--dir: a directory has no value, and no value to compare")
				}
				form.Set("dir", "true")
				_, err := c.do(cmd.Context(), http.MethodPut, key, nil, form)
				if refused := new(kvError); errors.As(err, &refused) && refused.Code == kvstore.CodeNotFile {
					form.Set("prevExist", "true")
					_, err = c.do(cmd.Context(), http.MethodPut, key, nil, form)
				}
				return err
			}
			if err := addValue(cmd, form, args); err != nil {
				return err
			}
			a, err := c.do(cmd.Context(), http.MethodPut, key, nil, form)
			if err != nil {
				return err
			}
			return printValue(cmd.OutOrStdout(), a.Node)
		}),
	}
	cmd.Flags().BoolVar(&dir, "dir", false, "a directory instead of a key")
	ttlFlag(cmd, &ttl)
	when.flags(cmd)
	return cmd
}

// addValue takes the value from the arguments or from the standard input.
func addValue(cmd *cobra.Command, form url.Values, args []string) error {
	if len(args) < 2 {
		return errors.New("the value is missing: give it after the key, or \"-\" to read it from the standard input")
	}
	value := args[1]
	if value == "-" {
		b, err := io.ReadAll(cmd.InOrStdin())
		if err != nil {
			return fmt.Errorf("read the value from the standard input: %w", err)
		}
		value = string(b)
	}
	form.Set("value", value)
	return nil
}

func kvMakeCommand() *cobra.Command {
	var dir, inOrder bool
	var ttl string
	cmd := &cobra.Command{
		Use:   "mk KEY [VALUE|-]",
		Short: "Make a key or a directory, if it is not there",
		Long: `Makes a key and prints its value; with --dir, a directory. What is there already stays, and the exit code is 4. With --in-order KEY
is a directory, the key gets a name in it that sorts behind those before, and is printed instead of the value.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: kvRun(func(cmd *cobra.Command, c *kvClient, args []string) error {
			form := url.Values{}
			if err := addTTL(form, ttl); err != nil {
				return err
			}
			switch {
			case dir && len(args) > 1:
				return errors.New("--dir: a directory has no value")
			case dir:
				form.Set("dir", "true")
			default:
				if err := addValue(cmd, form, args); err != nil {
					return err
				}
			}
			method := http.MethodPost
			if !inOrder {
				method = http.MethodPut
				form.Set("prevExist", "false")
			}
			a, err := c.do(cmd.Context(), method, cleanKey(args[0]), nil, form)
			switch {
			case err != nil:
				return err
			case inOrder:
				_, err = fmt.Fprintln(cmd.OutOrStdout(), a.Node.Key)
				return err
			case dir:
				return nil
			}
			return printValue(cmd.OutOrStdout(), a.Node)
		}),
	}
	cmd.Flags().BoolVar(&dir, "dir", false, "a directory instead of a key")
	cmd.Flags().BoolVar(&inOrder, "in-order", false, "a new key in the directory KEY, behind those that are there")
	ttlFlag(cmd, &ttl)
	return cmd
}

func kvRemoveCommand() *cobra.Command {
	var dir, recursive bool
	var when kvConditions
	cmd := &cobra.Command{
		Use: "rm KEY", Short: "Remove a key or a directory", Args: cobra.ExactArgs(1),
		RunE: kvRun(func(cmd *cobra.Command, c *kvClient, args []string) error {
			query := url.Values{}
			if err := when.add(cmd, query); err != nil {
				return err
			}
			if dir {
				query.Set("dir", "true")
			}
			if recursive {
				query.Set("recursive", "true")
			}
			_, err := c.do(cmd.Context(), http.MethodDelete, cleanKey(args[0]), query, nil)
			return err
		}),
	}
	cmd.Flags().BoolVar(&dir, "dir", false, "also a directory, if it is empty")
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "also a directory, with all that is in it")
	when.flags(cmd)
	cmd.MarkFlagsMutuallyExclusive("recursive", "prev-value")
	cmd.MarkFlagsMutuallyExclusive("recursive", "prev-index")
	return cmd
}

func kvListCommand() *cobra.Command {
	var recursive, sorted, quorum bool
	cmd := &cobra.Command{
		Use:   "ls [DIRECTORY]",
		Short: "List a directory, one key a line; directories end with a slash",
		Args:  cobra.MaximumNArgs(1),
		RunE: kvRun(func(cmd *cobra.Command, c *kvClient, args []string) error {
			query := quorumQuery(quorum)
			query.Set("recursive", strconv.FormatBool(recursive))
			query.Set("sorted", strconv.FormatBool(sorted))
			a, err := c.do(cmd.Context(), http.MethodGet, cleanKey(strings.Join(args, "")), query, nil)
			if err != nil {
				return err
			}
			w := bufio.NewWriter(cmd.OutOrStdout())
			if !a.Node.Dir {
				printKeys(w, []kvNode{a.Node})
			}
			printKeys(w, a.Node.Nodes)
			return w.Flush()
		}),
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "with all that is below")
	cmd.Flags().BoolVar(&sorted, "sort", false, "in the order of the keys")
	quorumFlag(cmd, &quorum)
	return cmd
}

func printKeys(w *bufio.Writer, nodes []kvNode) {
	for _, n := range nodes {
		slash := ""
		if n.Dir {
			slash = "/"
		}
		fmt.Fprintln(w, n.Key+slash) // the writer keeps its error
		printKeys(w, n.Nodes)
	}
}

func kvWatchCommand() *cobra.Command {
	var recursive, forever bool
	var after uint64
	cmd := &cobra.Command{
		Use:   "watch KEY",
		Short: "Wait for the next change of a key, and print it",
		Long: `Waits for the next change of a key, and prints what was done and the key, as "[set] /key", and the new value, if it has one, on
the lines behind. With --forever it goes on until it is interrupted, and takes up the watch again where it was when the
daemon restarts.`,
		Args: cobra.ExactArgs(1),
		RunE: kvRun(func(cmd *cobra.Command, c *kvClient, args []string) error {
			w := kvWatch{client: c, key: cleanKey(args[0]), recursive: recursive, stream: forever, out: cmd.OutOrStdout()}
			if cmd.Flags().Changed("after-index") {
				w.next = after + 1
			}
			if !forever {
				return w.once(cmd.Context())
			}
			return w.forever(cmd.Context())
		}),
	}
	cmd.Flags().BoolVarP(&recursive, "recursive", "r", false, "also changes below the key")
	cmd.Flags().BoolVar(&forever, "forever", false, "all changes instead of the next one")
	cmd.Flags().Uint64Var(&after, "after-index", 0, "begin with the first change after this index, if the tree still knows it")
	return cmd
}

// kvWatch is a watch under way.
type kvWatch struct {
	client            *kvClient
	key               string
	recursive, stream bool
	next              uint64 // the first index that has not been seen; 0 for what comes from now on
	out               io.Writer
}

// once prints one event.
func (w *kvWatch) once(ctx context.Context) error {
	n, err := w.follow(ctx)
	if err == nil && n == 0 {
		return fmt.Errorf("the watch of %s was ended before anything changed: the daemon stops, or the tree was replaced by an import; watch again", w.key)
	}
	return err
}

// forever prints events until ctx ends. What cannot be had any more is an error, since nobody could tell what was missed.
func (w *kvWatch) forever(ctx context.Context) error {
	for pause, reached := time.Duration(0), false; ; {
		n, err := w.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if refused := new(kvError); errors.As(err, &refused) || err != nil && !reached {
			return err
		}
		if reached = true; n > 0 || err == nil {
			pause = 0
		}
		pause = min(max(2*pause, 100*time.Millisecond), 10*time.Second)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
	}
}

// follow prints the events of one request and counts them. A stream that ends is no error.
func (w *kvWatch) follow(ctx context.Context) (n int, err error) {
	query := url.Values{"wait": {"true"}, "recursive": {strconv.FormatBool(w.recursive)}, "stream": {strconv.FormatBool(w.stream)}}
	if w.next != 0 {
		query.Set("waitIndex", strconv.FormatUint(w.next, 10))
	}
	resp, err := w.client.open(ctx, http.MethodGet, w.key, query, nil)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if index, err := strconv.ParseUint(resp.Header.Get("X-Etcd-Index"), 10, 64); err == nil && w.next == 0 {
		w.next = index + 1
	}
	events := json.NewDecoder(resp.Body)
	for {
		var e kvAnswer
		if err := events.Decode(&e); err != nil {
			return n, nil // the stream has ended; whoever wants more asks again
		}
		n++
		w.next = e.Node.ModifiedIndex + 1
		text := "[" + e.Action + "] " + e.Node.Key + "\n"
		if e.Node.Value != nil {
			text += *e.Node.Value + "\n"
		}
		if _, err := io.WriteString(w.out, text); err != nil {
			return n, err
		}
	}
}

func kvExportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "export [FILE|-]",
		Short: "Write the whole key tree to a JSON document that import takes",
		Long: `Writes the whole key tree, with its indexes, times to live, history, users and roles, as one JSON document, in the form in which
an etcd keeps its v2 store. The passwords in it are hashes; guard it all the same.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			resp, err := c.send(cmd.Context(), http.MethodGet, "/stated/kv/export", nil)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			file := strings.Join(args, "")
			if file == "-" {
				file = ""
			}
			if err := writeExport(cmd.OutOrStdout(), file, resp.Body); err != nil {
				return fmt.Errorf("the export broke off: %w", err)
			}
			return nil
		},
	}
}

func kvImportCommand() *cobra.Command {
	var replace bool
	cmd := &cobra.Command{
		Use:   "import FILE|DIRECTORY|-",
		Short: "Replace the key tree by an export, or by the v2 keys of an etcd",
		Long: `Replaces keys, users and roles by those of a document that export wrote, or of an etcd: the snapshot of its v2 store
(member/snap/*.snap), its data directory after it was stopped, or a backup of that (ETCDCTL_API=2 etcdctl backup). It is done
wholly or not at all. A tree that has keys is left alone, unless --replace is given. Watches end.

Indexes and times to live stay what they were. Members are not imported.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var document []byte
			var err error
			if args[0] == "-" {
				document, err = etcdfile.ReadFrom(cmd.InOrStdin())
			} else {
				document, err = etcdfile.Read(args[0])
			}
			if err != nil {
				return fmt.Errorf("import keys: %w", err)
			}
			c, err := newClient(cmd)
			if err != nil {
				return err
			}
			var done types.KeyImport
			query := url.Values{"replace": {strconv.FormatBool(replace)}}
			if err := c.do(cmd.Context(), http.MethodPost, "/stated/kv/import?"+query.Encode(), bytes.NewReader(document), &done); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d keys and %d directories; the tree's index is %d\n", done.Keys, done.Directories, done.Index)
			return err
		},
	}
	cmd.Flags().BoolVar(&replace, "replace", false, "also when the tree has keys, users or roles, which are lost")
	return cmd
}

// kvClient speaks the key tree's API.
type kvClient struct {
	*client
	user string
}

// kvRun wraps a command: it makes the client, and turns an error of the key tree into exit code 4.
func kvRun(run func(cmd *cobra.Command, c *kvClient, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := newClient(cmd)
		if err != nil {
			return err
		}
		user, err := cmd.Flags().GetString("user")
		if err != nil {
			return err
		}
		err = run(cmd, &kvClient{client: c, user: cmp.Or(user, os.Getenv("STATED_KV_USER"))}, args)
		if refused := new(kvError); errors.As(err, &refused) {
			fmt.Fprintln(cmd.ErrOrStderr(), "stated:", err)
			return exitError(kvRefused)
		}
		return err
	}
}

// kvAnswer is an event of the API.
type kvAnswer struct {
	Action string
	Node   kvNode
}

type kvNode struct {
	Key           string
	Value         *string
	Dir           bool
	Nodes         []kvNode
	ModifiedIndex uint64
}

// do makes a request and reads the answer.
func (c *kvClient) do(ctx context.Context, method, key string, query, form url.Values) (a kvAnswer, err error) {
	resp, err := c.open(ctx, method, key, query, form)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return a, fmt.Errorf("%s: read the key tree's answer: %w", key, err)
	}
	return a, nil
}

// open makes a request. The caller closes the answer's body.
func (c *kvClient) open(ctx context.Context, method, key string, query, form url.Values) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "stated", Path: "/v2/keys" + key, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if name, password, ok := strings.Cut(c.user, ":"); ok {
		req.SetBasicAuth(name, password)
	} else if c.user != "" {
		return nil, errors.New("the user is to be given as NAME:PASSWORD")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot reach the daemon at %s: %w", key, c.addr, err)
	}
	if resp.StatusCode < http.StatusMultipleChoices {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, kvFailure(key, resp)
}

// kvFailure reads an answer that is no success.
func kvFailure(key string, resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%s: read the daemon's answer: %w", key, err)
	}
	var said struct {
		ErrorCode      int
		Message, Cause string
	}
	if json.Unmarshal(text, &said) != nil || said.Message == "" {
		return fmt.Errorf("%s: the daemon answers %s: is it a stated that serves the key tree, and is -H right?", key, resp.Status)
	}
	if said.ErrorCode == 0 {
		return fmt.Errorf("%s: the daemon answers: %s", key, said.Message)
	}
	return &kvError{Key: key, Code: said.ErrorCode, Message: said.Message, Cause: said.Cause}
}

// kvError is an error that the key tree answered with.
type kvError struct {
	Key            string
	Code           int
	Message, Cause string
}

func (e *kvError) Error() string {
	text := fmt.Sprintf("%s: %s", e.Key, e.Message)
	if e.Cause != "" && e.Cause != e.Key {
		text += " (" + e.Cause + ")"
	}
	if remedy := e.remedy(); remedy != "" {
		text += ": " + remedy
	}
	return text
}

// remedy says what the user can do.
func (e *kvError) remedy() string {
	switch e.Code {
	case kvstore.CodeKeyNotFound:
		return "\"stated kv ls -r\" lists what there is"
	case kvstore.CodeCompareFailed:
		return "it has changed since: read it again and decide anew"
	case kvstore.CodeNotFile:
		return "it is a directory: list it with \"stated kv ls\", remove it with \"stated kv rm -r\""
	case kvstore.CodeNotDir:
		return "a key cannot have keys below it: take another name, or remove the key first"
	case kvstore.CodeKeyExists:
		return "\"stated kv set\" replaces what is there"
	case kvstore.CodeRootReadOnly:
		return "name a key below it"
	case kvstore.CodeDirNotEmpty:
		return "\"stated kv rm -r\" removes it with all that is in it"
	case kvstore.CodeUnauthorized:
		return "give a user that may do it with --user NAME:PASSWORD or STATED_KV_USER"
	case kvstore.CodeHistoryCleared:
		return "events are lost: read the keys anew, and watch without --after-index"
	case kvstore.CodeRaftInternal, kvstore.CodeLeaderElection:
		return "the daemon cannot say whether it was done: read the key, and try again"
	}
	return ""
}

// cleanKey is a key as the tree has it. The server would answer other forms with a redirection.
func cleanKey(key string) string { return path.Clean("/" + key) }

func printValue(w io.Writer, n kvNode) error {
	value := ""
	if n.Value != nil {
		value = *n.Value
	}
	_, err := fmt.Fprintln(w, value)
	return err
}
