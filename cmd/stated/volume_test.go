package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"stated.dev/stated/api/types"
)

// Names come from a stream that anybody may have written, or from a container: none reaches the terminal as a command.
func TestNamesOfForeignFiles(t *testing.T) {
	names := []string{"socket plain", "socket \x1b[2Jgone", "socket two\nlines", "socket ä"}
	want := []string{"socket plain\n", `"socket \x1b[2Jgone"` + "\n", `"socket two\nlines"` + "\n", "socket ä\n"}
	var imported, exported bytes.Buffer
	if err := printImport(&imported, types.VolumeImport{Volume: json.RawMessage(`{"Name":"x"}`), LeftOut: names}); err != nil {
		t.Fatal(err)
	}
	printExport(&exported, "x", types.VolumeExport{LeftOut: names})
	for _, text := range want {
		if !strings.Contains(imported.String(), "not there: "+text) || !strings.Contains(exported.String(), "left out: "+text) {
			t.Errorf("%q and %q have not %q", &imported, &exported, text)
		}
	}
}
