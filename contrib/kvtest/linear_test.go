package kvtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"stated.dev/stated/internal/testenv/scratch"
)

// call is what a client asked of one key.
type call struct{ op, key, value, previous string }

// reply is what it was told. A code of unanswered says that nothing was: the call took effect while it lasted, or never.
type reply struct {
	code           int
	value, removed string // of the key now, and before; "-" where there was none
}

const unanswered = -1

// absent is the state of a key that is not there. Any other is its value.
const absent = "-"

// step is what a call makes of a key, and what its client is told.
func (c call) step(state string) (next string, r reply) {
	wrote := reply{value: c.value, removed: state}
	switch {
	case c.op == "get" && state == absent, c.op != "get" && c.op != "set" && c.op != "create" && state == absent:
		return state, reply{code: 100}
	case c.op == "get":
		return state, reply{value: state, removed: absent}
	case c.op == "create" && state != absent:
		return state, reply{code: 105}
	case (c.op == "cas" || c.op == "cad") && state != c.previous:
		return state, reply{code: 101}
	case c.op == "delete", c.op == "cad":
		return absent, reply{value: "", removed: state}
	}
	return c.value, wrote
}

// keyModel is a tree of which each key is a register of its own.
var keyModel = porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, o := range history {
			key := o.Input.(call).key
			byKey[key] = append(byKey[key], o)
		}
		var parts [][]porcupine.Operation
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() []any { return []any{absent} },
	Step: func(state, input, output any) []any {
		next, r := input.(call).step(state.(string))
		switch got := output.(reply); {
		case got.code == unanswered:
			return []any{next, state}
		case got != r:
			return nil
		}
		return []any{next}
	},
}

// judge says whether a history is linearizable.
func judge(t *testing.T, history []porcupine.Operation) porcupine.CheckResult {
	t.Helper()
	return porcupine.CheckOperationsTimeout(keyModel.ToModel(), history, 30*time.Second)
}

// TestJudge: the judge lets sound histories pass and finds out unsound ones, or the tests with it say nothing.
func TestJudge(t *testing.T) {
	op := func(from, to int64, c call, r reply) porcupine.Operation {
		c.key = "k"
		return porcupine.Operation{Input: c, Output: r, Call: from, Return: to}
	}
	set := func(from, to int64, value, before string) porcupine.Operation {
		return op(from, to, call{op: "set", value: value}, reply{value: value, removed: before})
	}
	get := func(from, to int64, value string) porcupine.Operation {
		return op(from, to, call{op: "get"}, reply{value: value, removed: absent})
	}
	lost := func(from, to int64, value string) porcupine.Operation {
		return op(from, to, call{op: "set", value: value}, reply{code: unanswered})
	}
	for _, c := range []struct {
		name string
		want porcupine.CheckResult
		h    []porcupine.Operation
	}{
		{"in turn", porcupine.Ok, []porcupine.Operation{set(1, 2, "a", "-"), set(3, 4, "b", "a"), get(5, 6, "b")}},
		{"at once", porcupine.Ok, []porcupine.Operation{set(1, 9, "a", "-"), set(2, 8, "b", "a"), get(3, 7, "a")}},
		{"a stale read", porcupine.Illegal, []porcupine.Operation{set(1, 2, "a", "-"), set(3, 4, "b", "a"), get(5, 6, "a")}},
		{"a read that goes back", porcupine.Illegal, []porcupine.Operation{set(1, 2, "a", "-"), set(3, 10, "b", "a"), get(4, 5, "b"), get(6, 7, "a")}},
		{"a write that is lost", porcupine.Illegal, []porcupine.Operation{set(1, 2, "a", "-"), op(3, 4, call{op: "get"}, reply{code: 100})}},
		{"a write over another one", porcupine.Illegal, []porcupine.Operation{set(1, 2, "a", "-"), set(3, 4, "b", "-")}},
		{"two that create", porcupine.Illegal, []porcupine.Operation{
			op(1, 9, call{op: "create", value: "a"}, reply{value: "a", removed: "-"}), op(2, 8, call{op: "create", value: "b"}, reply{value: "b", removed: "-"})}},
		{"two that swap the same", porcupine.Illegal, []porcupine.Operation{set(1, 2, "a", "-"),
			op(3, 9, call{op: "cas", previous: "a", value: "b"}, reply{value: "b", removed: "a"}), op(4, 8, call{op: "cas", previous: "a", value: "c"}, reply{value: "c", removed: "a"})}},
		{"a write without an answer, done", porcupine.Ok, []porcupine.Operation{set(1, 2, "a", "-"), lost(3, 6, "b"), get(7, 8, "b")}},
		{"a write without an answer, not done", porcupine.Ok, []porcupine.Operation{set(1, 2, "a", "-"), lost(3, 6, "b"), get(7, 8, "a")}},
		{"a write that comes after a restart", porcupine.Illegal, []porcupine.Operation{set(1, 2, "a", "-"), lost(3, 6, "b"), get(7, 8, "a"), get(9, 10, "b")}},
	} {
		if got := judge(t, c.h); got != c.want {
			t.Errorf("%s: the judge says %s, want %s", c.name, got, c.want)
		}
	}
}

