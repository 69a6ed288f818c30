package containers

import (
	"bytes"
	"encoding/json"
	"maps"
	"strings"
	"testing"
)

func FuzzUnknownFields(f *testing.F) {
	for _, seed := range []string{`{}`, ` { "ID" : "x" , "new":{"a":[1,2,"}"]}, "n":null,"b":true,"f":-1.5e3 ,"s":"a\"b\\"}` + "\n", `{"id":1,"\u0049D":2,"é":[]}`, `[1]`, `null`} {
		f.Add([]byte(seed))
	}
	known := map[string]bool{"ID": true, "id": true}
	f.Fuzz(func(t *testing.T, doc []byte) {
		var all map[string]json.RawMessage
		if json.Unmarshal(doc, &all) != nil {
			return // only valid documents come here
		}
		want := map[string]json.RawMessage{}
		for name, value := range all {
			if !known[strings.ToLower(name)] {
				want[name] = bytes.TrimSpace(value)
			}
		}
		got := unknownFields(doc, known)
		if !maps.EqualFunc(got, want, func(a, b json.RawMessage) bool { return bytes.Equal(bytes.TrimSpace(a), b) }) {
			t.Errorf("unknown fields of %s: %s, want %s", doc, got, want)
		}
	})
}
