package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"stated.dev/stated/internal/testenv/scratch"
)

// side is one of the two daemons of a comparison.
type side struct {
	name, socket, dir string
	docker            string // the command
}

// startOracle starts a real dockerd, in namespaces of its own.
func startOracle(t *testing.T) side {
	t.Helper()
	s := side{name: "dockerd", dir: scratch.Dir(t), docker: scratch.Docker(t)}
	root := filepath.Join(s.dir, "root")
	if err := os.Mkdir(root, 0o711); err != nil {
		t.Fatal(err)
	}
	s.socket = scratch.StartDockerd(t, root, filepath.Join(s.dir, "log")).Socket
	return s
}

func (s side) importBusybox(t *testing.T) {
	t.Helper()
	if out, err := s.script(t.Context(), `docker import -c 'CMD ["/bin/sh"]' -c "ENV PATH=/bin" `+scratch.Busybox(t)+" busybox"); err != nil {
		t.Fatalf("import busybox: %v: %s", err, out)
	}
}

func (h host) side() side { return side{name: "stated", socket: h.Socket, dir: h.Dir, docker: h.CLI} }

// script runs a line of shell with docker in it and returns both streams together.
func (s side) script(ctx context.Context, line string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", `docker() { "$DOCKER" "$@"; }; api() { local m=$1 p=$2; shift 2; curl -s -w '%{http_code}\n' --unix-socket "$SOCKET" -X "$m" "http://d/v1.51$p" "$@"; }
`+line)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+s.socket, "SOCKET="+s.socket, "DOCKER="+s.docker, "DOCKER_CONFIG="+filepath.Join(s.dir, "cli"), "D="+s.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

var volatile = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), "DIGEST"},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "ID"},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), "SHORT"},
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?(Z|[+-]\d\d:?\d\d))?( UTC)?`), "TIME"},
	{regexp.MustCompile(`\b(About )?(a|an|\d+) (second|minute)s?( ago)?\b|Less than a second( ago)?`), "AGO"},
	{regexp.MustCompile(`\b(172|10)\.\d+\.\d+\.`), "NET."},
	{regexp.MustCompile(`\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b`), "MAC"},
	{regexp.MustCompile(`"IPPrefixLen": ?[1-9]\d*`), `"IPPrefixLen":1`},
	{regexp.MustCompile(`(NET\.\d+)/\d+`), "$1/N"},
	{regexp.MustCompile(`dstFd=/proc/thread-self/fd/\d+`), "FD"},
	{regexp.MustCompile(`/var/lib/docker/|DIR/data/`), "ROOT/"},
	{regexp.MustCompile(`/v1\.\d\d/`), "/vAPI/"},
}

// normalize replaces what differs between any two daemons.
func (s side) normalize(text string) string {
	text = strings.ReplaceAll(text, s.dir, "DIR")
	for _, v := range volatile {
		text = v.re.ReplaceAllString(text, v.by)
	}
	return text
}

// compare runs each line on both sides and complains where they print or return different things. A line that begins
// with "! " is run only for what it does.
func compare(t *testing.T, sides [2]side, lines string) {
	t.Helper()
	var list []string
	for line := range strings.Lines(lines) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			list = append(list, line)
		}
	}
	var got [2][]string
	var wg sync.WaitGroup
	for i, s := range sides {
		wg.Go(func() {
			for _, line := range list {
				out, err := s.script(t.Context(), strings.TrimPrefix(line, "! "))
				text := s.normalize(out)
				if err != nil {
					text += "[" + err.Error() + "]"
				}
				got[i] = append(got[i], text)
			}
		})
	}
	wg.Wait()
	for i, line := range list {
		if !strings.HasPrefix(line, "! ") && got[0][i] != got[1][i] {
			t.Errorf("%s\n%s: %s\n%s: %s", line, sides[0].name, got[0][i], sides[1].name, got[1][i])
		}
	}
}
