package journal

import "strings"

// Rewrite re-encodes a journal with another boot id, as if the machine had been rebooted since.
func Rewrite(data []byte, boot, other string) []byte {
	entries, _ := decode(data)
	var out []byte
	for _, e := range entries {
		e.Boot = strings.ReplaceAll(e.Boot, boot, other)
		frame, err := encode(e)
		if err != nil {
			panic(err)
		}
		out = append(out, frame...)
	}
	return out
}
