package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestRestore ends the daemon in both ways while containers run, and starts it again.
func TestRestore(t *testing.T) {
	t.Parallel()
	for name, sig := range map[string]syscall.Signal{"killed": syscall.SIGKILL, "terminated": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) { testRestore(t, sig) })
	}
}

func testRestore(t *testing.T, sig syscall.Signal) {
	h := startedHost(t)
	shared := filepath.Join(h.Dir, "shared")
	untilTold := "until [ -e /x/go ]; do usleep 10000; done; "
	h.Docker("network", "create", "net")
	port := strconv.Itoa(20000 + h.Number)
	h.Docker("run", "-d", "--name", "counter", "busybox", "sh", "-c", `i=0; while :; do echo $i; i=$((i+1)); usleep 5000; done`)
	h.Docker("run", "-d", "--name", "server", "--network", "net", "-p", "127.0.0.1:"+port+":80", "-v", "data:/data", "busybox", "httpd", "-f", "-h", "/bin")
	h.Docker("run", "-d", "-i", "--name", "reader", "--network", "net", "busybox", "cat")
	h.Docker("run", "-d", "--name", "ends", "-v", shared+":/x", "busybox", "sh", "-c", untilTold+"exit 7")
	h.Docker("run", "-d", "--name", "comes-back", "--restart", "always", "-v", shared+":/x", "busybox", "sh", "-c", untilTold+"test -e /x/came && exec sleep 1000; touch /x/came; exit 1")
	h.Docker("run", "-d", "--name", "removed", "--rm", "-v", shared+":/x", "-v", "/anonymous", "busybox", "sh", "-c", untilTold+"exit 0")
	h.Docker("run", "-d", "--name", "frozen", "busybox", "sleep", "1000")
	h.Docker("pause", "frozen")
	h.Docker("run", "-d", "--name", "stopped", "--restart", "unless-stopped", "busybox", "sleep", "1000")
	h.Docker("stop", "-t", "0", "stopped")
	h.Docker("exec", "-d", "server", "sleep", "1234")

	inspect := func(name string) string {
		return h.Docker("inspect", "-f", "{{.State.Pid}} {{.State.StartedAt}} {{.State.Status}} {{.RestartCount}} {{json .NetworkSettings}} {{json .Mounts}}", name)
	}
	kept := []string{"counter", "server", "reader", "frozen"}
	before := map[string]string{}
	for _, name := range kept {
		before[name] = inspect(name)
	}
	ending := []string{"ends", "removed", "comes-back"}
	var pids []string
	for _, name := range ending {
		pids = append(pids, h.Docker("inspect", "-f", "{{.State.Pid}}", name))
	}

	h.Stop(sig)
	if err := os.WriteFile(filepath.Join(shared, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		h.eventually("process "+pid+" ends without a daemon", func() bool {
			_, err := os.Stat("/proc/" + pid)
			return err != nil
		})
	}
	if body := fetch(t, "busybox", "127.0.0.1:"+port); body == "" {
		t.Error("the published port does not answer while no daemon runs")
	}
	h.Start()

	for _, name := range kept {
		if after := inspect(name); after != before[name] {
			t.Errorf("%s was\n%s\nand is\n%s", name, before[name], after)
		}
	}
	h.want("exited 7 0 false", "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}} {{.State.OOMKilled}}", "ends")
	h.want("exited", "inspect", "-f", "{{.State.Status}}", "stopped")
	h.eventually("the container with a restart policy runs again", func() bool {
		return h.Docker("inspect", "-f", "{{.State.Status}}", "comes-back") == "running"
	})
	h.eventually("the container with --rm is gone", func() bool { return h.Docker("ps", "-aq", "--filter", "name=removed") == "" })
	h.want("data", "volume", "ls", "-q")
	h.fails("volume is in use", "volume", "rm", "data")

	h.want("hello", "exec", "server", "echo", "hello")
	h.want("1", "exec", "server", "sh", "-c", "ps | grep -c '[s]leep 1234'")
	h.want("ok", "exec", "reader", "sh", "-c", "wget -qO /dev/null http://server/busybox && echo ok")
	if body := fetch(t, "busybox", "127.0.0.1:"+port); body == "" {
		t.Error("the published port does not answer")
	}
	if line := h.attachedLine("reader", "line\n"); line != "line\n" {
		t.Errorf("attach prints %q", line)
	}
	h.Docker("rm", "-f", "reader")
	h.Docker("unpause", "frozen")
	h.Docker("stop", "-t", "0", "frozen")

	last := h.Docker("logs", "-n", "1", "counter")
	h.eventually("the counter goes on", func() bool { return h.Docker("logs", "-n", "1", "counter") != last })
	h.Docker("stop", "-t", "0", "counter")
	lines := strings.Fields(h.Docker("logs", "counter"))
	for i, line := range lines {
		if line != strconv.Itoa(i) {
			t.Fatalf("line %d of the log is %q", i, line)
		}
	}
	h.Docker("network", "create", "second")
	h.Docker("network", "connect", "second", "server")
	h.want("3", "exec", "server", "sh", "-c", "ip -o -4 addr | wc -l")
	h.Docker("rm", "-f", "server")
	h.Docker("network", "rm", "net", "second")
	h.Docker("volume", "rm", "data")
	if _, err := http.Get("http://127.0.0.1:" + port); err == nil { //nolint:bodyclose // there is none
		t.Error("the port of a removed container answers")
	}
}

// fetch gets a file from the web server of a container.
func fetch(t *testing.T, file, addr string) string {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://%s/%s", addr, file))
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16))
	if err != nil {
		t.Error(err)
	}
	return string(body)
}

// TestBrokenRecord damages the record of one container. It must not stop the others, and inspect says what is wrong.
func TestBrokenRecord(t *testing.T) {
	t.Parallel()
	h := startedHost(t)
	broken := h.Docker("create", "--name", "broken", "busybox")
	h.Docker("create", "--name", "whole", "busybox", "true")
	h.Stop(syscall.SIGTERM)
	if err := os.WriteFile(filepath.Join(h.Roots.Data, "containers", broken, "config.v2.json"), []byte(`{"ID":`), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Start()
	h.Docker("start", "whole")
	h.want("0", "wait", "whole")
	if text := h.Docker("inspect", "-f", "{{.State.Error}}", broken); !strings.Contains(text, "config.v2.json") {
		t.Errorf("inspect says %q", text)
	}
	h.fails("config.v2.json", "start", broken)
}

// attachedLine writes text to a container's standard input and returns the first line that it prints.
func (h host) attachedLine(name, text string) string {
	h.T.Helper()
	cmd := h.Command("attach", name)
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.T.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.T.Fatal(err)
	}
	late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() }) // ends the read
	defer late.Stop()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		h.T.Error(err)
	}
	_ = cmd.Process.Kill() // it stays attached after the end of its input
	_ = cmd.Wait()         // killed
	return line
}
