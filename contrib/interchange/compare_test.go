package interchange

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// known lists where stated's answers differ from dockerd's on purpose. The page docs/formats.md has the same list.
var known = []struct {
	path     *regexp.Regexp
	reason   string
	oneSided bool // only where one of the two says nothing
}{
	{regexp.MustCompile(`^/containers/.*\.HostConfig\.Dns(Options|Search)?$`), "a list that is null in the record is null until dockerd's next start, and empty afterwards; stated shows the record", false},
	{regexp.MustCompile(`^/containers/json.*\.Status$`), "the text holds the time that has gone by", false},
	{regexp.MustCompile(`^/networks.*\.IPAM\.Config\[\d+\]\.Gateway$`), "dockerd shows a gateway that it chose itself only after its next start", true},
	{regexp.MustCompile(`^/containers/.*Networks\.bridge\.NetworkID$`), "the id that the network bridge had when the container was last connected to it", false},
	{regexp.MustCompile(`^/networks.*<bridge>.*\.Created$`), "dockerd makes the network bridge anew at every start, with a new id", false},
}

// snapshot is everything a daemon says of its objects, by the request that asks for it.
type snapshot map[string]any

// take asks for every listing and inspects every object in them.
func (e *engine) take() snapshot {
	e.t.Helper()
	s := snapshot{}
	ask := func(path string) any {
		var v any
		e.get(path, &v)
		s[path] = v
		return v
	}
	each := func(list any, field string, inspect ...string) {
		items, _ := list.([]any)
		for _, item := range items {
			name, _ := item.(map[string]any)[field].(string)
			for _, f := range inspect {
				ask(fmt.Sprintf(f, name))
			}
		}
	}
	each(ask("/containers/json?all=1&size=1"), "Id", "/containers/%s/json?size=1", "/containers/%s/changes")
	each(ask("/images/json?all=1&digests=1"), "Id", "/images/%s/json", "/images/%s/history")
	each(ask("/networks"), "Id", "/networks/%s")
	volumes, _ := ask("/volumes").(map[string]any)
	each(volumes["Volumes"], "Name", "/volumes/%s")
	return s
}

// steady puts a word for the id of the network bridge, which is another one after every start of dockerd.
func (s snapshot) steady() snapshot {
	list, _ := s["/networks"].([]any)
	id := ""
	for _, n := range list {
		if n, ok := n.(map[string]any); ok && n["Name"] == "bridge" {
			id, _ = n["Id"].(string)
		}
	}
	if id == "" {
		return s
	}
	data, err := json.Marshal(map[string]any(s))
	if err != nil {
		panic(err) // it was decoded from JSON
	}
	var out snapshot
	if err := json.Unmarshal([]byte(strings.ReplaceAll(string(data), id, "<bridge>")), &out); err != nil {
		panic(err)
	}
	return out
}

// flatten lists the leaves of a document by path. Elements of a list are known by their name or id, so that two lists
// with the same elements agree in any order that has no meaning.
func flatten(path string, v any, out map[string]string) {
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 {
			out[path] = "{}"
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			flatten(path+"."+key, v[key], out)
		}
	case []any:
		if len(v) == 0 {
			out[path] = "[]"
		}
		for i, item := range v {
			flatten(path+"["+label(i, item)+"]", item, out)
		}
	default:
		data, err := json.Marshal(v)
		if err != nil {
			data = []byte(err.Error())
		}
		out[path] = string(data)
	}
}

func label(i int, item any) string {
	object, ok := item.(map[string]any)
	if !ok {
		return fmt.Sprint(i)
	}
	for _, key := range []string{"Path", "Destination", "Id", "Name", "PrivatePort"} {
		switch v := object[key].(type) {
		case string:
			if key != "Name" || v != "" {
				return v
			}
		case float64:
			return fmt.Sprint(v, object["Type"], object["IP"], object["PublicPort"])
		}
	}
	return fmt.Sprint(i)
}

// agree fails the test for each leaf in which the two differ and which is not known to.
func agree(t *testing.T, aName string, a snapshot, bName string, b snapshot) {
	t.Helper()
	left, right := map[string]string{}, map[string]string{}
	for path, v := range a.steady() {
		flatten(path, v, left)
	}
	for path, v := range b.steady() {
		flatten(path, v, right)
	}
	paths := map[string]bool{}
	for p := range left {
		paths[p] = true
	}
	for p := range right {
		paths[p] = true
	}
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		l, r := left[p], right[p]
		if l == r || isKnown(p, l, r) {
			continue
		}
		t.Errorf("%s\n\t%s: %s\n\t%s: %s", p, aName, orNothing(l), bName, orNothing(r))
	}
}

func isKnown(path, l, r string) bool {
	for _, k := range known {
		if k.path.MatchString(path) && (!k.oneSided || l == "" || r == "") {
			return true
		}
	}
	return false
}

func orNothing(s string) string {
	if s == "" {
		return "(nothing)"
	}
	if len(s) > 300 {
		return s[:300] + "…"
	}
	return strings.TrimSpace(s)
}
