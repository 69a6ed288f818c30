package keystest

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Programs is the directory with the programs of etcd.
func Programs() (string, error) { return programs() }

// What a script of contrib/env makes is found once for all tests.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		script := filepath.Join(dir, "contrib/env/etcd.sh")
		if _, err := os.Stat(script); err == nil {
			out, err := exec.Command(script).Output()
			return strings.TrimSpace(string(out)), err
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no directory above the test has %s", filepath.Base(script))
		}
		dir = filepath.Dir(dir)
	}
})

// Etcd starts the original on free ports of the loopback address and returns where it answers.
func Etcd(t testing.TB) string {
	t.Helper()
	dir, err := Programs()
	if err != nil {
		t.Fatalf("find etcd: %v", err)
	}
	url, peers := address(t), address(t)
	cmd := exec.Command(filepath.Join(dir, "etcd"), "--enable-v2", "--name=default", "--data-dir="+t.TempDir(),
		"--listen-client-urls="+url, "--advertise-client-urls="+url, "--listen-peer-urls="+peers, "--initial-advertise-peer-urls="+peers, "--initial-cluster=default="+peers)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended by itself
		_ = cmd.Wait()                       // its status says how it was ended
		if t.Failed() {
			t.Logf("etcd said:\n%s", log.Bytes()[max(0, log.Len()-2000):])
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(url + "/v2/keys")
		if err == nil {
			resp.Body.Close()
			if index := resp.Header.Get("X-Etcd-Index"); resp.StatusCode == http.StatusOK && index != "" && index != "0" && settled(url) {
				return url
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("etcd does not answer: %v", err)
		}
	}
}

// settled says that the server has told the cluster of itself and of its version: its own writes are done.
func settled(url string) bool {
	resp, err := http.Get(url + "/version")
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		return false
	}
	return strings.Contains(body.String(), `"etcdcluster":"3.4.0"`)
}

func address(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprintf("http://%s", l.Addr())
}
