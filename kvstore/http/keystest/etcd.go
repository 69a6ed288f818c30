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

	"stated.dev/stated/internal/testenv/scratch"
)

// Etcd starts the original and returns where it answers.
func Etcd(t testing.TB) string {
	t.Helper()
	url, _ := StartEtcd(t, t.TempDir())
	return url
}

// StartEtcd starts the original on free ports of the loopback address, with its data in a directory. It returns where it
// answers once it has no more writes of its own to make, and what stops it, which the end of the test does otherwise.
func StartEtcd(t testing.TB, dir string, args ...string) (url string, stop func()) {
	t.Helper()
	url, peers := address(t), address(t)
	cmd := exec.Command(filepath.Join(scratch.Etcd(t), "etcd"), append([]string{"--enable-v2", "--name=default", "--data-dir=" + dir,
		"--listen-client-urls=" + url, "--advertise-client-urls=" + url, "--listen-peer-urls=" + peers, "--initial-advertise-peer-urls=" + peers,
		"--initial-cluster=default=" + peers}, args...)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it may have ended by itself
		_ = cmd.Wait()                       // its status says how it was ended
	})
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Logf("etcd said:\n%s", log.Bytes()[max(0, log.Len()-2000):])
		}
	})
	for deadline := time.Now().Add(30 * time.Second); !settled(url); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("etcd does not answer, or has not told who it is")
		}
	}
	return url, stop
}

// settled says that the server answers with an index, and has told the cluster where it is and what version that has: its
// own writes are done.
func settled(url string) bool {
	for path, part := range map[string]string{"/v2/keys": "", "/version": `"etcdcluster":"3.4.0"`, "/v2/members": url} {
		resp, err := http.Get(url + path)
		if err != nil {
			return false
		}
		var body bytes.Buffer
		_, err = body.ReadFrom(resp.Body)
		resp.Body.Close()
		index := resp.Header.Get("X-Etcd-Index")
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(body.String(), part) || path == "/v2/keys" && (index == "" || index == "0") {
			return false
		}
	}
	return true
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
