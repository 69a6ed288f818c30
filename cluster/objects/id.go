package objects

import (
	"crypto/rand"
	"math/big"
	"strings"
)

// IDLen is the length of the IDs that NewID makes.
const IDLen = 25

// NewID returns a random ID of IDLen digits and lower-case letters, which stand for 128 bits.
func NewID() string {
	var b [16]byte
	rand.Read(b[:])
	s := new(big.Int).SetBytes(b[:]).Text(36)
	return strings.Repeat("0", IDLen-len(s)) + s
}
