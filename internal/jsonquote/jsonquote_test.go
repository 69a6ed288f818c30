package jsonquote_test

import (
	"encoding/json"
	"testing"

	"stated.dev/stated/internal/jsonquote"
)

var all = jsonquote.Escaping("\b\f\n\r\t")

func TestAppend(t *testing.T) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	for _, s := range []string{"", "plain", `a "quoted" \ one`, "<b>&amp;</b>", "\u2028\u2029\u2030é\U0001f600", "cut\xf0\x9f", string(every)} {
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := jsonquote.Append([]byte("before"), s, all); string(got) != "before"+string(want) {
			t.Errorf("got %s, want before%s", got, want)
		}
		if got := jsonquote.Append(nil, []byte(s), all); string(got) != string(want) {
			t.Errorf("bytes: got %s, want %s", got, want)
		}
	}
	if got := jsonquote.Append(nil, "\b\f\n\r\t\x01", jsonquote.Escaping("\n\r")); string(got) != `"\u0008\u000c\n\r\u0009\u0001"` {
		t.Errorf("with two short forms: %s", got)
	}
}

func FuzzAppend(f *testing.F) {
	f.Add("a\x00\xff\u2028<")
	f.Fuzz(func(t *testing.T, s string) {
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if got := jsonquote.Append(nil, s, all); string(got) != string(want) {
			t.Errorf("%q: got %s, want %s", s, got, want)
		}
	})
}
