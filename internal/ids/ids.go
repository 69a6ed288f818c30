// Package ids makes and resolves the 64-digit identifiers of containers, layers, networks and endpoints, and writes the shorter
// ones of clusters.
package ids

import (
	"crypto/rand"
	"encoding/hex"
	"math/big"
	"strings"
)

// Len is the number of hexadecimal digits of an identifier, ShortLen of its printed short form.
const (
	Len      = 64
	ShortLen = 12
)

// New returns a random identifier of Len lower-case hexadecimal digits. Identifiers whose short form is all
// digits are passed over, because they could be taken for a number where a name is allowed.
func New() string {
	for {
		var b [Len / 2]byte
		rand.Read(b[:])
		id := hex.EncodeToString(b[:])
		if !allDigits(id[:ShortLen]) {
			return id
		}
	}
}

// Base36 returns a number, the highest byte first, as so many digits and lower-case letters, zeros in front. The digits must
// be enough for it. Docker writes the identifiers of cluster objects and the parts of join tokens so.
func Base36(number []byte, digits int) string {
	s := new(big.Int).SetBytes(number).Text(36)
	return strings.Repeat("0", digits-len(s)) + s
}

// Short returns the first ShortLen digits of id, or id itself when it is shorter.
func Short(id string) string {
	if len(id) > ShortLen {
		return id[:ShortLen]
	}
	return id
}

// Valid reports whether s has the form of an identifier.
func Valid(s string) bool {
	if len(s) != Len {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func allDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
