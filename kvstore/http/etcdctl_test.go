package kvhttp_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"stated.dev/stated/internal/testenv/scratch"
	kvhttp "stated.dev/stated/kvstore/http"
	"stated.dev/stated/kvstore/http/keystest"
)

// steps are commands of etcdctl, in the order in which both servers get them. A line that begins with "then" is run when
// the watch before it waits; one that begins with "until" is such a watch, which is interrupted once it has printed as
// many lines as it says.
const steps = `
set /f 1
set /f 2
set f 3 --ttl 100
set /none 1 --swap-with-value 0
set /f 4 --swap-with-value 3
set /f 5 --swap-with-value 3
set /f 6 --swap-with-index 1
get /f
get /f --quorum
get /none
get f --sort
-o extended get /f
-o json get /f
-o extended set /g 1
-o json set /g 2
mk /m 1
mk /m 1
mk /mt 1 --ttl 100
mk --in-order /q 1
mk --in-order /q 2
-o extended mk --in-order /q 3
mkdir /d
mkdir /d
mkdir /dt --ttl 100
set /d 1
get /d
setdir /d2
setdir /d --ttl 100
setdir /d2
update /f 7
update /none 7
update /f 8 --ttl 100
updatedir /d --ttl 200
updatedir /none --ttl 200
updatedir /f --ttl 200
set /d/x 1
set /d/sub/y 2
set /d/_hidden 3
set /f/x 1
ls
ls /
ls /d
ls --sort /
ls --sort -r /
ls --sort -r -p /
ls -p --sort /d
ls --quorum --sort /d
ls /none
ls /f
rm /none
rm /f
rm /d
rm --dir /d
rmdir /d
rmdir /none
rm --with-value 9 /g
rm --with-value 2 /g
set /g 1
rm --with-index 1 /g
rm -r /d
rm --dir /d2
set /e ""
get /e
set /u "a b <c> ü"
get /u
watch /w
then set /w 1
watch -r /w2
then set /w2/x/y 1
watch --after-index 5 /f
-o json watch --after-index 5 -r /
watch /w
then rm /w
watch /w3
then mk /w3 5 --ttl 100
until 2 watch --forever /w4
then set /w4 1
then set /w4 2
until 2 exec-watch --after-index 0 --recursive /w5 -- sh -c "echo $ETCD_WATCH_ACTION $ETCD_WATCH_KEY $ETCD_WATCH_VALUE $ETCD_WATCH_MODIFIED_INDEX"
then set /w5 1
then update /w5 2
until 1 exec-watch --recursive /w6 -- sh -c "echo $ETCD_WATCH_ACTION $ETCD_WATCH_KEY $ETCD_WATCH_VALUE"
then set /w6/x 1
cluster-health
member list
--no-sync get /u
--no-sync get /none
member remove 1234
member update 1234 http://127.0.0.1:1
role list
role add r
role add r
role get r
role get none
role grant r --path /foo/* --readwrite
role grant r --path /bar --read
role grant r --path /bar --read
role revoke r --path /bar --read
role get r
user list
user get none
auth enable
auth disable
user add root:rpw
user add alice:pw
user grant --roles r alice
user grant --roles r alice
user get alice
user list
auth enable
get /u
set /foo/x 1
--username alice:pw set /foo/x 2
--username alice:pw set /other 2
--username alice:pw get /foo/x
--username alice:bad get /foo/x
user list
--username root:rpw user list
--username root:rpw role get guest
--username root:rpw role revoke guest --path /* --readwrite
get /u
ls /
ls /foo
--username alice:pw ls /
--username root:rpw user revoke --roles r alice
--username alice:pw get /foo/x
--username root:rpw user remove alice
--username root:rpw user remove none
--username root:rpw role remove r
--username root:rpw role remove none
--username root:rpw role remove root
--username root:rpw user remove root
--username root:rpw role list
--username root:rpw auth disable
auth disable
role list
`

