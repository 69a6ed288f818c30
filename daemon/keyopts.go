package daemon

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	units "github.com/docker/go-units"

	"stated.dev/stated/kvstore"
	kvhttp "stated.dev/stated/kvstore/http"
)

// keyLimits reads the limits of the key tree that an operator sets, by their names.
func keyLimits(opts map[string]string) (tree kvstore.Options, api kvhttp.Options, err error) {
	number := func(v *int) func(string) error {
		return func(s string) error {
			n, err := strconv.ParseInt(s, 10, 32)
			if err != nil || n < 1 {
				return fmt.Errorf("%q is not a number from 1 on", s)
			}
			*v = int(n)
			return nil
		}
	}
	size := func(take func(int64), most int64) func(string) error {
		return func(s string) error {
			n, err := units.RAMInBytes(s)
			if err != nil || n < 1 || n > most {
				return fmt.Errorf("%q is not a size up to %s: use bytes, as 512 or 64KiB", s, units.BytesSize(float64(most)))
			}
			take(n)
			return nil
		}
	}
	span := func(v *time.Duration) func(string) error {
		return func(s string) error {
			d, err := time.ParseDuration(s)
			if err != nil || d <= 0 {
				return fmt.Errorf("%q is not a time: use a number and a unit, as 500ms or 10s", s)
			}
			*v = d
			return nil
		}
	}
	const most = math.MaxInt32
	known := map[string]func(string) error{
		"max-key":                size(func(n int64) { tree.MaxKey = int(n) }, most),
		"max-value":              size(func(n int64) { tree.MaxValue = int(n) }, most),
		"max-depth":              number(&tree.MaxDepth),
		"history-events":         number(&tree.HistoryEvents),
		"history-bytes":          size(func(n int64) { tree.HistoryBytes = n }, most),
		"watch-buffer":           number(&tree.WatchBuffer),
		"max-body":               size(func(n int64) { api.MaxBody = n }, most),
		"max-watches":            number(&api.MaxWatches),
		"max-connection-watches": number(&api.MaxConnWatches),
		"request-timeout":        span(&api.RequestTimeout),
		"write-timeout":          span(&api.WriteTimeout),
	}
	for _, name := range slices.Sorted(maps.Keys(opts)) {
		read := known[name]
		if read == nil {
			return tree, api, fmt.Errorf("kv-opts: there is no option %q: use %s", name, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		if err := read(opts[name]); err != nil {
			return tree, api, fmt.Errorf("kv-opts: %s: %w", name, err)
		}
	}
	return tree, api, nil
}
