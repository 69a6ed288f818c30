package kvtest

import (
	"net/http"
	"strings"
	"testing"
)

// TestLimits sets limits of the key tree, and goes up to them and beyond.
func TestLimits(t *testing.T) {
	h := newHost(t)
	h.Flags = append(h.Flags, "--kv-opt", "max-key=10,max-value=4,max-depth=3", "--kv-opt", "max-body=1KiB", "--kv-opt", "history-events=2")
	h.start()
	for _, c := range []struct {
		key, value  string
		status, err int
		cause       string
	}{
		{"/123456789", "1234", http.StatusCreated, 0, ""},
		{"/1234567890", "1", http.StatusBadRequest, 209, "key is longer than 10 bytes"},
		{"/a", "12345", http.StatusBadRequest, 209, "value is longer than 4 bytes"},
		{"/a/b/c", "1", http.StatusCreated, 0, ""},
		{"/a/b/d/e", "1", http.StatusBadRequest, 209, "key has more than 3 elements"},
		{"/a/x", strings.Repeat("x", 2000), http.StatusBadRequest, 210, ""},
	} {
		a, err := h.request(http.MethodPut, c.key, form("value", c.value))
		if err != nil || a.Status != c.status || a.ErrorCode != c.err || !strings.Contains(a.Cause, c.cause) {
			t.Errorf("%s: %+v (%v)", c.key, a, err)
		}
	}
	h.must(http.MethodPut, "/a/b/c", "value", "2")
	if a, err := h.request(http.MethodGet, "/?wait=true&waitIndex=2&recursive=true", nil); err != nil || a.ErrorCode != 401 {
		t.Errorf("the history has more than two events: %+v (%v)", a, err)
	}
	h.stop(15)
	h.Flags = append(h.Flags, "--kv-opt", "max-depth=none")
	h.refuses(`kv-opts: max-depth: "none" is not a number`)
}
