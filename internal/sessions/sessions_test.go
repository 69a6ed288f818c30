package sessions_test

import (
	"reflect"
	"testing"

	"stated.dev/stated/internal/sessions"
)

func TestNames(t *testing.T) {
	n := sessions.NewNames(7)
	a, b, c := n.Begin(), n.Begin(), n.Begin()
	if a != (sessions.Name{Client: 7, Sequence: 1, Acked: 1}) || c.Sequence != 3 || c.Acked != 1 {
		t.Errorf("%+v, %+v", a, c)
	}
	n.Finish(b)
	if d := n.Begin(); d.Acked != 1 {
		t.Errorf("the first is awaited still: %+v", d)
	}
	n.Finish(a)
	if d := n.Begin(); d.Acked != 3 || d.Sequence != 5 {
		t.Errorf("the first two are not awaited any more: %+v", d)
	}
	if x, y := sessions.NewNames(0), sessions.NewNames(0); x.Client() == 0 || x.Client() == y.Client() {
		t.Errorf("clients %d and %d", x.Client(), y.Client())
	}
}

func TestTable(t *testing.T) {
	var table sessions.Table[string]
	// want carries a command out as a machine does.
	want := func(name sessions.Name, v sessions.Verdict, result string) {
		t.Helper()
		got, is := table.Begin(name)
		if is == sessions.New {
			table.End(name, result)
			got = result
		}
		if is != v || got != result {
			t.Errorf("%+v: %q, %v", name, got, is)
		}
	}
	want(sessions.Name{Client: 1, Sequence: 1, Acked: 1}, sessions.New, "one")
	want(sessions.Name{Client: 1, Sequence: 2, Acked: 1}, sessions.New, "two")
	want(sessions.Name{Client: 1, Sequence: 1, Acked: 1}, sessions.Repeat, "one")
	want(sessions.Name{Client: 2, Sequence: 1, Acked: 1}, sessions.New, "another client's")
	want(sessions.Name{Client: 1, Sequence: 3, Acked: 2}, sessions.New, "three") // the first is not awaited any more
	want(sessions.Name{Client: 1, Sequence: 1, Acked: 1}, sessions.Late, "")
	want(sessions.Name{Client: 1, Sequence: 2, Acked: 2}, sessions.Repeat, "two")
	want(sessions.Name{}, sessions.New, "without a name")
	want(sessions.Name{}, sessions.New, "and again")

	kept := table.Clients()
	again := sessions.Load(table.Applied(), table.Clients())
	if !reflect.DeepEqual(again, table) {
		t.Errorf("%+v is loaded as %+v", table, again)
	}
	if _, v := again.Begin(sessions.Name{Client: 1, Sequence: 3, Acked: 3}); v != sessions.Repeat {
		t.Errorf("the loaded table says %v", v)
	}
	table.End(sessions.Name{Client: 1, Sequence: 9}, "nine")
	if len(kept[0].Results) != 2 {
		t.Errorf("a copy has changed: %+v", kept)
	}
}

func TestSilentClientsAreForgotten(t *testing.T) {
	var table sessions.Table[int]
	for client := uint64(1); client <= 257; client++ {
		if client == 257 { // the first one speaks once more
			table.Begin(sessions.Name{Client: 1, Sequence: 1})
		}
		name := sessions.Name{Client: client, Sequence: 5}
		if _, v := table.Begin(name); v == sessions.New {
			table.End(name, int(client))
		}
	}
	list := table.Clients()
	if len(list) != 256 || list[0].ID != 1 || list[1].ID != 3 {
		t.Errorf("%d clients, from %d and %d", len(list), list[0].ID, list[1].ID)
	}
}