// history is what clients asked and were told, in the order of a common clock.
type history struct {
	h      *host
	begun  time.Time
	starts sync.RWMutex // held while clients may ask; for writing while there is no daemon
	asked  atomic.Int64

	mu   sync.Mutex // guards list and open
	list []porcupine.Operation
	open []int // in list: those without an answer, which end with the daemon's next start
	odd  []string
}

func (y *history) now() int64 { return int64(time.Since(y.begun)) }

// do makes a call and takes it down.
func (y *history) do(client int, c call) {
	method, parameters := http.MethodPut, url.Values{}
	switch c.op {
	case "get":
		method, parameters = http.MethodGet, form("quorum", "true")
	case "set":
		parameters = form("value", c.value)
	case "create":
		parameters = form("value", c.value, "prevExist", "false")
	case "cas":
		parameters = form("value", c.value, "prevValue", c.previous)
	case "cad":
		method, parameters = http.MethodDelete, form("prevValue", c.previous)
	case "delete":
		method = http.MethodDelete
	}
	o := porcupine.Operation{ClientId: client, Input: c, Call: y.now()}
	a, err := y.h.request(method, "/linear/"+c.key, parameters)
	o.Return = y.now()
	if errors.Is(err, errNotSent) || err != nil && c.op == "get" {
		return // nothing was done and nothing was learnt
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	switch {
	case err != nil:
		o.Output = reply{code: unanswered}
		y.open = append(y.open, len(y.list))
	case a.ErrorCode != 0:
		if a.ErrorCode != 100 && a.ErrorCode != 101 && a.ErrorCode != 105 {
			y.odd = append(y.odd, fmt.Sprintf("%v: %d %s (%s)", c, a.ErrorCode, a.Message, a.Cause))
		}
		o.Output = reply{code: a.ErrorCode}
	default:
		o.Output = reply{value: a.Node.value(), removed: a.PrevNode.value()}
	}
	y.list = append(y.list, o)
	y.asked.Add(1)
}

// restart kills the daemon while clients wait for their answers. What they were not answered was done before the next daemon
// served, or is never done.
func (y *history) restart() {
	y.h.Helper()
	y.h.stop(syscall.SIGKILL)
	y.starts.Lock() // when all of them have noticed
	defer y.starts.Unlock()
	y.h.start()
	y.mu.Lock()
	defer y.mu.Unlock()
	for _, i := range y.open {
		y.list[i].Return = y.now()
	}
	y.open = nil
}

// client makes calls on a few keys until all clients together have made enough. It looks before it compares, so that some of
// its comparisons hold.
func (y *history) client(number int, calls int64) {
	random := rand.New(rand.NewPCG(uint64(number), 2))
	ops := []string{"get", "get", "get", "set", "set", "create", "create", "cas", "cas", "cas", "cad", "delete"}
	for n := 0; y.asked.Load() < calls; n++ {
		y.starts.RLock()
		c := call{op: ops[random.IntN(len(ops))], key: fmt.Sprint(random.IntN(3)), value: fmt.Sprintf("%d.%d", number, n)}
		if c.op == "cas" || c.op == "cad" {
			c.previous = "none"
			if a, err := y.h.request(http.MethodGet, "/linear/"+c.key, nil); err == nil && a.Node != nil {
				c.previous = a.Node.value()
			}
		}
		y.do(number, c)
		y.starts.RUnlock()
	}
}

// TestLinearizable: what clients are told of a few keys is as if one had come after the other, without kills and with them.
func TestLinearizable(t *testing.T) {
	calls, kills := int64(900), 6
	if long() {
		calls, kills = 20_000, 200
	}
	for name, kills := range map[string]int{"without kills": 0, "with kills": kills} {
		t.Run(name, func(t *testing.T) {
			h := startedHost(t)
			y := &history{h: h, begun: time.Now()}
			var work sync.WaitGroup
			for number := range 6 {
				work.Go(func() { y.client(number, calls) })
			}
			for n := range kills {
				at := int64(n+1) * calls / int64(kills+2)
				scratch.Eventually(t, time.Minute, "clients make calls", func() bool { return y.asked.Load() >= at })
				y.restart()
			}
			work.Wait()
			for _, o := range y.odd {
				t.Error(o)
			}
			lost := 0
			for _, o := range y.list {
				if o.Output.(reply).code == unanswered {
					lost++
				}
			}
			result := judge(t, y.list)
			t.Logf("%d calls, %d of them without an answer, %d kills: %s", len(y.list), lost, kills, result)
			if result != porcupine.Ok {
				t.Errorf("the history is %s", result)
			}
			// The same with one answer that is not true: the last read that found something found something else.
			for i := len(y.list) - 1; i >= 0; i-- {
				if r := y.list[i].Output.(reply); y.list[i].Input.(call).op == "get" && r.code == 0 {
					r.value = "none"
					y.list[i].Output = r
					break
				}
			}
			if result := judge(t, y.list); result != porcupine.Illegal {
				t.Errorf("the judge calls a corrupted history %s", result)
			}
		})
	}
}
