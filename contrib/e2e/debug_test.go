package e2e

import (
	"net/http"
	"syscall"
	"testing"

	"stated.dev/stated/internal/testenv/scratch"
)

// TestProfiles: they show the daemon's memory, so it serves them only when it runs with -D.
func TestProfiles(t *testing.T) {
	t.Parallel()
	h := startedHost(t)
	want := func(status int) {
		t.Helper()
		for _, path := range []string{"/debug/pprof/goroutine", "/v1.51/debug/vars"} {
			answer, err := scratch.Client(h.Socket).Get("http://stated" + path)
			if err != nil {
				t.Fatal(err)
			}
			_ = answer.Body.Close() // not read
			if answer.StatusCode != status {
				t.Errorf("%s: %s", path, answer.Status)
			}
		}
	}
	want(http.StatusNotFound)
	h.Stop(syscall.SIGTERM)
	h.Flags = append(h.Flags, "-D")
	h.Start()
	want(http.StatusOK)
}
