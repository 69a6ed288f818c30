package objects

import (
	"crypto/rand"

	"stated.dev/stated/internal/ids"
)

// IDLen is the length of the IDs that NewID makes.
const IDLen = 25

// NewID returns a random ID of IDLen digits and lower-case letters, which stand for 128 bits.
func NewID() string {
	var b [16]byte
	rand.Read(b[:])
	return ids.Base36(b[:], IDLen)
}
