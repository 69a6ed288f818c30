package main

import "testing"

func TestParse(t *testing.T) {
	for text, want := range map[string]schedstat{
		"123 45 6\n": {ran: 123, waited: 45, turns: 6},
		"0 0 0\n":    {},
		"":           {},
	} {
		var field [64]byte
		copy(field[:], text)
		if got := parse(field[:]); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}
