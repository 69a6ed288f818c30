// Package soak keeps containers busy while their daemon is killed, and counts what they notice. STATED_SOAK=long makes
// the runs as long as the promises that they check.
package soak

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/network/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// looked and written are what the programs in the container measured; see load and writer.
type (
	looked struct {
		Lookups, FailedCount, SlowestReply int64
		Failed                             []string
	}
	written struct {
		Lines, SlowestWrite, Blocked, BlockedOver int64
	}
)

// undisturbed is the environment of a writer, as it asks for it.
const undisturbed = "GODEBUG=asyncpreemptoff=1"

// TestKill9 kills the daemon again and again, and then leaves it away for a while, under a container that writes
// 20,000 lines a second and makes 1,000 lookups a second, with connections open and new ones made all the time. Rates
// and waits are held to their bounds in the long run only, which has the host to itself.
func TestKill9(t *testing.T) {
	kills, alive, away := 20, 200*time.Millisecond, 10*time.Second
	long := os.Getenv("STATED_SOAK") == "long"
	if long {
		alive, away = 2*time.Second, time.Minute
	}
	h := scratch.Started(t)
	load, writer := filepath.Join(h.Dir, "load"), filepath.Join(h.Dir, "writer")
	scratch.Go(t, "build", "-o", load, "./load")
	scratch.Go(t, "build", "-o", writer, "./writer")
	out := filepath.Join(h.Dir, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	h.Docker("network", "create", "soak")
	h.Docker("run", "-d", "--name", "peer", "--network", "soak", "busybox", "sleep", "1000000")
	address := h.Docker("inspect", "-f", "{{.NetworkSettings.Networks.soak.IPAddress}}", "peer")
	h.Docker("run", "-d", "--name", "load", "--network", "soak", "-p", "8080:80", "-e", undisturbed,
		"-v", load+":/load:ro", "-v", writer+":/writer:ro", "-v", out+":/out",
		"busybox", "/load", "-name", "peer", "-want", address, "/writer", "-out", "/out/written.json")
	pid := h.Docker("inspect", "-f", "{{.State.Pid}}", "load")

	control := startControl(t, writer, filepath.Join(h.Dir, "control.json"))
	clients := startClients(h.Gateway()+":8080", "127.0.0.1:8080")
	var slowest, total time.Duration
	begun := time.Now()
	for range kills {
		time.Sleep(alive + rand.N(alive))
		h.Stop(syscall.SIGKILL)
		took := h.Start()
		slowest, total = max(slowest, took), total+took
	}
	time.Sleep(alive)
	h.Stop(syscall.SIGKILL)
	time.Sleep(away)
	slowest = max(slowest, h.Start())
	time.Sleep(alive)
	ran := time.Since(begun)
	clients.end()
	if now := h.Docker("inspect", "-f", "{{.State.Pid}} {{.State.Status}} {{.RestartCount}}", "load"); now != pid+" running 0" {
		t.Fatalf("the container is %s, want %s running 0", now, pid)
	}
	alone := control()
	h.Docker("stop", "load")
	var l looked
	var w written
	readJSON(t, filepath.Join(out, "report.json"), &l)
	readJSON(t, filepath.Join(out, "written.json"), &w)

	t.Logf("%d kills in %v and %v without a daemon; restart until ready: mean %v, slowest %v", kills+1, ran.Round(time.Millisecond), away, total/time.Duration(kills), slowest)
	t.Logf("%d lines, %.0f a second; the slowest write took %d µs, of which it waited for its reader at most %d µs", w.Lines, float64(w.Lines)/ran.Seconds(), w.SlowestWrite, w.Blocked)
	t.Logf("%d lookups, %.0f a second, %d failed, the slowest took %d µs", l.Lookups, float64(l.Lookups)/ran.Seconds(), l.FailedCount, l.SlowestReply)
	t.Logf("%d exchanges on open connections, %d new connections, %d failed", clients.exchanges.Load(), clients.dials.Load(), len(clients.failures))

	// A reader that waits for a processor holds up its writer on any host, so a busy machine gets what it gives.
	t.Logf("the same writes into a pipe that only cat reads took at most %d µs, of which they waited %d µs", alone.SlowestWrite, alone.Blocked)

	if w.Blocked > away.Microseconds()/10 {
		t.Errorf("a write waited %d µs, as if for the daemon", w.Blocked)
	}
	if long {
		if rate := float64(w.Lines) / ran.Seconds(); rate < 19_000 {
			t.Errorf("the container wrote %.0f lines a second only, want 20000", rate)
		}
		if limit := max(10_000, alone.Blocked); w.Blocked > limit {
			t.Errorf("%d writes waited longer than 10 ms for their reader, the longest %d µs", w.BlockedOver, w.Blocked)
		}
		if rate := float64(l.Lookups) / ran.Seconds(); rate < 900 {
			t.Errorf("the container made %.0f lookups a second only, want 1000", rate)
		}
	}
	if l.FailedCount > 0 {
		t.Errorf("%d lookups failed: %q", l.FailedCount, l.Failed)
	}
	for i, err := range clients.failures {
		if i == 5 {
			t.Errorf("and %d more", len(clients.failures)-i)
			break
		}
		t.Error(err)
	}
	checkLines(t, h.Command("logs", "load"), w.Lines)
}

// startControl starts the same writes into a pipe that is read and thrown away, on the same machine at the same time.
// What it returns ends them and says what they measured.
func startControl(t *testing.T, program, out string) func() written {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	reader := exec.Command("cat")
	reader.Stdin = r
	writer := exec.Command(program, "-out", out)
	writer.Env = append(os.Environ(), undisturbed)
	writer.Stdout, writer.Stderr = w, os.Stderr
	for _, cmd := range []*exec.Cmd{reader, writer} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() }) // if it has not ended
	}
	_, _ = r.Close(), w.Close() // the processes have their own
	return func() written {
		t.Helper()
		err := writer.Process.Signal(syscall.SIGTERM)
		if err = errors.Join(err, writer.Wait(), reader.Wait()); err != nil {
			t.Fatalf("the control: %v", err)
		}
		var result written
		readJSON(t, out, &result)
		return result
	}
}