// TestEtcdctl gives the same commands of etcdctl to the original and to this server: both print the same and end with the
// same status.
func TestEtcdctl(t *testing.T) {
	original := &console{program: filepath.Join(scratch.Etcd(t), "etcdctl"), url: keystest.Etcd(t)}
	ours := &console{program: original.program, url: serve(t, kvhttp.Options{PasswordCost: 4}).URL}
	var lines [][]string // each a command and what is run while it waits
	for line := range strings.Lines(steps) {
		line = strings.TrimSpace(line)
		if then, ok := strings.CutPrefix(line, "then "); ok {
			lines[len(lines)-1] = append(lines[len(lines)-1], then)
		} else if line != "" {
			lines = append(lines, []string{line})
		}
	}
	for _, l := range lines {
		want, got := original.run(t, l), ours.run(t, l)
		if strings.HasPrefix(l[0], "ls") && !strings.Contains(l[0], "--sort") || strings.Contains(l[0], " ls ") {
			want, got = sorted(want), sorted(got) // their order is not promised
		}
		if got != want {
			t.Errorf("etcdctl %s\n%s\nwant\n%s", strings.Join(l, "; "), got, want)
		}
	}
}

// sorted has the lines of a text in order.
func sorted(text string) string {
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

type console struct {
	program, url string
}

// words splits a command line; double quotes hold words together.
func words(line string) []string {
	var out []string
	for _, m := range regexp.MustCompile(`"([^"]*)"|(\S+)`).FindAllStringSubmatch(line, -1) {
		out = append(out, m[1]+m[2])
	}
	return out
}

func (c *console) command(ctx context.Context, line string) (*exec.Cmd, *bytes.Buffer) {
	cmd := exec.CommandContext(ctx, c.program, append([]string{"--endpoints", c.url}, words(line)...)...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=2")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	return cmd, &errs
}

// What differs between two servers and two runs.
var (
	urls  = regexp.MustCompile(`http://127\.0\.0\.1:\d+`)
	ids   = regexp.MustCompile(`\b[0-9a-f]{15,16}\b`)
	times = regexp.MustCompile(`\d{4}-\d\d-\d\dT[0-9:.]+Z`)
	lives = regexp.MustCompile(`(ttl"?: ?)\d+`)
)

func (c *console) run(t *testing.T, lines []string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	wanted := 0
	line := lines[0]
	if rest, ok := strings.CutPrefix(line, "until "); ok {
		if _, err := fmt.Sscan(rest, &wanted); err != nil {
			t.Fatal(err)
		}
		_, line, _ = strings.Cut(rest, " ")
	}
	cmd, errs := c.command(ctx, line)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, then := range lines[1:] {
		await(t, "the watch of "+line, func() bool { return c.watchers(t) == 1 })
		other, _ := c.command(ctx, then)
		if out, err := other.Output(); err != nil {
			t.Fatalf("%s: %v: %s", then, err, out)
		}
	}
	var out bytes.Buffer
	if wanted > 0 {
		one := make([]byte, 1)
		for bytes.Count(out.Bytes(), []byte("\n")) < wanted {
			if _, err := io.ReadFull(pipe, one); err != nil {
				_ = cmd.Wait() // for what it said
				t.Fatalf("%s: after %q: %v: %s", line, out.String(), err, errs)
			}
			out.Write(one)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.Copy(&out, pipe); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if len(lines) > 1 {
		await(t, "the watch to be gone", func() bool { return c.watchers(t) == 0 })
	}
	text := fmt.Sprintf("%s\nerrors: %s\nstatus %d", out.String(), errs.String(), cmd.ProcessState.ExitCode())
	text = urls.ReplaceAllString(text, "URL")
	text = ids.ReplaceAllString(text, "ID")
	text = times.ReplaceAllString(text, "TIME")
	return lives.ReplaceAllString(text, "${1}TTL")
}

func (c *console) watchers(t *testing.T) int {
	t.Helper()
	resp, err := http.Get(c.url + "/v2/stats/store")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var stats struct{ Watchers int }
	if err := json.NewDecoder(resp.Body).Decode(&stats); err != nil {
		t.Fatal(err)
	}
	return stats.Watchers
}
