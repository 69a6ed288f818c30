// Package e2e drives a real stated with the real docker command, as users do: in a network and a mount namespace of its
// own, with busybox as the image.
package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"stated.dev/stated/internal/testenv/scratch"
	"stated.dev/stated/network/netns/netnstest"
)

func TestMain(m *testing.M) {
	netnstest.Enter()
	flag.Parse()
	if err := flag.Set("test.parallel", "2"); err != nil { // each host has a daemon and its containers
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	etc, err := scratch.AddRemapUser()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(etc) // in a temporary directory
	os.Exit(code)
}

// host is one on which docker commands are tried.
type host struct{ *scratch.Host }

// startedHost returns a host with a running daemon and the image busybox.
func startedHost(t *testing.T, flags ...string) host {
	t.Helper()
	return host{scratch.Started(t, flags...)}
}

// result is what a docker command printed and how it ended.
type result struct {
	out, err string
	code     int
}

// runCommand runs a command with text as its standard input.
func runCommand(t *testing.T, cmd *exec.Cmd, stdin string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Stdin = &stdout, &stderr, strings.NewReader(stdin)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() }) // it hangs
	defer stop()
	err := cmd.Wait()
	if ctx.Err() != nil {
		t.Errorf("%s did not end", strings.Join(cmd.Args[1:], " "))
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run runs docker and returns all about it.
func (h host) run(args ...string) result {
	h.T.Helper()
	return runCommand(h.T, h.Command(args...), "")
}

// pipe is run with text as the standard input.
func (h host) pipe(stdin string, args ...string) result {
	h.T.Helper()
	return runCommand(h.T, h.Command(args...), stdin)
}

// want runs docker and complains when it does not succeed with this output, spaces around it aside.
func (h host) want(out string, args ...string) {
	h.T.Helper()
	if r := h.run(args...); r.code != 0 || strings.TrimSpace(r.out) != out {
		h.T.Errorf("docker %q printed %q, want %q; code %d, %s", args, strings.TrimSpace(r.out), out, r.code, r.err)
	}
}

// fails runs docker, which must fail, and checks that its message holds text.
func (h host) fails(text string, args ...string) {
	h.T.Helper()
	out, err := h.Try(args...)
	if err == nil {
		h.T.Fatalf("docker %s succeeded: %s", strings.Join(args, " "), out)
	}
	if !strings.Contains(out, text) {
		h.T.Errorf("docker %s says %q, which does not hold %q", strings.Join(args, " "), out, text)
	}
}

// eventually waits until ok holds.
func (h host) eventually(what string, ok func() bool) {
	h.T.Helper()
	scratch.Eventually(h.T, 20*time.Second, what, ok)
}