// readJSON decodes a file.
func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkLines complains unless a command prints lines 0 to n-1, each once and in order.
func checkLines(t *testing.T, cmd *exec.Cmd, n int64) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var next, wrong int64
	sc := bufio.NewScanner(stdout)
	for sc.Scan() {
		want := fmt.Sprintf("line %d of a container that writes while the daemon dies", next)
		if sc.Text() != want {
			if wrong++; wrong < 5 {
				t.Errorf("the log has %q, want %q", sc.Text(), want)
			}
			_, _ = fmt.Sscanf(sc.Text(), "line %d", &next) // go on from there, if it is a line at all
		}
		next++
	}
	if err := cmd.Wait(); err != nil || stderr.Len() > 0 {
		t.Errorf("docker logs: %v %s", err, stderr.String())
	}
	if next != n || wrong > 0 {
		t.Errorf("the log ends at line %d of %d, %d lines were lost, repeated or mangled", next, n, wrong)
	}
}

// clients use a published port all the time.
type clients struct {
	exchanges, dials atomic.Int64
	stop             chan struct{}
	work             sync.WaitGroup

	mu       sync.Mutex // guards failures
	failures []error
}

const clientTimeout = 3 * time.Second

// startClients keeps four connections to each address busy and makes 50 new ones a second to each.
func startClients(addresses ...string) *clients {
	c := &clients{stop: make(chan struct{})}
	for _, addr := range addresses {
		for range 4 {
			c.work.Go(func() { c.keep(addr) })
		}
		c.work.Go(func() { c.dial(addr) })
	}
	return c
}

// end stops them and waits for them.
func (c *clients) end() {
	close(c.stop)
	c.work.Wait()
}

func (c *clients) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, err)
}

// keep uses one connection until the end; losing it is a failure.
func (c *clients) keep(addr string) {
	conn, err := dialRetrying(addr)
	if err != nil {
		c.fail(fmt.Errorf("first connection: %w", err))
		return
	}
	defer conn.Close()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-c.stop:
			return
		case <-tick.C:
		}
		if err := exchange(conn, n); err != nil {
			c.fail(fmt.Errorf("open connection to %s: %w", addr, err))
			return
		}
		c.exchanges.Add(1)
	}
}

// dialRetrying connects to a server that may be starting.
func dialRetrying(addr string) (net.Conn, error) {
	deadline := time.Now().Add(5 * time.Second)
	for {
		conn, err := net.DialTimeout("tcp", addr, clientTimeout)
		if err == nil {
			if err = exchange(conn, 0); err == nil {
				return conn, nil
			}
			_ = conn.Close() // it does not work
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *clients) dial(addr string) {
	first, err := dialRetrying(addr)
	if err != nil {
		c.fail(fmt.Errorf("first connection: %w", err))
		return
	}
	_ = first.Close() // it has served
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-c.stop:
			return
		case <-tick.C:
		}
		conn, err := net.DialTimeout("tcp", addr, clientTimeout)
		if err == nil {
			err = errors.Join(exchange(conn, n), conn.Close())
		}
		if err != nil {
			c.fail(fmt.Errorf("new connection to %s: %w", addr, err))
			continue
		}
		c.dials.Add(1)
	}
}

// exchange sends a few bytes and gets them back.
func exchange(conn net.Conn, n int) error {
	if err := conn.SetDeadline(time.Now().Add(clientTimeout)); err != nil {
		return err
	}
	message := fmt.Appendf(nil, "message %d\n", n)
	if _, err := conn.Write(message); err != nil {
		return err
	}
	back := make([]byte, len(message))
	if _, err := io.ReadFull(conn, back); err != nil {
		return err
	}
	if !bytes.Equal(back, message) {
		return fmt.Errorf("got %q back, not %q", back, message)
	}
	return nil
}
