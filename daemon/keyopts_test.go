package daemon

import (
	"strings"
	"testing"
	"time"
)

func TestKeyLimits(t *testing.T) {
	tree, api, err := keyLimits(map[string]string{
		"max-key": "100", "max-value": "64KiB", "max-depth": "5", "history-events": "10", "history-bytes": "1m", "watch-buffer": "7",
		"max-body": "2MiB", "max-watches": "3", "max-connection-watches": "2", "request-timeout": "2s", "write-timeout": "1m",
	})
	if err != nil {
		t.Fatal(err)
	}
	if tree.MaxKey != 100 || tree.MaxValue != 64<<10 || tree.MaxDepth != 5 || tree.HistoryEvents != 10 || tree.HistoryBytes != 1<<20 || tree.WatchBuffer != 7 {
		t.Errorf("%+v", tree)
	}
	if api.MaxBody != 2<<20 || api.MaxWatches != 3 || api.MaxConnWatches != 2 || api.RequestTimeout != 2*time.Second || api.WriteTimeout != time.Minute {
		t.Errorf("%+v", api)
	}
	for _, c := range [][3]string{
		{"max-keys", "1", `kv-opts: there is no option "max-keys": use history-bytes, history-events, `},
		{"max-key", "-1", `kv-opts: max-key: "-1" is not a size up to 2GiB: use bytes, as 512 or 64KiB`},
		{"max-value", "3GiB", `kv-opts: max-value: "3GiB" is not a size`},
		{"max-depth", "0", `kv-opts: max-depth: "0" is not a number from 1 on`},
		{"max-watches", "many", `kv-opts: max-watches: "many" is not a number`},
		{"request-timeout", "7", `kv-opts: request-timeout: "7" is not a time: use a number and a unit, as 500ms or 10s`},
	} {
		if _, _, err := keyLimits(map[string]string{c[0]: c[1]}); err == nil || !strings.HasPrefix(err.Error(), c[2]) {
			t.Errorf("%s=%s: %v", c[0], c[1], err)
		}
	}
}
